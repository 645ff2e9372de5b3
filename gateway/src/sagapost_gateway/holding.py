"""Sends refusals late when they are many: a client over its limit that asks again at once must not spend on refusals what others need."""

import asyncio
from collections.abc import Callable
from typing import Final

import prometheus_client
from litestar import enums, types

HOLD_S: Final = 1.0  # Retry-After says at least as long
AT_ONCE: Final = 100  # refusals in a second that are sent without delay
MAX_HELD: Final = 1000
_LIMITED: Final = 429

HELD: Final = prometheus_client.Counter("sagapost_gateway_held_refusals", "Answers 429 that were sent a second late, for there were many")


class Hold:
    """Delays answers by a second, at most `MAX_HELD` at a time: a client that ignores Retry-After then asks no more than once a second."""

    def __init__(self) -> None:
        self._held = 0

    def full(self) -> bool:
        """Return whether so many are waiting that the next one is not made late."""
        return self._held >= MAX_HELD

    async def wait(self) -> None:
        """Return `HOLD_S` seconds later, or at once when it is full."""
        if self.full():
            return
        self._held += 1
        try:
            await asyncio.sleep(HOLD_S)
        finally:
            self._held -= 1


class Refusals:
    """Counts the refusals of the running second; `clock` is the event loop's."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._second_s = 0.0
        self._sent = 0
        self._hold = Hold()

    async def wait(self) -> None:
        """Return at once for the first of a second, and a second late for the others, as long as not too many are waiting."""
        now_s = self._clock()
        if now_s - self._second_s >= 1:
            self._second_s, self._sent = now_s, 0
        self._sent += 1
        if self._sent <= AT_ONCE or self._hold.full():
            return
        HELD.inc()
        await self._hold.wait()


def holding(inner: types.ASGIApp) -> types.ASGIApp:
    """Send answers 429 when the call has given its place back, late when there are many of them."""
    refusals = Refusals(lambda: asyncio.get_running_loop().time())

    async def outer(scope: types.Scope, receive: types.Receive, send: types.Send) -> None:
        kept: list[types.Message] = []

        async def told(message: types.Message) -> None:
            if kept or (message["type"] == "http.response.start" and message["status"] == _LIMITED):
                kept.append(message)
            else:
                await send(message)

        if scope["type"] != enums.ScopeType.HTTP:
            await inner(scope, receive, send)
            return
        await inner(scope, receive, told)
        if kept:
            await refusals.wait()
        for message in kept:
            await send(message)

    return outer
