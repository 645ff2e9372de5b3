"""The transactional outbox: a message is a row of the same transaction as the change it tells of."""

import asyncio
import time
import zlib
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import msgspec
import psycopg
from psycopg.types import json

from sagapost_chassis import background, db, errors, ids, telemetry
from sagapost_contracts import envelope, events

SHARDS: Final = 4  # fixed per database: a shard never moves between cursors
MAX_PAYLOAD_BYTES: Final = 1 << 20  # the table's CHECK says the same
CHANNEL: Final = "sagapost_outbox"
HINT_GAP_S: Final = 0.004
HINT_GAP_MAX_S: Final = 0.05  # relays look as often by themselves
_HINT_SHARE: Final = 3  # a hint that takes long has a busy server: no more than a third of the time goes into hints
_HINT: Final = "SELECT pg_notify(%(channel)s, 'rows')"

# the id is drawn here, in the INSERT, after the caller has locked the aggregate: an id drawn earlier inverts order
_INSERT: Final = """
INSERT INTO outbox (shard, event_id, aggregate, type, routing_key, correlation_id, headers, payload, created_at)
VALUES (%(shard)s, %(event_id)s, %(aggregate)s, %(type)s, %(routing_key)s, %(correlation_id)s, %(headers)s, %(payload)s, %(created_at)s)
"""


# for a statement that inserts many: their rows in a JSON array are read as RECORD, joined to what must have happened, and inserted
RECORD: Final = """
shard smallint, event_id uuid, aggregate text, type text, routing_key text, correlation_id text, headers jsonb, payload text,
created_at timestamptz
"""
INSERT_RECORDS: Final = """
INSERT INTO outbox (shard, event_id, aggregate, type, routing_key, correlation_id, headers, payload, created_at)
SELECT shard, event_id, aggregate, type, routing_key, correlation_id, headers, decode(payload, 'base64'), created_at
"""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A message as the outbox keeps it; JSON's base64 of `payload` is what RECORD reads."""

    shard: int
    event_id: UUID
    aggregate: str
    type: str
    routing_key: str
    correlation_id: str
    headers: dict[str, str | int]
    payload: bytes
    created_at: datetime


class PayloadTooLargeError(errors.PermanentError):
    """A message is larger than the relay would publish."""


def shard_of(aggregate: str) -> int:
    """Map an aggregate to its shard; the same on every machine and version."""
    return zlib.crc32(aggregate.encode()) % SHARDS


def aggregate_of(order_id: int) -> str:
    """Return the aggregate of an order's messages."""
    return f"order-{order_id}"


async def add(
    conn: db.Connection, message: events.Message, *, source: str, causation_id: str | None = None, message_id: UUID | None = None
) -> UUID:
    """Add a message to the outbox of the running transaction and return its id.

    The caller holds the row lock of the aggregate (the order), or has inserted it in this transaction: that, and the
    sequence's CACHE 1, is what keeps one aggregate's messages in commit order.

    Raises:
        PayloadTooLargeError: its body has more than `MAX_PAYLOAD_BYTES`; nothing was written.

    """
    added = row(message, source=source, causation_id=causation_id, message_id=message_id)
    await conn.execute(_INSERT, msgspec.structs.asdict(added) | {"headers": json.Jsonb(added.headers, dumps=msgspec.json.encode)})
    return added.event_id


def row(message: events.Message, *, source: str, causation_id: str | None = None, message_id: UUID | None = None) -> Row:
    """Make the row of a message, with the running span's traceparent; whoever inserts it keeps to what `add` asks of its caller.

    Raises:
        PayloadTooLargeError: its body has more than `MAX_PAYLOAD_BYTES`.

    """
    sealed = envelope.seal(
        message,
        message_id=message_id or ids.uuid7(),
        source=source,
        time=datetime.now(UTC),
        causation_id=causation_id,
        traceparent=telemetry.current_traceparent(),
    )
    if len(sealed.body) > MAX_PAYLOAD_BYTES:
        raise PayloadTooLargeError(f"{sealed.type} of order {message.order_id} has {len(sealed.body)} bytes, {MAX_PAYLOAD_BYTES} at most")
    aggregate = aggregate_of(message.order_id)
    return Row(
        shard=shard_of(aggregate),
        event_id=sealed.message_id,
        aggregate=aggregate,
        type=sealed.type,
        routing_key=sealed.routing_key,
        correlation_id=sealed.correlation_id,
        headers=sealed.headers(),
        payload=sealed.body,
        created_at=sealed.time,
    )


class Hints:
    """Wakes the relays after a commit, from a connection of its own; a hint that is lost costs a poll's pause, nothing else.

    Never NOTIFY in the transaction that adds the message: its commit would hold a lock that the whole cluster shares
    (PreCommit_Notify in PostgreSQL's async.c).
    """

    def __init__(self, url: str, name: str) -> None:
        self._url = url
        self._name = name
        self._committed = asyncio.Event()

    def soon(self) -> None:
        """Say that something was committed."""
        self._committed.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Pass hints on until `stop` is set, one per `HINT_GAP_S` at most, and fewer while each takes long."""
        await background.until(stop, self._pass_on())

    async def _pass_on(self) -> None:
        while True:
            try:
                async with await db.Connection.connect(db.dsn_of(self._url, self._name), autocommit=True, prepare_threshold=0) as conn:
                    await conn.execute("SET synchronous_commit = off", prepare=False)
                    while True:
                        await self._committed.wait()
                        self._committed.clear()
                        began = time.monotonic()
                        await conn.execute(_HINT, {"channel": CHANNEL})
                        took_s = time.monotonic() - began
                        await asyncio.sleep(min(max(HINT_GAP_S, (_HINT_SHARE - 1) * took_s), HINT_GAP_MAX_S))
            except (psycopg.Error, OSError):
                pass
            except Exception as exc:  # whatever it is, checkouts go on without hints, and the next ones get another connection
                telemetry.log.warning("hints.failed", reason=f"{type(exc).__name__}: {telemetry.first_line(exc)}")
            await asyncio.sleep(1)
