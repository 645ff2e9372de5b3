"""What the campaign's writers committed, what lies in the queue after it, and the verdict; it knows no fault."""

import asyncio
import random
from collections.abc import Iterable, Sequence
from typing import Final
from uuid import UUID

import aio_pika
import msgspec
import psycopg

from sagapost_chassis import db, ids, outbox
from sagapost_contracts import events, topology

AGGREGATES: Final = 20
WRITERS: Final = 8
_ROLLBACKS: Final = 0.05
_LATE: Final = 0.05  # transactions that stay open for a while: others overtake them
_BURSTS: Final = 0.01  # transactions of many events: what is in flight is then half answered when its link goes
_EARLY: Final = 0.5  # transactions that draw their id before they lock
_PREFETCH: Final = 500
_READ_S: Final = 120.0
_LAST: Final = "last"
_SETUP: Final = "CREATE TABLE aggregate (id int PRIMARY KEY, n int NOT NULL)"
_FILL: Final = "INSERT INTO aggregate SELECT id, 0 FROM generate_series(1, %(count)s) AS id"
_EARLY_ID: Final = "SELECT pg_current_xact_id()"
_COUNT: Final = "UPDATE aggregate SET n = n + 1 WHERE id = %(aggregate)s RETURNING n"


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """An event of a writer; `number` was drawn under the lock of its aggregate."""

    id: UUID
    aggregate: int
    number: int

    @property
    def shard(self) -> int:
        """Where it lies."""
        return outbox.shard_of(f"order-{self.aggregate}")


class Books:
    """What is known of each event outside the relay's own tables."""

    def __init__(self) -> None:
        self.committed: dict[UUID, Event] = {}
        self.unknown: dict[UUID, Event] = {}  # PostgreSQL went away during COMMIT: they may have happened

    def commits(self, written: Sequence[Event]) -> None:
        """Note what is about to be committed."""
        self.unknown.update({event.id: event for event in written})

    def committed_all(self, written: Sequence[Event]) -> None:
        """Note that it has been."""
        for event in written:
            self.committed[event.id] = self.unknown.pop(event.id)


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the queue says: `longest` counts the repetitions of a shard with nothing new between them, at most."""

    deliveries: int
    repeated: int
    longest: int
    lost: tuple[Event, ...]
    strange: tuple[UUID, ...]
    inverted: tuple[tuple[Event, int], ...]  # an event, and the greater number of its aggregate that came before it


async def prepare(dsn: str) -> None:
    """Make the aggregates."""
    async with await db.Connection.connect(dsn, autocommit=True) as conn:
        await conn.execute(_SETUP)
        await conn.execute(_FILL, {"count": AGGREGATES})


async def write(dsn: str, books: Books, dice: random.Random, *, gap_s: float, stop: asyncio.Event) -> None:
    """Write events until `stop` is set, a transaction each `gap_s` seconds on average, across outages of the database."""
    while not stop.is_set():
        try:
            async with await db.Connection.connect(db.dsn_of(dsn, "campaign-writer")) as conn:
                while not stop.is_set():
                    await _transaction(conn, books, dice)
                    await asyncio.sleep(dice.uniform(0, 2 * gap_s))
        except (psycopg.OperationalError, psycopg.InterfaceError):
            await asyncio.sleep(0.2)


async def _transaction(conn: db.Connection, books: Books, dice: random.Random) -> None:
    if dice.random() < _EARLY:
        await conn.execute(_EARLY_ID)
        await asyncio.sleep(dice.uniform(0, 0.01))
    aggregate = dice.randint(1, AGGREGATES)
    written: list[Event] = []
    for _ in range(dice.randint(20, 100) if dice.random() < _BURSTS else dice.choice((1, 1, 2))):
        found = await (await conn.execute(_COUNT, {"aggregate": aggregate})).fetchone()
        number = found[0] if found else 0
        message = events.EmailSent(order_id=aggregate, saga_id=ids.uuid7(), template="receipt", smtp_message_id=str(number))
        written.append(Event(id=await outbox.add(conn, message, source="campaign"), aggregate=aggregate, number=number))
    if dice.random() < _LATE:
        await asyncio.sleep(dice.uniform(0.05, 0.3))
    if dice.random() < _ROLLBACKS:
        await conn.rollback()
        return
    books.commits(written)
    await conn.commit()
    books.committed_all(written)


async def journal(url: str) -> list[Event]:
    """Take everything off the order queue, which nobody has consumed before.

    So each delivery is one message that a relay has published, in the order of the queue, and none is the broker's own repetition.
    """
    found: list[Event] = []
    connection = await aio_pika.connect(url)
    async with connection, asyncio.timeout(_READ_S):
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=_PREFETCH)
        queue = await channel.get_queue(topology.ORDER_QUEUE)
        await channel.default_exchange.publish(aio_pika.Message(b"", message_id=_LAST), topology.ORDER_QUEUE)
        async with queue.iterator() as messages:
            async for message in messages:
                assert not message.redelivered, "somebody else has consumed the queue"
                await message.ack()
                if message.message_id == _LAST:
                    return found
                event = msgspec.json.decode(message.body, type=events.EmailSent)
                found.append(Event(id=UUID(message.message_id), aggregate=event.order_id, number=int(event.smtp_message_id)))
    raise AssertionError("the queue ended before its last message")


def judge(books: Books, delivered: Iterable[Event]) -> Verdict:
    """Compare the queue with the books."""
    firsts: set[UUID] = set()
    series = [0] * outbox.SHARDS
    newest: dict[int, int] = {}
    deliveries = repeated = longest = 0
    inverted: list[tuple[Event, int]] = []
    strange: list[UUID] = []
    for event in delivered:
        deliveries += 1
        if event.id in firsts:
            repeated += 1
            series[event.shard] += 1
            longest = max(longest, series[event.shard])
            continue
        firsts.add(event.id)
        series[event.shard] = 0
        if books.committed.get(event.id, books.unknown.get(event.id)) != event:
            strange.append(event.id)
        if event.number <= newest.get(event.aggregate, 0):
            inverted.append((event, newest[event.aggregate]))
        newest[event.aggregate] = max(event.number, newest.get(event.aggregate, 0))
    lost = tuple(event for event in books.committed.values() if event.id not in firsts)
    return Verdict(
        deliveries=deliveries,
        repeated=repeated,
        longest=longest,
        lost=lost,
        strange=tuple(strange),
        inverted=tuple(inverted),
    )
