"""After the order database went back: orders that are gone or do not know how their payment ended, and numbers that would come again."""

from typing import Final
from uuid import UUID

import msgspec

from sagapost_contracts import topology
from sagapost_ops import database
from sagapost_ops.outbox import unseen
from sagapost_ops.restoring import announcing, copying, queries
from sagapost_ops.restoring.copying import Advance

BATCH: Final = 100
GAP: Final = 1000
_ASKING: Final = frozenset({"created", "compensating"})  # sagas that ask payment again within seconds or minutes
_PAID: Final = frozenset({"paid", "notified", "notify_failed"})
_NOT_KEPT: Final = frozenset({"refunding", "failed", "voided"})  # payment's status


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done; `lift_to` None: no number would be given out twice.

    `messages` are outbox rows of payment that the order database does not know, without those of orphans. `nothing_kept` are
    payments that were cancelled before payment knew their order: there is nothing to give back, and nothing to build an order of.
    `unaware` are payments whose order exists and does not know how they stand: they were given back, or nothing was taken.
    """

    last_number: int
    highest_known: int
    lift_to: int | None
    orphans: tuple[queries.Payment, ...]
    nothing_kept: tuple[queries.Payment, ...]
    unaware: tuple[queries.Payment, ...]
    messages: tuple[unseen.Sent, ...]
    orphans_messages: tuple[unseen.Sent, ...]


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What was done; `numbers` maps each saga that was built again to its order number, `asked` counts payments asked how they stand."""

    lifted_to: int | None
    refunding: int
    numbers: dict[str, int]
    replayed: int
    asked: int


def look(order: database.Connection, payment: database.Connection, *, waiting: int, gap: int = GAP) -> Found:
    """Compare; `waiting` messages may tell payment of orders that neither database knows."""
    last, highest = queries.last_number(order), queries.highest(payment)
    gone: list[queries.Payment] = []
    unaware: list[queries.Payment] = []
    for one in queries.payments(order, payment):
        if one.state is None:
            gone.append(one)
        elif _is_unaware(one, one.state):
            unaware.append(one)
    saga_ids = {str(one.saga_id) for one in gone}
    lost = tuple(unseen.find(payment, order, topology.ORDER_QUEUE))
    return Found(
        last_number=last,
        highest_known=highest,
        lift_to=highest + waiting + gap if last < highest + waiting else None,
        orphans=tuple(one for one in gone if one.amount),
        nothing_kept=tuple(one for one in gone if not one.amount),
        unaware=tuple(unaware),
        messages=tuple(one for one in lost if one.correlation_id not in saga_ids),
        orphans_messages=tuple(one for one in lost if one.correlation_id in saga_ids),
    )


def perform(
    order: database.Connection, payment: database.Connection, found: Found, *, refund: bool, actor: str, reason: str, advance: Advance
) -> Done:
    """Lift the numbers, build lost orders again as cancelled ones if `refund`, and publish again what the order database lost.

    For unaware orders OrderCreated is published again. Payment answers how the payment stands, under the id of its first message about it:
    the answer moves the saga by the order service's own rules, and one that the order database knows already changes nothing.
    """
    if found.lift_to is not None:
        queries.lift(order, found.lift_to)
    numbers: dict[str, int] = {}
    for start in range(0, len(found.orphans) if refund else 0, BATCH):
        saga_ids = [one.saga_id for one in found.orphans[start : start + BATCH]]
        numbers |= _rebuild(order, payment, saga_ids, actor=actor, reason=reason)
        advance(len(saga_ids))
    messages = [*found.messages, *(one for one in found.orphans_messages if one.correlation_id in numbers)]
    current = queries.numbers(payment, [one.correlation_id for one in messages])
    replayed = copying.copy(payment, messages, advance, current)
    asked = announcing.announce(order, [one.saga_id for one in found.unaware], advance)
    return Done(lifted_to=found.lift_to, refunding=len(numbers), numbers=numbers, replayed=replayed, asked=asked)


def _is_unaware(payment: queries.Payment, state: str) -> bool:
    """Return whether the payment says what its saga does not know and does not ask for soon."""
    if payment.status == "refunded":
        return state not in _ASKING and not payment.knows_refund
    return state in _PAID and payment.status in _NOT_KEPT


def _rebuild(order: database.Connection, payment: database.Connection, saga_ids: list[UUID], *, actor: str, reason: str) -> dict[str, int]:
    """Build lost orders again in one transaction, and return their numbers; their sagas then ask for the refund themselves.

    Payment learns new numbers first: when the order's transaction fails, the next call finds the same orphans with free numbers.
    """
    with order.transaction():
        lost = queries.unknown(order, queries.details(payment, saga_ids))
        numbers = queries.free_numbers(order, lost)
        client = queries.client(order)
        for one in lost:
            queries.rebuild(order, one, numbers[one.saga_id], client=client, actor=actor, reason=reason)
        with payment.transaction():
            for one in lost:
                if numbers[one.saga_id] != one.order_id:
                    queries.renumber(payment, one.saga_id, numbers[one.saga_id])
    return {str(saga_id): number for saga_id, number in numbers.items()}
