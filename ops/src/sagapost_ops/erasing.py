"""Replaces a customer's address in both databases and keeps every amount; it must not know who asks for it.

Orders that are still under way keep it: their receipt, or the word of their cancellation, has yet to be sent.
"""

import contextlib
import secrets
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Final, Literal, LiteralString

import msgspec

from sagapost_ops import database

DOMAIN: Final = "erased.invalid"  # RFC 2606: no mail server takes mail for it
_NAME: Final = "sagapost-erase"
_AT_MOST: Final = 100_000  # orders in one call

# A compensated order's cancellation mail goes out after its end; an hour later it has failed or been given up.
_ORDERS: Final = """
SELECT o.id AS order_id, o.user_email,
       s.deadline_at IS NULL AND (s.state <> 'compensated' OR s.cancellation_sent_at IS NOT NULL OR s.attention IS NOT NULL
                                  OR s.updated_at < now() - interval '1 hour') AS is_ended
  FROM orders AS o JOIN sagas AS s ON s.order_id = o.id
 WHERE lower(o.user_email) = lower(%(email)s) ORDER BY o.id LIMIT %(limit)s FOR UPDATE OF s
"""
# by the address and not by the orders found above: a call that broke off between the two databases is finished by the next
_PAYMENTS: Final = """
SELECT order_id, user_email, true AS is_ended FROM payments
 WHERE lower(user_email) = lower(%(email)s) AND NOT order_id = ANY(%(under_way)s::bigint[]) ORDER BY order_id LIMIT %(limit)s FOR UPDATE
"""
_IN_ORDERS: Final = "UPDATE orders SET user_email = %(tombstone)s WHERE id = ANY(%(ids)s::bigint[])"
# after a restore of the order database an order number may stand for somebody else's payment, too
_IN_PAYMENTS: Final = """
UPDATE payments SET user_email = %(tombstone)s WHERE order_id = ANY(%(ids)s::bigint[]) AND user_email = ANY(%(emails)s::text[])
"""
# The spelling beside it is the one in the JSON, where no character that an address may have is escaped.
_IN_ANSWERS: Final = """
UPDATE idempotency_keys AS k
   SET body = convert_to(replace(convert_from(k.body, 'UTF8'), '"' || c.email || '"', '"' || %(tombstone)s || '"'), 'UTF8')
  FROM unnest(%(ids)s::bigint[], %(emails)s::text[]) AS c (order_id, email)
 WHERE k.order_id = c.order_id AND position(convert_to('"' || c.email || '"', 'UTF8') IN k.body) > 0
"""
# Keys of an earlier version may hold an address; both services refuse such a key now, so that nothing is repeated with it. The rest of a
# longer address goes with it.
_IN_KEYS: Final = """
UPDATE idempotency_keys SET key = 'erased-' || gen_random_uuid()
 WHERE position(lower(%(email)s) IN regexp_replace(lower(key), '%%(25)*40', '@', 'g')) > 0
"""
_IN_OUTBOX: Final = """
UPDATE outbox AS m
   SET payload = convert_to(replace(convert_from(m.payload, 'UTF8'), '"' || c.email || '"', '"' || %(tombstone)s || '"'), 'UTF8')
  FROM unnest(%(ids)s::bigint[], %(emails)s::text[]) AS c (order_id, email)
 WHERE m.aggregate = 'order-' || c.order_id AND position(convert_to('"' || c.email || '"', 'UTF8') IN m.payload) > 0
"""
_IN_PARKED: Final = """
UPDATE outbox_parked AS m
   SET payload = convert_to(replace(convert_from(m.payload, 'UTF8'), '"' || c.email || '"', '"' || %(tombstone)s || '"'), 'UTF8')
  FROM unnest(%(ids)s::bigint[], %(emails)s::text[]) AS c (order_id, email)
 WHERE m.aggregate = 'order-' || c.order_id AND position(convert_to('"' || c.email || '"', 'UTF8') IN m.payload) > 0
"""
# words of operators; the history is append-only for everybody
_TYPED: Final = """
SELECT (SELECT count(*) FROM saga_history AS h JOIN sagas AS s ON s.id = h.saga_id
         WHERE s.order_id = ANY(%(ids)s::bigint[])
           AND position(lower(%(email)s) IN lower(concat_ws(' ', h.actor, h.reason))) > 0) AS history,
       (SELECT count(*) FROM dlq_runs WHERE position(lower(%(email)s) IN lower(concat_ws(' ', actor, reason, detail))) > 0) AS runs
"""
_ORDER_TABLES: Final[tuple[tuple[str, LiteralString], ...]] = (
    ("orders", _IN_ORDERS),
    ("idempotency_keys", _IN_ANSWERS),
    ("idempotency_keys.key", _IN_KEYS),
    ("outbox", _IN_OUTBOX),
    ("outbox_parked", _IN_PARKED),
)
_PAYMENT_TABLES: Final[tuple[tuple[str, LiteralString], ...]] = (
    ("payments", _IN_PAYMENTS),
    ("outbox", _IN_OUTBOX),
    ("outbox_parked", _IN_PARKED),
)


class _Found(msgspec.Struct, frozen=True, kw_only=True):
    order_id: int
    user_email: str
    is_ended: bool


class Typed(msgspec.Struct, frozen=True, kw_only=True):
    """How often operators typed the address themselves: into the saga history, and into the records of the dead-letter commands."""

    history: int
    runs: int


class Count(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of one table that held the address; `idempotency_keys.key` are keys, `idempotency_keys` stored answers."""

    database: Literal["order", "payment"]
    table: str
    rows: int


class Erased(msgspec.Struct, frozen=True, kw_only=True):
    """What was replaced by `tombstone`, or would be unless `applied`; `under_way`: orders that still need the address."""

    applied: bool
    tombstone: str
    tables: tuple[Count, ...]
    under_way: tuple[int, ...]
    typed: Typed


def is_erased(address: str) -> bool:
    """Tell whether an address stands for one that was erased."""
    return address.endswith(f"@{DOMAIN}")


def perform(order_url: str, payment_url: str, email: str, *, apply: bool) -> Erased:
    """Replace the address in both databases, one transaction each; without `apply` both are rolled back.

    The tombstone is drawn anew for each call: a hash of the address could be found again by whoever guesses the address.
    """
    tombstone = f"erased-{secrets.token_hex(8)}@{DOMAIN}"
    values = {"email": email, "tombstone": tombstone, "limit": _AT_MOST}
    with _transaction(order_url, apply=apply) as conn:
        orders = database.rows(conn, _ORDERS, _Found, values)
        tables = _replace(conn, "order", _ORDER_TABLES, [order for order in orders if order.is_ended], values)
        (typed,) = database.rows(conn, _TYPED, Typed, values | {"ids": [order.order_id for order in orders]})
    under_way = tuple(order.order_id for order in orders if not order.is_ended)
    with _transaction(payment_url, apply=apply) as conn:
        payments = database.rows(conn, _PAYMENTS, _Found, values | {"under_way": list(under_way)})
        tables += _replace(conn, "payment", _PAYMENT_TABLES, payments, values)
    return Erased(applied=apply, tombstone=tombstone, tables=tuple(tables), under_way=under_way, typed=typed)


@contextlib.contextmanager
def _transaction(url: str, *, apply: bool) -> Generator[database.Connection]:
    with database.opened(url, _NAME, writing=True) as conn, conn.transaction(force_rollback=not apply):
        yield conn


def _replace(
    conn: database.Connection,
    name: Literal["order", "payment"],
    statements: Sequence[tuple[str, LiteralString]],
    found: Sequence[_Found],
    values: Mapping[str, Any],
) -> list[Count]:
    values = {**values, "ids": [one.order_id for one in found], "emails": [one.user_email for one in found]}
    return [Count(database=name, table=table, rows=conn.execute(statement, values).rowcount) for table, statement in statements]
