"""Sends planned checkouts at their times, whatever the answers do, and repeats those whose outcome is unknown; it must not judge."""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Final

import msgspec

from sagapost_ops.load import journal, planning, shop

AGAIN_S: Final = 0.5
AGAIN_MAX_S: Final = 8.0
MAX_UNDER_WAY: Final = 20_000
_NOT_NOW: Final = frozenset({429, 503})


class Course(msgspec.Struct, kw_only=True):
    """How one checkout went so far; times in seconds of the wall clock, 0 when it has not come to that."""

    checkout: planning.Checkout
    planned_at: float
    outcome: shop.Outcome = "unknown"
    attempts: int = 0
    error: str = ""
    order_id: int | None = None
    saga_id: str | None = None
    accepted_at: float = 0.0
    cancelled: shop.Outcome | None = None
    state: str = ""
    version: int = 0
    done: bool = False
    paid_at: float = 0.0
    ended_at: float = 0.0
    went_back: bool = False


class Load:
    """One load: every checkout so far, and the errors by name, one for each call that failed.

    Whoever is `patient` tries again when a call was refused for now (429, 503), as a customer does who really wants the thing.
    `stop` ends the arrivals, `give_up` the repetitions too; `sent` is set behind the last arrival, `over` behind the last answer.
    """

    def __init__(self, counter: shop.Shop, book: journal.Journal, *, patient: bool = False) -> None:
        self.shop = counter
        self.journal = book
        self.patient = patient
        self.courses: list[Course] = []
        self.errors: dict[str, int] = {}
        self.stop = asyncio.Event()
        self.give_up = asyncio.Event()
        self.sent = asyncio.Event()
        self.over = asyncio.Event()
        self.accepted: asyncio.Queue[Course] = asyncio.Queue()
        self.began_at = 0.0
        self.lasted_s = 0.0
        self.note = ""  # what else is going on, for those who watch
        self._under_way = 0
        self._dice = planning.Dice()  # customers do not come back all at once

    async def run(self, planned: Iterator[planning.Checkout]) -> None:
        """Make the checkouts until the plan ends or `stop` is set, and wait for their answers."""
        self.began_at, began = time.time(), time.monotonic()
        async with asyncio.TaskGroup() as group:
            for checkout in planned:
                await pause(max(0.0, began + checkout.at_s - time.monotonic()), self.stop)
                if self.stop.is_set():
                    break
                course = Course(checkout=checkout, planned_at=self.began_at + checkout.at_s)
                self.courses.append(course)
                if self._under_way >= MAX_UNDER_WAY:
                    course.outcome = "refused"
                    self.count("not-sent")
                    continue
                self._under_way += 1
                group.create_task(self._serve(course))
            self.lasted_s = time.monotonic() - began
            self.sent.set()
        self.over.set()

    def count(self, error: str) -> None:
        """Count a call that failed."""
        self.errors[error] = self.errors.get(error, 0) + 1

    async def _serve(self, course: Course) -> None:
        try:
            await self._check_out(course)
            if course.outcome == "ok" and course.checkout.kind == planning.CANCELLED:
                await pause(course.checkout.cancel_after_s, self.give_up)
                await self._cancel(course)
            if course.outcome == "ok":
                self.accepted.put_nowait(course)
        finally:
            self._under_way -= 1

    async def _check_out(self, course: Course) -> None:
        wait_s = AGAIN_S
        while True:
            answer = await self.shop.check_out(course.checkout)
            course.attempts += 1
            if course.attempts > 1 and answer.status in _NOT_NOW:  # this call did nothing; one before it may have
                answer = msgspec.structs.replace(answer, outcome="unknown")
            course.outcome, course.error = answer.outcome, answer.error
            if answer.outcome == "ok":
                course.order_id, course.saga_id, course.accepted_at = answer.order_id, answer.saga_id, time.time()
            self._note(course, "checkout", course.attempts, answer)
            again = answer.outcome == "unknown" or (self.patient and answer.status in _NOT_NOW)
            if not again or self.give_up.is_set():
                return
            wait_s = await self._wait(wait_s)

    async def _cancel(self, course: Course) -> None:
        wait_s, attempt = AGAIN_S, 0
        while course.order_id is not None:
            answer = await self.shop.cancel(course.order_id)
            attempt += 1
            course.cancelled = answer.outcome
            self._note(course, "cancel", attempt, answer)
            again = answer.outcome == "unknown" or answer.status in _NOT_NOW
            if not again or self.give_up.is_set():
                return
            wait_s = await self._wait(wait_s)

    async def _wait(self, wait_s: float) -> float:
        await pause(wait_s * self._dice.uniform(0.5, 1), self.give_up)
        return min(AGAIN_MAX_S, wait_s * 2)

    def _note(self, course: Course, what: journal.What, attempt: int, answer: shop.Answer) -> None:
        if answer.error:
            self.count(answer.error)
        now = time.time()
        self.journal.write(
            journal.Line(
                what=what,
                number=course.checkout.number,
                key=course.checkout.key,
                kind=course.checkout.kind,
                planned_at=journal.instant(course.planned_at),
                at=journal.instant(now),
                attempt=attempt,
                outcome=answer.outcome,
                status=answer.status,
                error=answer.error,
                order_id=answer.order_id,
                saga_id=answer.saga_id,
                replayed=answer.replayed,
                latency_ms=round((now - course.planned_at) * 1000, 2),
            )
        )


async def pause(seconds: float, unless: asyncio.Event) -> None:
    """Wait, at least for the others to have their turn; not longer than until `unless` is set."""
    if seconds <= 0:
        await asyncio.sleep(0)
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await unless.wait()
