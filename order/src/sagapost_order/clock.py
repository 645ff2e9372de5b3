"""The order database's clock as a sweeper sees it: deadlines follow its steps; it must not know SQL or what a deadline is for."""

import time
from collections import deque

from sagapost_chassis import db, steps, telemetry
from sagapost_order import clock_queries


class Clock:
    """What a sweeper knows of the database's clock. `steps`: those whose deadlines are not moved yet; None: one before it began."""

    def __init__(self) -> None:
        self.steps: deque[steps.Step | None] = deque([None])
        self._seen = steps.Steps()

    async def look(self, conn: db.Connection) -> bool:
        """Return whether the clock has been set, and its deadlines still have to follow."""
        began_s = time.monotonic()
        shown = await clock_queries.now(conn)
        if (step := self._seen.observe(shown, began_s, time.monotonic())) is not None:
            self.steps.append(step)
        return bool(self.steps)


async def follow(pool: db.Pool, clock: Clock) -> None:
    """Move what was written before a step of the database's clock by as much: a wait stays as long as it was."""
    step = clock.steps[0]
    async with db.transaction(pool) as conn:
        left = await clock_queries.follow(conn, step)
    if not left:
        clock.steps.popleft()
        if step is not None:
            telemetry.log.warning("clock.stepped", by_s=round(step.by.total_seconds(), 3))
