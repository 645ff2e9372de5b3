"""What payment publishes: results, and answers to repeated messages; it must not know a provider."""

import contextvars
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final
from uuid import UUID, uuid5

import msgspec

from sagapost_chassis import consuming, db, inbox, outbox
from sagapost_contracts import events
from sagapost_payment import domain, queries

SOURCE: Final = "payment"
_MOVED: Final[Mapping[domain.Status, queries.Kind]] = {domain.Status.CAPTURED: "capture", domain.Status.REFUNDED: "refund"}


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """An order that is to be charged, the message that asks for it, and the context of who waits for it: its trace goes with the answer."""

    intent: queries.Intent
    delivery: consuming.Delivery
    context: contextvars.Context


async def publish(
    conn: db.Connection, delivery: consuming.Delivery | None, message: events.Message, message_id: UUID | None = None
) -> None:
    """Add a message to the outbox, caused by `delivery` or, without one, by a second look."""
    await outbox.add(conn, message, source=SOURCE, causation_id=str(delivery.message_id) if delivery else None, message_id=message_id)


async def answer_again(conn: db.Connection, asked: Sequence[Asked]) -> None:
    """Claim, in the inbox, messages whose payments have ended, and publish the present state of these payments again.

    Under the ids of the events that said so first: readers that have seen them ignore the repetition. The payments are locked, so that
    nothing is published behind a later state.
    """
    if not asked:
        return
    await inbox.claim_all(conn, [(one.delivery.message_id, one.delivery.type) for one in asked])
    payments = await queries.of_sagas(conn, [one.intent.order.saga_id for one in asked], locked=True)
    moved = await queries.movements(conn, [(payment, _MOVED[payment.status]) for payment in payments.values() if payment.status in _MOVED])
    rows = [row for one in asked if (row := _answer(one, payments[one.intent.order.saga_id], moved)) is not None]
    if rows:
        await queries.add_answers(conn, rows)


def _answer(one: Asked, payment: domain.Payment, moved: Mapping[UUID, domain.Movement]) -> outbox.Row | None:
    if domain.is_placeholder(payment):  # made by a cancellation, which names neither address nor items
        order = one.intent.order
        payment = msgspec.structs.replace(payment, user_email=order.user_email, items=order.items)
    message = domain.present(payment, moved.get(payment.saga_id))
    if message is None:
        return None
    # a payment that was voided before its order came has no such id: each repetition of one message gets the same one
    message_id = payment.told_id or uuid5(one.delivery.message_id, type(message).__name__)
    made = partial(outbox.row, message, source=SOURCE, causation_id=str(one.delivery.message_id), message_id=message_id)
    return one.context.run(made)
