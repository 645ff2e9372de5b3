"""For tests of Sagapost and of what teams build on it: servers, services as processes, waiting; knows no test."""
