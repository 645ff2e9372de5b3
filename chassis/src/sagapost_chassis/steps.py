"""Steps of a clock (a database's, this host's) against this process's monotonic clock; it must not know what depends on the clock."""

from collections import deque
from datetime import datetime, timedelta
from typing import Final

import msgspec

LEAST: Final = timedelta(seconds=5)  # what is smaller is drift, or a slow answer
KEPT_S: Final = 7200.0


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One step: `before` is the last time that the clock showed before it, `by` how far it was set, negative for back."""

    before: datetime
    by: timedelta


class Steps:
    """The steps of the last `kept_s` seconds. The first look only starts the comparison: what happened before it is not known."""

    def __init__(self, kept_s: float = KEPT_S) -> None:
        self._kept_s = kept_s
        self._last: tuple[datetime, float, float] | None = None
        self._seen: deque[tuple[float, Step]] = deque(maxlen=1000)

    def observe(self, clock: datetime, began_s: float, ended_s: float) -> Step | None:
        """Compare what the clock showed with this process's monotonic clock before and after the question; return a new step."""
        last, self._last = self._last, (clock, began_s, ended_s)
        if last is None:
            return None
        passed, least_s, most_s = clock - last[0], began_s - last[2], ended_s - last[1]
        if timedelta(seconds=least_s) - LEAST <= passed <= timedelta(seconds=most_s) + LEAST:
            return None
        step = Step(before=last[0], by=passed - timedelta(seconds=(least_s + most_s) / 2))
        self._seen.append((ended_s, step))
        return step

    def ahead_s(self, now_s: float, since: datetime) -> float:
        """Return by how many seconds the clock was set forward after it showed `since`, in all.

        Steps of the last `kept_s` seconds before `now_s`, by the monotonic clock. A step back that followed is not subtracted: a wait that
        is too long by the clock's error does less harm than one that is too short.
        """
        recent = (step for seen_s, step in self._seen if seen_s > now_s - self._kept_s and step.before >= since - LEAST)
        return sum(max(0.0, step.by.total_seconds()) for step in recent)
