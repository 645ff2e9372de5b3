"""What the order service does by the clock: deadlines, gauges, forgotten answers; it must not know SQL or what a deadline means."""

import asyncio
import contextlib
import time
from typing import Final
from uuid import UUID

import prometheus_client

from sagapost_chassis import db, telemetry
from sagapost_order import clock, handlers, moves, states

_DEADLINES_S: Final = 0.25
_GAUGES_S: Final = 10
_FORGET_S: Final = 60
# a saga that cannot be moved must not keep the others waiting, nor be tried without a pause
_SKIPPED_S: Final = 5

SAGAS: Final = prometheus_client.Gauge("sagapost_sagas", "Sagas that have not ended, by state", ["state"])
OVERDUE: Final = prometheus_client.Gauge("sagapost_sagas_overdue", "Sagas whose deadline passed more than 5 s ago, by state", ["state"])
OLDEST: Final = prometheus_client.Gauge(
    "sagapost_saga_oldest_seconds", "Seconds since the oldest checkout whose saga is in a state", ["state"]
)
ATTENTION: Final = prometheus_client.Gauge("sagapost_sagas_attention", "Sagas that call an operator, up to 10,000")
FAILURES: Final = prometheus_client.Counter(
    "sagapost_saga_sweep_failures", "Deadlines that could not be applied, and were tried again later"
)


class Backlog:
    """What checkouts are to know of those before them: for how many seconds the oldest unpaid order had waited at the last look."""

    unpaid_s = 0.0


async def run(pool: db.Pool, policy: states.Policy, stop: asyncio.Event, backlog: Backlog) -> None:
    """Sweep until `stop` is set; each replica does, and none waits for another."""
    async with asyncio.TaskGroup() as group:
        group.create_task(_deadlines(pool, policy, stop))
        group.create_task(_gauges(pool, stop, backlog))
        group.create_task(_forgetting(pool, stop))


async def _deadlines(pool: db.Pool, policy: states.Policy, stop: asyncio.Event) -> None:
    """Apply every deadline that has passed, then look again a moment later."""
    skipped: dict[UUID, float] = {}
    stepped = clock.Clock()
    while not stop.is_set():
        now_s = time.monotonic()
        skipped = {saga_id: until_s for saga_id, until_s in skipped.items() if until_s > now_s}
        swept = moves.Swept()
        try:
            if stepped.steps:
                await clock.follow(pool, stepped)
                continue
            if await moves.sweep(pool, policy, skipped.keys(), swept, stepped):
                continue
        except Exception as exc:  # of one saga or of the database: the others' deadlines go on
            FAILURES.inc()
            reason = f"{type(exc).__name__}: {telemetry.first_line(exc)}"
            telemetry.log.warning("deadline.not_applied", saga_id=str(swept.saga_id), reason=reason)
            if swept.saga_id is not None and not isinstance(exc, db.UnavailableError):
                skipped[swept.saga_id] = now_s + _SKIPPED_S
                continue
        await _pause(stop, _DEADLINES_S)


async def _gauges(pool: db.Pool, stop: asyncio.Event, backlog: Backlog) -> None:
    """Measure what has not ended."""
    while not stop.is_set():
        try:
            live, calling = await handlers.unfinished(pool)
        except Exception as exc:  # the next look will tell
            telemetry.log.warning("gauges.not_measured", reason=f"{type(exc).__name__}: {telemetry.first_line(exc)}")
        else:
            for state in states.STATES:
                found = live.get(state)
                if state not in states.DONE:
                    SAGAS.labels(state).set(found.sagas if found else 0)
                    OVERDUE.labels(state).set(found.overdue if found else 0)
                    OLDEST.labels(state).set(found.oldest_s if found else 0)
            ATTENTION.set(calling)
            unpaid = live.get(states.CREATED)
            backlog.unpaid_s = unpaid.oldest_s if unpaid else 0
        await _pause(stop, _GAUGES_S)


async def _forgetting(pool: db.Pool, stop: asyncio.Event) -> None:
    """Forget the answers whose time is over; a full batch means that there may be more."""
    while not stop.is_set():
        if await _forget(pool) < handlers.FORGET_BATCH:
            await _pause(stop, _FORGET_S)


async def _forget(pool: db.Pool) -> int:
    try:
        forgotten = await handlers.forget_answers(pool)
    except Exception as exc:  # whatever is wrong with tidying up, checkouts go on
        telemetry.log.warning("answers.not_forgotten", reason=f"{type(exc).__name__}: {telemetry.first_line(exc)}")
        return 0
    if forgotten:
        telemetry.log.info("answers.forgotten", count=forgotten)
    return forgotten


async def _pause(stop: asyncio.Event, pause_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(pause_s):
            await stop.wait()
