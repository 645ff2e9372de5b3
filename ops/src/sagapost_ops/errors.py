"""What a command can end with, as exit codes; each message is one sentence that says what to do.

CommandError
├── FailedError          1   it was tried, and it did not work or does not hold
├── UnfitError           2   this machine lacks something, or the call is wrong
└── NothingMatchedError  3   there was nothing to work on
"""

import rich_click as click


class CommandError(click.ClickException):
    """Base of every expected end of a command other than success."""

    def show(self, file: object = None) -> None:
        """Print the sentence, without a frame around it, on standard error."""
        del file
        click.echo(f"sagapost: {self.message}", err=True)


class FailedError(CommandError):
    """It was tried, and it did not work or does not hold."""

    exit_code = 1


class UnfitError(CommandError):
    """Something is missing on this machine, or the call is wrong."""

    exit_code = 2


class NothingMatchedError(CommandError):
    """There was nothing to work on."""

    exit_code = 3
