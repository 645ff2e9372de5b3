"""Every SQL statement of the relay: what it reads, its cursors and leases, the rows set aside, the ring."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
import psycopg

from sagapost_chassis import db, outbox
from sagapost_relay import snapshot
from sagapost_relay.blocks import Row

# The relay runs a handful of queries. A plan made while a partition was empty must not become a sequential scan later.
# A checkpoint that a crash of the server takes back costs duplicates, never a message; claims of leases commit for certain.
_PIN: Final = """
SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_bitmapscan = off; SET jit = off;
SET synchronous_commit = off
"""
# the first page of a window finds its smallest ids among all of the window's: about a second for a million rows
_PATIENT: Final = "SET statement_timeout = '10min'"
_LOCKS: Final = "SELECT set_config('idle_in_transaction_session_timeout', %(ms)s, false)"
_SERVER: Final = """
SELECT system_identifier, pg_is_in_recovery() AS in_recovery, %(asked)s AS synchronous_commit FROM pg_control_system()
"""
# Written in the transaction of the claim, and for certain: a cursor that lies ahead of the server is refused until `outbox repair`, also
# when the server's transaction ids have come to it meanwhile. No cluster has the identifier 0. The relay ends: all its leases with it.
_DISTRUST: Final = """
UPDATE outbox_cursor
   SET system_identifier = CASE WHEN shard = ANY(%(shards)s::smallint[]) THEN 0 ELSE system_identifier END, owner = NULL, lease_until = NULL
 WHERE owner = %(owner)s
"""
_SYNCHRONOUS: Final = "SHOW synchronous_commit"
_SNAPSHOT: Final = "SELECT pg_current_snapshot()::text, current_setting('synchronous_standby_names') <> ''"
_AWAIT_STANDBYS: Final = "SELECT set_config('synchronous_commit', 'on', true), pg_logical_emit_message(true, 'sagapost', '')"
# Each has one index that fits and no other: OFFSET 0 and the cast keep the planner from the wrong one, which would read a
# shard's whole history for each poll (68,000 blocks instead of 43 beside 300,000 rows).
# both give up to `limit` rows of each shard; a shard with fewer has no more in its window
_WINDOW: Final = """
SELECT o.id, o.shard, o.event_id::text, o.type, o.routing_key, o.correlation_id, o.headers::text,
       CASE WHEN octet_length(o.payload) <= %(max_bytes)s THEN o.payload END, octet_length(o.payload),
       extract(epoch FROM o.created_at)::float8, o.aggregate
  FROM unnest(%(shards)s::smallint[], %(last_ids)s::bigint[]) AS s (shard, last_id)
 CROSS JOIN LATERAL (
       SELECT w.*
         FROM unnest(%(range_shards)s::smallint[], %(starts)s::xid8[], %(ends)s::xid8[]) AS r (shard, a, b)
        CROSS JOIN LATERAL (
              SELECT * FROM outbox AS v WHERE v.shard = s.shard AND v.xid >= r.a AND v.xid < r.b OFFSET 0
        ) AS w
        WHERE r.shard = s.shard AND w.id > s.last_id
        ORDER BY w.id LIMIT %(limit)s
 ) AS o
"""
# a backlog's later pages: each costs its own rows only, where _WINDOW would sort the whole window again
_PAGE: Final = """
SELECT o.id, o.shard, o.event_id::text, o.type, o.routing_key, o.correlation_id, o.headers::text,
       CASE WHEN octet_length(o.payload) <= %(max_bytes)s THEN o.payload END, octet_length(o.payload),
       extract(epoch FROM o.created_at)::float8, o.aggregate
  FROM unnest(%(shards)s::smallint[], %(last_ids)s::bigint[], %(los)s::pg_snapshot[], %(his)s::pg_snapshot[])
       AS s (shard, last_id, lo, hi)
 CROSS JOIN LATERAL (
       SELECT * FROM outbox AS v
        WHERE v.shard::integer = s.shard::integer AND v.id > s.last_id
          AND pg_visible_in_snapshot(v.xid, s.hi) AND NOT pg_visible_in_snapshot(v.xid, s.lo)
        ORDER BY v.id LIMIT %(limit)s
 ) AS o
"""
_SEEN: Final = """
INSERT INTO outbox_relay (owner, seen_until, trouble) VALUES (%(owner)s, now() + %(lease_s)s * interval '1 second', %(trouble)s)
ON CONFLICT (owner) DO UPDATE SET seen_until = excluded.seen_until, trouble = excluded.trouble
"""
_FORGET: Final = "DELETE FROM outbox_relay WHERE owner = %(owner)s OR seen_until < now()"
# A time further ahead than twice the length of a lease was written before the database's clock stepped back: nothing of it is believed.
# Twice, because now() is the beginning of a transaction, and another's may be younger. Two relays that sweep wait for no lock.
_SWEEP: Final = """
WITH f AS MATERIALIZED (
    SELECT owner FROM outbox_relay
     WHERE seen_until NOT BETWEEN now() AND now() + %(believed_s)s * interval '1 second' LIMIT 100 FOR UPDATE SKIP LOCKED
)
DELETE FROM outbox_relay AS r USING f WHERE r.owner = f.owner
"""
_RELAYS: Final = """
SELECT owner FROM outbox_relay
 WHERE seen_until BETWEEN now() AND now() + %(believed_s)s * interval '1 second' ORDER BY owner LIMIT 1000
"""
_SERVED: Final = """
SELECT count(*) FROM outbox_cursor
 WHERE owner IS NOT NULL AND lease_until BETWEEN now() AND now() + %(believed_s)s * interval '1 second'
"""
_RENEW: Final = """
UPDATE outbox_cursor AS c SET lease_until = now() + %(lease_s)s * interval '1 second'
  FROM unnest(%(shards)s::smallint[], %(epochs)s::bigint[]) AS n (shard, epoch)
 WHERE c.shard = n.shard AND c.epoch = n.epoch AND c.owner = %(owner)s
RETURNING c.shard
"""
# a CTE: a subquery with LIMIT may run more than once inside a join, and one shard would be taken for each time
_CLAIM: Final = """
WITH f AS MATERIALIZED (
    SELECT shard FROM outbox_cursor
     WHERE (owner IS NULL OR owner = %(owner)s OR lease_until NOT BETWEEN now() AND now() + %(believed_s)s * interval '1 second')
       AND NOT shard = ANY(%(held)s::smallint[])
     ORDER BY shard LIMIT %(limit)s FOR UPDATE SKIP LOCKED
)
UPDATE outbox_cursor AS c
   SET owner = %(owner)s, epoch = c.epoch + 1, lease_until = now() + %(lease_s)s * interval '1 second',
       strikes = CASE WHEN c.owner IS NULL THEN 0 WHEN c.owner = %(owner)s THEN c.strikes ELSE c.strikes + 1 END
  FROM f
 WHERE c.shard = f.shard
RETURNING c.shard, c.lo::text, c.hi::text, c.last_id, c.epoch, c.strikes, c.suspect, c.system_identifier
"""
_CERTAINLY: Final = "SET LOCAL synchronous_commit = on"
_RELEASE: Final = """
UPDATE outbox_cursor SET owner = NULL, lease_until = NULL, strikes = 0, suspect = NULL
 WHERE shard = %(shard)s AND epoch = %(epoch)s AND owner = %(owner)s
"""
_CHECKPOINT: Final = """
UPDATE outbox_cursor AS c
   SET lo = n.lo, hi = n.hi, last_id = n.last_id, strikes = 0, suspect = NULL, updated_at = now()
  FROM unnest(%(shards)s::smallint[], %(epochs)s::bigint[], %(los)s::pg_snapshot[], %(his)s::pg_snapshot[], %(last_ids)s::bigint[])
       AS n (shard, epoch, lo, hi, last_id)
 WHERE c.shard = n.shard AND c.epoch = n.epoch AND c.owner = %(owner)s
RETURNING c.shard
"""
_SUSPECT: Final = """
UPDATE outbox_cursor SET suspect = %(suspect)s WHERE shard = %(shard)s AND epoch = %(epoch)s AND owner = %(owner)s
"""
# both read at most 10,001 index entries a shard; what a long transaction holds back is left out, for it is not lag
_LAGS: Final = """
SELECT c.shard,
       (SELECT count(*) FROM (SELECT FROM outbox AS o WHERE o.shard = c.shard AND o.xid >= pg_snapshot_xmax(c.lo)
                              AND NOT (c.hi IS NOT NULL AND o.id <= c.last_id AND pg_visible_in_snapshot(o.xid, c.hi))
                              LIMIT 10001) AS before) AS rows,
       coalesce((SELECT extract(epoch FROM now() - o.created_at)::float8 FROM outbox AS o
                  WHERE o.shard = c.shard AND o.xid >= pg_snapshot_xmax(c.lo)
                    AND NOT (c.hi IS NOT NULL AND o.id <= c.last_id AND pg_visible_in_snapshot(o.xid, c.hi))
                  ORDER BY o.xid LIMIT 1), 0) AS oldest_s
  FROM outbox_cursor AS c WHERE c.shard = ANY(%(shards)s::smallint[])
"""
_NOTIFY: Final = "SELECT pg_notify(%(channel)s, %(word)s)"


USUAL_LEASE_S: Final = 10.0
DISTRUSTED: Final = 0  # the identifier in a cursor that was refused


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """What the relay must know of the server before it trusts a snapshot of it."""

    system_identifier: int
    in_recovery: bool
    synchronous_commit: str


class Cursor(msgspec.Struct, frozen=True, kw_only=True):
    """Everything visible in `lo` is settled; a window up to `hi` is under way, settled through `last_id`."""

    shard: int
    lo: str
    hi: str | None
    last_id: int
    epoch: int
    strikes: int = 0
    suspect: int | None = None
    system_identifier: int


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """How far one shard has come: as a cursor, with its snapshots read."""

    lo: snapshot.Snapshot
    hi: snapshot.Snapshot | None
    last_id: int


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """A shard in the hands of one owner; `epoch` is the fencing token."""

    shard: int
    epoch: int


class Lag(msgspec.Struct, frozen=True, kw_only=True):
    """What one shard's stored cursor has before it: rows, counted up to 10,001, and the age of the first in seconds."""

    shard: int
    rows: int
    oldest_s: float


def position_of(cursor: Cursor) -> Position:
    """Read a cursor's snapshots."""
    hi = None if cursor.hi is None else snapshot.parse(cursor.hi)
    return Position(lo=snapshot.parse(cursor.lo), hi=hi, last_id=cursor.last_id)


def is_ahead(cursor: Cursor, now: snapshot.Snapshot) -> bool:
    """Return whether a cursor has passed transactions that this server has not begun: it comes from another life of the cluster."""
    at = position_of(cursor)
    return any(one.xmax > now.xmax or one.xmin > now.xmin for one in (at.lo, at.hi) if one is not None)


def refusal(shards: Sequence[int]) -> str:
    """Return the sentence for cursors that lie ahead of the server."""
    return (
        f"the outbox cursors of the shards {', '.join(map(str, sorted(shards)))} lie ahead of this server's transaction ids (a restore, "
        "a promoted copy, or pg_resetwal): going on would lose messages; they are refused until: ./sagapost outbox repair"
    )


async def server(conn: db.Connection) -> Server:
    """Read what server this is; to be asked before `pin`, which changes the session's synchronous_commit."""
    setting = await (await conn.execute(_SYNCHRONOUS)).fetchone()
    async with conn.cursor(row_factory=db.struct_row(Server)) as cursor:
        await cursor.execute(_SERVER, {"asked": setting[0] if setting else ""})
        found = await cursor.fetchone()
    if found is None:
        raise LookupError("pg_control_system() returned nothing")
    return found


async def pin(conn: db.Connection, *, patient: bool = False) -> None:
    """Pin this session to index scans, and let its checkpoints be lost in a crash; `patient`: for the one that reads."""
    await conn.execute(_PIN, prepare=False)
    if patient:
        await conn.execute(_PATIENT, prepare=False)


async def limit_locks(conn: db.Connection, seconds: float) -> None:
    """Let the server end this session when it stays in a transaction for so long: a relay that is stopped there keeps rows locked."""
    await conn.execute(_LOCKS, {"ms": str(round(seconds * 1000))})


async def current_snapshot(conn: db.Connection) -> tuple[snapshot.Snapshot, bool]:
    """Take the current snapshot, and tell whether commits wait for a standby; every later statement sees at least what it sees."""
    found = await (await conn.execute(_SNAPSHOT)).fetchone()
    if found is None:
        raise LookupError("pg_current_snapshot() returned nothing")
    return snapshot.parse(found[0]), found[1]


async def await_standbys(conn: db.Connection) -> None:
    """Return when a synchronous standby has all that this connection has read.

    A transaction can be seen that none has: its wait was cut short, or this server has crashed. On a primary that was
    replaced by its standby this never returns.
    """
    await conn.execute(_AWAIT_STANDBYS)


def _as_row(cursor: psycopg.AsyncCursor[Any]) -> Callable[[Sequence[Any]], Row]:
    del cursor
    return Row._make


async def window(
    conn: db.Connection, reads: Sequence[tuple[int, Position]], hi: snapshot.Snapshot, *, limit: int, max_bytes: int
) -> list[Row]:
    """Read up to `limit` rows of each (shard, position) from its window up to `hi`, in id order within a shard.

    Raises:
        ValueError: `hi` lies before a position.

    """
    ranges = [(shard, a, b) for shard, at in reads for a, b in snapshot.ended_between(at.lo, hi)]
    if not ranges:
        return []
    async with conn.cursor(binary=True, row_factory=_as_row) as cursor:
        await cursor.execute(
            _WINDOW,
            {
                "shards": [shard for shard, _ in reads],
                "last_ids": [at.last_id for _, at in reads],
                "range_shards": [shard for shard, _, _ in ranges],
                "starts": [str(a) for _, a, _ in ranges],
                "ends": [str(b) for _, _, b in ranges],
                "limit": limit,
                "max_bytes": max_bytes,
            },
        )
        return await cursor.fetchall()


async def page(conn: db.Connection, reads: Sequence[tuple[int, Position]], *, limit: int, max_bytes: int) -> list[Row]:
    """Read the next up to `limit` rows of each shard whose window is under way, in id order within a shard."""
    async with conn.cursor(binary=True, row_factory=_as_row) as cursor:
        await cursor.execute(
            _PAGE,
            {
                "shards": [shard for shard, _ in reads],
                "last_ids": [at.last_id for _, at in reads],
                "los": [snapshot.text_of(at.lo) for _, at in reads],
                "his": [snapshot.text_of(at.hi) for _, at in reads if at.hi is not None],
                "limit": limit,
                "max_bytes": max_bytes,
            },
        )
        return await cursor.fetchall()


def _believed_s(lease_s: float) -> float:
    """Return how far ahead a lease may end: twice its length, and twice the usual one where other relays have a longer one."""
    return 2 * max(lease_s, USUAL_LEASE_S)


async def seen(conn: db.Connection, owner: str, lease_s: float, trouble: str | None = None) -> list[str]:
    """Store that this relay is alive, and why it cannot publish; return all that are alive, itself included, in one order for all."""
    await conn.execute(_SEEN, {"owner": owner, "lease_s": lease_s, "trouble": trouble})
    await conn.execute(_SWEEP, {"believed_s": _believed_s(lease_s)})
    return [name for (name,) in await (await conn.execute(_RELAYS, {"believed_s": _believed_s(lease_s)})).fetchall()]


async def served(conn: db.Connection, lease_s: float) -> int:
    """Return how many shards are held under a lease that can be believed."""
    found = await (await conn.execute(_SERVED, {"believed_s": _believed_s(lease_s)})).fetchone()
    return int(found[0]) if found else 0


async def forget(conn: db.Connection, owner: str) -> None:
    """Say that this relay is gone."""
    await conn.execute(_FORGET, {"owner": owner})


async def renew(conn: db.Connection, owner: str, leases: Sequence[Lease], lease_s: float) -> set[int]:
    """Extend leases and give the shards that are still this owner's; the others have been taken over."""
    renewed = await conn.execute(
        _RENEW,
        {"owner": owner, "lease_s": lease_s, "shards": [lease.shard for lease in leases], "epochs": [lease.epoch for lease in leases]},
    )
    return {shard for (shard,) in await renewed.fetchall()}


async def claim(conn: db.Connection, owner: str, held: Sequence[int], limit: int, lease_s: float) -> list[Cursor]:
    """Take up to `limit` shards that nobody holds; must run in a transaction, which commits for certain.

    From then on an older owner's writes touch no row.
    """
    await conn.execute(_CERTAINLY)
    async with conn.cursor(row_factory=db.struct_row(Cursor)) as cursor:
        await cursor.execute(
            _CLAIM, {"owner": owner, "held": list(held), "limit": limit, "lease_s": lease_s, "believed_s": _believed_s(lease_s)}
        )
        return await cursor.fetchall()


async def distrust(conn: db.Connection, owner: str, shards: Sequence[int]) -> None:
    """Store that these cursors must not be used, and give up every lease; must run in a transaction, which commits for certain."""
    await conn.execute(_CERTAINLY)
    await conn.execute(_DISTRUST, {"owner": owner, "shards": list(shards)})


async def release(conn: db.Connection, owner: str, lease: Lease) -> None:
    """Give a shard back in order: whoever takes it finds no strike."""
    await conn.execute(_RELEASE, {"owner": owner, "shard": lease.shard, "epoch": lease.epoch})


async def checkpoint(conn: db.Connection, owner: str, moved: Sequence[tuple[Lease, Position]]) -> set[int]:
    """Store positions and give the shards whose cursor took it; the others have been taken over."""
    stored = await conn.execute(
        _CHECKPOINT,
        {
            "owner": owner,
            "shards": [lease.shard for lease, _ in moved],
            "epochs": [lease.epoch for lease, _ in moved],
            "los": [snapshot.text_of(at.lo) for _, at in moved],
            "his": [None if at.hi is None else snapshot.text_of(at.hi) for _, at in moved],
            "last_ids": [at.last_id for _, at in moved],
        },
    )
    return {shard for (shard,) in await stored.fetchall()}


async def suspect(conn: db.Connection, owner: str, lease: Lease, row_id: int) -> bool:
    """Note the row that is about to be published alone; False when the shard has been taken over."""
    noted = await conn.execute(_SUSPECT, {"owner": owner, "shard": lease.shard, "epoch": lease.epoch, "suspect": row_id})
    return noted.rowcount == 1


async def notify(conn: db.Connection, word: str) -> None:
    """Wake the other relays of this database."""
    await conn.execute(_NOTIFY, {"channel": outbox.CHANNEL, "word": word})


async def lags(conn: db.Connection, shards: Sequence[int]) -> list[Lag]:
    """Measure what these shards have before them."""
    async with conn.cursor(row_factory=db.struct_row(Lag)) as cursor:
        await cursor.execute(_LAGS, {"shards": list(shards)})
        return await cursor.fetchall()
