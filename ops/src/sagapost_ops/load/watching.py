"""Looks at accepted checkouts until their sagas have ended, gently; it must not change anything."""

import asyncio
import heapq
import time
from typing import Final

from sagapost_ops.load import journal, sending, shop

FOLLOWED: Final = 20  # at once; with a long way to the end there would be ever more of them
FOLLOW_S: Final = 0.3
FIRST_LOOK_S: Final = 1.0
LOOK_AGAIN_MAX_S: Final = 5.0
AT_ONCE: Final = 16
TICK_S: Final = 0.01
GENTLE_PER_S: Final = 10.0
GENTLE_SHARE: Final = 0.1
AFTERWARDS_PER_S: Final = 300.0


class Watch:
    """Follows some sagas from their answer to their end, as a customer does who polls; sees the others when they may have ended.

    A saga whose version falls, or that is done and then is not, went back: invariant 9. While checkouts are still sent, at most 10 looks a
    second, or a tenth of the load's rate, are made beside those at the followed, so that looking is not what is measured.
    """

    def __init__(self, load: sending.Load, rate_per_s: float) -> None:
        self._load = load
        self._followed: set[int] = set()
        self._allowed_per_s = max(GENTLE_PER_S, rate_per_s * GENTLE_SHARE)
        self._due: list[tuple[float, int, float]] = []  # when, which, and how long to wait after that look
        self._waiting: dict[int, sending.Course] = {}
        self._looking: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Look until every accepted saga has ended, or the load gives up."""
        budget, before = 0.0, time.monotonic()
        while not self._load.give_up.is_set():
            self._take_in()
            if self._load.over.is_set() and self._load.accepted.empty() and not self._waiting:
                break
            now = time.monotonic()
            allowed_per_s = AFTERWARDS_PER_S if self._load.sent.is_set() else self._allowed_per_s
            budget = min(AT_ONCE, budget + allowed_per_s * (now - before))
            before = now
            while self._due and self._due[0][0] <= now and len(self._looking) < AT_ONCE and budget >= 1:
                _, number, wait_s = heapq.heappop(self._due)
                budget -= number not in self._followed
                task = asyncio.create_task(self._look(self._waiting[number], wait_s))
                self._looking.add(task)
                task.add_done_callback(self._looking.discard)
            await sending.pause(TICK_S, self._load.give_up)
        if self._looking:
            await asyncio.wait(self._looking)
        for course in self._waiting.values():
            self._note(course)

    def _take_in(self) -> None:
        while not self._load.accepted.empty():
            course = self._load.accepted.get_nowait()
            number = course.checkout.number
            self._waiting[number] = course
            if len(self._followed) < FOLLOWED:
                self._followed.add(number)
            wait_s = FOLLOW_S if number in self._followed else FIRST_LOOK_S
            heapq.heappush(self._due, (time.monotonic() + wait_s, number, wait_s))

    async def _look(self, course: sending.Course, wait_s: float) -> None:
        number = course.checkout.number
        seen = await self._load.shop.saga(str(course.saga_id))
        if isinstance(seen, shop.Answer):
            self._load.count(f"look: {seen.error}")
        else:
            take(course, seen)
            if seen.done:
                self._waiting.pop(number)
                self._followed.discard(number)
                self._note(course)
                return
        is_steady = isinstance(seen, shop.Saga) and number in self._followed
        wait_s = FOLLOW_S if is_steady else min(LOOK_AGAIN_MAX_S, wait_s * 1.5)
        heapq.heappush(self._due, (time.monotonic() + wait_s, number, wait_s))

    def _note(self, course: sending.Course) -> None:
        ended = course.done
        self._load.journal.write(
            journal.Line(
                what="end",
                number=course.checkout.number,
                key=course.checkout.key,
                kind=course.checkout.kind,
                planned_at=journal.instant(course.planned_at),
                at=journal.instant(course.ended_at if ended else time.time()),
                outcome="ended" if ended else "unfinished",
                order_id=course.order_id,
                saga_id=course.saga_id,
                latency_ms=round((course.ended_at - course.planned_at) * 1000, 2) if ended else 0.0,
                state=course.state,
                version=course.version,
                went_back=course.went_back,
            )
        )


def take(course: sending.Course, seen: shop.Saga) -> None:
    """Note what a look showed; times are those of the saga's own history."""
    if seen.version < course.version or (course.done and not seen.done):
        course.went_back = True
    course.state, course.version, course.done = seen.state, seen.version, seen.done
    for row in seen.history:
        if row.event.startswith("Payment") and not course.paid_at:
            course.paid_at = row.at.timestamp()
    if seen.done and not course.ended_at:
        entered = next((row for row in seen.history if row.to == seen.state), None)
        course.ended_at = entered.at.timestamp() if entered else time.time()
