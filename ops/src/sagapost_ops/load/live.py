"""Shows how a load is getting on while it runs; it must not take part in it."""

import asyncio
import time
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sagapost_ops.load import sending

_EVERY_S: Final = 0.25
_LINE_EVERY_S: Final = 10.0


async def show(console: Console, load: sending.Load, expected: int) -> None:
    """Draw a bar for each stage on a terminal, or print a line now and then elsewhere, until it is cancelled."""
    if not console.is_terminal:
        while True:
            await asyncio.sleep(_LINE_EVERY_S)
            console.print(line(load))
    columns = (
        TextColumn("{task.description:>9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        tasks = [bars.add_task(name, total=expected, note="") for name in ("sent", "accepted", "ended")]
        while True:
            sent, accepted, ended = _counts(load)
            total = sent if load.sent.is_set() else max(expected, sent)
            failed = sum(load.errors.values())
            for task, number, note in zip(
                tasks, (sent, accepted, ended), ("", f"{failed:,} failed calls" if failed else "", load.note), strict=True
            ):
                bars.update(task, completed=number, total=total, note=note)
            await asyncio.sleep(_EVERY_S)


def line(load: sending.Load) -> str:
    """Say in one line how far it is."""
    sent, accepted, ended = _counts(load)
    counted = f"sent {sent:,}  accepted {accepted:,}  ended {ended:,}  failed calls {sum(load.errors.values()):,}"
    return f"{time.time() - load.began_at:4.0f} s  {counted}  {load.note}".rstrip()


def _counts(load: sending.Load) -> tuple[int, int, int]:
    return len(load.courses), sum(course.outcome == "ok" for course in load.courses), sum(course.done for course in load.courses)
