"""The SQL of deadlines that follow a step of the database's clock; it must not know what a deadline is for."""

from datetime import datetime
from typing import Final

import msgspec

from sagapost_chassis import db, steps

FOLLOWED: Final = 1000  # sagas that one statement moves
# Each UPDATE sets `clock_at`, so no other replica moves the row again. ORDER BY id is the lock order of groups of messages: no deadlock.
_FOLLOW_UNSEEN: Final = """
WITH s AS MATERIALIZED (
    SELECT id, clock_timestamp() - coalesce(clock_at, updated_at) AS step FROM sagas
     WHERE deadline_at IS NOT NULL AND coalesce(clock_at, updated_at) > clock_timestamp() + %(least)s
     ORDER BY id LIMIT %(limit)s FOR UPDATE
)
UPDATE sagas SET deadline_at = deadline_at + s.step, receipt_until = receipt_until + s.step, clock_at = clock_timestamp()
  FROM s WHERE sagas.id = s.id
"""
# Written before the step: at an hour that the clock had not reached again (`until`), or, after a step back, at one that is yet to come.
_FOLLOW: Final = """
WITH s AS MATERIALIZED (
    SELECT id FROM sagas
     WHERE deadline_at IS NOT NULL
       AND (coalesce(clock_at, updated_at) < %(until)s OR coalesce(clock_at, updated_at) > clock_timestamp() + %(least)s)
     ORDER BY id LIMIT %(limit)s FOR UPDATE
)
UPDATE sagas SET deadline_at = deadline_at + %(by)s, receipt_until = receipt_until + %(by)s, clock_at = clock_timestamp()
  FROM s WHERE sagas.id = s.id
"""
_NOW: Final = "SELECT clock_timestamp()"


async def now(conn: db.Connection) -> datetime:
    """Return what the database's clock shows."""
    (found,) = await (await conn.execute(_NOW)).fetchone() or (None,)
    return msgspec.convert(found, datetime)


async def follow(conn: db.Connection, step: steps.Step | None) -> bool:
    """Move deadlines and leases that were written before a step of the clock; return whether there may be more of them.

    None: a step back that this process did not see. Sagas written at a time that is yet to come move as if they had just been written.
    """
    if step is None:
        cursor = await conn.execute(_FOLLOW_UNSEEN, {"least": steps.LEAST, "limit": FOLLOWED})
    else:
        until = step.before + step.by - steps.LEAST / 2
        cursor = await conn.execute(_FOLLOW, {"until": until, "by": step.by, "least": steps.LEAST, "limit": FOLLOWED})
    return cursor.rowcount == FOLLOWED
