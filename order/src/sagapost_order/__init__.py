"""Orders, the catalogue and the saga."""
