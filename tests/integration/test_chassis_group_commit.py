"""Units of work that share a transaction, against a real PostgreSQL."""

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import psycopg
import pytest

from sagapost_chassis import db, ids, inbox

pytestmark = pytest.mark.anyio

Unit = Callable[[db.Connection], Coroutine[Any, Any, int]]
CONNECTIONS = 5  # as many as a test here uses at a time
PATIENT = "?options=-c%20lock_timeout%3D60000"
WHO: contextvars.ContextVar[str] = contextvars.ContextVar("WHO", default="nobody")


async def _transaction_id(conn: db.Connection) -> int:
    found = await (await conn.execute("SELECT pg_current_xact_id()::text::bigint")).fetchone()
    assert found is not None
    return int(found[0])


def _claims(message_id: UUID) -> Unit:
    """Make a unit that claims a message and tells in which transaction."""

    async def unit(conn: db.Connection) -> int:
        await inbox.claim(conn, message_id, "EmailSent")
        return await _transaction_id(conn)

    return unit


async def _claimed(pool: db.Pool) -> set[UUID]:
    async with db.connection(pool) as conn:
        return {row[0] for row in await (await conn.execute("SELECT message_id FROM inbox")).fetchall()}


@asynccontextmanager
async def _open(dsn: str) -> AsyncIterator[db.Pool]:
    """Open a pool that has its connections already: it waits two seconds for one, and a busy machine may need them."""
    async with db.open_pool(dsn, "test") as pool:
        await pool.resize(CONNECTIONS, pool.max_size)
        await pool.wait(30)
        yield pool


@asynccontextmanager
async def _gathering(pool: db.Pool) -> AsyncIterator[None]:
    """Keep as many groups open as there may be while the block adds units, so that they gather."""
    go_on = asyncio.Event()
    running: list[asyncio.Task[None]] = []
    try:
        for _ in range(db.COMMITTERS):
            began = asyncio.get_running_loop().create_future()

            async def holds(_: db.Connection, began: asyncio.Future[None] = began) -> None:
                began.set_result(None)
                await go_on.wait()

            running.append(asyncio.create_task(db.grouped(pool, ids.uuid7(), holds)))
            await asyncio.wait((began, running[-1]), return_when=asyncio.FIRST_COMPLETED)
            assert began.done(), running[-1].exception()
        yield
    finally:
        go_on.set()
        await asyncio.gather(*running)


async def _together(pool: db.Pool, *units: tuple[UUID, Unit]) -> list[int | BaseException]:
    """Run units as one group, and give what each came to."""
    async with _gathering(pool):
        tasks = [asyncio.create_task(db.grouped(pool, key, unit)) for key, unit in units]
        await asyncio.sleep(0)  # each of them begins, and waits
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_units_that_wait_at_the_same_time_share_one_transaction(payment_db: str) -> None:
    """While a group commits, whoever comes gathers for the next one, and all of that one is committed when they go on."""
    messages = [ids.uuid7() for _ in range(5)]
    async with _open(payment_db) as pool:
        transactions = await _together(pool, *((message, _claims(message)) for message in messages))

        assert len(set(transactions)) == 1
        assert await _claimed(pool) == set(messages)


async def test_whoever_comes_alone_waits_for_nobody(payment_db: str) -> None:
    """A single unit has a transaction of its own, at once."""
    async with _open(payment_db) as pool:
        transactions = [await db.grouped(pool, message, _claims(message)) for message in (ids.uuid7(), ids.uuid7())]

    assert len(set(transactions)) == 2


async def test_a_group_has_an_end(payment_db: str) -> None:
    """More units than a group holds make several groups; nobody is forgotten."""
    messages = [ids.uuid7() for _ in range(2 * db.GROUP_MAX + 1)]
    async with _open(payment_db) as pool:
        transactions = await _together(pool, *((message, _claims(message)) for message in messages))

        assert len(set(transactions)) == 3
        assert await _claimed(pool) == set(messages)


async def test_a_unit_that_fails_takes_nobody_with_it(payment_db: str) -> None:
    """The others of its group commit without it, and it alone has its exception; what it wrote is gone."""
    good, bad = [ids.uuid7() for _ in range(3)], ids.uuid7()

    async def fails(conn: db.Connection) -> int:
        await inbox.claim(conn, bad, "EmailSent")
        raise ZeroDivisionError

    async with _open(payment_db) as pool:
        *transactions, failure = await _together(pool, *((message, _claims(message)) for message in good), (bad, fails))

        assert isinstance(failure, ZeroDivisionError)
        assert len(set(transactions)) == 3
        assert await _claimed(pool) == set(good)


async def test_a_statement_that_fails_takes_nobody_with_it(payment_db: str) -> None:
    """An error of the database ends the group's transaction, and every unit has one of its own afterwards."""
    good = [ids.uuid7() for _ in range(3)]

    async def fails(conn: db.Connection) -> int:
        await conn.execute("SELECT 1 / 0")
        return 0

    async with _open(payment_db) as pool:
        failure, *_ = await _together(pool, (UUID(int=0), fails), *((message, _claims(message)) for message in good))

        assert isinstance(failure, psycopg.errors.DivisionByZero)
        assert await _claimed(pool) == set(good)


async def test_a_unit_that_waits_for_a_lock_does_not_hold_up_its_group(payment_db: str) -> None:
    """Somebody holds one row for long: the units that want other rows commit meanwhile."""
    held, free = UUID(int=0), [ids.uuid7() for _ in range(3)]
    async with _open(payment_db + PATIENT) as pool:
        async with db.transaction(pool) as other:
            await inbox.claim(other, held, "EmailSent")
            async with _gathering(pool):
                waiting = asyncio.create_task(db.grouped(pool, held, _claims(held)))
                others = [asyncio.create_task(db.grouped(pool, message, _claims(message))) for message in free]
                await asyncio.sleep(0)  # each of them begins, and waits
            async with asyncio.timeout(20):  # less than the time that one waits for a lock alone
                await asyncio.gather(*others)
            assert not waiting.done()
        await waiting


async def test_a_commit_cut_in_the_middle_is_unknown_to_the_whole_group(payment_db: str) -> None:
    """When COMMIT has no answer nobody of the group claims to know, and nobody's unit runs again by itself."""
    runs = 0

    async def counts(_: db.Connection) -> int:
        nonlocal runs
        runs += 1
        return runs

    async def cuts(conn: db.Connection) -> int:
        async with await psycopg.AsyncConnection.connect(payment_db, autocommit=True) as other:
            await other.execute("SELECT pg_terminate_backend(%s)", (conn.info.backend_pid,))
        return await counts(conn)

    async with _open(payment_db) as pool:
        outcomes = await _together(pool, (UUID(int=1), counts), (UUID(int=2), counts), (UUID(int=3), cuts))

    assert [type(outcome) for outcome in outcomes] == [db.CommitUnknownError] * 3
    assert runs == 3


async def test_units_run_in_the_order_of_their_keys(payment_db: str) -> None:
    """Two groups that want the same rows take them in one order, and do not lock crosswise."""
    order: list[int] = []

    def noted(number: int) -> Unit:
        async def unit(_: db.Connection) -> int:
            order.append(number)
            return number

        return unit

    async with _open(payment_db) as pool:
        assert await _together(pool, *((UUID(int=number), noted(number)) for number in (3, 1, 2))) == [3, 1, 2]

    assert order == [1, 2, 3]


async def test_each_unit_keeps_its_callers_context(payment_db: str) -> None:
    """The trace and the names in the log are those of whoever asked, not those of whoever came first."""

    async def who(_: db.Connection) -> str:
        return WHO.get()

    async def call(name: str) -> str:
        WHO.set(name)
        return await db.grouped(pool, ids.uuid7(), who)

    async with _open(payment_db) as pool:
        async with _gathering(pool):
            calls = [asyncio.create_task(call(name)) for name in ("anna", "bert")]
            await asyncio.sleep(0)  # each of them begins, and waits
        assert await asyncio.gather(*calls) == ["anna", "bert"]


async def test_a_caller_that_goes_away_leaves_the_group_whole(payment_db: str) -> None:
    """A cancelled caller learns nothing of its unit; the others commit."""
    message = ids.uuid7()
    async with _open(payment_db) as pool:
        async with _gathering(pool):
            gone = asyncio.create_task(db.grouped(pool, ids.uuid7(), _transaction_id))
            stays = asyncio.create_task(db.grouped(pool, message, _claims(message)))
            await asyncio.sleep(0)  # each of them begins, and waits
            gone.cancel()
        await stays

        assert gone.cancelled()
        assert message in await _claimed(pool)


Run = Callable[[db.Connection, Sequence[Any]], Coroutine[Any, Any, Sequence[int | None]]]


async def _in_bulk(pool: db.Pool, run: Run, *items: tuple[UUID, UUID]) -> list[int | BaseException]:
    """Run units that claim a message each, given as key and message, as one group that may be done in bulk by `run`."""
    async with _gathering(pool):
        tasks = [
            asyncio.create_task(db.grouped(pool, key, _claims(message), bulk=db.Bulk(run=run, item=message))) for key, message in items
        ]
        await asyncio.sleep(0)  # each of them begins, and waits
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_units_of_a_group_can_share_their_statements(payment_db: str) -> None:
    """They are handed over together, in the order of their keys; one that was not done does its own work in the same transaction."""
    first, second, left = (ids.uuid7() for _ in range(3))
    handed: list[list[UUID]] = []

    async def run(conn: db.Connection, messages: Sequence[UUID]) -> list[int | None]:
        handed.append(list(messages))
        number = await _transaction_id(conn)
        return [None if message == left else number for message in messages]

    async with _open(payment_db) as pool:
        outcomes = await _in_bulk(pool, run, (UUID(int=3), left), (UUID(int=2), second), (UUID(int=1), first))

        assert handed == [[first, second, left]]
        assert len(set(outcomes)) == 1
        assert await _claimed(pool) == {left}


async def test_a_second_unit_of_a_key_is_not_done_in_bulk(payment_db: str) -> None:
    """It must see what the first has written, which it does when it works behind it."""
    key, first, second = ids.uuid7(), ids.uuid7(), ids.uuid7()
    handed: list[UUID] = []

    async def run(_: db.Connection, messages: Sequence[UUID]) -> list[int | None]:
        handed.extend(messages)
        return [1 for _ in messages]

    async with _open(payment_db) as pool:
        await _in_bulk(pool, run, (key, first), (key, second))

        assert handed == [first]
        assert await _claimed(pool) == {second}


async def test_a_bulk_that_fails_leaves_each_unit_its_own_work(payment_db: str) -> None:
    """Nothing of it stays; every unit does its own work in a transaction of its own."""
    messages = [ids.uuid7() for _ in range(3)]

    async def run(conn: db.Connection, _: Sequence[UUID]) -> list[int | None]:
        await inbox.claim(conn, UUID(int=7), "EmailSent")
        await conn.execute("SELECT 1 / 0")
        return []

    async with _open(payment_db) as pool:
        outcomes = await _in_bulk(pool, run, *((message, message) for message in messages))

        assert len(set(outcomes)) == 3
        assert await _claimed(pool) == set(messages)
