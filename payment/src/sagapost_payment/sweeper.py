"""What payment does by the clock: second looks and gauges; it must not know what a look finds."""

import asyncio
import contextlib
import time
from datetime import UTC, datetime
from typing import Final

import prometheus_client

from sagapost_chassis import db, steps, telemetry
from sagapost_payment import clock, domain, provider, queries, recovery

_LOOKS_S: Final = 1.0
_GAUGES_S: Final = 10.0

OPEN: Final = prometheus_client.Gauge("sagapost_payments_open", "Payments whose outcome is not known, by status", ["status"])
OLDEST: Final = prometheus_client.Gauge("sagapost_payment_oldest_open_seconds", "Age of the oldest payment in a status", ["status"])


async def run(pool: db.Pool, psp: provider.Provider, stop: asyncio.Event, terms: domain.Terms, skew: clock.Skew) -> None:
    """Look until `stop` is set; each replica does, and what one has claimed the others leave alone."""
    async with asyncio.TaskGroup() as group:
        group.create_task(_looks(pool, psp, stop, terms))
        group.create_task(_gauges(pool, stop, skew, terms.seen))


async def _looks(pool: db.Pool, psp: provider.Provider, stop: asyncio.Event, terms: domain.Terms) -> None:
    while not stop.is_set():
        try:
            claimed = await recovery.claim(pool, terms)
        except Exception as exc:  # top of the loop: a claim that got no answer runs out like any other
            telemetry.log.warning("looks.not_claimed", reason=f"{type(exc).__name__}: {telemetry.first_line(exc)}")
            claimed = []
        await asyncio.gather(*(_look(pool, psp, payment, terms) for payment in claimed))
        if len(claimed) < recovery.BATCH:
            await _pause(stop, _LOOKS_S)


async def _look(pool: db.Pool, psp: provider.Provider, payment: domain.Payment, terms: domain.Terms) -> None:
    try:
        await recovery.look(pool, psp, payment, terms)
    except Exception as exc:  # of one payment: its next look is in its row
        telemetry.log.warning("payment.look_failed", order_id=payment.order_id, reason=f"{type(exc).__name__}: {telemetry.first_line(exc)}")


async def _gauges(pool: db.Pool, stop: asyncio.Event, skew: clock.Skew, seen: steps.Steps | None) -> None:
    while not stop.is_set():
        try:
            async with db.connection(pool) as conn:
                began_s = time.monotonic()
                shown_s = await queries.clock(conn)
                if seen is not None:
                    seen.observe(datetime.fromtimestamp(shown_s, UTC), began_s, time.monotonic())
                skew.set_clock(shown_s)
                found = await queries.unfinished(conn)
        except Exception as exc:  # top of the loop: the next time will tell
            telemetry.log.warning("gauges.not_measured", reason=f"{type(exc).__name__}: {telemetry.first_line(exc)}")
        else:
            for status in (domain.Status.PROCESSING.value, domain.Status.REFUNDING.value):
                count, oldest_s = found.get(status, (0, 0.0))
                OPEN.labels(status).set(count)
                OLDEST.labels(status).set(oldest_s)
        await _pause(stop, _GAUGES_S)


async def _pause(stop: asyncio.Event, pause_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(pause_s):
            await stop.wait()
