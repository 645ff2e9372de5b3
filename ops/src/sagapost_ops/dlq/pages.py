"""How dead letters look on a terminal, harmless whatever they hold; it asks no broker."""

from typing import Final

import msgspec

from sagapost_chassis import escaping
from sagapost_ops import screen
from sagapost_ops.dlq import discard, letters, queries, replay
from sagapost_ops.outbox import times

_MESSAGE_LENGTH: Final = 120


def show_list(console: screen.Screen, lines: list[tuple[str, int, letters.Letter | None, letters.Group | None]]) -> None:
    """Print one line a queue: its depth, its oldest letter's time and the cause of most."""
    rows = [
        (
            queue,
            screen.Styled(f"{depth:,}", "bold red" if depth else "green"),
            "" if oldest is None or oldest.failed_at is None else times.clock(oldest.failed_at),
            "" if top is None else _short(f"{top.count:,} x {top.fingerprint}"),
        )
        for queue, depth, oldest, top in lines
    ]
    console.table(("queue", "letters", "oldest since", "top failure"), rows)


def show_groups(console: screen.Screen, found: list[letters.Group]) -> None:
    """Print each cause in three lines."""
    for group in found:
        console.line(
            screen.Styled(f"{group.count:,} x ", "bold red"),
            screen.Styled(_short(group.fingerprint), "bold"),
            f"  {group.queue}  replayed {_times(group.replayed)}",
        )
        console.line(f"  {_short(group.exception)}: {_short(group.message)}")
        if group.first_seen and group.last_seen:
            console.line(f"  {times.clock(group.first_seen)} to {times.clock(group.last_seen)}", style="dim")


def show_letter(console: screen.Screen, letter: letters.Letter) -> None:
    """Print one letter with properties, headers and body."""
    console.line(screen.Styled(letter.id, "bold"), f"  {letter.type or 'no type'}")
    for fault in letter.faults:
        console.line(f"  cannot be read by the services: {fault}", style="bold red")
    console.line(f"  {_short(letter.exception)}: {_short(letter.message)}", style="red")
    for name, value in {**letter.properties.values, **letter.properties.headers}.items():
        console.line(f"  {name}: {_plain(value)}", style="dim")
    console.block(_body(letter.delivery.body))
    console.line()


def show_choice(console: screen.Screen, queue: str, found: list[letters.Group], verb: str) -> None:
    """Print what is meant, by cause."""
    total = sum(group.count for group in found)
    console.line(f"{queue}: {letters_of(total)} to {verb}", style="bold")
    rows = [(f"  {group.count:,}", _short(group.fingerprint), _short(group.message), _times(group.replayed)) for group in found]
    console.table(("  letters", "cause", "message", "replayed"), rows)


def show_left(console: screen.Screen, over_max: int, unreadable: int, max_replays: int) -> None:
    """Print which letters stay, and what can be done about them."""
    if over_max:
        console.line(f"  {letters_of(over_max)} stay: replayed {_times(max_replays)} or more already; see --max-replays", style="yellow")
    if unreadable:
        console.line(f"  {letters_of(unreadable)} stay: no service could read them; see dlq export and dlq discard", style="yellow")


def show_broken_off(console: screen.Screen, before: queries.BrokenOff) -> None:
    """Print that an earlier run was killed."""
    if before.runs:
        console.line(
            f"An earlier run was killed; of {letters_of(before.letters)} nobody knows whether they were moved. "
            "What is still here is taken again; order and payment ignore what they have processed.",
            style="yellow",
        )


def show_replayed(console: screen.Screen, done: replay.Result) -> None:
    """Print what a replay did."""
    if done.stopped:
        console.line(f"Stopped: {done.stopped_why}.", style="bold red")
    style = "bold red" if done.failed_again else "bold green"
    console.line(f"{done.queue}: {letters_of(done.replayed)} replayed, {done.failed_again:,} failed again", style=style)
    if done.unsettled:
        console.line(f"  {done.unsettled:,} not processed yet: under way, waiting for a retry, or the consumer is down")
    if done.not_reached:
        console.line(f"  {letters_of(done.not_reached)} of the choice are still dead letters")
    console.line(f"  replay {done.replay_id}; the record is in the order database, tables dlq_runs and dlq_letters", style="dim")


def show_discarded(console: screen.Screen, done: discard.Result) -> None:
    """Print what a discard did."""
    console.line(f"{done.queue}: {letters_of(done.discarded)} discarded", style="bold green")
    if done.exported_to:
        console.line(f"  kept in {done.exported_to}")
    console.line(f"  run {done.run_id}; the record is in the order database, tables dlq_runs and dlq_letters", style="dim")


def letters_of(number: int) -> str:
    """Write a number of letters."""
    return f"{number:,} {'letter' if number == 1 else 'letters'}"


def _times(number: int) -> str:
    return "never" if not number else "once" if number == 1 else f"{number:,} times"


def _short(text: str) -> str:
    line = escaping.line(text)
    return line if len(line) <= _MESSAGE_LENGTH else line[: _MESSAGE_LENGTH - 1] + "…"


def _plain(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _body(raw: bytes) -> str:
    try:
        return msgspec.json.format(raw, indent=2).decode()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return raw.decode(errors="backslashreplace")
