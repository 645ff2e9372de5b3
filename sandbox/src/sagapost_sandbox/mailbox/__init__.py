"""A mail server for development and tests: takes every mail, keeps it on disk, shows it, and misbehaves when asked to."""
