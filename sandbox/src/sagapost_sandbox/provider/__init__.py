"""A payment provider for development and tests: keeps its own books on disk, and misbehaves in every way a real one may."""
