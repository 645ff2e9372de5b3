"""After the payment database went back: what the order database knows of payments that are gone, or not as far as they were."""

from typing import Final

import msgspec

from sagapost_contracts import events, topology
from sagapost_ops import database
from sagapost_ops.outbox import unseen
from sagapost_ops.restoring import announcing, copying, queries
from sagapost_ops.restoring.copying import Advance

BATCH: Final = 100
_CANCELLED: Final = frozenset({"compensating", "compensated", "compensation_failed"})
_MAY_KEEP: Final = frozenset({None, "processing", "captured", "refunding"})  # payment's status; None: it has no row


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done.

    `cancelled` are sagas whose payment has to be cancelled again; `forgotten` are orders that payment must hear of again although their
    messages have left the outbox; `messages` are outbox rows of order that payment does not know; `waiting` orders are among them.
    """

    cancelled: tuple[queries.Lone, ...]
    forgotten: tuple[queries.Lone, ...]
    messages: tuple[unseen.Sent, ...]
    waiting: int


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What was done: cancellations and orders that were made anew, and messages that were published again."""

    cancelled: int
    announced: int
    replayed: int


def look(order: database.Connection, payment: database.Connection) -> Found:
    """Compare every saga with its payment, and the order service's outbox with payment's inbox.

    A payment whose money an operator gave back by hand is not cancelled again: the provider would give it back once more.
    """
    lost = tuple(unseen.find(order, payment, topology.PAYMENT_QUEUE))
    announced = {one.correlation_id for one in lost if one.type == "OrderCreated"}
    cancelled: list[queries.Lone] = []
    forgotten: list[queries.Lone] = []
    waiting = 0
    by_hand: set[str] = set()
    for saga in queries.sagas(order, payment):
        if saga.by_hand:
            by_hand.add(str(saga.saga_id))
        if saga.state in _CANCELLED and saga.status in _MAY_KEEP and not saga.by_hand:
            cancelled.append(saga)
        elif saga.status is None and str(saga.saga_id) in announced:
            waiting += 1
        elif saga.status is None and saga.state != "created":
            forgotten.append(saga)
    messages = tuple(one for one in lost if one.type != "CancelPayment" or one.correlation_id not in by_hand)
    return Found(cancelled=tuple(cancelled), forgotten=tuple(forgotten), messages=messages, waiting=waiting)


def perform(order: database.Connection, found: Found, *, advance: Advance) -> Done:
    """Put everything into the order service's outbox again.

    Cancellations come first: an order that is announced behind its cancellation is not charged, one before it might be.
    """
    for start in range(0, len(found.cancelled), BATCH):
        batch = found.cancelled[start : start + BATCH]
        with order.transaction():
            queries.lock_sagas(order, [one.saga_id for one in batch])
            for one in batch:
                queries.tell(order, events.CancelPayment(order_id=one.id, saga_id=one.saga_id, reason="operator", saga_version=one.version))
        advance(len(batch))
    announced = announcing.announce(order, [one.saga_id for one in found.forgotten], advance)
    replayed = copying.copy(order, found.messages, advance)
    return Done(cancelled=len(found.cancelled), announced=announced, replayed=replayed)
