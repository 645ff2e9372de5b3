"""The SQL of deadlines that follow a step of the database's clock; it must not know what a deadline is for."""

from datetime import datetime, timedelta
from typing import Final

import msgspec

from sagapost_chassis import db, steps

FOLLOWED: Final = 1000  # sagas that one statement moves
# Waits are durations: what was written before a step of the clock moves with it, once, because `clock_at` is of the present clock then.
# In the order of groups of messages, which do not lock crosswise.
_FOLLOW_BACK: Final = """
WITH s AS MATERIALIZED (
    SELECT id, clock_timestamp() - coalesce(clock_at, updated_at) AS step FROM sagas
     WHERE deadline_at IS NOT NULL AND coalesce(clock_at, updated_at) > clock_timestamp() + %(least)s
     ORDER BY id LIMIT %(limit)s FOR UPDATE
)
UPDATE sagas SET deadline_at = deadline_at + s.step, receipt_until = receipt_until + s.step, clock_at = clock_timestamp()
  FROM s WHERE sagas.id = s.id
"""
_FOLLOW_AHEAD: Final = """
WITH s AS MATERIALIZED (
    SELECT id FROM sagas WHERE deadline_at IS NOT NULL AND coalesce(clock_at, updated_at) < %(until)s
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

    None, or a step back: those of all sagas that were written at a time that has not come yet.
    """
    if step is None or step.by < timedelta():
        cursor = await conn.execute(_FOLLOW_BACK, {"least": steps.LEAST, "limit": FOLLOWED})
    else:
        cursor = await conn.execute(_FOLLOW_AHEAD, {"until": step.before + step.by - steps.LEAST / 2, "by": step.by, "limit": FOLLOWED})
    return cursor.rowcount == FOLLOWED
