"""Publishes messages again that the other database lost, under their first ids; a consumer that has processed one ignores it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from sagapost_contracts import envelope
from sagapost_ops import database
from sagapost_ops.outbox import queries as outbox_queries
from sagapost_ops.outbox import unseen
from sagapost_ops.restoring import queries

BATCH: Final = 500

Advance = Callable[[int], None]


def copy(conn: database.Connection, messages: Sequence[unseen.Sent], advance: Advance, numbers: Mapping[str, int] | None = None) -> int:
    """Append the messages to their outbox again, in order, and return how many were still there.

    `numbers` are order numbers by saga: a message that bears another one is changed, because its order was built again under a new one.
    """
    wanted = sorted(messages, key=lambda one: one.id)
    done = 0
    for start in range(0, len(wanted), BATCH):
        batch = wanted[start : start + BATCH]
        changed = [one.id for one in batch if _is_other(one, numbers or {})]
        done += outbox_queries.copy(conn, [one.id for one in batch if not _is_other(one, numbers or {})])
        done += _renumbered(conn, changed, numbers or {})
        advance(len(batch))
    return done


def _is_other(message: unseen.Sent, numbers: Mapping[str, int]) -> bool:
    number = numbers.get(message.correlation_id)
    return number is not None and message.aggregate != f"order-{number}"


def _renumbered(conn: database.Connection, ids: Sequence[int], numbers: Mapping[str, int]) -> int:
    with conn.transaction():
        found = queries.published(conn, ids)
        for one in found:
            message = envelope.decode(one.type, one.headers.get("schema-version"), one.payload)
            changed = msgspec.structs.replace(message, order_id=numbers[str(message.saga_id)])
            cause = one.headers.get("causation-id")
            queries.tell(conn, changed, one.event_id, None if cause is None else str(cause))
    return len(found)
