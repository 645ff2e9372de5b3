"""After the order database went back: what payment knows of orders that are gone, and of numbers that would be given out again."""

from typing import Final
from uuid import UUID

import msgspec

from sagapost_contracts import topology
from sagapost_ops import database
from sagapost_ops.outbox import unseen
from sagapost_ops.restoring import copying, queries
from sagapost_ops.restoring.copying import Advance

BATCH: Final = 100
GAP: Final = 1000


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done; `lift_to` None: no number would be given out twice.

    `messages` are outbox rows of payment that the order database does not know, without those of orphans. `nothing_kept` are
    payments that were cancelled before payment knew their order: there is nothing to give back, and nothing to build an order of.
    """

    last_number: int
    highest_known: int
    lift_to: int | None
    orphans: tuple[queries.Orphan, ...]
    nothing_kept: tuple[queries.Orphan, ...]
    messages: tuple[unseen.Sent, ...]
    orphans_messages: tuple[unseen.Sent, ...]


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What was done; `numbers` maps each saga that was built again to its order number."""

    lifted_to: int | None
    refunding: int
    numbers: dict[str, int]
    replayed: int


def look(order: database.Connection, payment: database.Connection, *, waiting: int, gap: int = GAP) -> Found:
    """Compare; `waiting` messages may tell payment of orders that neither database knows."""
    last, highest = queries.last_number(order), queries.highest(payment)
    gone = tuple(queries.orphans(order, payment))
    saga_ids = {str(one.saga_id) for one in gone}
    lost = tuple(unseen.find(payment, order, topology.ORDER_QUEUE))
    return Found(
        last_number=last,
        highest_known=highest,
        lift_to=highest + waiting + gap if last < highest + waiting else None,
        orphans=tuple(one for one in gone if one.amount),
        nothing_kept=tuple(one for one in gone if not one.amount),
        messages=tuple(one for one in lost if one.correlation_id not in saga_ids),
        orphans_messages=tuple(one for one in lost if one.correlation_id in saga_ids),
    )


def perform(
    order: database.Connection, payment: database.Connection, found: Found, *, refund: bool, actor: str, reason: str, advance: Advance
) -> Done:
    """Lift the numbers, build lost orders again as cancelled ones if `refund`, and publish again what the order database lost."""
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
    return Done(lifted_to=found.lift_to, refunding=len(numbers), numbers=numbers, replayed=replayed)


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
