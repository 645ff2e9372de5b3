"""How the commands look on a terminal; it must not know what they do."""

from collections.abc import Sequence
from typing import Final

import msgspec
import rich_click as click
from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from sagapost_ops import plan, state

_PIPE_WIDTH: Final = 180
_BOX_WIDTH: Final = 88
CURL: Final = (
    'curl -X POST http://localhost:{port}/api/checkout -H "Content-Type: application/json" -d '
    """'{{"user_id": 1, "user_email": "test@example.com", "items": [{{"product_id": 1, "quantity": 1, "price": "1299.99"}}]}}'"""
)


def out() -> Console:
    """Make the console for what a command has to say."""
    return _console(stderr=False)


def err() -> Console:
    """Make the console for how it is getting on."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH  # a pipe has no width; folding at 80 columns would break the lines for grep
    return console


def json(value: object) -> None:
    """Print a value as one JSON document."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


def box(found: state.State) -> None:
    """Print the addresses of a stack, and the call to try: on one line, with no frame at its sides, so that it can be copied."""
    ports = {service.name: service.port for service in found.services}
    user, password = plan.BROKER_USER
    each = f", each with --port-offset {found.port_offset}" if found.port_offset else ""
    rows = (
        ("page", f"http://localhost:{ports['page']}", ""),
        ("API", f"http://localhost:{ports['gateway']}/api", ""),
        ("docs", f"http://localhost:{ports['gateway']}/docs", ""),
        ("mailbox", f"http://localhost:{ports['mailbox']}", ""),
        ("RabbitMQ", f"http://localhost:{ports['rabbitmq-management']}", f"{user} / {password}"),
    )
    console = out()
    width = min(console.width, _BOX_WIDTH)
    console.print(Rule("[bold green]Sagapost is up", style="green"), width=width)
    table = Table.grid(padding=(0, 3))
    for name, url, note in rows:
        table.add_row(Text(f" {name}", style="bold"), Text(url, style="cyan"), Text(note, style="dim"))
    console.print(table)
    console.print("\n [bold]try[/]")
    console.print(Text(CURL.format(port=ports["gateway"])), soft_wrap=True)
    console.print(f"\n [dim]./sagapost demo · status · logs -f · verify · down{each}[/]")
    console.print(Rule(style="green"), width=width)


def table(columns: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> Table:
    """Make a table without lines between its rows."""
    made = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 3, 0, 0))
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made
