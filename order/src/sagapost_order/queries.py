"""The SQL of catalogue, orders and idempotency keys; it must not know why a statement is run."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import msgspec

from sagapost_chassis import db
from sagapost_order import domain, saga_queries

_PRICES: Final = """
SELECT id, name, description, price, currency, now() AS at FROM products WHERE id = ANY (%(ids)s) LIMIT 50
"""
_PRODUCTS: Final = "SELECT id, name, description, price, currency FROM products ORDER BY id LIMIT 500"
_PRODUCT: Final = "SELECT id, name, description, price, currency FROM products WHERE id = %(id)s"

# one statement, so one round trip; foreign keys are checked at its end
_INSERT_ORDER: Final = """
WITH placed AS (
    INSERT INTO orders (client, user_id, user_email, status, currency, total_amount, payment_method, processing_duration_ms,
                        created_at, updated_at)
    VALUES (%(client)s, %(user_id)s, %(user_email)s, %(status)s, %(currency)s, %(total)s, %(payment_method)s, %(duration_ms)s,
            %(at)s, %(at)s)
    RETURNING id
), lines AS (
    INSERT INTO order_items (order_id, line, product_id, name, quantity, price)
    SELECT placed.id, item.line, item.product_id, item.name, item.quantity, item.price
      FROM placed,
           unnest(%(product_ids)s::bigint[], %(names)s::text[], %(quantities)s::integer[], %(prices)s::numeric[])
           WITH ORDINALITY AS item (product_id, name, quantity, price, line)
), begun AS (
    INSERT INTO sagas (id, order_id, state, version, amount, currency, deadline_at, deadline_kind, pay_before, trace_id,
                       created_at, updated_at, clock_at)
    SELECT %(saga_id)s, placed.id, %(state)s, 1, %(total)s, %(currency)s, %(deadline_at)s, %(deadline_kind)s, %(pay_before)s, %(trace_id)s,
           %(at)s, %(at)s, clock_timestamp()
      FROM placed
), told AS (
    INSERT INTO saga_history (saga_id, seq, from_state, to_state, event, outcome, message_id, source, facts, at)
    VALUES (%(saga_id)s, 1, 'none', %(state)s, 'OrderCreated', 'applied', %(message_id)s, 'http', %(facts)s, %(at)s)
)
SELECT placed.id, pg_current_xact_id()::text::bigint AS xid FROM placed
"""

# a backend that lost its client may still be committing: only when its transaction is over is "not there" an answer.
# Both columns see the statement's one snapshot.
_COMMIT_OUTCOME: Final = """
SELECT EXISTS (SELECT FROM sagas WHERE id = %(saga_id)s) AS found,
       NOT pg_visible_in_snapshot(%(xid)s::text::xid8, pg_current_snapshot()) AS running
"""

# The lock ends with the transaction, after its row can be seen. A first request that ends between this statement's snapshot
# and the lock leaves `alone` true and no row: _KEEP_ANSWER finds it out.
_CLAIM_KEY: Final = """
SELECT pg_try_advisory_xact_lock(hashtextextended(%(client)s::text || ' ' || %(key)s::text, 0)) AS alone,
       kept.fingerprint, kept.status, kept.location, kept.body
  FROM (VALUES (1)) AS one LEFT JOIN idempotency_keys kept ON kept.client = %(client)s AND kept.key = %(key)s
"""
_KEEP_ANSWER: Final = """
INSERT INTO idempotency_keys (client, key, fingerprint, order_id, status, location, body)
VALUES (%(client)s, %(key)s, %(fingerprint)s, %(order_id)s, %(status)s, %(location)s, %(body)s)
ON CONFLICT (client, key) DO NOTHING
"""
# a CTE, because a subquery with LIMIT may run more than once inside a join
_FORGET_ANSWERS: Final = """
WITH expired AS (
    SELECT client, key FROM idempotency_keys WHERE created_at < now() - %(kept)s ORDER BY created_at
     LIMIT %(limit)s FOR UPDATE SKIP LOCKED
)
DELETE FROM idempotency_keys USING expired
 WHERE idempotency_keys.client = expired.client AND idempotency_keys.key = expired.key
"""

_ORDER: Final = """
SELECT o.id, o.user_id, o.user_email, o.status, o.currency, o.total_amount, o.processing_duration_ms, o.created_at, o.updated_at,
       s.id AS saga_id, s.state AS saga_state,
       (SELECT jsonb_agg(jsonb_build_object('product_id', i.product_id, 'name', i.name, 'quantity', i.quantity, 'price', i.price::text)
                         ORDER BY i.line)
          FROM order_items i WHERE i.order_id = o.id) AS items
  FROM orders o JOIN sagas s ON s.order_id = o.id
 WHERE o.id = %(order_id)s AND (%(owner)s::text IS NULL OR o.client = %(owner)s)
"""

# A page ends behind the order with which its lines reach the maximum: what a page costs does not grow with the orders' size.
_ORDERS: Final = """
WITH chosen AS (
    SELECT o.id, (SELECT count(*) FROM order_items i WHERE i.order_id = o.id) AS lines
      FROM orders o
     WHERE o.client = %(client)s AND o.id < %(before)s AND (%(status)s::text IS NULL OR o.status = %(status)s)
     ORDER BY o.id DESC LIMIT %(limit)s
), page AS (
    SELECT id, sum(lines) OVER (ORDER BY id DESC) - lines AS lines_before FROM chosen
)
SELECT o.id, o.user_id, o.user_email, o.status, o.currency, o.total_amount, o.processing_duration_ms, o.created_at, o.updated_at,
       s.id AS saga_id, s.state AS saga_state,
       (SELECT jsonb_agg(jsonb_build_object('product_id', i.product_id, 'name', i.name, 'quantity', i.quantity, 'price', i.price::text)
                         ORDER BY i.line)
          FROM order_items i WHERE i.order_id = o.id) AS items
  FROM page JOIN orders o ON o.id = page.id JOIN sagas s ON s.order_id = o.id
 WHERE page.lines_before < %(most_lines)s
 ORDER BY o.id DESC LIMIT %(limit)s
"""


# One checkout of a user at a time, so that many at once do not all see the same number; the others do not wait.
_LOCK_USER: Final = "SELECT pg_try_advisory_xact_lock(hashtextextended(%(client)s::text || ' ' || %(user_id)s::text, 1))"
# Open payments count too: whoever tries many tokens at once does not wait for the first answer.
_DECLINES: Final = """
SELECT count(*), ceil(extract(epoch FROM min(created_at) + interval '1 hour' - now()))::integer
  FROM (SELECT o.created_at
          FROM orders o JOIN sagas s ON s.order_id = o.id
         WHERE o.client = %(client)s AND o.user_id = %(user_id)s AND o.created_at > now() - interval '1 hour'
           AND (s.reason = 'declined' OR s.state = 'created')
         ORDER BY o.created_at DESC LIMIT %(most)s) AS attempts
"""


class PricedProduct(domain.Product, frozen=True, kw_only=True):
    """A product and the instant of the transaction that read it."""

    at: datetime


class Placed(msgspec.Struct, frozen=True, kw_only=True):
    """A new order's id and the transaction that wrote it."""

    id: int
    xid: int


class CommitOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the saga is there, and whether its transaction may still commit."""

    found: bool
    running: bool


class KeptAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer and the fingerprint of the body that got it."""

    fingerprint: bytes
    answer: domain.Answer


async def prices(conn: db.Connection, product_ids: Sequence[int]) -> list[PricedProduct]:
    """Read the products of a cart, those that exist."""
    async with conn.cursor(row_factory=db.struct_row(PricedProduct)) as cursor:
        await cursor.execute(_PRICES, {"ids": list(product_ids)})
        return await cursor.fetchall()


async def products(conn: db.Connection) -> list[domain.Product]:
    """Read the catalogue."""
    async with conn.cursor(row_factory=db.struct_row(domain.Product)) as cursor:
        await cursor.execute(_PRODUCTS)
        return await cursor.fetchall()


async def product(conn: db.Connection, product_id: int) -> domain.Product | None:
    """Read one product."""
    async with conn.cursor(row_factory=db.struct_row(domain.Product)) as cursor:
        await cursor.execute(_PRODUCT, {"id": product_id})
        return await cursor.fetchone()


async def insert_order(
    conn: db.Connection,
    order: domain.Order,
    facts: domain.Facts,
    *,
    client: str,
    payment_method: str,
    pay_before: datetime,
    message_id: UUID,
    trace_id: str | None,
) -> Placed:
    """Insert order, lines, saga and the first history row; the order's id is the database's, not `order.id`."""
    values = {
        "client": client,
        "user_id": order.user_id,
        "user_email": order.user_email,
        "status": order.status,
        "currency": order.currency,
        "total": order.total_amount,
        "payment_method": payment_method,
        "duration_ms": order.processing_duration_ms,
        "at": order.created_at,
        "product_ids": [line.product_id for line in order.items],
        "names": [line.name for line in order.items],
        "quantities": [line.quantity for line in order.items],
        "prices": [line.price for line in order.items],
        "saga_id": order.saga_id,
        "state": order.saga_state,
        "deadline_at": facts.deadline_at,
        "deadline_kind": facts.deadline_kind,
        "pay_before": pay_before,
        "trace_id": trace_id,
        "message_id": message_id,
        "facts": saga_queries.jsonb(facts),
    }
    async with conn.cursor(row_factory=db.struct_row(Placed)) as cursor:
        await cursor.execute(_INSERT_ORDER, values)
        placed = await cursor.fetchone()
    if placed is None:
        raise LookupError("INSERT … RETURNING gave no row")
    return placed


async def commit_outcome(conn: db.Connection, saga_id: UUID, xid: int) -> CommitOutcome:
    """Find out whether a checkout whose COMMIT got no answer happened."""
    async with conn.cursor(row_factory=db.struct_row(CommitOutcome)) as cursor:
        await cursor.execute(_COMMIT_OUTCOME, {"saga_id": saga_id, "xid": xid})
        return await cursor.fetchone() or CommitOutcome(found=False, running=False)


async def lock_user(conn: db.Connection, client: str, user_id: int) -> bool:
    """Lock a user until the transaction ends, without waiting; return False when another transaction has the lock."""
    cursor = await conn.execute(_LOCK_USER, {"client": client, "user_id": user_id})
    return await cursor.fetchone() == (True,)


async def declines(conn: db.Connection, client: str, user_id: int, most: int) -> int | None:
    """Return in how many seconds a user may order of whom `most` payments were declined or are open; None: at once."""
    cursor = await conn.execute(_DECLINES, {"client": client, "user_id": user_id, "most": most})
    count, wait_s = await cursor.fetchone() or (0, 0)
    return max(1, int(wait_s)) if count >= most else None


async def claim_key(conn: db.Connection, key: domain.IdempotencyKey) -> tuple[bool, KeptAnswer | None]:
    """Claim a key until the transaction ends, without waiting; tell whether no other transaction has it, and give what is kept."""
    cursor = await conn.execute(_CLAIM_KEY, {"client": key.client, "key": key.key})
    alone, fingerprint, status, location, body = await cursor.fetchone() or (False, None, 0, "", b"")
    if fingerprint is None:
        return alone, None
    return alone, KeptAnswer(fingerprint=fingerprint, answer=domain.Answer(status=status, location=location, body=body, replayed=True))


async def keep_answer(conn: db.Connection, key: domain.IdempotencyKey, answer: domain.Answer, order_id: int) -> bool:
    """Keep an answer under its key; False, and nothing written, if the key has one."""
    values: dict[str, object] = {
        "client": key.client,
        "key": key.key,
        "fingerprint": key.fingerprint,
        "order_id": order_id,
        "status": answer.status,
        "location": answer.location,
        "body": answer.body,
    }
    cursor = await conn.execute(_KEEP_ANSWER, values)
    return cursor.rowcount == 1


async def forget_answers(conn: db.Connection, kept: timedelta, limit: int) -> int:
    """Delete the oldest answers that have been kept long enough, `limit` at most; give their number."""
    cursor = await conn.execute(_FORGET_ANSWERS, {"kept": kept, "limit": limit})
    return cursor.rowcount


async def orders(conn: db.Connection, client: str, *, status: str | None, before: int, limit: int) -> list[domain.Order]:
    """Read a client's orders with ids below `before`, the newest first: at most `limit`, fewer when they hold PAGE_LINES lines."""
    values = {"client": client, "status": status, "before": before, "limit": limit, "most_lines": domain.PAGE_LINES}
    async with conn.cursor(row_factory=db.struct_row(domain.Order)) as cursor:
        await cursor.execute(_ORDERS, values)
        return await cursor.fetchall()


async def order(conn: db.Connection, order_id: int, owner: str | None) -> domain.Order | None:
    """Read an order with its lines, if it is the owner's; None: whosever it is."""
    async with conn.cursor(row_factory=db.struct_row(domain.Order)) as cursor:
        await cursor.execute(_ORDER, {"order_id": order_id, "owner": owner})
        return await cursor.fetchone()
