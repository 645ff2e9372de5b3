"""One module per command: parse, call one thing, print."""
