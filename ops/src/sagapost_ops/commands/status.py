"""`status`: what runs where, and whether it is ready."""

import rich_click as click

from sagapost_ops import reports, screen, state
from sagapost_ops.commands import options


@click.command(
    help="""Show every part of the running stack: address, process, readiness, mode, version.

    Exit code 0 when all of it is ready, 1 when a part is not, 3 when nothing runs. --prometheus prints where the metrics are, in the
    form of Prometheus's HTTP and file service discovery, and asks nobody whether it is ready.

    \b
      ./sagapost status
      ./sagapost status --json | jq '.services[] | select(.ready | not)'
      ./sagapost status --prometheus > sagapost-targets.json
    """
)
@click.option("--prometheus", is_flag=True, help="Print the addresses of the metrics for Prometheus's service discovery.")
@options.port_offset
@options.as_json
def command(*, prometheus: bool, port_offset: int, as_json: bool) -> None:
    """Print a table or the JSON of every service, or where their metrics are."""
    if prometheus:
        screen.json(reports.discovery(state.running(port_offset)))
        return
    if as_json and not state.is_supervised(state.read(state.folder(port_offset))):
        screen.json(reports.Status(services=()))
    found = state.running(port_offset)
    current = reports.status(found)
    if as_json:
        screen.json(current)
    else:
        rows = [_row(line) for line in current.services]
        screen.out().table(("service", "state", "address", "pid", "mode", "version", "metrics"), rows)
    if found.phase != "ready" or not all(line.ready for line in current.services):
        raise SystemExit(1)


def _row(line: reports.Line) -> tuple[screen.Cell, ...]:
    return (line.name, _state(line), line.url, str(line.pid or "-"), line.mode or "-", line.version, line.metrics_url or "-")


def _state(line: reports.Line) -> screen.Styled:
    return screen.Styled("ready", "green") if line.ready else screen.Styled("not ready", "bold red")
