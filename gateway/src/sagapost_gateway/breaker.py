"""A circuit breaker: counts what goes wrong with something, keeps callers away while it does, and asks by itself when it is over."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

import prometheus_client

from sagapost_chassis import telemetry
from sagapost_gateway import errors

FAILURES: Final = 5
PROBE_S: Final = 0.5
_WINDOW: Final = 10  # times the failures in a row: as many calls are looked back at, and half of them may fail

OPEN: Final = prometheus_client.Gauge("sagapost_gateway_circuit_open", "1 while no call goes to the order service, 0 otherwise")


class Breaker:
    """Opens after `failures` in a row, or when half of the last calls failed; `run` closes it again.

    While it is open nothing is tried with a caller's request: `probe` is. After it has closed, and until something succeeds, one failure
    is enough to open it again.
    """

    def __init__(self, failures: int = FAILURES) -> None:
        self._failures = failures
        self._in_a_row = 0
        self._window: deque[bool] = deque(maxlen=failures * _WINDOW)
        self._closed = asyncio.Event()
        self._closed.set()
        OPEN.set(0)

    @property
    def is_open(self) -> bool:
        """Whether nothing may be called."""
        return not self._closed.is_set()

    def check(self) -> None:
        """Let a caller pass.

        Raises:
            CircuitOpenError: nothing may be called.

        """
        if self.is_open:
            raise errors.CircuitOpenError("the order service failed lately")

    def succeeded(self) -> None:
        """Note a call that was answered."""
        self._in_a_row = 0
        self._window.append(True)

    def failed(self) -> None:
        """Note a call that failed."""
        self._in_a_row += 1
        self._window.append(False)
        half = len(self._window) == self._window.maxlen and 2 * self._window.count(False) >= len(self._window)
        if not self.is_open and (self._in_a_row >= self._failures or half):
            telemetry.log.warning("circuit.opened", failures=self._in_a_row)
            self._closed.clear()
            OPEN.set(1)

    async def closes(self, within_s: float) -> bool:
        """Wait until calls may be made; False when they may not in time."""
        try:
            async with asyncio.timeout(within_s):
                return await self._closed.wait()
        except TimeoutError:
            return False

    async def run(self, probe: Callable[[], Awaitable[bool]]) -> None:
        """While it is open ask twice a second, and close it when the answer is yes; `probe` must not raise, nor take over a second."""
        while True:
            await asyncio.sleep(PROBE_S)
            if self.is_open and await probe():
                telemetry.log.warning("circuit.closed")
                self._in_a_row = self._failures - 1
                self._window.clear()
                self._closed.set()
                OPEN.set(0)
