"""One load from its first arrival to its last saga's end: sends, watches, shows, gives up in time."""

import asyncio
import contextlib
import signal
from collections.abc import Generator, Iterator
from typing import NamedTuple

from sagapost_ops import screen
from sagapost_ops.load import live, planning, sending, watching


class Wanted(NamedTuple):
    """What is to be sent; `settle_s` seconds after the last arrival what is still unknown or under way stays so."""

    planned: Iterator[planning.Checkout]
    rate_per_s: float
    expected: int
    settle_s: float


async def hold(load: sending.Load, wanted: Wanted, console: screen.Screen) -> None:
    """Run a load."""
    showing = asyncio.create_task(live.show(console, load, wanted.expected))
    ending = asyncio.create_task(_give_up(load, wanted.settle_s))
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(load.run(wanted.planned))
            group.create_task(watching.Watch(load, wanted.rate_per_s).run())
    finally:
        for task in (showing, ending):
            task.cancel()
        await asyncio.gather(showing, ending, return_exceptions=True)


async def _give_up(load: sending.Load, settle_s: float) -> None:
    await load.sent.wait()
    await asyncio.sleep(settle_s)
    load.give_up.set()


@contextlib.contextmanager
def interruptible(load: sending.Load) -> Generator[None]:
    """Let the first Ctrl-C end the load in order; the second one ends it as usual."""
    loop = asyncio.get_running_loop()

    def end() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        load.stop.set()
        load.give_up.set()

    loop.add_signal_handler(signal.SIGINT, end)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
