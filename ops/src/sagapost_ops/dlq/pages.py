"""How dead letters look on a terminal, harmless whatever they hold; it asks no broker."""

from typing import Final

import msgspec
from rich.console import Console
from rich.text import Text

from sagapost_ops import screen
from sagapost_ops.dlq import discard, letters, queries, replay
from sagapost_ops.outbox import times

_MESSAGE_LENGTH: Final = 120


def show_list(console: Console, lines: list[tuple[str, int, letters.Letter | None, letters.Group | None]]) -> None:
    """Print one line a queue: its depth, its oldest letter's time and the cause of most."""
    rows = [
        (
            queue,
            Text(f"{depth:,}", style="bold red" if depth else "green"),
            "" if oldest is None or oldest.failed_at is None else times.clock(oldest.failed_at),
            "" if top is None else _short(f"{top.count:,} x {top.fingerprint}"),
        )
        for queue, depth, oldest, top in lines
    ]
    console.print(screen.table(("queue", "letters", "oldest since", "top failure"), rows))


def show_groups(console: Console, found: list[letters.Group]) -> None:
    """Print each cause in three lines."""
    for group in found:
        console.print(
            Text.assemble(
                (f"{group.count:,} x ", "bold red"),
                (_short(group.fingerprint), "bold"),
                f"  {group.queue}  replayed {_times(group.replayed)}",
            ),
            soft_wrap=True,
        )
        console.print(Text(f"  {_short(group.exception)}: {_short(group.message)}"), soft_wrap=True)
        if group.first_seen and group.last_seen:
            console.print(Text(f"  {times.clock(group.first_seen)} to {times.clock(group.last_seen)}", style="dim"), soft_wrap=True)


def show_letter(console: Console, letter: letters.Letter) -> None:
    """Print one letter with properties, headers and body."""
    console.print(Text.assemble((letters.safe(letter.id), "bold"), f"  {letters.safe(letter.type) or 'no type'}"), soft_wrap=True)
    for fault in letter.faults:
        console.print(Text(f"  cannot be read by the services: {fault}", style="bold red"), soft_wrap=True)
    console.print(Text(f"  {_short(letter.exception)}: {_short(letter.message)}", style="red"), soft_wrap=True)
    for name, value in {**letter.properties.values, **letter.properties.headers}.items():
        console.print(Text(f"  {_line(name)}: {_line(_plain(value))}", style="dim"), soft_wrap=True)
    console.print(Text(letters.safe(_body(letter.delivery.body))), soft_wrap=True)
    console.print()


def show_choice(console: Console, queue: str, found: list[letters.Group], verb: str) -> None:
    """Print what is meant, by cause."""
    total = sum(group.count for group in found)
    console.print(Text(f"{queue}: {letters_of(total)} to {verb}", style="bold"), soft_wrap=True)
    rows = [(f"  {group.count:,}", _short(group.fingerprint), _short(group.message), _times(group.replayed)) for group in found]
    console.print(screen.table(("  letters", "cause", "message", "replayed"), rows))


def show_left(console: Console, over_max: int, unreadable: int, max_replays: int) -> None:
    """Print which letters stay, and what can be done about them."""
    if over_max:
        console.print(
            Text(f"  {letters_of(over_max)} stay: replayed {_times(max_replays)} or more already; see --max-replays", style="yellow")
        )
    if unreadable:
        console.print(Text(f"  {letters_of(unreadable)} stay: no service could read them; see dlq export and dlq discard", style="yellow"))


def show_broken_off(console: Console, before: queries.BrokenOff) -> None:
    """Print that an earlier run was killed."""
    if before.runs:
        console.print(
            Text(
                f"An earlier run was killed; of {letters_of(before.letters)} nobody knows whether they were moved. "
                "What is still here is taken again; order and payment ignore what they have processed.",
                style="yellow",
            ),
            soft_wrap=True,
        )


def show_replayed(console: Console, done: replay.Result) -> None:
    """Print what a replay did."""
    if done.stopped:
        console.print(Text(f"Stopped: {done.stopped_why}.", style="bold red"), soft_wrap=True)
    style = "bold red" if done.failed_again else "bold green"
    console.print(
        Text(f"{done.queue}: {letters_of(done.replayed)} replayed, {done.failed_again:,} failed again", style=style), soft_wrap=True
    )
    if done.unsettled:
        console.print(f"  {done.unsettled:,} not processed yet: under way, waiting for a retry, or the consumer is down")
    if done.not_reached:
        console.print(f"  {letters_of(done.not_reached)} of the choice are still dead letters")
    console.print(Text(f"  replay {done.replay_id}; the record is in the order database, tables dlq_runs and dlq_letters", style="dim"))


def show_discarded(console: Console, done: discard.Result) -> None:
    """Print what a discard did."""
    console.print(Text(f"{done.queue}: {letters_of(done.discarded)} discarded", style="bold green"), soft_wrap=True)
    if done.exported_to:
        console.print(f"  kept in {done.exported_to}", markup=False)
    console.print(Text(f"  run {done.run_id}; the record is in the order database, tables dlq_runs and dlq_letters", style="dim"))


def letters_of(number: int) -> str:
    """Write a number of letters."""
    return f"{number:,} {'letter' if number == 1 else 'letters'}"


def _times(number: int) -> str:
    return "never" if not number else "once" if number == 1 else f"{number:,} times"


def _line(text: str) -> str:
    return letters.safe(text).replace("\n", "\\n")


def _short(text: str) -> str:
    line = _line(text)
    return line if len(line) <= _MESSAGE_LENGTH else line[: _MESSAGE_LENGTH - 1] + "…"


def _plain(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _body(raw: bytes) -> str:
    try:
        return msgspec.json.format(raw, indent=2).decode()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return raw.decode(errors="backslashreplace")
