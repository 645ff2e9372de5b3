"""The SQL of sagas and their history; it must not know why a saga moves."""

from collections.abc import Collection, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Final, Literal, TypeVar
from uuid import UUID

import msgspec
from psycopg import sql
from psycopg.types import json

from sagapost_chassis import db, outbox, steps
from sagapost_contracts import events
from sagapost_order import domain, states

LIST_MAX: Final = 200
HISTORY_MAX: Final = 1000

_COLUMNS: Final = sql.SQL("""id, order_id, state, version, amount, captured, refunded, currency, payment_version, notified_at,
       cancellation_sent_at, reason, attempts, attention, deadline_at, deadline_kind, trace_id, pay_before, created_at, updated_at,
       receipt_until, cancel_noted""")
# whoever waited for the lock gets the row, and the time, as they are after the wait
_CLOCK: Final = sql.SQL("""greatest(clock_timestamp(), updated_at) AS locked_at, clock_timestamp() AS clock_at,
       coalesce(clock_at, updated_at) AS written_at""")
_LOCKED: Final = sql.SQL("SELECT {columns}, {clock} FROM sagas").format(columns=_COLUMNS, clock=_CLOCK)
_OWNED: Final = sql.SQL("""
(%(owner)s::text IS NULL OR EXISTS (SELECT FROM orders AS o WHERE o.id = sagas.order_id AND o.client = %(owner)s))
""")
_SAGA: Final = sql.SQL("SELECT {columns} FROM sagas WHERE id = %(saga_id)s AND {owned}").format(columns=_COLUMNS, owned=_OWNED)
# Inbox and saga of many messages at once. The sagas are locked in a part of its own: what is read again after a wait must not begin with
# an INSERT. A message whose saga is not there is missing from the answer.
_TAKE: Final = (
    sql.SQL("""
WITH m AS MATERIALIZED (
    SELECT * FROM json_to_recordset(%(taken)s::json) AS m (message_id uuid, type text, saga_id uuid)
), locked AS MATERIALIZED (
    SELECT message_id, {columns}, {clock}
      FROM m JOIN sagas ON sagas.id = m.saga_id ORDER BY sagas.id FOR UPDATE OF sagas
), claimed AS (
    INSERT INTO inbox (message_id, type) SELECT message_id, type FROM m ON CONFLICT DO NOTHING RETURNING message_id
)
SELECT locked.*, claimed.message_id IS NOT NULL AS is_new FROM locked LEFT JOIN claimed USING (message_id)
""")
    .format(columns=_COLUMNS, clock=_CLOCK)
    .as_bytes(None)
)
_LOCK: Final = sql.SQL("{locked} WHERE id = %(saga_id)s FOR UPDATE").format(locked=_LOCKED)
_LOCK_OF_ORDER: Final = sql.SQL("{locked} WHERE order_id = %(order_id)s AND {owned} FOR UPDATE").format(locked=_LOCKED, owned=_OWNED)
# a saga that another transaction holds is being moved anyway: its deadline may be another one afterwards
_LOCK_DUE: Final = sql.SQL("""
{locked} WHERE deadline_at <= now() AND NOT id = ANY(%(skipped)s) ORDER BY deadline_at LIMIT 1 FOR UPDATE SKIP LOCKED
""").format(locked=_LOCKED)
_MOVE: Final = """
WITH r AS MATERIALIZED (
    SELECT * FROM json_to_recordset(%(moves)s::json) AS r (saga_id uuid, version integer, from_state text, to_state text, captured numeric,
        refunded numeric, payment_version integer, notified_at timestamptz, cancellation_sent_at timestamptz, reason text,
        attempts integer, attention text, deadline_at timestamptz, deadline_kind text, order_status text, event text, outcome text,
        message_id uuid, source text, actor text, history_reason text, facts jsonb, at timestamptz, cancel_noted text,
        receipt_until timestamptz, mail text, is_told boolean)
), moved AS (
    UPDATE sagas AS s
       SET state = r.to_state, version = s.version + 1, clock_at = clock_timestamp(), captured = r.captured, refunded = r.refunded,
           payment_version = r.payment_version, notified_at = r.notified_at, cancellation_sent_at = r.cancellation_sent_at,
           reason = r.reason, attempts = r.attempts, attention = r.attention, deadline_at = r.deadline_at,
           deadline_kind = r.deadline_kind, updated_at = r.at, cancel_noted = r.cancel_noted, receipt_until = r.receipt_until,
           told_xid = CASE WHEN r.is_told THEN pg_current_xact_id() ELSE s.told_xid END
      FROM r
     WHERE s.id = r.saga_id AND s.version = r.version
    RETURNING s.id AS saga_id, s.order_id, s.version AS seq
), told AS (
    UPDATE orders AS o SET status = r.order_status, updated_at = r.at
      FROM moved JOIN r USING (saga_id) WHERE o.id = moved.order_id AND o.status <> r.order_status
)
INSERT INTO saga_history (saga_id, seq, from_state, to_state, event, outcome, message_id, source, actor, reason, facts, at, mail)
SELECT saga_id, seq, from_state, to_state, event, outcome, message_id, source, actor, history_reason, facts, at, mail
  FROM moved JOIN r USING (saga_id)
"""
# what leaves no history row: the version stays
_TOUCH: Final = """
UPDATE sagas SET deadline_at = %(deadline_at)s, deadline_kind = %(deadline_kind)s, receipt_until = %(receipt_until)s,
       clock_at = clock_timestamp()
 WHERE id = %(saga_id)s AND version = %(version)s
"""
_COUNT_LATE: Final = "UPDATE sagas SET late_messages = late_messages + 1 WHERE id = ANY(%(saga_ids)s)"
# What the cursor's snapshot shows has left the outbox, or was set aside; NULL is a message of before the column. A transaction that this
# server has not reached yet is of another life of the database (a dump that was restored): nothing is known of it, deadlines go on.
_UNSENT: Final = """
SELECT CASE WHEN s.told_xid < pg_snapshot_xmax(pg_current_snapshot()) AND NOT pg_visible_in_snapshot(s.told_xid, c.lo) THEN 'waiting'
            ELSE (SELECT min(CASE p.state WHEN 'parked' THEN 'parked' ELSE 'waiting' END) FROM outbox_parked AS p
                   WHERE p.aggregate = %(aggregate)s) END
  FROM sagas AS s, outbox_cursor AS c WHERE s.id = %(saga_id)s AND c.shard = %(shard)s
"""
# a row's version is the seq of its newest history row: up to it, the history belongs to the row that was read
_HISTORY: Final = """
SELECT seq, from_state, to_state, event, outcome, source, actor, reason, facts, at, mail
  FROM saga_history WHERE saga_id = %(saga_id)s AND seq > %(after)s AND seq <= %(version)s ORDER BY seq LIMIT 1000
"""
_VERSIONS: Final = "SELECT id, version FROM sagas WHERE id = ANY(%(saga_ids)s)"
_ANNOUNCED: Final = """
SELECT h.message_id, o.user_id, o.user_email, o.total_amount AS amount, o.currency, o.payment_method, s.pay_before,
       (SELECT jsonb_agg(jsonb_build_object('product_id', i.product_id, 'name', i.name, 'quantity', i.quantity, 'price', i.price::text)
                         ORDER BY i.line)
          FROM order_items AS i WHERE i.order_id = o.id) AS items
  FROM sagas AS s JOIN orders AS o ON o.id = s.order_id JOIN saga_history AS h ON h.saga_id = s.id AND h.seq = 1
 WHERE s.id = %(saga_id)s
"""
# Nothing will move it in time: overdue although somebody sweeps, too long under way, or waiting for a person.
_STUCK: Final = sql.SQL("""
(s.deadline_at IS NOT NULL AND (
    s.deadline_at < now() - interval '30 seconds'
    OR s.state IN ('notify_failed', 'compensation_failed')
    OR s.state IN ('paid', 'compensating') AND now() - interval '15 minutes' >
       (SELECT max(h.at) FROM saga_history AS h WHERE h.saga_id = s.id AND h.from_state <> h.to_state)))
""")
_LIST: Final = sql.SQL("""
SELECT s.id, s.order_id, s.state, s.version, s.amount, s.captured, s.refunded, s.currency, s.reason, s.attempts, s.attention,
       s.deadline_at, s.created_at, s.updated_at, {stuck} AS stuck
  FROM sagas AS s
 WHERE {conditions}
 ORDER BY s.order_id DESC LIMIT %(limit)s
""")
_LIVE: Final = """
SELECT state, count(*) AS sagas, count(*) FILTER (WHERE deadline_at < now() - interval '5 seconds') AS overdue,
       extract(epoch FROM now() - min(created_at))::float8 AS oldest_s
  FROM sagas WHERE deadline_at IS NOT NULL GROUP BY state
"""
_ATTENTION: Final = "SELECT count(*) FROM (SELECT FROM sagas WHERE attention IS NOT NULL LIMIT 10000) AS found"


class LockedSaga(domain.Saga, frozen=True, kw_only=True):
    """The saga's row, locked until the transaction ends, and the database's time of the lock, also as its clock says it (`clock_at`).

    `written_at`: what the clock showed when deadline and lease were written.
    """

    locked_at: datetime
    clock_at: datetime
    written_at: datetime


class Announced(msgspec.Struct, frozen=True, kw_only=True):
    """What OrderCreated said, and under which id."""

    message_id: UUID
    user_id: int
    user_email: str
    amount: Decimal
    currency: str
    payment_method: str
    pay_before: datetime
    items: tuple[events.Line, ...]


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """One saga as an operator's list shows it."""

    id: UUID
    order_id: int
    state: str
    version: int
    amount: Decimal
    captured: Decimal
    refunded: Decimal
    currency: str
    reason: str | None
    attempts: int
    attention: str | None
    deadline_at: datetime | None
    created_at: datetime
    updated_at: datetime
    stuck: bool


class Live(msgspec.Struct, frozen=True, kw_only=True):
    """The sagas of one state that have not ended; `oldest_s`: seconds since the oldest one's checkout."""

    state: str
    sagas: int
    overdue: int
    oldest_s: float


class Cause(msgspec.Struct, frozen=True, kw_only=True):
    """Who moves a saga: a message, the clock, a customer or an operator."""

    source: str
    message_id: UUID | None = None
    actor: str | None = None


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """A message that is to be claimed, and the saga it is about."""

    message_id: UUID
    type: str
    saga_id: UUID


L = TypeVar("L", bound=LockedSaga)


class TakenSaga(LockedSaga, frozen=True, kw_only=True):
    """The locked saga of a message; `is_new`: nobody has processed the message before."""

    message_id: UUID
    is_new: bool


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """A saga's row as it was and as it will be, and the history row between them; `is_told`: it emits a message."""

    before: domain.Saga
    after: domain.Saga
    facts: domain.Facts
    cause: Cause
    event: str
    outcome: str
    reason: str | None
    order_status: str
    mail: str | None = None
    is_told: bool = False


async def saga(conn: db.Connection, saga_id: UUID, owner: str | None) -> domain.Saga | None:
    """Read a saga, if its order is the owner's; None: whosever it is."""
    async with conn.cursor(row_factory=db.struct_row(domain.Saga)) as cursor:
        await cursor.execute(_SAGA, {"saga_id": saga_id, "owner": owner})
        return await cursor.fetchone()


async def lock(conn: db.Connection, saga_id: UUID) -> LockedSaga | None:
    """Read a saga and lock it, and with it its order's place in the outbox, until the transaction ends."""
    return await _locked(conn, _LOCK, {"saga_id": saga_id})


async def lock_of_order(conn: db.Connection, order_id: int, owner: str) -> LockedSaga | None:
    """Read and lock the saga of an order, if it is the owner's."""
    return await _locked(conn, _LOCK_OF_ORDER, {"order_id": order_id, "owner": owner})


async def lock_due(conn: db.Connection, skipped: Collection[UUID]) -> LockedSaga | None:
    """Read and lock the saga whose deadline passed first, of those that nobody holds; a `skipped` one is left out."""
    return await _locked(conn, _LOCK_DUE, {"skipped": list(skipped)})


async def take(conn: db.Connection, taken: Sequence[Taken]) -> dict[UUID, TakenSaga]:
    """Claim messages as inbox.claim does, and lock their sagas as `lock` does; give by message what is there.

    One saga may be named once. What was claimed before may be acknowledged after the transaction.
    """
    async with conn.cursor(row_factory=db.struct_row(TakenSaga)) as cursor:
        await cursor.execute(_TAKE, {"taken": msgspec.json.encode(taken).decode()})
        found = {row.message_id: _followed(row) for row in await cursor.fetchall()}
    if not all(row.is_new for row in found.values()):
        await db.await_standbys(conn)
    return found


async def move(conn: db.Connection, moves: Sequence[Move]) -> bool:
    """Write the new rows of sagas, their history rows and the orders' status; False if one of the versions was another.

    Of that saga nothing was written, of the others everything: whoever is told False rolls back. One saga may be named once.
    """
    records = [
        msgspec.structs.asdict(move.facts)
        | msgspec.structs.asdict(move.cause)
        | {
            "saga_id": move.before.id,
            "version": move.before.version,
            "from_state": move.before.state,
            "to_state": move.after.state,
            "order_status": move.order_status,
            "event": move.event,
            "outcome": move.outcome,
            "history_reason": move.reason,
            "facts": move.facts,
            "at": move.after.updated_at,
            "receipt_until": move.after.receipt_until,
            "mail": move.mail,
            "is_told": move.is_told,
        }
        for move in moves
    ]
    cursor = await conn.execute(_MOVE, {"moves": msgspec.json.encode(records).decode()})
    return cursor.rowcount == len(moves)


async def touch(conn: db.Connection, before: domain.Saga, after: domain.Saga) -> bool:
    """Store deadline and lease of a saga that is locked, without a history row; False if its version was another."""
    values: dict[str, object] = {
        "saga_id": before.id,
        "version": before.version,
        "deadline_at": after.deadline_at,
        "deadline_kind": after.deadline_kind,
        "receipt_until": after.receipt_until,
    }
    cursor = await conn.execute(_TOUCH, values)
    return cursor.rowcount == 1


async def count_late(conn: db.Connection, saga_ids: Collection[UUID]) -> None:
    """Count a message that came after the end and changed nothing, for each of these sagas."""
    await conn.execute(_COUNT_LATE, {"saga_ids": list(saga_ids)})


async def unsent(conn: db.Connection, saga: domain.Saga) -> Literal["waiting", "parked"] | None:
    """Return whether the saga's last message waits in the outbox, or one of its messages was set aside."""
    aggregate = outbox.aggregate_of(saga.order_id)
    values: dict[str, object] = {"saga_id": saga.id, "aggregate": aggregate, "shard": outbox.shard_of(aggregate)}
    found = await (await conn.execute(_UNSENT, values)).fetchone()
    return found[0] if found else None


async def history(conn: db.Connection, saga: domain.Saga, *, after: int = 0) -> list[domain.HistoryRow]:
    """Read the history that led to this row, from the row behind seq `after` on, 1,000 rows at most."""
    async with conn.cursor(row_factory=db.struct_row(domain.HistoryRow)) as cursor:
        await cursor.execute(_HISTORY, {"saga_id": saga.id, "version": saga.version, "after": after})
        return await cursor.fetchall()


async def versions(conn: db.Connection, saga_ids: Collection[UUID]) -> dict[UUID, int]:
    """Read the versions of many sagas at once; those that are not there are left out."""
    found = await conn.execute(_VERSIONS, {"saga_ids": list(saga_ids)})
    return dict(await found.fetchall())


async def announced(conn: db.Connection, saga_id: UUID) -> Announced | None:
    """Read what OrderCreated said of a saga's order."""
    async with conn.cursor(row_factory=db.struct_row(Announced)) as cursor:
        await cursor.execute(_ANNOUNCED, {"saga_id": saga_id})
        return await cursor.fetchone()


async def listed(
    conn: db.Connection, *, state: str | None, stuck: bool, attention: bool, before_order: int | None, limit: int
) -> list[Listed]:
    """List sagas, the newest order first, those of an order before `before_order`."""
    conditions: list[sql.Composable] = [sql.SQL("true")]
    if state is not None:
        live = "true" if state in states.DONE else "s.deadline_at IS NOT NULL"
        conditions.append(sql.SQL(f"s.state = %(state)s AND {live}"))
    if stuck:
        conditions.append(_STUCK)
    if attention:
        conditions.append(sql.SQL("s.attention IS NOT NULL"))
    if before_order is not None:
        conditions.append(sql.SQL("s.order_id < %(before_order)s"))
    query = _LIST.format(stuck=_STUCK, conditions=sql.SQL(" AND ").join(conditions))
    async with conn.cursor(row_factory=db.struct_row(Listed)) as cursor:
        await cursor.execute(query, {"state": state, "before_order": before_order, "limit": min(limit, LIST_MAX)})
        return await cursor.fetchall()


async def live(conn: db.Connection) -> Sequence[Live]:
    """Count the sagas that have not ended."""
    async with conn.cursor(row_factory=db.struct_row(Live)) as cursor:
        await cursor.execute(_LIVE)
        return await cursor.fetchall()


async def calling(conn: db.Connection) -> int:
    """Count the sagas that call an operator, up to 10,000."""
    found = await (await conn.execute(_ATTENTION)).fetchone()
    return int(found[0]) if found else 0


def jsonb(facts: domain.Facts) -> json.Jsonb:
    """Write facts as the history keeps them."""
    return json.Jsonb(facts, dumps=msgspec.json.encode)


async def _locked(conn: db.Connection, query: sql.Composed, values: dict[str, object]) -> LockedSaga | None:
    async with conn.cursor(row_factory=db.struct_row(LockedSaga)) as cursor:
        await cursor.execute(query, values)
        row = await cursor.fetchone()
    return None if row is None else _followed(row)


def _followed(row: L) -> L:
    """Move deadline and lease of a row that was written before the clock was set back, as the sweeper does a moment later."""
    step = row.clock_at - row.written_at
    if step >= -steps.LEAST:
        return row
    deadline_at, receipt_until = (None if time is None else time + step for time in (row.deadline_at, row.receipt_until))
    return msgspec.structs.replace(row, deadline_at=deadline_at, receipt_until=receipt_until)
