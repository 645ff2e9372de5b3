"""How a relay may read an outbox and store how far it came: Sagapost's own way, and broken ones that a proof must tell from it."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import ClassVar, Final, LiteralString
from uuid import UUID

import msgspec
from psycopg.types import numeric

from sagapost_chassis import db
from sagapost_relay import queries, snapshot

MAX_BYTES: Final = 1 << 20
Between = Callable[[], Awaitable[None]]
START: Final = queries.Position(lo=snapshot.parse(snapshot.EMPTY), hi=None, last_id=0)

_BY_ID: Final = "SELECT id, event_id, 0 FROM outbox WHERE shard = %(shard)s AND id > %(id)s ORDER BY id LIMIT %(limit)s"
_BELOW_HORIZON: Final = """
SELECT id, event_id, xid::text::bigint FROM outbox
 WHERE shard = %(shard)s AND xid < pg_snapshot_xmin(pg_current_snapshot())
   AND (xid > %(xid)s::text::xid8 OR xid = %(xid)s::text::xid8 AND id > %(id)s)
 ORDER BY xid, id LIMIT %(limit)s
"""
_STORE_BLINDLY: Final = """
UPDATE outbox_cursor SET lo = %(lo)s::text::pg_snapshot, hi = %(hi)s::text::pg_snapshot, last_id = %(last_id)s WHERE shard = %(shard)s
"""


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """One row as a relay finds it."""

    id: int
    event_id: UUID


class Read(msgspec.Struct, frozen=True, kw_only=True):
    """What a poll found in one shard, in the order of publishing, and where the cursor stands once all of it is confirmed."""

    rows: list[Seen]
    after: queries.Position


async def _nothing() -> None:
    """Stand for what may happen between a poll's two statements."""


class WindowLog:
    """Sagapost's own: the relay's statements as they are; the window under way is read by pages, or by its ranges again."""

    prepare: ClassVar[LiteralString] = ""  # what the database's owner runs first
    stores_what_it_read: ClassVar[bool] = False  # instead of what has been confirmed
    may_stall: ClassVar[bool] = False  # on transactions of other databases too

    async def read(
        self, conn: db.Connection, at: Mapping[int, queries.Position], limit: int, *, paged: bool = True, between: Between = _nothing
    ) -> dict[int, Read]:
        """Poll once, up to `limit` rows of each shard."""
        hi, _ = await queries.current_snapshot(conn)
        await between()
        new = [(shard, position) for shard, position in at.items() if position.hi is None]
        under_way = [(shard, position) for shard, position in at.items() if position.hi is not None]
        rows = await queries.window(conn, new, hi, limit=limit, max_bytes=MAX_BYTES) if new else []
        if under_way and paged:
            rows += await queries.page(conn, under_way, limit=limit, max_bytes=MAX_BYTES)
        elif under_way:
            for shard, position in under_way:
                rows += await queries.window(conn, [(shard, position)], position.hi or hi, limit=limit, max_bytes=MAX_BYTES)
        return {
            shard: _read([Seen(id=row.id, event_id=UUID(row.event_id)) for row in rows if row.shard == shard], position, hi, limit)
            for shard, position in at.items()
        }

    async def store(self, conn: db.Connection, owner: str, moved: Sequence[tuple[queries.Lease, queries.Position]]) -> set[int]:
        """Store positions; give the shards that took it."""
        return await queries.checkpoint(conn, owner, moved)


class IdCursor(WindowLog):
    """`id > last`: passes the row of a transaction that drew its id early and commits late."""

    async def read(
        self, conn: db.Connection, at: Mapping[int, queries.Position], limit: int, *, paged: bool = True, between: Between = _nothing
    ) -> dict[int, Read]:
        """Poll once, up to `limit` rows of each shard."""
        del paged
        await between()
        found: dict[int, Read] = {}
        for shard, position in at.items():
            rows = await (await conn.execute(_BY_ID, {"shard": shard, "id": position.last_id, "limit": limit})).fetchall()
            last_id = rows[-1][0] if rows else position.last_id
            found[shard] = Read(rows=_seen(rows), after=msgspec.structs.replace(position, last_id=last_id))
        return found


class HorizonCursor(WindowLog):
    """`xid < pg_snapshot_xmin(…)` in the order of (xid, id): the order of the assignment of transaction ids, not that of the locks."""

    may_stall = True

    async def read(
        self, conn: db.Connection, at: Mapping[int, queries.Position], limit: int, *, paged: bool = True, between: Between = _nothing
    ) -> dict[int, Read]:
        """Poll once, up to `limit` rows of each shard."""
        del paged
        await between()
        found: dict[int, Read] = {}
        for shard, position in at.items():
            where = {"shard": shard, "xid": str(position.lo.xmax), "id": numeric.Int8(position.last_id), "limit": limit}
            rows = await (await conn.execute(_BELOW_HORIZON, where)).fetchall()
            last_id, xid = (rows[-1][0], rows[-1][2]) if rows else (position.last_id, position.lo.xmax)
            after = queries.Position(lo=snapshot.Snapshot(xmin=xid, xmax=xid, running=frozenset()), hi=None, last_id=last_id)
            found[shard] = Read(rows=_seen(rows), after=after)
        return found


class CheckpointBeforeConfirm(WindowLog):
    """Stores how far it has read: a crash in front of the broker loses what was on its way."""

    stores_what_it_read = True


class NoRunning(WindowLog):
    """Takes what still ran at `lo` for finished: the ranges without their branch for pg_snapshot_xip(lo)."""

    async def read(
        self, conn: db.Connection, at: Mapping[int, queries.Position], limit: int, *, paged: bool = True, between: Between = _nothing
    ) -> dict[int, Read]:
        """Poll once, up to `limit` rows of each shard."""
        blind = {
            shard: msgspec.structs.replace(position, lo=msgspec.structs.replace(position.lo, running=frozenset()))
            for shard, position in at.items()
        }
        return await super().read(conn, blind, limit, paged=paged, between=between)


class NoFencing(WindowLog):
    """Stores a position without asking whether the shard is still its own."""

    async def store(self, conn: db.Connection, owner: str, moved: Sequence[tuple[queries.Lease, queries.Position]]) -> set[int]:
        """Store positions; give the shards that took it: all."""
        del owner
        for lease, at in moved:
            hi = None if at.hi is None else snapshot.text_of(at.hi)
            values = {"shard": lease.shard, "lo": snapshot.text_of(at.lo), "hi": hi, "last_id": at.last_id}
            await conn.execute(_STORE_BLINDLY, values)
        return {lease.shard for lease, _ in moved}


class CachedIds(WindowLog):
    """A sequence that gives each session several ids at once: a session hands out small ones late."""

    prepare = "ALTER SEQUENCE outbox_id CACHE 5"


def _read(rows: list[Seen], position: queries.Position, hi: snapshot.Snapshot, limit: int) -> Read:
    until = position.hi or hi
    if len(rows) < limit:
        return Read(rows=rows, after=queries.Position(lo=until, hi=None, last_id=0))
    return Read(rows=rows, after=queries.Position(lo=position.lo, hi=until, last_id=rows[-1].id))


def _seen(rows: Sequence[tuple[int, UUID, int]]) -> list[Seen]:
    return [Seen(id=row_id, event_id=event_id) for row_id, event_id, _ in rows]
