"""Circuit breakers: one for each client and one for all; they count what goes wrong, and ask by themselves when it is over."""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable
from typing import Final

import prometheus_client

from sagapost_chassis import telemetry
from sagapost_gateway import errors

FAILURES: Final = 5
PROBE_S: Final = 0.5
_CLIENTS_MAX: Final = 1000  # whose breakers are kept; the one used longest ago is forgotten
_WINDOW: Final = 10  # times the failures in a row: as many calls are looked back at, and half of them may fail

OPEN: Final = prometheus_client.Gauge(
    "sagapost_gateway_circuit_open", "1 while the calls of all clients, or of some, do not go to the order service; 0 otherwise"
)


class Breaker:
    """Opens after `failures` in a row, or when half of the last calls failed.

    After `close`, and until a call succeeds, one failure is enough to open it again.
    """

    def __init__(self, failures: int = FAILURES) -> None:
        self._failures = failures
        self._in_a_row = 0
        self._window: deque[bool] = deque(maxlen=failures * _WINDOW)
        self._closed = asyncio.Event()
        self._closed.set()

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

    def close(self) -> None:
        """Let calls pass again: the first one that fails opens it."""
        self._in_a_row = self._failures - 1
        self._window.clear()
        self._closed.set()

    async def closed(self) -> None:
        """Wait until calls may be made."""
        await self._closed.wait()


class Breakers:
    """Refuses the calls of a client whose calls fail, and those of all clients when calls of several clients fail.

    A client's own breaker opens by its own calls only. The breaker of all counts the failures since the last success of any client, without
    those of the client that has most of them: so what one client does never opens it. While one is open nothing is tried with a caller's
    request: `run` asks the order service itself.
    """

    def __init__(self, failures: int = FAILURES) -> None:
        self._failures = failures
        self._all = Breaker(1)
        self._own: OrderedDict[str, Breaker] = OrderedDict()
        self._failed: Counter[str] = Counter()
        OPEN.set(0)

    @property
    def is_open(self) -> bool:
        """Whether any client's calls are refused."""
        return self._all.is_open or any(own.is_open for own in self._own.values())

    def check(self, client: str) -> None:
        """Let a client's call pass.

        Raises:
            CircuitOpenError: it may not be made.

        """
        self._all.check()
        if client in self._own:
            self._own[client].check()

    def succeeded(self, client: str) -> None:
        """Note a call that was answered."""
        self._failed.clear()
        self._of(client).succeeded()

    def failed(self, client: str) -> None:
        """Note a call that failed."""
        self._of(client).failed()
        self._failed[client] += 1
        if self._failed.total() - max(self._failed.values()) >= self._failures:
            self._all.failed()
        OPEN.set(1 if self.is_open else 0)

    async def closes(self, client: str, within_s: float) -> bool:
        """Wait until a client's calls may be made; False when they may not in time."""
        try:
            async with asyncio.timeout(within_s):
                await self._all.closed()
                await self._of(client).closed()
        except TimeoutError:
            return False
        return True

    def _of(self, client: str) -> Breaker:
        own = self._own.setdefault(client, Breaker(self._failures))
        self._own.move_to_end(client)
        if len(self._own) > _CLIENTS_MAX:
            self._own.popitem(last=False)
        return own

    async def run(self, probe: Callable[[], Awaitable[bool]]) -> None:
        """While it is open ask twice a second, and close it when the answer is yes; `probe` must not take over a second."""
        while True:
            await asyncio.sleep(PROBE_S)
            if self.is_open and await _answers(probe):
                telemetry.log.warning("circuit.closed")
                self._failed.clear()
                for one in (self._all, *self._own.values()):
                    if one.is_open:
                        one.close()
                OPEN.set(0)


async def _answers(probe: Callable[[], Awaitable[bool]]) -> bool:
    try:
        return await probe()
    except Exception as exc:  # whatever it is: without the next question no checkout would ever pass again
        telemetry.log.warning("circuit.not_probed", reason=f"{type(exc).__name__}: {telemetry.first_line(exc)}")
        return False
