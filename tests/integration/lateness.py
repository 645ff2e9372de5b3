"""How late this process is: what a busy machine adds to every time that a test measures."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from typing import Final

_TICK_S: Final = 0.02


class Ticker:
    """Sums by how much later than asked for its ticks came."""

    def __init__(self) -> None:
        self._late_s = 0.0
        self._due = time.monotonic()

    @property
    def late_s(self) -> float:
        """The sum so far, with what the next tick is late already."""
        return self._late_s + max(0.0, time.monotonic() - self._due)

    async def tick(self) -> None:
        """Tick for ever."""
        while True:
            self._due = time.monotonic() + _TICK_S
            await asyncio.sleep(_TICK_S)
            self._late_s += max(0.0, time.monotonic() - self._due)


@contextlib.asynccontextmanager
async def ticking() -> AsyncGenerator[Ticker]:
    """Run a ticker for as long as the block takes."""
    ticker = Ticker()
    task = asyncio.create_task(ticker.tick())
    try:
        yield ticker
    finally:
        task.cancel()
        await asyncio.wait({task})
