"""How many may be served at once: a bounded number of turns, a short queue for them, and no more; it must not know for what."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

import prometheus_client

from sagapost_gateway import errors

WAIT_S: Final = 0.5  # the queue's length keeps waiting short; this is for an order service that has become slow
DETAIL: Final = "Nothing was done. Try again in a second."

SHED: Final = prometheus_client.Counter("sagapost_gateway_shed", "Requests refused because too many others were being served", ["where"])


class Gate:
    """Gives `turns` at once; at most `queued` wait for one, each at most `wait_s` seconds, in the order in which they came."""

    def __init__(self, turns: int, queued: int, wait_s: float = WAIT_S) -> None:
        self._turns = asyncio.Semaphore(turns)
        self._places = turns + queued
        self._taken = 0  # by who has a turn, or waits for one: counted alone, who waits may have got its turn and not know it yet
        self._wait_s = wait_s

    def full(self) -> bool:
        """Whether whoever comes now is refused: to be asked before any work is done for a request."""
        return self._taken >= self._places

    @asynccontextmanager
    async def turn(self) -> AsyncGenerator[None]:
        """Hold a turn for the block.

        Raises:
            OverloadedError: the queue is full, or no turn became free in time.

        """
        if self.full():
            SHED.labels("gate").inc()
            raise errors.OverloadedError("the queue is full")
        self._taken += 1
        try:
            await self._wait()
            try:
                yield
            finally:
                self._turns.release()
        finally:
            self._taken -= 1

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(self._wait_s):
                await self._turns.acquire()
        except TimeoutError as exc:
            SHED.labels("queue").inc()
            raise errors.OverloadedError(f"no turn within {self._wait_s:g} s") from exc
