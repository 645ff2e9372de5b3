"""What must be true of the books when nothing is under way: one module per kind of invariant."""
