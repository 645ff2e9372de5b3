"""What a command can end with, as exit codes; each message is one sentence that says what to do.

CommandError
├── FailedError          1   it was tried, and it did not work or does not hold
├── UnfitError           2   this machine lacks something, or the call is wrong
└── NothingMatchedError  3   there was nothing to work on
"""

import os
import sys
import traceback
from collections.abc import Sequence

import rich_click as click

from sagapost_chassis import escaping


class CommandError(click.ClickException):
    """Base of every expected end of a command other than success; `more`: further lines, the end of a log for instance."""

    def __init__(self, message: str, more: Sequence[str] = ()) -> None:
        super().__init__("\n".join((message, *more)))
        self._lines = (message, more)

    def show(self, file: object = None) -> None:
        """Print the sentence, without a frame around it, on standard error."""
        del file
        show(*self._lines)


class FailedError(CommandError):
    """It was tried, and it did not work or does not hold."""

    exit_code = 1


class UnfitError(CommandError):
    """Something is missing on this machine, or the call is wrong."""

    exit_code = 2


class NothingMatchedError(CommandError):
    """There was nothing to work on."""

    exit_code = 3


def of_all(faults: Sequence[str]) -> UnfitError:
    """Return the error of several faults, each on a line of its own."""
    return UnfitError(faults[0], faults[1:])


def of_failure(failure: str) -> FailedError:
    """Return the error of a failure whose further lines are the end of a log."""
    sentence, *log = failure.split("\n")
    return FailedError(sentence, [one.strip() for one in log])


def show(sentence: str, more: Sequence[str] = ()) -> None:
    """Print why a command ends, on standard error; what a server or a message put into the sentence is escaped."""
    click.echo(escaping.line(f"sagapost: {sentence}"), err=True)
    for one in more:
        click.echo(escaping.line(f"  {one}"), err=True)


def show_unexpected(exc: BaseException) -> None:
    """Print the traceback of an error that no command expects, as Python does, with what its message holds escaped."""
    for one in "".join(traceback.format_exception(exc)).rstrip("\n").split("\n"):
        click.echo(escaping.line(one), err=True)


def lost_output() -> str:
    """Return why what was printed could not be written; what waits for standard output is then dropped, or Python would fail at its end."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return ""
    except OSError as exc:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        return exc.strerror or str(exc)
    return ""
