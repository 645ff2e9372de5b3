import asyncio
import itertools
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import UUID

import psycopg
import pytest
from integration import relay_readers
from psycopg import sql

from sagapost_chassis import db, ids, outbox
from sagapost_contracts import events
from sagapost_ops import migrations
from sagapost_relay import queries, snapshot
from sagapost_sandbox.testing import servers

pytestmark = pytest.mark.anyio
AGGREGATE = 1
SHARD = outbox.shard_of(f"order-{AGGREGATE}")
LOCK = "SELECT FROM aggregate WHERE id = 1 FOR UPDATE"
WAYS = [relay_readers.WindowLog, relay_readers.HorizonCursor, relay_readers.IdCursor]


class Poller:
    """Polls one shard in one of the ways, and keeps what it would have published."""

    def __init__(self, conn: db.Connection, reader: relay_readers.WindowLog) -> None:
        self._conn = conn
        self._reader = reader
        self._at = relay_readers.START
        self.published: list[UUID] = []

    async def polled(self, count: int) -> None:
        """Poll until that much is published; a horizon is held back by transactions of other databases too."""
        async with asyncio.timeout(20):
            while len(self.published) < count:
                await self.poll()

    async def poll(self) -> None:
        """Read until nothing is left, as a relay that is never behind."""
        async with asyncio.timeout(20):
            await self._poll()

    async def _poll(self) -> None:
        while True:
            page = (await self._reader.read(self._conn, {SHARD: self._at}, 2))[SHARD]
            self._at = page.after
            self.published += [row.event_id for row in page.rows]
            if not page.rows and page.after.hi is None:
                return


@asynccontextmanager
async def sessions(dsn: str, count: int) -> AsyncGenerator[list[db.Connection]]:
    """Open sessions, each with autocommit off but the last, which polls."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(await db.Connection.connect(dsn, autocommit=number == count - 1)) for number in range(count)]


async def add(conn: db.Connection, aggregate: int = AGGREGATE) -> UUID:
    """Add one event."""
    message = events.EmailSent(order_id=aggregate, saga_id=ids.uuid7(), template="receipt", smtp_message_id="1")
    return await outbox.add(conn, message, source="test")


@pytest.mark.parametrize("way", WAYS)
async def test_a_transaction_id_says_nothing_of_the_order_of_locks(way: type[relay_readers.WindowLog], payment_db: str) -> None:
    """T2 has the smaller transaction id and writes second, under the lock: only the horizon cursor publishes it first."""
    async with sessions(payment_db, 3) as (first, second, reader):
        await reader.execute("CREATE TABLE aggregate (id int PRIMARY KEY)")
        await reader.execute("INSERT INTO aggregate VALUES (1)")
        poller = Poller(reader, way())
        await second.execute("SELECT pg_current_xact_id()")  # some other write of T2
        await poller.poll()
        await first.execute(LOCK)
        one = await add(first)
        waiting = asyncio.ensure_future(second.execute(LOCK))
        if way is not relay_readers.HorizonCursor:
            await poller.poll()
        await first.commit()
        await waiting
        await poller.poll()
        two = await add(second)
        await poller.poll()
        await second.commit()

        await poller.polled(2)

    assert poller.published == ([two, one] if way is relay_readers.HorizonCursor else [one, two])


async def _windows(conn: db.Connection, polls: list[snapshot.Snapshot]) -> list[int]:
    """Read from the empty snapshot through each of these, one row at a time."""
    found: list[int] = []
    at = relay_readers.START
    for hi in polls:
        while len(found) < 9 and (rows := await queries.window(conn, [(SHARD, at)], hi, limit=1, max_bytes=relay_readers.MAX_BYTES)):
            found.append(rows[0].id)
            at = queries.Position(lo=at.lo, hi=hi, last_id=rows[0].id)
        at = queries.Position(lo=hi, hi=None, last_id=0)
    return found


async def test_no_choice_of_polls_inverts_or_loses(payment_db: str) -> None:
    """The same two sessions, with a relay that polled at any of the points between them, and only there: always one, then two."""
    polls: list[snapshot.Snapshot] = []
    async with sessions(payment_db, 3) as (first, second, reader):
        await reader.execute("CREATE TABLE aggregate (id int PRIMARY KEY)")
        await reader.execute("INSERT INTO aggregate VALUES (1)")
        polls.append((await queries.current_snapshot(reader))[0])
        await second.execute("SELECT pg_current_xact_id()")
        polls.append((await queries.current_snapshot(reader))[0])
        await first.execute(LOCK)
        polls.append((await queries.current_snapshot(reader))[0])
        await add(first)
        waiting = asyncio.ensure_future(second.execute(LOCK))
        polls.append((await queries.current_snapshot(reader))[0])
        await first.commit()
        polls.append((await queries.current_snapshot(reader))[0])
        await waiting
        await add(second)
        polls.append((await queries.current_snapshot(reader))[0])
        await second.commit()
        last, _ = await queries.current_snapshot(reader)

        ways = [chosen for count in range(len(polls) + 1) for chosen in itertools.combinations(polls, count)]
        found = [await _windows(reader, [*chosen, last]) for chosen in ways]

    assert found == [[1, 2]] * 2 ** len(polls)


@pytest.mark.parametrize("way", [relay_readers.WindowLog, relay_readers.IdCursor])
async def test_what_commits_late_is_found(way: type[relay_readers.WindowLog], payment_db: str) -> None:
    """A transaction that drew its id first and commits last: the id cursor has passed it, and loses it."""
    async with sessions(payment_db, 3) as (late, quick, reader):
        poller = Poller(reader, way())
        slow = await add(late)
        fast = await add(quick)
        await quick.commit()
        await poller.poll()
        await late.commit()
        await poller.poll()

    assert (slow in poller.published) == (way is not relay_readers.IdCursor)
    assert fast in poller.published


@pytest.mark.parametrize("way", WAYS)
async def test_an_open_transaction_delays_nobody_else(way: type[relay_readers.WindowLog], payment_db: str) -> None:
    """While a transaction with an id is open somewhere, only the horizon cursor stands still."""
    async with sessions(payment_db, 3) as (idle, quick, reader):
        await idle.execute("SELECT pg_current_xact_id()")
        poller = Poller(reader, way())
        event = await add(quick)
        await quick.commit()

        await poller.poll()

    assert poller.published == ([] if way is relay_readers.HorizonCursor else [event])


async def test_savepoints_beyond_what_a_snapshot_caches(payment_db: str) -> None:
    """Of 150 savepoints in one transaction, rows of those released are found once it commits, and of those rolled back never."""
    async with sessions(payment_db, 3) as (writer, other, reader):
        poller = Poller(reader, relay_readers.WindowLog())
        kept: list[UUID] = []
        for number in range(150):
            await writer.execute("SAVEPOINT s")
            event = await add(writer)
            if number % 3:
                kept.append(event)
                await writer.execute("RELEASE SAVEPOINT s")
            else:
                await writer.execute("ROLLBACK TO SAVEPOINT s")
            if number == 75:
                await add(other)
                await other.commit()
                await poller.poll()
        assert len(poller.published) == 1
        await writer.commit()

        await poller.poll()

    assert poller.published[1:] == kept


async def test_an_id_that_was_drawn_before_the_lock_inverts(payment_db: str) -> None:
    """Why outbox.add draws the id in its INSERT, under the lock: a writer that draws it earlier is published too early."""
    async with sessions(payment_db, 3) as (early, quick, reader):
        poller = Poller(reader, relay_readers.WindowLog())
        found = await (await early.execute("SELECT nextval('outbox_id')")).fetchone() or (0,)
        one = await add(quick)  # holds the lock, commits first
        await quick.commit()
        two = await add(early)
        await early.execute("UPDATE outbox SET id = %s WHERE event_id = %s", (found[0], two))
        await early.commit()

        await poller.poll()

    assert poller.published == [two, one]


async def test_a_new_cursor_finds_what_was_there_before_it(payment_db: str) -> None:
    """The empty snapshot passes nothing; one that was taken when rows were there would pass them."""
    async with sessions(payment_db, 2) as (writer, reader):
        event = await add(writer)
        await writer.commit()
        found = await (await reader.execute("SELECT count(*) FROM outbox_cursor WHERE lo::text = '1:1:' AND hi IS NULL")).fetchone()
        poller = Poller(reader, relay_readers.WindowLog())

        await poller.poll()

    assert found == (outbox.SHARDS,)
    assert poller.published == [event]


@pytest.mark.parametrize("cache", [1, 5])
async def test_a_session_that_caches_ids_inverts(cache: int, payment_db: str) -> None:
    """Why the sequence has CACHE 1: with more, a session that wrote before hands out a small id after another's greater one."""
    async with sessions(payment_db, 3) as (first, second, reader):
        sequence = await (await reader.execute("SELECT cache_size FROM pg_sequences WHERE sequencename = 'outbox_id'")).fetchone()
        assert sequence == (1,)
        await reader.execute(sql.SQL("ALTER SEQUENCE outbox_id CACHE {}").format(cache))
        zero = await add(second)
        await second.commit()
        one = await add(first)  # holds the lock, commits first
        await first.commit()
        two = await add(second)
        await second.commit()
        poller = Poller(reader, relay_readers.WindowLog())

        await poller.poll()

    assert poller.published == ([zero, one, two] if cache == 1 else [zero, two, one])


async def test_a_snapshot_of_a_session_that_writes_is_no_cursor(payment_db: str) -> None:
    """A transaction with an id takes itself for ended: `lo` from there loses its rows. The relay polls outside of any transaction."""
    async with sessions(payment_db, 3) as (writer, other, reader):
        event = await add(writer)
        await add(other)
        await other.commit()
        own, _ = await queries.current_snapshot(writer)
        taken, _ = await queries.current_snapshot(reader)
        await writer.commit()
        now, _ = await queries.current_snapshot(reader)
        from_inside = await queries.window(reader, [(SHARD, queries.Position(lo=own, hi=None, last_id=0))], now, limit=5, max_bytes=99999)
        from_outside = await queries.window(
            reader, [(SHARD, queries.Position(lo=taken, hi=None, last_id=0))], now, limit=5, max_bytes=99999
        )
        assigned = await (await reader.execute("SELECT pg_current_xact_id_if_assigned()")).fetchone()

    assert from_inside == []
    assert [row.event_id for row in from_outside] == [str(event)]
    assert assigned == (None,)


@pytest.fixture
def two_phase_db(private_databases: servers.Databases) -> str:
    """Give a migrated database of a server that allows PREPARE TRANSACTION."""
    with psycopg.connect(private_databases.admin_dsn, autocommit=True) as admin:
        admin.execute("ALTER SYSTEM SET max_prepared_transactions = 4")
    private_databases.stop()
    private_databases.start()
    dsn = private_databases.create("payment_user", "payment_password", "payment")
    migrations.upgrade(dsn, "payment")
    return dsn


async def test_a_prepared_transaction_is_found_when_it_commits(two_phase_db: str) -> None:
    """Two-phase commit: between PREPARE and COMMIT PREPARED its rows are nowhere and hold nobody up; rolled back, they never come."""
    async with sessions(two_phase_db, 4) as (kept, dropped, other, reader):
        poller = Poller(reader, relay_readers.WindowLog())
        late = await add(kept)
        await add(dropped)
        await kept.execute("PREPARE TRANSACTION 'kept'")
        await kept.commit()
        await dropped.execute("PREPARE TRANSACTION 'dropped'")
        await dropped.commit()
        quick = await add(other)
        await other.commit()
        await poller.poll()
        assert poller.published == [quick]
        await reader.execute("COMMIT PREPARED 'kept'")
        await reader.execute("ROLLBACK PREPARED 'dropped'")

        await poller.poll()

    assert poller.published == [quick, late]
