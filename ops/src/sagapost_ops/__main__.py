"""Starts the command line; everything else is a command."""

from sagapost_ops import cli

if __name__ == "__main__":
    raise SystemExit(cli.run())
