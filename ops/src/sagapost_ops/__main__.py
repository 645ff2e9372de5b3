"""Starts the command line; everything else is a command."""

import importlib
import signal


def main() -> int:
    """Run the command line. Ctrl-C while it is imported ends the process without a traceback; cli.run sets its own handler."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    run = importlib.import_module("sagapost_ops.cli").run
    return int(run())


if __name__ == "__main__":
    raise SystemExit(main())
