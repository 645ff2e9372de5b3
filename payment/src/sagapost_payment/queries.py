"""Every SQL statement of payment; it must not know a provider, an event or what a status leads to."""

from typing import Final, Literal
from uuid import UUID

import msgspec
from psycopg.types import json

from sagapost_chassis import db
from sagapost_contracts import events
from sagapost_payment import domain, errors

# no conflict target: racing inserts of one order may meet on the order's or on the saga's index first
_INSERT: Final = """
INSERT INTO payments (order_id, saga_id, status, amount, currency, payment_method, user_email, items, pay_before)
VALUES (%(order_id)s, %(saga_id)s, 'processing', %(amount)s, %(currency)s, %(payment_method)s, %(user_email)s, %(items)s, %(pay_before)s)
ON CONFLICT DO NOTHING
"""
_INSERT_TOMBSTONE: Final = """
INSERT INTO payments (order_id, saga_id, status, amount, currency, payment_method, user_email, items, pay_before, code, reason)
VALUES (%(order_id)s, %(saga_id)s, 'voided', 0, %(currency)s, '', '', '[]', now(), %(code)s, %(reason)s)
ON CONFLICT DO NOTHING
"""
_SELECT: Final = """
SELECT id, order_id, saga_id, status, version, amount, currency, payment_method, transaction_id, code, reason, user_email, items,
       unanswered_calls, cancel_requested_at, pay_before <= now() AS expired
FROM payments WHERE order_id = %(order_id)s LIMIT 1
"""
_LOCK: Final = _SELECT + "FOR UPDATE"
_MOVE: Final = """
UPDATE payments
SET status = %(status)s, version = version + 1, updated_at = now(), transaction_id = COALESCE(%(transaction_id)s, transaction_id),
    code = COALESCE(%(code)s, code), reason = COALESCE(%(reason)s, reason)
WHERE id = %(id)s AND version = %(version)s
RETURNING id, order_id, saga_id, status, version, amount, currency, payment_method, transaction_id, code, reason, user_email, items,
          unanswered_calls, cancel_requested_at, pay_before <= now() AS expired
"""
_COUNT_UNANSWERED: Final = """
UPDATE payments SET unanswered_calls = unanswered_calls + 1, updated_at = now() WHERE id = %(id)s AND status = 'processing'
"""
_NOTE_CANCEL: Final = """
UPDATE payments SET cancel_requested_at = COALESCE(cancel_requested_at, now()), updated_at = now() WHERE id = %(id)s
"""
_INSERT_LEDGER: Final = """
INSERT INTO ledger (order_id, kind, amount, currency, transaction_id, at)
VALUES (%(order_id)s, %(kind)s, %(amount)s, %(currency)s, %(transaction_id)s, %(at)s)
"""
_SELECT_LEDGER: Final = """
SELECT amount, currency, transaction_id, at FROM ledger WHERE order_id = %(order_id)s AND kind = %(kind)s LIMIT 1
"""

Kind = Literal["capture", "refund"]


async def add(conn: db.Connection, order: events.OrderCreated) -> bool:
    """Insert the intent to charge; False when this order has a payment already."""
    cursor = await conn.execute(
        _INSERT,
        {
            "order_id": order.order_id,
            "saga_id": order.saga_id,
            "amount": order.amount,
            "currency": order.currency,
            "payment_method": order.payment_method,
            "user_email": order.user_email,
            "items": json.Jsonb(order.items, dumps=msgspec.json.encode),
            "pay_before": order.pay_before,
        },
    )
    return cursor.rowcount == 1


async def add_tombstone(conn: db.Connection, order_id: int, saga_id: UUID, *, currency: str, code: str, reason: str) -> None:
    """Insert a payment that will never be charged, unless the order has a payment already."""
    values = {"order_id": order_id, "saga_id": saga_id, "currency": currency, "code": code, "reason": reason}
    await conn.execute(_INSERT_TOMBSTONE, values)


async def get(conn: db.Connection, order_id: int) -> domain.Payment | None:
    """Read an order's payment."""
    async with conn.cursor(row_factory=db.struct_row(domain.Payment)) as cursor:
        return await (await cursor.execute(_SELECT, {"order_id": order_id})).fetchone()


async def lock(conn: db.Connection, order_id: int) -> domain.Payment:
    """Lock and read an order's payment.

    Raises:
        errors.ForeignSagaError: there is none, although the saga has one.

    """
    async with conn.cursor(row_factory=db.struct_row(domain.Payment)) as cursor:
        found = await (await cursor.execute(_LOCK, {"order_id": order_id})).fetchone()
    if found is None:
        raise errors.ForeignSagaError(f"order {order_id} has no payment, but its saga has")
    return found


async def move(
    conn: db.Connection,
    payment: domain.Payment,
    status: domain.Status,
    *,
    transaction_id: str | None = None,
    code: str | None = None,
    reason: str | None = None,
) -> domain.Payment:
    """Give a payment its next status and version; what is None stays.

    Raises:
        errors.StalePaymentError: it was moved since it was read.

    """
    values = {"id": payment.id, "version": payment.version, "status": status.value}
    async with conn.cursor(row_factory=db.struct_row(domain.Payment)) as cursor:
        await cursor.execute(_MOVE, values | {"transaction_id": transaction_id, "code": code, "reason": reason})
        found = await cursor.fetchone()
    if found is None:
        raise errors.StalePaymentError(f"the payment of order {payment.order_id} is past version {payment.version}")
    return found


async def count_unanswered(conn: db.Connection, payment: domain.Payment) -> None:
    """Remember that a call stayed without an answer; in the row, because deliveries start over at one."""
    await conn.execute(_COUNT_UNANSWERED, {"id": payment.id})


async def note_cancel(conn: db.Connection, payment: domain.Payment) -> None:
    """Leave word for whoever learns the outcome of the running call."""
    await conn.execute(_NOTE_CANCEL, {"id": payment.id})


async def enter(conn: db.Connection, payment: domain.Payment, kind: Kind, movement: domain.Movement) -> None:
    """Enter money that moved into the ledger; a second movement of one kind is refused by the table."""
    values = msgspec.structs.asdict(movement)
    await conn.execute(_INSERT_LEDGER, values | {"order_id": payment.order_id, "kind": kind})


async def find_movement(conn: db.Connection, payment: domain.Payment, kind: Kind) -> domain.Movement:
    """Read what moved.

    Raises:
        errors.StalePaymentError: nothing did.

    """
    async with conn.cursor(row_factory=db.struct_row(domain.Movement)) as cursor:
        found = await (await cursor.execute(_SELECT_LEDGER, {"order_id": payment.order_id, "kind": kind})).fetchone()
    if found is None:
        raise errors.StalePaymentError(f"the ledger has no {kind} of order {payment.order_id}")
    return found
