"""Database sessions that cannot be relied on, and whose fault a failed transaction is, against a real PostgreSQL."""

from collections.abc import Awaitable, Callable

import psycopg
import pytest
from integration import pooler
from psycopg import conninfo, sql

from sagapost_chassis import db, sessions, settings

pytestmark = pytest.mark.anyio


async def test_a_session_that_cannot_be_relied_on_is_refused(order_db: str) -> None:
    """A role whose commits a crash may take back, at the start and while its pool is open, and a session without its time limits."""
    name = sql.Identifier(str(conninfo.conninfo_to_dict(order_db)["dbname"]))
    async with await psycopg.AsyncConnection.connect(order_db, autocommit=True) as admin:
        await admin.execute(sql.SQL("ALTER DATABASE {} SET synchronous_commit = off").format(name))
        await _refused(order_db, "synchronous_commit is off for the role")
        await admin.execute(sql.SQL("ALTER DATABASE {} RESET synchronous_commit").format(name))
        await db.require(order_db, "test")

    async with await db.Connection.connect(order_db, autocommit=True) as without_options:
        assert "is not in force for this session" in await sessions.fault(without_options)


async def test_a_server_that_is_read_only_is_refused(order_db: str) -> None:
    """At the start, also of a relay, which would wait for a standby, and while a pool is open."""
    name = sql.Identifier(str(conninfo.conninfo_to_dict(order_db)["dbname"]))
    async with await psycopg.AsyncConnection.connect(order_db, autocommit=True) as admin:
        await admin.execute(sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name))
        await _refused(order_db, "default_transaction_read_only is on for the role")
        with pytest.raises(settings.CannotStartError, match="is read-only"):
            await db.require(order_db, "test", standby_ok=True)


async def test_a_pooler_in_transaction_mode_is_refused(order_db: str) -> None:
    """It keeps the time limits, since it opens a session with the client's own words, and is found out all the same."""
    parts = conninfo.conninfo_to_dict(order_db)
    async with pooler.before(str(parts["host"]), int(str(parts["port"]))) as port:
        pooled = conninfo.make_conninfo(order_db, host="127.0.0.1", port=port)
        async with await psycopg.AsyncConnection.connect(db.dsn_of(pooled, "test"), autocommit=True) as one:
            assert await sessions.pooler_fault(one, order_db) == "", "a session of one's own behind a pooler is good enough"
        with pytest.raises(settings.CannotStartError, match="a pooler in transaction mode stands before it"):
            await db.require(pooled, "test")


async def test_a_pooler_without_a_second_session_is_named_as_that(order_db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it keeps a session for each client cannot be seen then; the sentence says what to change, and names no mode."""
    monkeypatch.setattr(sessions, "_POOLER_S", 0.5)
    parts = conninfo.conninfo_to_dict(order_db)
    async with pooler.before(str(parts["host"]), int(str(parts["port"])), clients=1) as port:
        with pytest.raises(settings.CannotStartError, match="no second session free for"):
            await db.require(conninfo.make_conninfo(order_db, host="127.0.0.1", port=port), "test")


async def test_a_failed_transaction_costs_an_attempt_only_when_the_work_may_be_the_cause(order_db: str) -> None:
    """A statement that takes too long may be the work's own doing; a server that is gone or read-only, a lock and a right are not."""
    async with db.open_pool(order_db, "test") as pool:
        assert (await _failure(pool, lambda conn: conn.execute("SET LOCAL statement_timeout = 1; SELECT pg_sleep(5)"))).counted
        assert not (await _failure(pool, lambda conn: conn.execute("SET TRANSACTION READ ONLY; CREATE TABLE new (id int)"))).counted
        assert not (await _failure(pool, lambda conn: conn.execute("SELECT pg_terminate_backend(pg_backend_pid())"))).counted
        assert not (await _failure(pool, lambda conn: conn.execute("SELECT pg_read_file('/etc/passwd')"))).counted, "a right is missing"
        assert not (await _failure(pool, lambda conn: conn.execute("SELECT FROM no_table"))).counted
        async with await psycopg.AsyncConnection.connect(order_db) as holder:
            await holder.execute("LOCK TABLE inbox")
            assert not (await _failure(pool, lambda conn: conn.execute("SET LOCAL lock_timeout = 1; SELECT FROM inbox"))).counted


async def _refused(dsn: str, words: str) -> None:
    """Expect that a process does not start with such sessions, and that an open pool takes none."""
    with pytest.raises(settings.CannotStartError, match=words):
        await db.require(dsn, "test")
    async with db.open_pool(dsn, "test") as pool:
        with pytest.raises(db.UnavailableError):
            async with db.connection(pool):
                pass


async def _failure(pool: db.Pool, work: Callable[[db.Connection], Awaitable[object]]) -> db.UnavailableError:
    """Return what a transaction on a pool fails with."""
    try:
        async with db.transaction(pool) as conn:
            await work(conn)
    except db.UnavailableError as exc:
        return exc
    raise AssertionError("the transaction did not fail")
