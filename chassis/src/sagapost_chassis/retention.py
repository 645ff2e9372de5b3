"""Deletes or replaces what is kept for a time only, one bounded batch a transaction; the database enforces the least time."""

import asyncio
import contextlib
import time
from typing import Annotated, Final, LiteralString

import msgspec
import prometheus_client

from sagapost_chassis import db, telemetry

BATCH: Final = 1000
EVERY_S: Final = 3600.0
INBOX_DAYS: Final = 30  # the least, too: so long a dead letter may be replayed
_RETRY_S: Final = 60.0
AGREE_S: Final = 600.0
_CLOCK: Final = "SELECT extract(epoch FROM clock_timestamp())::float8"
FORGET: Final[dict[str, LiteralString]] = {
    "inbox": "SELECT forget_inbox(%(days)s, %(batch)s)",
    "customers": "SELECT forget_customers(%(days)s, %(batch)s)",
}

FORGOTTEN: Final = prometheus_client.Counter(
    "sagapost_retention_rows", "Inbox rows deleted, and orders or payments whose customer's address was replaced, by age", ["what"]
)


Days = Annotated[int, msgspec.Meta(ge=0, le=36_500)]


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """For how many days inbox rows and customers' addresses are kept; 0: for ever."""

    inbox_days: Days = INBOX_DAYS
    customer_days: Days = 0


async def run(pool: db.Pool, terms: Terms, stop: asyncio.Event) -> None:
    """Forget every hour, until `stop` is set; each replica does, and none waits for another."""
    while not stop.is_set():
        pause_s = EVERY_S
        try:
            await once(pool, terms, stop)
        except Exception as exc:  # of the database: the next look will do
            telemetry.log.warning("retention.failed", reason=f"{type(exc).__name__}: {telemetry.first_line(exc)}")
            pause_s = _RETRY_S
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), pause_s)


async def once(pool: db.Pool, terms: Terms, stop: asyncio.Event) -> None:
    """Forget everything that is old enough, in batches, until `stop` is set."""
    for what, days in (("inbox", terms.inbox_days), ("customers", terms.customer_days)):
        await _forget(pool, what, days, stop)


async def clocks_agree(conn: db.Connection) -> bool:
    """Return whether the database's clock and this machine's agree; while they do not, nothing's age is known, and nothing is forgotten."""
    found = await (await conn.execute(_CLOCK)).fetchone()
    ahead_s = float(found[0]) - time.time() if found else 0.0
    if abs(ahead_s) > AGREE_S:
        telemetry.log.warning("retention.clocks_differ", ahead_s=round(ahead_s))
        return False
    return True


async def _forget(pool: db.Pool, what: str, days: int, stop: asyncio.Event) -> None:
    while days and not stop.is_set():
        async with db.transaction(pool) as conn:
            if not await clocks_agree(conn):
                return
            found = await (await conn.execute(FORGET[what], {"days": days, "batch": BATCH})).fetchone()
        rows = int(found[0]) if found else 0
        FORGOTTEN.labels(what).inc(rows)
        if rows < BATCH:
            return
