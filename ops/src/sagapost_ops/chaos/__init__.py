"""A campaign of kill -9 over a whole stack under load, and the proof afterwards that nothing was lost, doubled or forgotten."""
