"""Publishes OrderCreated again, under its first id; payment charges nothing twice and answers how a payment that has ended stands."""

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from sagapost_contracts import events
from sagapost_ops import database
from sagapost_ops.restoring import queries
from sagapost_ops.restoring.copying import Advance

BATCH: Final = 100


def announce(order: database.Connection, saga_ids: Sequence[UUID], advance: Advance) -> int:
    """Make OrderCreated anew from the rows of these sagas' orders, append it to the outbox, and return how many were appended."""
    return sum(_announce(order, saga_ids[start : start + BATCH], advance) for start in range(0, len(saga_ids), BATCH))


def _announce(order: database.Connection, saga_ids: Sequence[UUID], advance: Advance) -> int:
    with order.transaction():
        queries.lock_sagas(order, saga_ids)
        orders = queries.announced(order, saga_ids)
        for one in orders:
            message = events.OrderCreated(
                order_id=one.order_id,
                saga_id=one.saga_id,
                amount=one.amount,
                currency=one.currency,
                user_id=one.user_id,
                user_email=one.user_email,
                items=one.items,
                payment_method=one.payment_method,
                pay_before=one.pay_before,
            )
            queries.tell(order, message, one.message_id)
    advance(len(saga_ids))
    return len(orders)
