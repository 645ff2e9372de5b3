"""How sagas look on a terminal, at 80 columns as well as at 140; it asks nobody."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sagapost_ops.outbox import times
from sagapost_ops.saga import advice, resources, words

WIDE: Final = 132
SHOWN: Final = 30  # rows of the history that `show` prints; a saga that was parked for days has hundreds
_AT: Final = 11
_WHO: Final = 16
_STATE: Final = 19
_EVENT: Final = 20
_WORST: Final = "bold red"
_STYLES: Final = {
    "notified": "green",
    "compensated": "green",
    "notify_failed": _WORST,
    "compensation_failed": _WORST,
    "compensating": "yellow",
}


def show_list(console: Console, found: Sequence[resources.Listed], now: datetime, *, more: bool, option: str) -> None:
    """Print a table, the newest order first, and what to do next."""
    is_wide = console.width >= WIDE
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("order", justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("age", justify="right", no_wrap=True)
    table.add_column("next", no_wrap=True)
    if is_wide:
        table.add_column("money", no_wrap=True)
        table.add_column("saga", no_wrap=True)
    table.add_column("meaning")
    gap = "\n" if console.is_terminal else "; "  # a script wants one line for each
    for one in found:
        wide = (words.money(one), one.saga_id) if is_wide else ()
        age = times.span((now - one.created_at).total_seconds())
        state = Text(one.state, style=_STYLES.get(one.state, ""))
        table.add_row(str(one.order_id), state, age, _next(one.deadline_at, now), *wide, _that_is(one, gap))
    console.print(table)
    console.print()
    if more:
        console.print("There are more; see --limit.", soft_wrap=True)
    worst = max(found, key=lambda one: (one.stuck, one.attention is not None))
    console.print(Text(f"Why, and what to do: ./sagapost saga show {worst.order_id}{option}", style="dim"), soft_wrap=True)


def show_saga(console: Console, found: resources.Saga, now: datetime, *, option: str) -> None:
    """Print head, steps, the newest rows of the history, and what can be done."""
    show_head(console, found, now)
    _show_steps(console, found)
    show_heading(console)
    hidden = max(0, len(found.history) - SHOWN)
    if hidden:
        line = f"{'…':>{_AT}}  {hidden} earlier rows: ./sagapost saga history {found.order_id}{option}"
        console.print(Text(line, style="dim"), soft_wrap=True)
    for row in found.history[hidden:]:
        show_row(console, found.created_at, row)
    console.print()
    show_advice(console, found, now, option=option)


def show_head(console: Console, found: resources.Saga, now: datetime) -> None:
    """Print what a saga is about and where it stands."""
    state = (words.state(found.state), _STYLES.get(found.state, "bold"))
    console.print(Text.assemble((f"Order {found.order_id}", "bold"), ": ", state, f" ({found.state})"), soft_wrap=True)
    console.print(Text(f"saga {found.saga_id}, version {found.version}", style="dim"), soft_wrap=True)
    console.print()
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    refunded = "nothing refunded" if not found.refunded else f"{found.refunded} refunded"
    table.add_row(" money", f"{found.captured} {found.currency} captured, {refunded}" if found.captured else "nothing charged so far")
    if found.reason:
        table.add_row(" reason", Text(words.explained(found.reason, words.REASONS)))
    if found.attention:
        table.add_row(" attention", Text(words.attention(found), style=_WORST))
    if (coming := words.next_of(found, now)) is not None:
        table.add_row(" next", Text(coming, style=_next(found.deadline_at, now).style))
    table.add_row(" begun", f"{times.clock(found.created_at)}, {times.span((now - found.created_at).total_seconds())} ago")
    if found.trace_id:
        table.add_row(" trace", found.trace_id)
    console.print(table)
    console.print()


def show_heading(console: Console) -> None:
    """Print the heading of the history."""
    _show_line(console, [Text(name, style="bold") for name in ("after", "who", "event", "state", "what happened")])


def show_row(console: Console, began: datetime, row: resources.History) -> None:
    """Print one row of the history: when, who, the state if it changed, and what; a wide terminal also has the event's name."""
    cells = [
        Text(words.since((row.at - began).total_seconds()), style="dim"),
        Text(words.who(row)),
        Text(row.event, style="dim"),
        Text(row.to if row.to != row.before else "", style=_STYLES.get(row.to, "bold")),
        Text(words.happened(row), style="dim" if row.outcome == "ignored" else ""),
    ]
    _show_line(console, cells)


def show_advice(console: Console, found: resources.Saga, now: datetime, *, option: str) -> None:
    """Print what can be done, each command on a line of its own that can be copied."""
    for said in advice.advise(found, now, option):
        console.print(Text(said.says), soft_wrap=True)
        if said.command:
            console.print(Text(f"  {said.command}", style="cyan"), soft_wrap=True)


def _show_line(console: Console, cells: Sequence[Text]) -> None:
    """Print one line of the history as a table of its own, for the next one may be written much later."""
    table = Table.grid(padding=(0, 2, 0, 0))
    after, who, event, state, what = cells
    table.add_column(width=_AT, justify="right", no_wrap=True)
    table.add_column(width=_WHO)
    if is_wide := console.width >= WIDE:
        table.add_column(width=_EVENT, no_wrap=True)
    table.add_column(width=_STATE, no_wrap=True)
    table.add_column()
    table.add_row(after, who, *((event,) if is_wide else ()), state, what)
    console.print(table)


def _show_steps(console: Console, found: resources.Saga) -> None:
    table = Table.grid(padding=(0, 2, 0, 0))
    for step in found.steps:
        took = "" if step.ms is None else f"{step.ms} ms" if step.ms < 1000 else words.since(step.ms / 1000)
        tried = "" if step.attempts is None else f"{step.attempts} {'try' if step.attempts == 1 else 'tries'}"
        style = {"failed": "red", "done": "green", "refunded": "green"}.get(step.state, "")
        table.add_row(f" {step.name}", Text(step.state, style=style), took, tried)
    console.print(table)
    console.print()


def _next(at: datetime | None, now: datetime) -> Text:
    said = words.due(at, now)
    return Text(said, style=_WORST if said.endswith("overdue") else "")


def _that_is(one: resources.Listed, gap: str) -> Text:
    said = Text(words.state(one.state))
    if one.attention:
        said.append(gap).append(f"attention: {one.attention}", style=_WORST)
    if one.stuck:
        said.append(gap).append("stuck", style=_WORST)
    return said
