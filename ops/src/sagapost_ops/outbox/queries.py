"""Every SQL statement of the outbox commands, and the two questions that `verify` asks too: what is confirmed, what can be gone."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec
from psycopg import sql

from sagapost_chassis import outbox
from sagapost_ops import database

BACKLOG_CAP: Final = 10_000
REASONS: Final = ("unroutable", "nacked", "too-large", "refused", "crash-suspect", "foreign-key", "behind")
BROKERS: Final = ("unroutable", "nacked", "behind")  # the broker's state, not the row's fault: tried without end
# of an outbox row `o` and its shard's cursor `c`: visible in lo, or a part of the window under way that the cursor has passed
CONFIRMED: Final = sql.SQL(
    "coalesce(pg_visible_in_snapshot(o.xid, c.lo) OR (pg_visible_in_snapshot(o.xid, c.hi) AND o.id <= c.last_id), false)"
)
# A partition that comes round again has been emptied: what is older than the oldest one may be gone. Before the ring has come
# round nothing is. The minute is for clocks, and for a writer that read the ring's value just before it moved.
RING: Final = sql.SQL("""ring AS (
    SELECT CASE WHEN r.turn < 4 AND bool_and((b.opened_at IS NOT NULL) = (b.bucket <= r.turn)) THEN '-infinity'
                ELSE coalesce(min(b.opened_at) + interval '1 minute', 'infinity') END AS whole_since
      FROM outbox_bucket AS b CROSS JOIN (SELECT pg_sequence_last_value('outbox_ring') AS turn) AS r GROUP BY r.turn
)""")
# of a cursor `c` and the server `s`: its numbers mean something here, for it was written in this cluster, and not in a future of it
OURS: Final = sql.SQL(
    "(c.system_identifier = s.system_identifier AND pg_snapshot_xmax(coalesce(c.hi, c.lo)) <= pg_snapshot_xmax(pg_current_snapshot()))"
)
# in the order of transaction ids, which the index has: the order in time, as nearly as a glance needs it
_SHARDS: Final = sql.SQL("""
SELECT c.shard, c.owner, c.epoch, extract(epoch FROM c.lease_until - now())::float8 AS lease_s, c.strikes, c.suspect,
       {ours} AS is_ours, w.backlog, extract(epoch FROM now() - w.oldest)::float8 AS oldest_s
  FROM outbox_cursor AS c CROSS JOIN pg_control_system() AS s
 CROSS JOIN LATERAL (
       SELECT count(*) AS backlog, min(created_at) AS oldest
         FROM (SELECT o.created_at FROM outbox AS o
                WHERE o.shard = c.shard AND o.xid >= pg_snapshot_xmin(c.lo) AND NOT {confirmed}
                ORDER BY o.xid, o.id LIMIT %(limit)s) AS v
 ) AS w
 ORDER BY c.shard
""").format(ours=OURS, confirmed=CONFIRMED)
_PARTITIONS: Final = """
SELECT b.bucket, b.bucket = pg_sequence_last_value('outbox_ring') % 4 AS is_current, b.opened_at,
       t.n_live_tup AS rows, pg_total_relation_size(t.relid) AS size_bytes, t.n_dead_tup AS dead_rows
  FROM outbox_bucket AS b
  JOIN pg_stat_user_tables AS t ON t.schemaname = current_schema() AND t.relname = 'outbox_' || b.bucket
 ORDER BY b.bucket
"""
_WHOLE_SINCE: Final = sql.SQL("""
WITH {ring} SELECT CASE WHEN whole_since <> '-infinity' AND whole_since <> 'infinity' THEN whole_since END FROM ring
""").format(ring=RING)
_ASIDE: Final = """
SELECT state, reason, count(*) AS rows, extract(epoch FROM now() - min(aside_at))::float8 AS oldest_s
  FROM outbox_parked GROUP BY state, reason ORDER BY state, reason LIMIT 100
"""
_RELAYS: Final = "SELECT owner FROM outbox_relay WHERE seen_until >= now() ORDER BY owner LIMIT 1000"
_TROUBLES: Final = """
SELECT owner, trouble FROM outbox_relay WHERE trouble IS NOT NULL AND seen_until >= now() ORDER BY owner LIMIT 100
"""
_LIST: Final = """
SELECT id, event_id, type, routing_key, aggregate, correlation_id, state, reason, detail, attempts, created_at, aside_at AS since, retry_at
  FROM outbox_parked
 WHERE (%(state)s::text IS NULL OR state = %(state)s) AND (%(reason)s::text IS NULL OR reason = %(reason)s)
   AND (%(type)s::text IS NULL OR type = %(type)s)
 ORDER BY id LIMIT %(limit)s
"""
_COUNT: Final = """
SELECT count(*) FROM outbox_parked
 WHERE (%(state)s::text IS NULL OR state = %(state)s) AND (%(reason)s::text IS NULL OR reason = %(reason)s)
   AND (%(type)s::text IS NULL OR type = %(type)s)
"""
_RETRY: Final = """
WITH chosen AS (
    SELECT id, state FROM outbox_parked
     WHERE (%(ids)s::bigint[] IS NULL OR id = ANY(%(ids)s)) AND (%(reason)s::text IS NULL OR reason = %(reason)s)
       AND (%(type)s::text IS NULL OR type = %(type)s)
     ORDER BY id FOR UPDATE
)
UPDATE outbox_parked AS p SET state = 'waiting', attempts = 0, retry_at = now() FROM chosen AS c WHERE p.id = c.id
RETURNING c.state
"""
# the first row of each event that the cursors have passed, in order; what stands aside was not confirmed
_CHOSEN: Final = sql.SQL("""
SELECT id, type, created_at
  FROM (SELECT DISTINCT ON (o.event_id) o.id, o.type, o.created_at
          FROM outbox AS o JOIN outbox_cursor AS c ON c.shard = o.shard
         WHERE o.created_at >= %(since)s AND (%(until)s::timestamptz IS NULL OR o.created_at < %(until)s)
           AND (%(types)s::text[] IS NULL OR o.type = ANY(%(types)s)) AND (%(aggregate)s::text IS NULL OR o.aggregate = %(aggregate)s)
           AND NOT EXISTS (SELECT FROM outbox_parked AS p WHERE p.event_id = o.event_id)
           AND {confirmed}
         ORDER BY o.event_id, o.id) AS f
 ORDER BY id LIMIT %(limit)s
""").format(confirmed=CONFIRMED)
_SUMMARY: Final = sql.SQL("""
SELECT type, count(*) AS rows, min(created_at) AS first_at, max(created_at) AS last_at FROM ({chosen}) AS s GROUP BY type ORDER BY type
""").format(chosen=_CHOSEN)
# The header tells consumers that they may have processed it, although their databases may no longer know.
_COPY: Final = """
INSERT INTO outbox (shard, event_id, aggregate, type, routing_key, correlation_id, headers, payload, created_at)
SELECT shard, event_id, aggregate, type, routing_key, correlation_id, headers || '{"x-replay-count": 1}', payload, created_at
  FROM outbox WHERE shard = ANY(%(shards)s::smallint[]) AND id = ANY(%(ids)s::bigint[]) ORDER BY id
"""
_LOCK: Final = "SELECT FROM outbox_cursor ORDER BY shard FOR UPDATE"
_CURSORS: Final = sql.SQL("""
SELECT c.shard, c.owner, extract(epoch FROM c.lease_until - now())::float8 AS lease_s, {ours} AS is_ours
  FROM outbox_cursor AS c CROSS JOIN pg_control_system() AS s ORDER BY c.shard
""").format(ours=OURS)
# The old cursors' verdict, by plain numbers. A row made here since the restore may bear a number that the old cursor has passed:
# what is younger than the cursor's last checkpoint cannot have been confirmed by it. A shard without a cursor has confirmed nothing.
_VERDICT: Final = sql.SQL("({confirmed} AND ({ours} OR o.created_at <= c.updated_at))").format(confirmed=CONFIRMED, ours=OURS)
_COUNTED: Final = sql.SQL("""
SELECT shard, count(*) FILTER (WHERE is_confirmed) AS confirmed, count(*) FILTER (WHERE NOT is_confirmed) AS unconfirmed
  FROM (SELECT o.shard, {verdict} AS is_confirmed
          FROM outbox AS o LEFT JOIN outbox_cursor AS c ON c.shard = o.shard CROSS JOIN pg_control_system() AS s) AS v
 GROUP BY shard ORDER BY shard
""").format(verdict=_VERDICT)
# one statement, so that a row committed meanwhile keeps its own number, which the new cursors have not passed
_REWRITE: Final = sql.SQL("""
WITH moved AS (
    UPDATE outbox AS o SET xid = CASE WHEN {verdict} THEN '1'::xid8 ELSE pg_current_xact_id() END
      FROM outbox_cursor AS c CROSS JOIN pg_control_system() AS s WHERE c.shard = o.shard
    RETURNING o.shard, o.xid = '1' AS is_confirmed
)
SELECT shard, count(*) FILTER (WHERE is_confirmed) AS confirmed, count(*) FILTER (WHERE NOT is_confirmed) AS unconfirmed
  FROM moved GROUP BY shard ORDER BY shard
""").format(verdict=_VERDICT)
_COMPLETE: Final = """
INSERT INTO outbox_cursor (shard, system_identifier)
SELECT shard, system_identifier FROM unnest(%(shards)s::smallint[]) AS shard, pg_control_system() ON CONFLICT DO NOTHING
"""
# 3:3: covers 1, the number of what is confirmed, and nothing real, which begins with 3
_RESET: Final = """
UPDATE outbox_cursor
   SET lo = '3:3:', hi = NULL, last_id = 0, owner = NULL, lease_until = NULL, epoch = epoch + 1, strikes = 0, suspect = NULL,
       system_identifier = s.system_identifier, updated_at = now()
  FROM pg_control_system() AS s
"""
_IDS: Final = """
SELECT setval('outbox_id', m.id)
  FROM (SELECT greatest((SELECT max(id) FROM outbox), (SELECT max(id) FROM outbox_parked)) AS id) AS m
 WHERE m.id > coalesce(pg_sequence_last_value('outbox_id'), 0)
"""
# on to the newest partition: a dump without the sequences' values begins at none, and then no row finds its partition
_RING: Final = """
SELECT setval('outbox_ring', r.turn + (n.bucket - r.turn % 4 + 4) % 4)
  FROM (SELECT coalesce(pg_sequence_last_value('outbox_ring'), 0) AS turn) AS r
 CROSS JOIN (SELECT bucket FROM outbox_bucket WHERE opened_at IS NOT NULL ORDER BY opened_at DESC, bucket LIMIT 1) AS n
"""


class Shard(msgspec.Struct, frozen=True, kw_only=True):
    """A cursor: who holds it for how long, and the rows that it has not passed, counted to the cap and one more."""

    shard: int
    owner: str | None
    epoch: int
    lease_s: float | None
    strikes: int
    suspect: int | None
    is_ours: bool
    backlog: int
    oldest_s: float | None


class Partition(msgspec.Struct, frozen=True, kw_only=True):
    """A partition of the ring; `rows` and `dead_rows` are the server's estimates."""

    bucket: int
    is_current: bool
    opened_at: datetime | None
    rows: int
    size_bytes: int
    dead_rows: int


class Cursor(msgspec.Struct, frozen=True, kw_only=True):
    """What decides whether a cursor can be, and needs to be, written anew."""

    shard: int
    owner: str | None
    lease_s: float | None
    is_ours: bool


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    """How many rows of a shard its cursor has passed, and how many not."""

    shard: int
    confirmed: int
    unconfirmed: int


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """A relay that is alive, and why it cannot publish."""

    owner: str
    trouble: str


class Aside(msgspec.Struct, frozen=True, kw_only=True):
    """How many messages stand aside in one state for one reason."""

    state: str
    reason: str
    rows: int
    oldest_s: float


class Parked(msgspec.Struct, frozen=True, kw_only=True):
    """A message that the broker did not take, without what it says."""

    id: int
    event_id: UUID
    type: str
    routing_key: str
    aggregate: str
    correlation_id: str
    state: str
    reason: str
    detail: str
    attempts: int
    created_at: datetime
    since: datetime
    retry_at: datetime


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """How many messages of one type were chosen, and when the first and the last were made."""

    type: str
    rows: int
    first_at: datetime
    last_at: datetime


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which rows that stand aside; None leaves out the question."""

    state: str | None = None
    reason: str | None = None
    type: str | None = None
    ids: list[int] | None = None


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """Which confirmed messages: made in [since, until), of these types, of this aggregate, the first `limit`."""

    since: datetime
    until: datetime | None = None
    types: list[str] | None = None
    aggregate: str | None = None
    limit: int | None = None


def shards(conn: database.Connection) -> list[Shard]:
    """Read the cursors."""
    return database.rows(conn, _SHARDS, Shard, {"limit": BACKLOG_CAP + 1})


def partitions(conn: database.Connection) -> list[Partition]:
    """Read the ring."""
    return database.rows(conn, _PARTITIONS, Partition)


def whole_since(conn: database.Connection) -> datetime | None:
    """Give since when the ring is known to hold everything; None when nothing has left it yet."""
    row = conn.execute(_WHOLE_SINCE).fetchone()
    return row[0] if row else None


def aside(conn: database.Connection) -> list[Aside]:
    """Count what stands aside."""
    return database.rows(conn, _ASIDE, Aside)


def relays(conn: database.Connection) -> list[str]:
    """Name the relays that are alive."""
    return [str(row[0]) for row in conn.execute(_RELAYS)]


def troubles(conn: database.Connection) -> list[Trouble]:
    """Return the relays that are alive and cannot publish."""
    return database.rows(conn, _TROUBLES, Trouble)


def parked(conn: database.Connection, wanted: Filter, limit: int) -> tuple[list[Parked], int]:
    """List what stands aside, the oldest first, and count all of it."""
    values = msgspec.structs.asdict(wanted)
    counted = conn.execute(_COUNT, values).fetchone()
    return database.rows(conn, _LIST, Parked, values | {"limit": limit}), int(counted[0]) if counted else 0


def retry(conn: database.Connection, wanted: Filter) -> list[str]:
    """Let rows be tried from the beginning, now; give the state that each was in."""
    return [str(row[0]) for row in conn.execute(_RETRY, msgspec.structs.asdict(wanted))]


def summary(conn: database.Connection, wanted: Span) -> list[Kind]:
    """Count confirmed messages by type."""
    return database.rows(conn, _SUMMARY, Kind, msgspec.structs.asdict(wanted))


def chosen(conn: database.Connection, wanted: Span, size: int) -> Iterator[list[int]]:
    """Give the rows of confirmed messages, one each, in order, `size` at a time: those that are confirmed now, however long it takes."""
    with conn.cursor("replay", withhold=True) as cursor:
        cursor.execute(_CHOSEN, msgspec.structs.asdict(wanted))
        while found := cursor.fetchmany(size):
            yield [int(row[0]) for row in found]


def copy(conn: database.Connection, ids: Sequence[int]) -> int:
    """Append these rows to the outbox once more, in order, in one transaction; give how many were still there."""
    values: dict[str, Any] = {"shards": list(range(outbox.SHARDS)), "ids": list(ids)}
    return conn.execute(_COPY, values).rowcount


def lock(conn: database.Connection) -> None:
    """Hold every cursor until the end of the transaction."""
    conn.execute(_LOCK)


def cursors(conn: database.Connection) -> list[Cursor]:
    """Read whose the cursors are."""
    return database.rows(conn, _CURSORS, Cursor)


def counted(conn: database.Connection) -> list[Counted]:
    """Count what the cursors have passed; shards without a row are left out."""
    return database.rows(conn, _COUNTED, Counted)


def rewrite(conn: database.Connection) -> list[Counted]:
    """Give every row a number, and every cursor a snapshot, that mean in this cluster what the old ones meant in theirs."""
    conn.execute(_COMPLETE, {"shards": list(range(outbox.SHARDS))})
    done = database.rows(conn, _REWRITE, Counted)
    conn.execute(_RESET)
    conn.execute(_IDS)
    conn.execute(_RING)
    return done
