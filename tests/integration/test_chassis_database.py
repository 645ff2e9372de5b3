"""Pool, transaction, outbox and inbox against a real PostgreSQL."""

import asyncio
import select
from enum import StrEnum
from typing import Any

import msgspec
import psycopg
import pytest
import structlog
from opentelemetry.trace import SpanKind

from sagapost_chassis import db, errors, ids, inbox, outbox, telemetry
from sagapost_contracts import events
from sagapost_sandbox.testing import polling, servers

pytestmark = pytest.mark.anyio


class Colour(StrEnum):
    """An enum as a column."""

    RED = "red"


class Painted(msgspec.Struct, frozen=True, kw_only=True):
    """A row with an enum."""

    id: int
    colour: Colour


def _event() -> events.EmailSent:
    return events.EmailSent(order_id=1, saga_id=ids.uuid7(), template="receipt", smtp_message_id="m")


async def _count(pool: db.Pool, query: str) -> int:
    async with db.connection(pool) as conn:
        found = await (await conn.execute(query.encode())).fetchone()
    assert found is not None
    return int(found[0])


async def test_a_rolled_back_transaction_leaves_no_outbox_row(payment_db: str) -> None:
    """The event and the change stand or fall together."""
    async with db.open_pool(payment_db, "test") as pool:

        async def fail() -> None:
            async with db.transaction(pool) as conn:
                await outbox.add(conn, _event(), source="test")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()

        assert await _count(pool, "SELECT count(*) FROM outbox") == 0


async def test_a_message_is_claimed_once_however_many_try(payment_db: str) -> None:
    """Of concurrent deliveries of one message exactly one gets to act."""
    message_id = ids.uuid7()

    async with db.open_pool(payment_db, "test") as pool:

        async def claim() -> bool:
            async with db.transaction(pool) as conn:
                return await inbox.claim(conn, message_id, "EmailSent")

        claims = await asyncio.gather(*(claim() for _ in range(20)))

    assert sorted(claims) == [False] * 19 + [True]


async def test_a_claim_of_a_rolled_back_transaction_is_free_again(payment_db: str) -> None:
    """A message whose effect failed is not taken for processed."""
    message_id = ids.uuid7()
    async with db.open_pool(payment_db, "test") as pool:

        async def fail() -> None:
            async with db.transaction(pool) as conn:
                await inbox.claim(conn, message_id, "EmailSent")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()

        async with db.transaction(pool) as conn:
            assert await inbox.claim(conn, message_id, "EmailSent")


async def test_an_outbox_row_carries_the_running_trace(payment_db: str) -> None:
    """The trace of the request goes on in the message's headers."""
    telemetry.configure("test", "error")
    structlog.reset_defaults()  # other tests of this process read warnings
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    async with db.open_pool(payment_db, "test") as pool:
        with telemetry.span("test", SpanKind.SERVER, parent):
            async with db.transaction(pool) as conn:
                await outbox.add(conn, _event(), source="test")
        async with db.connection(pool) as conn:
            found: Any = await (await conn.execute("SELECT headers ->> 'traceparent' FROM outbox")).fetchone()

    assert found[0].split("-")[1] == "4bf92f3577b34da6a3ce929d0e0e4736"


async def test_rows_become_structs_with_real_enums(payment_db: str) -> None:
    """A text column arrives as the enum its Struct declares; a value outside of it is an error, not a string."""
    async with await db.Connection.connect(payment_db) as conn, conn.cursor(row_factory=db.struct_row(Painted)) as cursor:
        await cursor.execute("SELECT 1 AS id, 'red' AS colour")
        found = await cursor.fetchone()
        with pytest.raises(msgspec.ValidationError):
            await (await cursor.execute("SELECT 1 AS id, 'blue' AS colour")).fetchone()

    assert found is not None
    assert found.colour is Colour.RED


async def test_an_exhausted_pool_is_a_transient_failure(payment_db: str) -> None:
    """When every connection is taken the caller learns it within the pool's timeout, as something to try again."""
    async with db.open_pool(payment_db, "test", max_size=1) as pool, db.connection(pool):
        with pytest.raises(db.UnavailableError):
            async with db.connection(pool):
                pass


async def test_a_commit_cut_in_the_middle_is_reported_as_unknown(payment_db: str) -> None:
    """When the server dies between the last statement and COMMIT's answer, nobody claims to know what happened."""
    async with db.open_pool(payment_db, "test") as pool:

        async def cut() -> None:
            async with db.transaction(pool) as conn, await psycopg.AsyncConnection.connect(payment_db, autocommit=True) as other:
                await conn.execute("SELECT 1")
                await other.execute("SELECT pg_terminate_backend(%s)", (conn.info.backend_pid,))

        with pytest.raises(db.CommitUnknownError):
            await cut()


async def test_a_deadlock_is_transient_and_a_broken_rule_is_not(payment_db: str) -> None:
    """What a repetition can mend is told apart from what it cannot."""
    async with db.open_pool(payment_db, "test") as pool:

        async def fail_with(state: str) -> None:
            async with db.transaction(pool) as conn:
                await conn.execute(f"DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '{state}'; END $$".encode())

        with pytest.raises(psycopg.errors.CheckViolation):
            await fail_with("23514")
        with pytest.raises(errors.TransientError):
            await fail_with("40P01")


async def test_a_session_that_the_server_ended_is_not_given_out(payment_db: str) -> None:
    """Used a moment ago, so that nobody asks the server again: the end of a session has come all the same, and is seen."""
    async with db.open_pool(payment_db, "t", max_size=1) as pool:
        pid = await _count(pool, "SELECT pg_backend_pid()")
        word = select.poll()
        async with db.connection(pool) as conn:
            word.register(conn.fileno(), select.POLLIN)
        with psycopg.connect(payment_db, autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s)", (pid,))
        assert word.poll(10_000), "the server's word has come; on a busy machine even 127.0.0.1 takes a moment"

        assert await _count(pool, "SELECT pg_backend_pid()") != pid


async def test_a_pool_comes_back_after_the_server_was_killed(private_databases: servers.Databases) -> None:
    """After kill -9 and a start of PostgreSQL the same pool serves again, without a restart of the process."""
    dsn = private_databases.create("someone", "secret", "somewhere")
    async with db.open_pool(dsn, "test") as pool:
        assert await _count(pool, "SELECT 1") == 1
        private_databases.kill()
        await asyncio.to_thread(private_databases.start)

        async def answers() -> bool:
            try:
                return await _count(pool, "SELECT 1") == 1
            except db.UnavailableError:
                return False

        assert await polling.eventually(answers, 20)
