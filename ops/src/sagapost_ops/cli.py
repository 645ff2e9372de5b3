"""The list of commands; each lives in a module of its own that is imported only when it is called."""

import errno
import importlib
import logging
import signal
from typing import Final

import rich_click as click

from sagapost_ops import errors

_COMMANDS: Final = {
    "up": ("up", "Start the whole system on this machine."),
    "down": ("down", "Stop it; nothing stays behind."),
    "restart": ("restart", "Replace services one by one without refusing a request."),
    "status": ("status", "Show every part: address, process, readiness, version."),
    "doctor": ("doctor", "Check this machine and say what to do about each fault."),
    "logs": ("logs", "Show the logs of one service or all of them."),
    "test": ("tests", "Run the test suite."),
    "demo": ("demo", "Watch one checkout from the call to the mail."),
    "saga": ("saga", "Find stuck checkouts, follow one, put it right."),
    "keys": ("keys", "Give out API keys, list them, take them back."),
    "migrate": ("migrate", "Bring the databases to their newest revision."),
    "topology": ("topology", "Declare or check the broker's exchanges and queues."),
    "outbox": ("outbox", "Show, retry or replay what the databases have to publish."),
    "dlq": ("dlq", "See why messages failed; send them again, or discard them."),
    "restored": ("restored", "Bring both databases together after one of them went back in time."),
    "retain": ("retain", "Forget what is older than it has to be kept."),
    "erase": ("erase", "Replace a customer's e-mail address everywhere; amounts stay."),
    "verify": ("verify", "Prove that no order was lost, doubled or forgotten."),
    "load": ("load", "Send checkouts at a fixed rate and measure what customers see."),
    "chaos": ("chaos", "Kill everything, again and again, under load; prove that nothing was lost."),
    "completion": ("completion", "Print what makes a shell complete these commands."),
    "bench": ("bench", "Measure the relay beside what others do."),
}
COMPLETE: Final = "_SAGAPOST_COMPLETE"
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
_INTERRUPTED: Final = 130  # as shells have it: 128 + SIGINT
_HELP: Final = """
Run and operate Sagapost, a checkout that never loses, doubles or forgets an order.

Every command takes --json for scripts. Exit codes: 0 it worked · 1 it failed · 2 wrong call, or this machine lacks
something · 3 there was nothing to work on.

\b
./sagapost up --detach   start everything (about a minute the first time)
./sagapost demo happy    watch one checkout from the call to the receipt
./sagapost verify        prove that the books agree
./sagapost down          stop everything
"""


class LazyGroup(click.RichGroup):
    """A group that lists its commands without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Give the commands in the order in which they are needed."""
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Give a stand-in with the one line that the list shows."""
        del ctx
        known = _COMMANDS.get(cmd_name)
        return None if known is None else click.RichCommand(name=cmd_name, help=known[1])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Import the module of the command that is called."""
        name, found, rest = super().resolve_command(ctx, args)
        if name in _COMMANDS:
            module = importlib.import_module(f"sagapost_ops.commands.{_COMMANDS[name][0]}")
            found = module.command
        return name, found, rest


@click.rich_config(help_config={"text_paragraph_linebreaks": "\n\n", "max_width": 100})
@click.group(cls=LazyGroup, help=_HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sagapost-ops", message="sagapost %(version)s")
def main() -> None:
    """Parse the command line."""


def run() -> int:
    """Run the command line and give its exit code; what went wrong is one sentence on standard error."""
    code = _run()
    lost = errors.lost_output()
    if lost:
        errors.show(f"the output cannot be written: {lost}")
        return errors.FailedError.exit_code
    return code


def _run() -> int:
    logging.getLogger().addHandler(logging.NullHandler())  # libraries' warnings are not for the person at the terminal
    # Whoever ends a command, what it started ends with it: SIGTERM is Ctrl-C, also for one that was started in the background, with
    # SIGINT ignored. Not an exception of its own: raised in the middle of a task it would leave asyncio with tasks that never end.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = main.main(prog_name="./sagapost", standalone_mode=False, complete_var=COMPLETE)
    except click.UsageError as exc:
        where = exc.ctx.command_path if exc.ctx else "./sagapost"
        message = exc.format_message().replace("\n\t", " ")  # click lists choices on lines of their own
        errors.show(f"{message.rstrip('.')}; see: {where} --help")
        return exc.exit_code
    except errors.CommandError as exc:
        exc.show()
        return exc.exit_code
    except click.ClickException as exc:
        errors.show(exc.format_message())
        return exc.exit_code
    except click.Abort:
        return _INTERRUPTED
    except Exception as exc:
        if isinstance(exc, OSError) and exc.errno in _NO_ROOM and exc.filename is None:
            errors.lost_output()
            errors.show(f"the output cannot be written: {exc.strerror}")
        else:  # what no command expects; Python would print its message as it is
            errors.show_unexpected(exc)
        return errors.FailedError.exit_code
    return code if isinstance(code, int) else 0


def _interrupt(_signal: int, _frame: object) -> None:
    signal.raise_signal(signal.SIGINT)
