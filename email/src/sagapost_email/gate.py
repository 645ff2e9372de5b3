"""When a server that did not answer may be tried again; it must not know which server."""

import asyncio
import contextlib
import time
from typing import Final

LONGEST_S: Final = 10.0


class Gate:
    """Closed for a second after a failure, then for two, up to `LONGEST_S`; open after a success."""

    def __init__(self) -> None:
        self._failures = 0
        self._opens_at = 0.0

    def failed(self) -> None:
        """Close it; while it is closed a further failure, of a try that began before, changes nothing."""
        if time.monotonic() >= self._opens_at:
            self._opens_at = time.monotonic() + min(2.0 ** min(self._failures, 10), LONGEST_S)
            self._failures += 1

    def passed(self) -> None:
        """Open it."""
        self._failures, self._opens_at = 0, 0.0

    async def wait(self, stop: asyncio.Event) -> None:
        """Wait until it opens, or the process stops: messages stay in the broker meanwhile instead of failing one after the other."""
        if (left_s := self._opens_at - time.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), left_s)
