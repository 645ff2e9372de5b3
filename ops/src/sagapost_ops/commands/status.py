"""`status`: what runs where, and whether it is ready."""

import rich_click as click
from rich.text import Text

from sagapost_ops import reports, screen, state
from sagapost_ops.commands import options


@click.command(
    help="""Show every part of the running stack: address, process, readiness, mode, version.

    Exit code 0 when all of it is ready, 1 when a part is not, 3 when nothing runs.

    \b
      ./sagapost status
      ./sagapost status --json | jq -r '.services[] | select(.ready | not) | .name'
    """
)
@options.port_offset
@options.as_json
def command(*, port_offset: int, as_json: bool) -> None:
    """Print a table or the JSON of every service."""
    if as_json and not state.is_supervised(state.read(state.folder(port_offset))):
        screen.json(reports.Status(services=()))
    found = state.running(port_offset)
    current = reports.status(found)
    if as_json:
        screen.json(current)
    else:
        rows = [(line.name, _state(line), line.url, str(line.pid or "-"), line.mode or "-", line.version) for line in current.services]
        screen.out().print(screen.table(("service", "state", "address", "pid", "mode", "version"), rows))
    if found.phase != "ready" or not all(line.ready for line in current.services):
        raise SystemExit(1)


def _state(line: reports.Line) -> Text:
    return Text("ready", style="green") if line.ready else Text("not ready", style="bold red")
