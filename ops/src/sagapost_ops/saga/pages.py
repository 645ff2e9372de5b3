"""How sagas look on a terminal, at 80 columns as well as at 140; it asks nobody."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from sagapost_ops import screen
from sagapost_ops.outbox import times
from sagapost_ops.saga import advice, resources, words

WIDE: Final = 132
SHOWN: Final = 30  # rows of the history that `show` prints; a saga that was parked for days has hundreds
_AT: Final = 11
_WHO: Final = 16
_STATE: Final = 19
_EVENT: Final = 20
_EVENT_AT: Final = 2
_GAP: Final = 2
_LISTED: Final = ("order", "state", "age", "next")
_LISTED_WIDE: Final = ("money", "saga")
_WORST: Final = "bold red"
_STYLES: Final = {
    "notified": "green",
    "compensated": "green",
    "notify_failed": _WORST,
    "compensation_failed": _WORST,
    "compensating": "yellow",
}


def show_list(console: screen.Screen, found: Sequence[resources.Listed], now: datetime, *, more: bool, option: str) -> None:
    """Print a table, the newest order first, and what to do next."""
    is_wide = console.width >= WIDE
    columns = [screen.Column(name, right=name in {"order", "age"}, whole=True) for name in _LISTED + (_LISTED_WIDE if is_wide else ())]
    rows: list[tuple[screen.Cell, ...]] = []
    for one in found:
        wide = (words.money(one), one.saga_id) if is_wide else ()
        age = times.span((now - one.created_at).total_seconds())
        state = screen.Styled(one.state, _STYLES.get(one.state, ""))
        meaning: screen.Cell = _meaning(one) if console.is_terminal else _joined(_meaning(one))  # a script wants one line for each
        rows.append((str(one.order_id), state, age, _next(one.deadline_at, now), *wide, meaning))
    console.table((*columns, "meaning"), rows, gap=_GAP)
    console.line()
    if more:
        console.line("There are more; see --limit.")
    worst = max(found, key=lambda one: (one.stuck, one.attention is not None))
    console.line(f"Why, and what to do: ./sagapost saga show {worst.order_id}{option}", style="dim")


def show_saga(console: screen.Screen, found: resources.Saga, now: datetime, *, option: str) -> None:
    """Print head, steps, the newest rows of the history, and what can be done."""
    show_head(console, found, now)
    _show_steps(console, found)
    show_heading(console)
    hidden = max(0, len(found.history) - SHOWN)
    if hidden:
        line = f"{'…':>{_AT}}  {hidden} earlier rows: ./sagapost saga history {found.order_id}{option}"
        console.line(line, style="dim")
    for row in found.history[hidden:]:
        show_row(console, found.created_at, row)
    console.line()
    show_advice(console, found, now, option=option)


def show_head(console: screen.Screen, found: resources.Saga, now: datetime) -> None:
    """Print what a saga is about and where it stands."""
    state = screen.Styled(words.state(found.state), _STYLES.get(found.state, "bold"))
    console.line(screen.Styled(f"Order {found.order_id}", "bold"), ": ", state, f" ({found.state})")
    console.line(f"saga {found.saga_id}, version {found.version}", style="dim")
    console.line()
    refunded = "nothing refunded" if not found.refunded else f"{found.refunded} refunded"
    money = f"{found.captured} {found.currency} captured, {refunded}" if found.captured else "nothing charged so far"
    rows: list[tuple[screen.Cell, ...]] = [(" money", money)]
    if found.reason:
        rows.append((" reason", words.explained(found.reason, words.REASONS)))
    if found.attention:
        rows.append((" attention", screen.Styled(words.attention(found), _WORST)))
    if (coming := words.next_of(found, now)) is not None:
        rows.append((" next", screen.Styled(coming, _next(found.deadline_at, now).style)))
    rows.append((" begun", f"{times.clock(found.created_at)}, {times.span((now - found.created_at).total_seconds())} ago"))
    if found.trace_id:
        rows.append((" trace", found.trace_id))
    console.table((screen.Column(whole=True), ""), rows, gap=_GAP)
    console.line()


def show_heading(console: screen.Screen) -> None:
    """Print the heading of the history."""
    _show_line(console, [screen.Styled(name, "bold") for name in ("after", "who", "event", "state", "what happened")])


def show_row(console: screen.Screen, began: datetime, row: resources.History) -> None:
    """Print one row of the history: when, who, the state if it changed, and what; a wide terminal also has the event's name."""
    cells = [
        screen.Styled(words.since((row.at - began).total_seconds()), "dim"),
        screen.Styled(words.who(row), ""),
        screen.Styled(row.event, "dim"),
        screen.Styled(row.to if row.to != row.before else "", _STYLES.get(row.to, "bold")),
        screen.Styled(words.happened(row), "dim" if row.outcome == "ignored" else ""),
    ]
    _show_line(console, cells)


def show_advice(console: screen.Screen, found: resources.Saga, now: datetime, *, option: str) -> None:
    """Print what can be done, each command on a line of its own that can be copied."""
    for said in advice.advise(found, now, option):
        console.line(said.says)
        if said.command:
            console.line(f"  {said.command}", style="cyan")


def _show_line(console: screen.Screen, cells: Sequence[screen.Styled]) -> None:
    """Print one line of the history as a table of its own, for the next one may be written much later."""
    columns = (
        screen.Column(width=_AT, right=True, whole=True),
        screen.Column(width=_WHO),
        screen.Column(width=_EVENT, whole=True),
        screen.Column(width=_STATE, whole=True),
        screen.Column(),
    )
    shown = [at for at in range(len(columns)) if at != _EVENT_AT or console.width >= WIDE]
    console.table([columns[at] for at in shown], [[cells[at] for at in shown]], gap=_GAP)


def _show_steps(console: screen.Screen, found: resources.Saga) -> None:
    rows: list[tuple[screen.Cell, ...]] = []
    for step in found.steps:
        took = "" if step.ms is None else f"{step.ms} ms" if step.ms < 1000 else words.since(step.ms / 1000)
        tried = "" if step.attempts is None else f"{step.attempts} {'try' if step.attempts == 1 else 'tries'}"
        style = {"failed": "red", "done": "green", "refunded": "green"}.get(step.state, "")
        rows.append((f" {step.name}", screen.Styled(step.state, style), took, tried))
    console.table([""] * 4, rows, gap=_GAP)
    console.line()


def _next(at: datetime | None, now: datetime) -> screen.Styled:
    said = words.due(at, now)
    return screen.Styled(said, _WORST if said.endswith("overdue") else "")


def _meaning(one: resources.Listed) -> list[screen.Part]:
    said: list[screen.Part] = [words.state(one.state)]
    if one.attention:
        said.append(screen.Styled(f"attention: {one.attention}", _WORST))
    if one.stuck:
        said.append(screen.Styled("stuck", _WORST))
    return said


def _joined(meaning: list[screen.Part]) -> str:
    """Return the lines of a cell as one."""
    return "; ".join(part if isinstance(part, str) else part.text for part in meaning)
