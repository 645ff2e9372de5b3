"""Shows how a load is getting on while it runs; it must not take part in it."""

import asyncio
import time
from typing import Final

from sagapost_ops import screen
from sagapost_ops.load import sending

_EVERY_S: Final = 0.25
_LINE_EVERY_S: Final = 10.0


async def show(console: screen.Screen, load: sending.Load, expected: int) -> None:
    """Draw a bar for each stage on a terminal, or print a line now and then elsewhere, until it is cancelled."""
    if not console.is_terminal:
        while True:
            await asyncio.sleep(_LINE_EVERY_S)
            console.line(line(load))
    with console.bars() as add_bar:
        bars = [add_bar(f"{name:>9}", expected) for name in ("sent", "accepted", "ended")]
        while True:
            sent, accepted, ended = _counts(load)
            total = sent if load.sent.is_set() else max(expected, sent)
            failed = sum(load.errors.values())
            notes = ("", f"{failed:,} failed calls" if failed else "", load.note)
            for bar, number, note in zip(bars, (sent, accepted, ended), notes, strict=True):
                bar.update(completed=number, total=total, note=note)
            await asyncio.sleep(_EVERY_S)


def line(load: sending.Load) -> str:
    """Say in one line how far it is."""
    sent, accepted, ended = _counts(load)
    counted = f"sent {sent:,}  accepted {accepted:,}  ended {ended:,}  failed calls {sum(load.errors.values()):,}"
    return f"{time.time() - load.began_at:4.0f} s  {counted}  {load.note}".rstrip()


def _counts(load: sending.Load) -> tuple[int, int, int]:
    return len(load.courses), sum(course.outcome == "ok" for course in load.courses), sum(course.done for course in load.courses)
