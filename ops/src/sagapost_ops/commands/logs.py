"""`logs`: what the services have written, readable or raw, once or as it comes."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import rich_click as click

from sagapost_ops import errors, loglines, screen, state
from sagapost_ops.commands import options

_POLL_S: Final = 0.2
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
    places = {name: path.stat().st_size for name, path in chosen.items()}
    found = [line for name, path in chosen.items() for line in loglines.parse_all(name, _tail(path, places[name]))]
    if service is None:
        found = sorted((line for line in found if line.fields), key=lambda line: line.at)
    for line in found[len(found) - min(lines, len(found)) :]:
        _print(line, as_json=as_json)
    while follow:
        for line in _news(chosen, places):
            _print(line, as_json=as_json)
        time.sleep(_POLL_S)


def _logs(home: Path) -> dict[str, Path]:
    own = {path.parent.name: path for path in home.glob("*/server.log")}
    return own | {path.stem: path for path in (home / "logs").glob("*.log") if not path.stem.endswith(".1")}


def _tail(path: Path, end: int) -> list[str]:
    start = max(0, end - _TAIL_BYTES)
    with path.open("rb") as file:
        file.seek(start)
        lines = file.read(end - start).decode(errors="replace").splitlines()
    return lines[1:] if start else lines


def _news(logs: dict[str, Path], places: dict[str, int]) -> Iterator[loglines.Line]:
    """Give the whole lines that were added; a log that got shorter was begun anew."""
    for name, path in logs.items():
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(places[name] if places[name] <= size else 0)
            added = file.read()
        whole, newline, _ = added.rpartition(b"\n")
        places[name] = size - len(added) + len(whole) + len(newline)
        yield from (loglines.parse(name, line, "") for line in whole.decode(errors="replace").splitlines())


def _print(line: loglines.Line, *, as_json: bool) -> None:
    if as_json:
        click.echo(line.raw)
    else:
        screen.out().print(loglines.pretty(line), soft_wrap=True)
