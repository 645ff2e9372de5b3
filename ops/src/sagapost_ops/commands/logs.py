"""`logs`: what the services have written, readable or raw, once or as it comes."""

import contextlib
import os
import time
from pathlib import Path
from typing import Final

import rich_click as click

from sagapost_ops import errors, loglines, screen, state
from sagapost_ops.commands import options
from sagapost_sandbox import logfiles

_POLL_S: Final = 0.2
_LEAVE_S: Final = 3.0  # a process notices within a second that its log was turned over
_TAIL_BYTES: Final = 4_000_000  # as much of a log as is looked at for its last lines


@click.command(
    help="""Show the logs of one service, or of all of them in the order of their time.

    Also after `down`: the logs stay until --purge or --fresh.

    \b
    ./sagapost logs                    # the last lines of every service
    ./sagapost logs payment -n 500
    ./sagapost logs order -f           # and then what comes
    ./sagapost logs --json | jq 'select(.level == "error")'
    """
)
@click.argument("service", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.option("-n", "--lines", type=click.IntRange(0), default=100, show_default=True, metavar="N", help="How many lines to begin with.")
@options.port_offset
@click.option("--json", "as_json", is_flag=True, help="Print the lines as they were written, one JSON document each.")
def command(*, service: str | None, follow: bool, lines: int, port_offset: int, as_json: bool) -> None:
    """Print the last lines, then follow."""
    home = state.folder(port_offset)
    logs = _logs(home)
    if not logs:
        raise errors.NothingMatchedError("there are no logs yet; start with: ./sagapost up --detach")
    if service is not None and service not in logs:
        raise errors.UnfitError(f"there is no service {service!r}; there are {', '.join(sorted(logs))}")
    chosen = logs if service is None else {service: logs[service]}
    followed = {name: _Followed(path) for name, path in chosen.items()}
    found = [line for name, log in followed.items() for line in loglines.parse_all(name, log.tail())]
    if service is None:
        found = sorted((line for line in found if line.fields), key=lambda line: line.at)
    for line in found[len(found) - min(lines, len(found)) :]:
        _print(line, as_json=as_json)
    while follow:
        for name, log in followed.items():
            for raw in log.news():
                _print(loglines.parse(name, raw, ""), as_json=as_json)
        time.sleep(_POLL_S)
    for log in followed.values():
        log.close()


def _logs(home: Path) -> dict[str, Path]:
    own = {path.parent.name: path for path in home.glob("*/server.log")}
    return own | {path.stem: path for path in (home / "logs").glob("*.log") if not logfiles.is_older(path)}


class _Followed:
    """One log, across its being turned over: what is still written to the old file comes before what is in the new one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb")
        self._place = self._file.seek(0, os.SEEK_END)
        self._left_at: float | None = None

    def close(self) -> None:
        """Close the log."""
        self._file.close()

    def tail(self) -> list[str]:
        """Return the last lines from before the place where `news` begins, those of the file before this one too."""
        start = max(0, self._place - _TAIL_BYTES)
        self._file.seek(start)
        lines = _lines(self._file.read(self._place - start))
        if start:
            return lines[1:]
        with contextlib.suppress(OSError), logfiles.older(self._path).open("rb") as before:
            before.seek(max(0, before.seek(0, os.SEEK_END) - _TAIL_BYTES))
            return _lines(before.read())[1:] + lines
        return lines

    def news(self) -> list[str]:
        """Return the whole lines that were added."""
        lines = self._read()
        if self._left_at is None and self._replaced():
            self._left_at = time.monotonic()
        if self._left_at is not None and time.monotonic() - self._left_at > _LEAVE_S:
            with contextlib.suppress(OSError):
                fresh = self._next().open("rb")
                lines += self._read()
                self._file.close()
                self._file, self._place, self._left_at = fresh, 0, None
                lines += self._read()
        return lines

    def _read(self) -> list[str]:
        if self._file.seek(0, os.SEEK_END) < self._place:
            self._place = 0  # it was cut
        self._file.seek(self._place)
        whole, newline, _ = self._file.read().rpartition(b"\n")
        self._place += len(whole) + len(newline)
        return _lines(whole)

    def _next(self) -> Path:
        """Return the file that came after this one; the log itself when this one is not kept any more."""
        number = 1
        while (older := logfiles.older(self._path, number)).exists():
            if os.path.samestat(older.stat(), os.fstat(self._file.fileno())):
                return logfiles.older(self._path, number - 1) if number > 1 else self._path
            number += 1
        return self._path

    def _replaced(self) -> bool:
        try:
            return not os.path.samestat(self._path.stat(), os.fstat(self._file.fileno()))
        except OSError:
            return False


def _lines(content: bytes) -> list[str]:
    """Return the lines of a log: they end with a line feed and with nothing else that Unicode takes for a line's end."""
    return content.decode(errors="replace").removesuffix("\n").split("\n") if content else []


def _print(line: loglines.Line, *, as_json: bool) -> None:
    if as_json:
        screen.raw(line.raw)
    else:
        screen.out().line(*loglines.pretty(line))
