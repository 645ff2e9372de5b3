"""Turns the ring of partitions: the next one is emptied by TRUNCATE, then filled; it must not wait for anybody's lock."""

import time
from datetime import datetime
from typing import Any, Final

import msgspec
import psycopg
from psycopg import errors, sql

from sagapost_chassis import db, outbox

PARTITIONS: Final = 4
_ALMOST: Final = 0.9  # of a period: the two clocks do not run alike
_AGREE_S: Final = 60.0
# A partition that was opened a minute from now or later was opened by a clock that was set back since.
_STATE: Final = """
SELECT now() AS clock, r.turn, coalesce(n.opened_at > c.opened_at, false) AS emptied,
       now() - c.opened_at >= %(period_s)s * interval '1 second' OR c.opened_at > now() + interval '1 minute' AS due
  FROM (SELECT pg_sequence_last_value('outbox_ring') AS turn) AS r
  JOIN outbox_bucket AS c ON c.bucket = r.turn %% 4
  JOIN outbox_bucket AS n ON n.bucket = (r.turn + 1) %% 4
"""
# NOWAIT: a writer that queued behind us would be a checkout that waits
_LOCK: Final = sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE NOWAIT")
# Under the lock nobody is writing here. A row may go when its transaction is visible in its shard's stored `lo`; the exact
# test, and not xmin, so that a transaction left open elsewhere does not hold up the ring. No cursor, no TRUNCATE; nor beside a cursor
# that is refused, for what it has passed says nothing here.
_UNSETTLED: Final = sql.SQL("""
SELECT (SELECT count(*) FROM outbox_cursor) <> %(shards)s
    OR EXISTS (SELECT FROM outbox_cursor AS c CROSS JOIN pg_control_system() AS s
                WHERE c.system_identifier <> s.system_identifier OR pg_snapshot_xmax(c.lo) > pg_snapshot_xmax(pg_current_snapshot()))
    OR EXISTS (SELECT FROM outbox_cursor AS c
                CROSS JOIN LATERAL (SELECT FROM {table} AS o WHERE o.shard = c.shard AND o.xid >= pg_snapshot_xmax(c.lo) LIMIT 1) AS x)
    OR EXISTS (SELECT FROM outbox_cursor AS c
                CROSS JOIN LATERAL pg_snapshot_xip(c.lo) AS r (xid)
                CROSS JOIN LATERAL (SELECT FROM {table} AS o WHERE o.shard = c.shard AND o.xid = r.xid LIMIT 1) AS x)
""")
_TRUNCATE: Final = sql.SQL("TRUNCATE {}")
_OPENED: Final = "UPDATE outbox_bucket SET opened_at = now() WHERE bucket = %(bucket)s"
_TURN: Final = "SELECT setval('outbox_ring', %(turn)s)"
_BLOCKED: Final = (errors.LockNotAvailable, errors.DeadlockDetected, errors.QueryCanceled)


class Pace:
    """How often one relay may turn the ring: a clock that is set must not empty it early. `period_s`: how long a partition is filled."""

    def __init__(self, period_s: float, now_s: float) -> None:
        self.period_s: Final = period_s
        self._began_s = now_s
        self._turned_s: float | None = None

    def may(self, clock: datetime, now_s: float) -> bool:
        """Return whether the ring may turn, by the monotonic clock `now_s`: at most once in a period.

        The first turn of a process comes when the database's clock says so, if that agrees with this machine's, else after a period.
        """
        if self._turned_s is not None:
            return now_s - self._turned_s >= _ALMOST * self.period_s
        return abs(clock.timestamp() - time.time()) <= _AGREE_S or now_s - self._began_s >= self.period_s

    def note(self, now_s: float) -> None:
        """Store when the ring was turned."""
        self._turned_s = now_s


class State(msgspec.Struct, frozen=True, kw_only=True):
    """`turn` counts rotations, the partition being filled is its remainder; `emptied`: the next one is ready and not yet in use."""

    clock: datetime
    turn: int
    due: bool
    emptied: bool


class Turned(msgspec.Struct, frozen=True, kw_only=True):
    """What an attempt came to; `blocked` says what stands in the way."""

    rotated: bool = False
    blocked: str | None = None


async def rotate(conn: db.Connection, pace: Pace) -> Turned:
    """Move on to the next partition when the present one has been filled for a period, emptying the next one first.

    If that is not possible now the present one goes on growing, and no writer notices.
    """
    async with conn.cursor(row_factory=db.struct_row(State)) as cursor:
        await cursor.execute(_STATE, {"period_s": pace.period_s})
        state = await cursor.fetchone()
    if state is None:
        return Turned(blocked="outbox_bucket has no row for the present partition")
    if not state.emptied:
        if not state.due or not pace.may(state.clock, time.monotonic()):
            return Turned()
        blocked = await _empty(conn, (state.turn + 1) % PARTITIONS)
        if blocked:
            return Turned(blocked=blocked)
    # outside the transaction: until its end the lock would make every writer wait that already reads the new value
    await conn.execute(_TURN, {"turn": state.turn + 1})
    await conn.execute(_OPENED, {"bucket": (state.turn + 1) % PARTITIONS})  # again: the first may be long ago, if a relay died in between
    pace.note(time.monotonic())
    return Turned(rotated=True)


async def _empty(conn: db.Connection, bucket: int) -> str | None:
    table = sql.Identifier(f"outbox_{bucket}")
    try:
        async with conn.transaction():
            await conn.execute(_LOCK.format(table))
            found: Any = await (await conn.execute(_UNSETTLED.format(table=table), {"shards": outbox.SHARDS})).fetchone()
            if found[0]:
                return "the next partition holds rows that are not settled yet"
            await conn.execute(_TRUNCATE.format(table))
            await conn.execute(_OPENED, {"bucket": bucket})
    except _BLOCKED as exc:
        return f"the next partition is in use: {_sentence(exc)}"
    return None


def _sentence(exc: psycopg.Error) -> str:
    return str(exc).strip().splitlines()[0][:200]
