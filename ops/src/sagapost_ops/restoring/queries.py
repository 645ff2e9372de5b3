"""Every SQL statement of `restored`; it must not know what is done about what it finds."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, LiteralString, TypeVar
from uuid import UUID

import msgspec
from psycopg.types import json

from sagapost_chassis import outbox
from sagapost_contracts import events
from sagapost_ops import database

PAGE: Final = 5000
USER: Final = 2**63 - 1  # payment does not know which user placed an order
# nor whose client's it was: where there is only one, it is that one's; the demo client is there always
_CLIENT: Final = """
SELECT CASE count(*) WHEN 0 THEN 'demo' WHEN 1 THEN min(name) ELSE 'restored' END FROM clients WHERE name <> 'demo'
"""
_HIGHEST: Final = "SELECT coalesce(max(order_id), 0) FROM payments"
_LAST: Final = "SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence('orders', 'id')::regclass), 0)"
_LIFT: Final = "SELECT setval(pg_get_serial_sequence('orders', 'id'), %(number)s)"
_NEXT: Final = "SELECT nextval(pg_get_serial_sequence('orders', 'id')) FROM generate_series(1, %(count)s)"
_PAYMENTS: Final = """
SELECT id, saga_id, order_id, status, amount, currency, created_at FROM payments WHERE id > %(after)s ORDER BY id LIMIT %(limit)s
"""
_SAGAS: Final = """
SELECT order_id AS id, id AS saga_id, state, version,
       state = 'compensated' AND EXISTS (
           SELECT FROM saga_history AS h WHERE h.saga_id = sagas.id AND h.event = 'OperatorMarkRefunded' AND h.outcome = 'applied'
       ) AS by_hand
  FROM sagas WHERE order_id > %(after)s ORDER BY order_id LIMIT %(limit)s
"""
_KNOWN_SAGAS: Final = "SELECT id FROM sagas WHERE id = ANY(%(ids)s)"
_STATES: Final = "SELECT id AS saga_id, state, refunded > 0 AS knows_refund FROM sagas WHERE id = ANY(%(ids)s)"
_KNOWN_PAYMENTS: Final = "SELECT saga_id, status FROM payments WHERE saga_id = ANY(%(ids)s)"
_DETAILS: Final = """
SELECT saga_id, order_id, amount, currency, payment_method, user_email, items, pay_before, created_at
  FROM payments WHERE saga_id = ANY(%(ids)s) ORDER BY id
"""
_TAKEN: Final = "SELECT id FROM orders WHERE id = ANY(%(ids)s)"
_NUMBERS: Final = "SELECT saga_id::text, order_id FROM payments WHERE saga_id = ANY(%(ids)s::uuid[])"
_RENUMBER: Final = "UPDATE payments SET order_id = %(number)s WHERE saga_id = %(saga_id)s"
# As the order service writes them, with the operator as the source: `verify` knows by the first row that there was no announcement.
_REBUILD: Final = """
WITH placed AS (
    INSERT INTO orders (id, client, user_id, user_email, status, currency, total_amount, payment_method, processing_duration_ms,
                        created_at, updated_at)
    OVERRIDING SYSTEM VALUE
    VALUES (%(number)s, %(client)s, %(user_id)s, %(user_email)s, 'cancelling', %(currency)s, %(amount)s, %(payment_method)s, 0,
            %(created_at)s, now())
), lines AS (
    INSERT INTO order_items (order_id, line, product_id, name, quantity, price)
    SELECT %(number)s, l.line, (l.item ->> 'product_id')::bigint, l.item ->> 'name', (l.item ->> 'quantity')::integer,
           (l.item ->> 'price')::numeric
      FROM jsonb_array_elements(%(items)s) WITH ORDINALITY AS l (item, line)
), begun AS (
    INSERT INTO sagas (id, order_id, state, version, amount, currency, reason, deadline_at, deadline_kind, pay_before, created_at,
                       updated_at, told_xid)
    VALUES (%(saga_id)s, %(number)s, 'compensating', 2, %(amount)s, %(currency)s, 'operator', now(), 'compensate', %(pay_before)s,
            %(created_at)s, now(), NULL)
)
INSERT INTO saga_history (saga_id, seq, from_state, to_state, event, outcome, message_id, source, actor, reason, facts, at)
SELECT %(saga_id)s, h.seq, h.from_state, h.to_state, h.event, 'applied', CASE h.seq WHEN 1 THEN gen_random_uuid() END,
       'operator', %(actor)s, %(reason)s,
       jsonb_build_object('captured', '0.00', 'refunded', '0.00', 'payment_version', 0, 'attempts', 0, 'reason', h.code,
                          'deadline_at', to_jsonb(now()), 'deadline_kind', h.kind), now()
  FROM (VALUES (1, 'none', 'created', 'OrderCreated', NULL, 'pay'),
               (2, 'created', 'compensating', 'OperatorCompensate', 'operator', 'compensate'))
       AS h (seq, from_state, to_state, event, code, kind)
"""
_LOCK_SAGAS: Final = "SELECT FROM sagas WHERE id = ANY(%(ids)s) ORDER BY id FOR UPDATE"
_ORDERS: Final = """
SELECT s.id AS saga_id, s.order_id, h.message_id, o.user_id, o.user_email, o.total_amount AS amount, o.currency, o.payment_method,
       s.pay_before,
       (SELECT jsonb_agg(jsonb_build_object('product_id', i.product_id, 'name', i.name, 'quantity', i.quantity, 'price', i.price::text)
                         ORDER BY i.line) FROM order_items AS i WHERE i.order_id = o.id) AS items
  FROM sagas AS s JOIN orders AS o ON o.id = s.order_id JOIN saga_history AS h ON h.saga_id = s.id AND h.seq = 1
 WHERE s.id = ANY(%(ids)s) AND h.message_id IS NOT NULL ORDER BY s.id
"""
_PUBLISHED: Final = """
SELECT event_id, type, headers, payload FROM outbox WHERE shard = ANY(%(shards)s::smallint[]) AND id = ANY(%(ids)s::bigint[]) ORDER BY id
"""
_TELL: Final = """
INSERT INTO outbox (shard, event_id, aggregate, type, routing_key, correlation_id, headers, payload, created_at)
VALUES (%(shard)s, %(event_id)s, %(aggregate)s, %(type)s, %(routing_key)s, %(correlation_id)s, %(headers)s, %(payload)s, %(created_at)s)
"""


class Numbered(msgspec.Struct, frozen=True, kw_only=True):
    """A row of a table that is read a page at a time, by its number."""

    id: int


T = TypeVar("T", bound=Numbered)


class Payment(Numbered, frozen=True, kw_only=True, omit_defaults=True):
    """A payment and what the order database knows of it; `id` is the payment's own, `state` that of its saga.

    `state` None: its order is gone. `knows_refund`: the saga knows that money went back.
    """

    saga_id: UUID
    order_id: int
    status: str
    amount: Decimal
    currency: str
    created_at: datetime
    state: str | None = None
    knows_refund: bool = False


class Lone(Numbered, frozen=True, kw_only=True):
    """A saga and what payment knows of it; `id` is the order's number, `status` None when payment has no row.

    `by_hand`: an operator gave the money back outside the provider, so that payment must not.
    """

    saga_id: UUID
    state: str
    version: int
    by_hand: bool = False
    status: str | None = None


class Details(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that payment knows of an order."""

    saga_id: UUID
    order_id: int
    amount: Decimal
    currency: str
    payment_method: str
    user_email: str
    items: list[dict[str, Any]]
    pay_before: datetime
    created_at: datetime


class Announced(msgspec.Struct, frozen=True, kw_only=True):
    """What OrderCreated said of an order, and under which id."""

    saga_id: UUID
    order_id: int
    message_id: UUID
    user_id: int
    user_email: str
    amount: Decimal
    currency: str
    payment_method: str
    pay_before: datetime
    items: tuple[events.Line, ...]


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """A message as the outbox keeps it."""

    event_id: UUID
    type: str
    headers: dict[str, str | int]
    payload: bytes


class _State(msgspec.Struct, frozen=True, kw_only=True):
    saga_id: UUID
    state: str
    knows_refund: bool


class _Status(msgspec.Struct, frozen=True, kw_only=True):
    saga_id: UUID
    status: str


def highest(payment: database.Connection) -> int:
    """Return the highest order number that payment knows; 0 when it knows none."""
    return _number(payment, _HIGHEST)


def last_number(order: database.Connection) -> int:
    """Return the order number that was given out last."""
    return _number(order, _LAST)


def lift(order: database.Connection, number: int) -> None:
    """Set the sequence so that the next order gets a number above `number`."""
    order.execute(_LIFT, {"number": number})


def payments(order: database.Connection, payment: database.Connection) -> Iterator[Payment]:
    """Return every payment with the state of its saga, the oldest first, a page of either table at a time.

    The sagas of a page are read after its payments: a saga moves before its payment goes back, so that a running shop looks consistent.
    """
    for page in _pages(payment, _PAYMENTS, Payment):
        found = database.rows(order, _STATES, _State, {"ids": [one.saga_id for one in page]})
        known = {one.saga_id: {"state": one.state, "knows_refund": one.knows_refund} for one in found}
        yield from (msgspec.structs.replace(one, **known.get(one.saga_id, {})) for one in page)


def sagas(order: database.Connection, payment: database.Connection) -> Iterator[Lone]:
    """Return every saga with the status of its payment, a page at a time."""
    for page in _pages(order, _SAGAS, Lone):
        found = database.rows(payment, _KNOWN_PAYMENTS, _Status, {"ids": [one.saga_id for one in page]})
        known = {one.saga_id: one.status for one in found}
        yield from (msgspec.structs.replace(one, status=known.get(one.saga_id)) for one in page)


def details(payment: database.Connection, saga_ids: Collection[UUID]) -> list[Details]:
    """Read what payment knows of these orders."""
    return database.rows(payment, _DETAILS, Details, {"ids": list(saga_ids)})


def free_numbers(order: database.Connection, lost: Sequence[Details]) -> dict[UUID, int]:
    """Return the number that each lost order can have: its own, or a new one where another order has that meanwhile."""
    taken = {int(row[0]) for row in order.execute(_TAKEN, {"ids": [one.order_id for one in lost]})}
    again: set[int] = set()
    numbers: dict[UUID, int] = {}
    fresh = (int(row[0]) for row in order.execute(_NEXT, {"count": len(lost)})) if taken else iter(())
    for one in lost:
        numbers[one.saga_id] = next(fresh) if one.order_id in taken | again else one.order_id
        again.add(one.order_id)
    return numbers


def unknown(order: database.Connection, lost: Sequence[Details]) -> list[Details]:
    """Return those that have no saga."""
    known = {row[0] for row in order.execute(_KNOWN_SAGAS, {"ids": [one.saga_id for one in lost]})}
    return [one for one in lost if one.saga_id not in known]


def client(order: database.Connection) -> str:
    """Return whose orders the lost ones were: the only client's, or `restored` where there are several."""
    row = order.execute(_CLIENT).fetchone()
    return str(row[0]) if row else "restored"


def rebuild(order: database.Connection, lost: Details, number: int, *, client: str, actor: str, reason: str) -> None:
    """Insert a lost order as one that an operator cancels, with its lines, saga and history."""
    values = msgspec.structs.asdict(lost) | {"number": number, "client": client, "user_id": USER, "actor": actor, "reason": reason}
    order.execute(_REBUILD, values | {"items": json.Jsonb(lost.items)})


def renumber(payment: database.Connection, saga_id: UUID, number: int) -> None:
    """Store another order number with a payment."""
    payment.execute(_RENUMBER, {"saga_id": saga_id, "number": number})


def numbers(payment: database.Connection, saga_ids: Collection[str]) -> dict[str, int]:
    """Return the order numbers of payments by saga."""
    return {str(row[0]): int(row[1]) for row in payment.execute(_NUMBERS, {"ids": list(saga_ids)})}


def lock_sagas(order: database.Connection, saga_ids: Collection[UUID]) -> None:
    """Hold sagas until the end of the transaction, as whoever adds to their messages has to."""
    order.execute(_LOCK_SAGAS, {"ids": list(saga_ids)})


def announced(order: database.Connection, saga_ids: Collection[UUID]) -> list[Announced]:
    """Read what was announced of these sagas' orders."""
    return database.rows(order, _ORDERS, Announced, {"ids": list(saga_ids)})


def published(conn: database.Connection, ids: Collection[int]) -> list[Published]:
    """Read messages by their outbox rows, in order."""
    return database.rows(conn, _PUBLISHED, Published, {"shards": list(range(outbox.SHARDS)), "ids": list(ids)})


def tell(conn: database.Connection, message: events.Message, message_id: UUID | None = None, causation_id: str | None = None) -> None:
    """Add a message to the outbox of the running transaction."""
    row = outbox.row(message, source="sagapost-restored", message_id=message_id, causation_id=causation_id)
    conn.execute(_TELL, msgspec.structs.asdict(row) | {"headers": json.Jsonb(row.headers)})


def _number(conn: database.Connection, query: LiteralString) -> int:
    row = conn.execute(query).fetchone()
    return int(row[0]) if row else 0


def _pages(conn: database.Connection, query: LiteralString, kind: type[T]) -> Iterator[list[T]]:
    values: Mapping[str, int] = {"after": 0, "limit": PAGE}
    while page := database.rows(conn, query, kind, values):
        yield page
        values = {"after": int(page[-1].id), "limit": PAGE}
