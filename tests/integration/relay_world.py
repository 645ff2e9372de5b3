"""What the relay's model is made of: sessions on a real database, writers, relays without a broker, and the log that stands for one."""

import itertools
from collections import deque
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final
from uuid import UUID

import msgspec
from integration import relay_readers

from sagapost_chassis import db, ids, outbox
from sagapost_contracts import events
from sagapost_relay import queries, snapshot

WRITERS: Final = 4
AGGREGATES: Final = (1, 2, 9)  # 2 and 9 share a shard
LEASE_S: Final = 3600.0  # no lease ends by itself: `expire` ends them

_SETUP: Final = "CREATE TABLE aggregate (id int PRIMARY KEY, n int NOT NULL); CREATE TABLE noise (word text)"
_RESET: Final = """
DELETE FROM outbox; DELETE FROM noise; DELETE FROM aggregate; DELETE FROM outbox_cursor;
INSERT INTO aggregate SELECT id, 0 FROM generate_series(0, 9) AS id;
INSERT INTO outbox_cursor (shard, system_identifier)
SELECT shard, system_identifier FROM generate_series(0, 3) AS shard, pg_control_system()
"""
_NOISE: Final = "INSERT INTO noise SELECT 'noise' FROM generate_series(1, %(rows)s)"
_LOCK: Final = "SELECT n FROM aggregate WHERE id = %(aggregate)s FOR UPDATE SKIP LOCKED"
_COUNT: Final = "UPDATE aggregate SET n = n + 1 WHERE id = %(aggregate)s RETURNING n"
_EXPIRE: Final = "UPDATE outbox_cursor SET lease_until = now() - interval '1 second' WHERE owner IS NOT NULL AND shard = ANY(%(shards)s)"
_CURSORS: Final = "SELECT shard, lo::text, hi::text, last_id, owner, epoch FROM outbox_cursor"


class BrokenError(AssertionError):
    """A guarantee does not hold; `kind` says which."""

    def __init__(self, kind: str, sentence: str) -> None:
        super().__init__(f"{kind}: {sentence}")
        self.kind = kind


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """An event of a writer; `number` was drawn under the lock of its aggregate."""

    id: UUID
    aggregate: int
    number: int

    @property
    def shard(self) -> int:
        """Where it lies."""
        return outbox.shard_of(f"order-{self.aggregate}")


class Broker:
    """The log of all deliveries, and what may be in it."""

    def __init__(self) -> None:
        self._committed: dict[UUID, Event] = {}
        self._delivered: set[UUID] = set()
        self._newest: dict[int, int] = {}  # by aggregate: the greatest number delivered
        self._stored: set[UUID] = set()  # delivered, and passed by a stored cursor
        self._may_repeat: set[UUID] = set()

    def commit(self, written: Sequence[Event]) -> None:
        """Note what is committed."""
        self._committed.update({event.id: event for event in written})

    def deliver(self, event_id: UUID) -> None:
        """Take a message, unless it breaks a guarantee.

        Raises:
            BrokenError: it was never committed, comes again without need, or comes after a later one of its aggregate.

        """
        if event_id not in self._committed:
            raise BrokenError("uncommitted", f"{event_id} was delivered")
        event = self._committed[event_id]
        if event_id in self._delivered:
            if event_id not in self._may_repeat:
                raise BrokenError("repeated", f"{event} came again, though no crash or takeover explains it")
            self._may_repeat.discard(event_id)
            return
        if event.number < self._newest.get(event.aggregate, 0):
            raise BrokenError("inverted", f"{event} came after number {self._newest[event.aggregate]}")
        self._newest[event.aggregate] = event.number
        self._delivered.add(event_id)

    def stored(self, published: Collection[UUID]) -> None:
        """Note that a stored cursor has passed these: they may not come again."""
        self._stored.update(published)

    def taken(self, shard: int) -> None:
        """Note that a relay starts from the stored cursor: what that has not passed may come once more."""
        self._may_repeat = {event_id for event_id in self._may_repeat if self._committed[event_id].shard != shard}
        self._may_repeat |= {event_id for event_id in self._delivered - self._stored if self._committed[event_id].shard == shard}

    def finish(self) -> None:
        """Look for what has not come.

        Raises:
            BrokenError: something committed was not delivered.

        """
        if lost := [self._committed[event_id] for event_id in self._committed.keys() - self._delivered]:
            raise BrokenError("lost", f"{lost} did not come")


class Writer:
    """A session that writes events; each savepoint opens a layer, and what a layer wrote goes when it is rolled back."""

    def __init__(self, conn: db.Connection) -> None:
        self._conn = conn
        self._names = itertools.count()
        self._layers: list[tuple[str, list[Event]]] = []

    @property
    def is_open(self) -> bool:
        """Whether a transaction is under way."""
        return bool(self._layers)

    @property
    def depth(self) -> int:
        """How many savepoints there are."""
        return len(self._layers) - 1

    async def begin(self, noise: int) -> None:
        """Begin; with noise, write something else first, which assigns the transaction its id."""
        await self._conn.execute("BEGIN")
        self._layers = [("", [])]
        if noise:
            await self._conn.execute(_NOISE, {"rows": noise})

    async def add(self, aggregate: int, count: int) -> bool:
        """Lock an aggregate and add events of it; False when another session has the lock."""
        if await (await self._conn.execute(_LOCK, {"aggregate": aggregate})).fetchone() is None:
            return False
        for _ in range(count):
            numbers = await (await self._conn.execute(_COUNT, {"aggregate": aggregate})).fetchone() or (0,)
            message = events.EmailSent(order_id=aggregate, saga_id=ids.uuid7(), template="receipt", smtp_message_id=str(numbers[0]))
            event_id = await outbox.add(self._conn, message, source="test")
            self._layers[-1][1].append(Event(id=event_id, aggregate=aggregate, number=numbers[0]))
        return True

    async def save(self) -> None:
        """Set a savepoint."""
        name = f"s{next(self._names)}"
        await self._conn.execute(b"SAVEPOINT " + name.encode())
        self._layers.append((name, []))

    async def leave(self, *, keep: bool) -> None:
        """Release the last savepoint, or roll back to it and release it."""
        name, written = self._layers.pop()
        if keep:
            self._layers[-1][1].extend(written)
        else:
            await self._conn.execute(b"ROLLBACK TO SAVEPOINT " + name.encode())
        await self._conn.execute(b"RELEASE SAVEPOINT " + name.encode())

    async def commit(self) -> list[Event]:
        """Commit, and give what is committed."""
        await self._conn.execute("COMMIT")
        written = [event for _, layer in self._layers for event in layer]
        self._layers = []
        return written

    async def rollback(self) -> None:
        """Give everything up."""
        await self._conn.execute("ROLLBACK")
        self._layers = []


class Holding:
    """A shard in a relay's hands: positions are stored, confirmed and read, in this order; what is read waits to be published."""

    def __init__(self, cursor: queries.Cursor) -> None:
        self.lease = queries.Lease(shard=cursor.shard, epoch=cursor.epoch)
        self.in_time = True  # by the relay's own clock
        self.confirmed = self.read = queries.position_of(cursor)
        self.pages: deque[tuple[deque[UUID], queries.Position]] = deque()
        self.published: list[UUID] = []
        self.passed: list[UUID] = []  # published, and passed by `confirmed`

    def take(self, page: relay_readers.Read) -> None:
        """Queue a page."""
        self.pages.append((deque(row.event_id for row in page.rows), page.after))
        self.read = page.after

    def publish(self, broker: Broker, limit: int) -> None:
        """Publish up to `limit` rows, and confirm the pages that end with them."""
        while self.pages and self.in_time:
            rows, after = self.pages[0]
            while rows and limit:
                broker.deliver(rows[0])
                self.published.append(rows.popleft())
                limit -= 1
            if rows:
                return
            self.pages.popleft()
            self.confirmed = after
            self.passed += self.published
            self.published = []


class World:
    """The sessions of a model run; all use one event loop, and one at a time."""

    def __init__(self, writers: list[db.Connection], relay: db.Connection, by_hand: db.Connection) -> None:
        self.writers = writers
        self.relay = relay
        self.by_hand = by_hand

    async def reset(self) -> None:
        """Roll back whatever is open and empty the tables."""
        for conn in self.writers:
            await conn.rollback()
        await self.by_hand.execute(_RESET, prepare=False)

    async def noise(self, rows: int) -> None:
        """Commit a write that has nothing to do with the outbox."""
        await self.by_hand.execute(_NOISE, {"rows": rows})

    async def turn_ring(self) -> None:
        """Let the next rows go into the next partition."""
        await self.by_hand.execute("SELECT nextval('outbox_ring')")

    async def expire(self, shards: Sequence[int]) -> None:
        """End leases."""
        await self.by_hand.execute(_EXPIRE, {"shards": list(shards)})

    async def cursors(self) -> dict[int, tuple[queries.Position, str | None, int]]:
        """Read what is stored: position, owner and epoch by shard."""
        rows = await (await self.by_hand.execute(_CURSORS)).fetchall()
        return {
            shard: (
                queries.Position(lo=snapshot.parse(lo), hi=None if hi is None else snapshot.parse(hi), last_id=last_id),
                owner,
                epoch,
            )
            for shard, lo, hi, last_id, owner, epoch in rows
        }


@asynccontextmanager
async def opened(dsn: str, prepare: bytes = b"") -> AsyncGenerator[World]:
    """Connect to a migrated database and make the tables that writers need beside it."""
    async with AsyncExitStack() as stack:
        conns = [
            await stack.enter_async_context(await db.Connection.connect(dsn, autocommit=True, prepare_threshold=0))
            for _ in range(WRITERS + 2)
        ]
        *writers, relay, by_hand = conns
        await by_hand.execute(_SETUP, prepare=False)
        if prepare:
            await by_hand.execute(prepare)
        await queries.pin(relay)
        yield World(writers, relay, by_hand)


def goes_back(before: queries.Position, after: queries.Position) -> bool:
    """Tell whether a position has unlearnt something: a transaction that it had passed, or a part of its window."""
    if before.lo == after.lo:
        return after.last_id < before.last_id or (before.hi is not None and after.hi != before.hi)
    return not _covers(after.lo, before.hi or before.lo)


def _covers(later: snapshot.Snapshot, earlier: snapshot.Snapshot) -> bool:
    return later.xmax >= earlier.xmax and all(xid >= earlier.xmax or xid in earlier.running for xid in later.running)
