"""The transactional outbox: a message is a row of the same transaction as the change it tells of."""

import zlib
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import msgspec
from psycopg.types import json

from sagapost_chassis import db, ids, telemetry
from sagapost_contracts import envelope, events

SHARDS: Final = 4  # fixed per database: a shard never moves between cursors

# the id is drawn here, in the INSERT, after the caller has locked the aggregate: an id drawn earlier inverts order
_INSERT: Final = """
INSERT INTO outbox (shard, event_id, aggregate, type, routing_key, correlation_id, headers, payload, created_at)
VALUES (%(shard)s, %(event_id)s, %(aggregate)s, %(type)s, %(routing_key)s, %(correlation_id)s, %(headers)s, %(payload)s, %(created_at)s)
"""


def shard_of(aggregate: str) -> int:
    """Map an aggregate to its shard; the same on every machine and version."""
    return zlib.crc32(aggregate.encode()) % SHARDS


async def add(
    conn: db.Connection, message: events.Message, *, source: str, causation_id: str | None = None, message_id: UUID | None = None
) -> UUID:
    """Add a message to the outbox of the running transaction and return its id.

    The caller holds the row lock of the aggregate (the order), or has inserted it in this transaction: that, and the
    sequence's CACHE 1, is what keeps one aggregate's messages in commit order.
    """
    sealed = envelope.seal(
        message,
        message_id=message_id or ids.uuid7(),
        source=source,
        time=datetime.now(UTC),
        causation_id=causation_id,
        traceparent=telemetry.current_traceparent(),
    )
    aggregate = f"order-{message.order_id}"
    await conn.execute(
        _INSERT,
        {
            "shard": shard_of(aggregate),
            "event_id": sealed.message_id,
            "aggregate": aggregate,
            "type": sealed.type,
            "routing_key": sealed.routing_key,
            "correlation_id": sealed.correlation_id,
            "headers": json.Jsonb(sealed.headers(), dumps=msgspec.json.encode),
            "payload": sealed.body,
            "created_at": sealed.time,
        },
    )
    return sealed.message_id
