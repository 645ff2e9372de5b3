"""Every SQL statement of the relay: its cursors, the windows it reads, its checkpoints."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec

from sagapost_chassis import db

_LOCK: Final = "SELECT pg_try_advisory_lock(%(key)s)"
_LOCK_KEY: Final = 0x5A6A0B
# the relay runs two queries; a plan made while a partition was empty must not become a sequential scan later
_PIN: Final = """
SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_bitmapscan = off; SET synchronous_commit = off
"""
_SERVER: Final = """
SELECT system_identifier, pg_is_in_recovery() AS in_recovery, current_setting('synchronous_commit') AS synchronous_commit
  FROM pg_control_system()
"""
_TAKE: Final = """
UPDATE outbox_cursor SET owner = %(owner)s, epoch = epoch + 1, updated_at = now()
RETURNING shard, lo::text, hi::text, last_id, epoch, system_identifier
"""
_SNAPSHOT: Final = "SELECT pg_current_snapshot()::text"
_WINDOW: Final = """
SELECT o.id, o.event_id, o.type, o.routing_key, o.correlation_id, o.headers::text, o.payload, o.created_at
  FROM unnest(%(starts)s::xid8[], %(ends)s::xid8[]) AS r (a, b)
 CROSS JOIN LATERAL (
       SELECT * FROM outbox AS w WHERE w.shard = %(shard)s AND w.xid >= r.a AND w.xid < r.b AND w.id > %(last_id)s
 ) AS o
 ORDER BY o.id LIMIT %(limit)s
"""
# a backlog's later pages: each costs its own rows only, where _WINDOW would sort the whole window again
_PAGE: Final = """
SELECT o.id, o.event_id, o.type, o.routing_key, o.correlation_id, o.headers::text, o.payload, o.created_at
  FROM outbox AS o
 WHERE o.shard = %(shard)s AND o.id > %(last_id)s
   AND EXISTS (SELECT FROM unnest(%(starts)s::xid8[], %(ends)s::xid8[]) AS r (a, b) WHERE o.xid >= r.a AND o.xid < r.b)
 ORDER BY o.id LIMIT %(limit)s
"""
_CHECKPOINT: Final = """
UPDATE outbox_cursor SET lo = %(lo)s::pg_snapshot, hi = %(hi)s::pg_snapshot, last_id = %(last_id)s, updated_at = now()
 WHERE shard = %(shard)s AND epoch = %(epoch)s
"""


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """What the relay must know of the server before it trusts a snapshot of it."""

    system_identifier: int
    in_recovery: bool
    synchronous_commit: str


class Cursor(msgspec.Struct, frozen=True, kw_only=True):
    """Everything visible in `lo` is confirmed; a window up to `hi` is under way, confirmed through `last_id`."""

    shard: int
    lo: str
    hi: str | None
    last_id: int
    epoch: int
    system_identifier: int


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One outbox row; `headers` is JSON text."""

    id: int
    event_id: UUID
    type: str
    routing_key: str
    correlation_id: str
    headers: str
    payload: bytes
    created_at: datetime


async def lock(conn: db.Connection) -> bool:
    """Try to become this database's one relay, for as long as the connection lives."""
    cursor = await conn.execute(_LOCK, {"key": _LOCK_KEY})
    found = await cursor.fetchone()
    return bool(found and found[0])


async def server(conn: db.Connection) -> Server:
    """Read what server this is."""
    async with conn.cursor(row_factory=db.struct_row(Server)) as cursor:
        await cursor.execute(_SERVER)
        found = await cursor.fetchone()
    if found is None:
        raise LookupError("pg_control_system() returned nothing")
    return found


async def pin(conn: db.Connection) -> None:
    """Pin this session to index scans, and let its checkpoints be lost in a crash: that costs duplicates, never a message."""
    await conn.execute(_PIN, prepare=False)


async def take(conn: db.Connection, owner: str) -> list[Cursor]:
    """Take all cursors; from now on an older owner's checkpoints touch no row."""
    async with conn.cursor(row_factory=db.struct_row(Cursor)) as cursor:
        await cursor.execute(_TAKE, {"owner": owner})
        return await cursor.fetchall()


async def current_snapshot(conn: db.Connection) -> str:
    """Read the current snapshot's text; every later statement sees at least what it sees."""
    cursor = await conn.execute(_SNAPSHOT)
    found = await cursor.fetchone()
    if found is None:
        raise LookupError("pg_current_snapshot() returned nothing")
    return str(found[0])


async def window(conn: db.Connection, shard: int, ranges: Sequence[tuple[int, int]], last_id: int, limit: int, *, paged: bool) -> list[Row]:
    """Read the next rows of a window in id order; fewer than `limit` means that it is done."""
    async with conn.cursor(row_factory=db.struct_row(Row)) as cursor:
        await cursor.execute(
            _PAGE if paged else _WINDOW,
            {
                "shard": shard,
                "starts": [str(start) for start, _ in ranges],
                "ends": [str(end) for _, end in ranges],
                "last_id": last_id,
                "limit": limit,
            },
        )
        return await cursor.fetchall()


async def checkpoint(conn: db.Connection, cursor: Cursor) -> bool:
    """Store a cursor; False when another relay has taken it over."""
    updated = await conn.execute(
        _CHECKPOINT, {"shard": cursor.shard, "lo": cursor.lo, "hi": cursor.hi, "last_id": cursor.last_id, "epoch": cursor.epoch}
    )
    return updated.rowcount == 1
