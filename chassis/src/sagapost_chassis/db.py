"""PostgreSQL: one pool per process, one way to write, rows as Structs; it must not know any table of a service."""

import asyncio
import contextvars
import select
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from operator import attrgetter
from typing import Any, Final, Generic, TypeVar
from uuid import UUID

import msgspec
import psycopg
import psycopg_pool
from psycopg import conninfo

from sagapost_chassis import errors, sessions, settings, telemetry, urls

S = TypeVar("S", bound=msgspec.Struct)
T = TypeVar("T")

# serialization failure, deadlock, statement cancelled: the work itself may be the cause
_MAYBE_OURS: Final = ("40001", "40P01", "57014")
# shut down or starting, connection lost, no room or memory or connection left, input or output failed, a server that is read-only, a
# session that its time limits ended, a lock that somebody else holds, a right or a table that was taken away: never the work's doing
_SURROUNDINGS: Final = ("57P0", "08", "53", "58", "25006", "25P03", "25P04", "55P03", "42501", "42P01")
_TIMEOUTS: Final = "-c statement_timeout=10000 -c lock_timeout=5000 -c idle_in_transaction_session_timeout=30000"
# Two at a time: one runs its statements while the other waits for its commit. Of the pool's ten connections the rest is for requests.
COMMITTERS: Final = 2
GROUP_MAX: Final = 64
# a unit that waits for a row which somebody holds for longer leaves the group, so that the others need not wait with it
_GROUP_PATIENCE: Final = "SET LOCAL lock_timeout = '250ms'"
# a word in the log that nobody reads, for its commit's sake
_MARK: Final = "SELECT pg_logical_emit_message(true, 'sagapost', '')"
# For the server's end. By itself a server keeps the session of a client that has vanished for two hours: some losses of the network
# later all its connections are taken.
_KEEPALIVES: Final = "-c tcp_keepalives_idle=5 -c tcp_keepalives_interval=2 -c tcp_keepalives_count=3 -c tcp_user_timeout=10000"
# Every statement finds its rows by an index. A plan that was made while a table was nearly empty must not read all of it later, when
# thousands of rows came within a minute and nobody has analysed them yet.
_PLANS: Final = "-c enable_seqscan=off -c enable_hashjoin=off -c enable_mergejoin=off -c jit=off"


# A connection that was in use a moment ago, and on which nothing has come since, is as good as one that was asked again: a server that
# ends a session says so. Asking costs a round trip, which was a twelfth of a checkout's work in the order service.
_FRESH_S: Final = 1.0


class Connection(psycopg.AsyncConnection[tuple[Any, ...]]):
    """A connection that knows when it was given back."""

    returned_at = float("-inf")


class Pool(psycopg_pool.AsyncConnectionPool[Connection]):
    """A pool that tells when a transaction on it has committed, with the units of work that wait for one together."""

    on_commit: Callable[[], None] | None = None
    waiting: "list[_Unit[Any]]"
    committers: set[asyncio.Task[None]]


class Bulk(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """How a unit is done together with others of its group: `run` does all that have it, by a few statements for all of them.

    It is handed the items of units with different keys, in the order of the keys, and gives for each what its unit comes to; None for
    one of which it has written nothing, and which the unit's own work does afterwards.
    """

    run: Callable[[Connection, Sequence[Any]], Coroutine[Any, Any, Sequence[T | None]]]
    item: object


class _Unit(Generic[T]):
    """Work that waits for its group; `committed` becomes True, or False when the unit must run in a transaction of its own."""

    def __init__(self, key: UUID, work: Callable[[Connection], Coroutine[Any, Any, T]], bulk: Bulk[T] | None) -> None:
        self.key = key
        self.work = work
        self.bulk = bulk
        self.context = contextvars.copy_context()
        self.committed: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.result: T

    def end(self, exc: Exception | None, *, committed: bool = False) -> None:
        """Let the caller go on; one that has gone away learns nothing."""
        if self.committed.done():
            return
        if exc is None:
            self.committed.set_result(committed)
        else:
            self.committed.set_exception(exc)


class UnavailableError(errors.TransientError):
    """The database does not answer, or every connection is taken.

    Counted when the work itself may be the cause: a deadlock, a statement that takes too long.
    """

    counted = False


class CommitUnknownError(errors.TransientError):
    """The connection broke during COMMIT: the transaction may or may not have happened."""

    counted = False


def dsn_of(url: str, name: str) -> str:
    """Complete a connection URL with what every connection has: timeouts, keepalives (seconds; tcp_user_timeout in ms), pinned plans."""
    given = {key: str(value) for key, value in conninfo.conninfo_to_dict(url).items() if value is not None}
    defaults = {
        "application_name": name,
        "connect_timeout": "3",
        "keepalives": "1",
        # A peer that has vanished is given up after 5 to 6 s when nothing is sent, and 5 s after what is: on Linux what is sent ends the
        # probing, so that the worst case is their sum, 11 s, when something is sent just before the last probe (tcp(7)).
        "keepalives_idle": "3",
        "keepalives_interval": "1",
        "keepalives_count": "3",
        "tcp_user_timeout": "5000",
        "options": f"{_TIMEOUTS} {_KEEPALIVES} {_PLANS}",
    }
    # the later word counts: options of the URL change single settings, and take no other away
    given["options"] = f"{defaults['options']} {given.get('options', '')}".strip()
    return conninfo.make_conninfo("", **(defaults | given))


@asynccontextmanager
async def open_pool(url: str, name: str, *, max_size: int = 10, on_commit: Callable[[], None] | None = None) -> AsyncGenerator[Pool]:
    """Open a pool of autocommit connections; it starts without the database and reconnects within seconds.

    `on_commit` is called after each transaction that has committed; it must neither wait nor raise.
    """
    pool = Pool(
        dsn_of(url, name),
        connection_class=Connection,
        kwargs={"autocommit": True},
        min_size=1,
        max_size=max_size,
        max_waiting=200,
        timeout=2,
        reconnect_timeout=5,  # the default backs off to minutes after an outage
        check=_check,
        configure=_rely_on,
        reset=_note_return,
        open=False,
        name=name,
    )
    pool.on_commit = on_commit
    pool.waiting = []
    pool.committers = set()
    await pool.open(wait=False)
    try:
        yield pool
    finally:
        await pool.close(timeout=5)


async def _rely_on(conn: Connection) -> None:
    """Look, on each new connection of a pool, at what every transaction relies on: a role may be altered while its services run.

    Raises:
        psycopg.OperationalError: the session is of no use; the pool tries another one.

    """
    wrong = await sessions.fault(conn)
    if wrong:
        telemetry.log.error("database.refused", reason=wrong)
        raise psycopg.OperationalError(wrong)


async def _note_return(conn: Connection) -> None:
    conn.returned_at = time.monotonic()


async def _check(conn: Connection) -> None:
    """Ask the server whether the session lives, unless it was in use a moment ago and has said nothing since."""
    silence = select.poll()
    silence.register(conn.fileno(), select.POLLIN)
    if silence.poll(0) or time.monotonic() - conn.returned_at > _FRESH_S:
        await Pool.check_connection(conn)


async def require(url: str, name: str, *, standby_ok: bool = False) -> None:
    """Connect once at start, check the session, and refuse a pooler in transaction mode.

    `standby_ok`: the process itself waits until a standby is promoted.

    Raises:
        CannotStartError: a sentence that says what to do; the process ends with exit code 2.

    """
    try:
        dsn = dsn_of(url, name)
        async with await Connection.connect(dsn, autocommit=True, prepare_threshold=None) as conn:
            wrong = await sessions.fault(conn, standby_ok=standby_ok) or await sessions.pooler_fault(conn, dsn)
    except psycopg.ProgrammingError as exc:
        where = f"the database at {urls.shown(url)}"
        raise settings.CannotStartError(f"{where} cannot be used: {urls.PARAMETERS}; correct SAGAPOST_DATABASE_URL") from exc
    except psycopg.Error as exc:
        reason = str(exc).strip().splitlines()[0].removeprefix("connection failed: ")
        what = "start it (./sagapost up) or correct SAGAPOST_DATABASE_URL"
        if "startup parameter" in reason or "pooling mode" in reason:
            what = "connect without the pooler, or let it use session mode and pass options on"
        raise settings.CannotStartError(f"the database at {urls.shown(url)} cannot be used: {reason}; {what}") from exc
    if wrong:
        raise settings.CannotStartError(f"the database at {urls.shown(url)} cannot be used: {wrong}")


@asynccontextmanager
async def connection(pool: Pool) -> AsyncGenerator[Connection]:
    """Borrow a connection for reading.

    Raises:
        UnavailableError: nothing free in time, or the database is gone.

    """
    try:
        async with pool.connection() as conn:
            yield conn
    except (psycopg_pool.PoolTimeout, psycopg_pool.TooManyRequests, psycopg_pool.PoolClosed) as exc:
        raise UnavailableError("no database connection in time") from exc
    except psycopg.Error as exc:
        if not is_retryable(exc):
            raise
        maybe_ours = (exc.sqlstate or "").startswith(_MAYBE_OURS)
        raise UnavailableError(f"the database gave up: {type(exc).__name__}", counted=maybe_ours) from exc


@asynccontextmanager
async def transaction(pool: Pool) -> AsyncGenerator[Connection]:
    """Run the one transaction of a use case; it commits at the end of the block and rolls back on any exception.

    Raises:
        UnavailableError: nothing was written; the whole transaction may be repeated.
        CommitUnknownError: the connection broke while committing; read again before repeating.

    """
    committing = False
    try:
        async with connection(pool) as conn, conn.transaction():
            yield conn
            committing = True
        if pool.on_commit is not None:
            pool.on_commit()
    except UnavailableError as exc:
        # a shutdown can also be told after the local commit, while a synchronous standby is waited for
        state = exc.__cause__.sqlstate if isinstance(exc.__cause__, psycopg.Error) else ""
        if committing and (state is None or state.startswith(("57P", "08"))):
            raise CommitUnknownError("the connection broke during COMMIT") from exc
        raise


async def await_standbys(conn: Connection) -> None:
    """Let the running transaction's commit wait for the synchronous standbys, though it writes nothing itself.

    To be called by who acts on what it has found instead of writing it: a server that has crashed, or whose sessions were ended
    while they waited, shows transactions that no standby has, and a promotion would take back. Without synchronous standbys it
    costs one flush of the log.
    """
    await conn.execute(_MARK)


async def grouped(pool: Pool, key: UUID, work: Callable[[Connection], Coroutine[Any, Any, T]], *, bulk: Bulk[T] | None = None) -> T:
    """Run a unit of work in a transaction that it shares with those that wait at the same time (group commit).

    It returns when that has committed. While one group commits the next gathers; who comes alone waits for nobody. A unit
    is database work only, and may run twice: when one of a group fails, nothing of the group is written and each of its
    units runs in a transaction of its own. `key` is what it locks first: groups take their units in the order of the keys,
    and so do not lock crosswise. With `bulk` the units of a group share their statements too; `work` must do the same alone.

    Raises:
        UnavailableError: nothing was written; the unit may be repeated.
        CommitUnknownError: the connection broke while committing; read again before repeating.
        Exception: what the unit raised, in a transaction of its own; nothing of it was written.

    """
    unit = _Unit(key, work, bulk)
    pool.waiting.append(unit)
    if len(pool.committers) < COMMITTERS:
        pool.committers.add(asyncio.create_task(_commit_groups(pool)))
    if await unit.committed:
        return unit.result
    async with transaction(pool) as conn:
        return await work(conn)


async def _commit_groups(pool: Pool) -> None:
    try:
        while pool.waiting:
            group = sorted(pool.waiting[:GROUP_MAX], key=attrgetter("key"))
            del pool.waiting[:GROUP_MAX]
            await _commit_group(pool, group)
    finally:  # here and not in a callback, which would run later: whoever comes between would wait for nobody
        pool.committers = {task for task in pool.committers if task is not asyncio.current_task()}


async def _commit_group(pool: Pool, group: Sequence[_Unit[Any]]) -> None:
    """Run the units one after the other in one transaction; the exception of a single one is its own."""
    failed = False
    try:
        async with transaction(pool) as conn:
            if len(group) > 1:
                await conn.execute(_GROUP_PATIENCE)
            failed = True
            done = await _in_bulk(conn, group)
            for unit in group:
                if unit not in done:
                    unit.result = await asyncio.create_task(unit.work(conn), context=unit.context)
            failed = False
    except Exception as exc:  # any kind: it goes to whoever waits for the unit
        for unit in group:
            unit.end(None if failed and len(group) > 1 else exc)
    except BaseException:
        for unit in group:
            unit.committed.cancel()
        raise
    else:
        for unit in group:
            unit.end(None, committed=True)


async def _in_bulk(conn: Connection, group: Sequence[_Unit[Any]]) -> set[_Unit[Any]]:
    """Do what units can do together, one of each key: a second one must see what the first has written. Gives those that are done."""
    alike: dict[Any, dict[UUID, _Unit[Any]]] = {}
    for unit in group:
        if unit.bulk is not None:
            alike.setdefault(unit.bulk.run, {}).setdefault(unit.key, unit)
    done: set[_Unit[Any]] = set()
    for run, by_key in alike.items():
        units = list(by_key.values())
        for unit, result in zip(units, await run(conn, [unit.bulk.item for unit in units if unit.bulk is not None]), strict=True):
            if result is not None:
                unit.result = result
                done.add(unit)
    return done


def is_retryable(exc: psycopg.Error) -> bool:
    """Tell whether repeating the whole transaction can help."""
    state = exc.sqlstate
    if state is None:
        return isinstance(exc, (psycopg.OperationalError, psycopg.InterfaceError))
    return state.startswith(_MAYBE_OURS + _SURROUNDINGS)


def struct_row(cls: type[S]) -> Callable[[psycopg.AsyncCursor[Any]], Callable[[Sequence[Any]], S]]:
    """Make a row factory that converts each row to `cls` by column name, enums included."""

    def factory(cursor: psycopg.AsyncCursor[Any]) -> Callable[[Sequence[Any]], S]:
        found = cursor.pgresult  # not cursor.description, which makes an object for each column of each result
        names = [(found.fname(column) or b"").decode() for column in range(found.nfields)] if found else []

        def make(values: Sequence[Any]) -> S:
            return msgspec.convert(dict(zip(names, values, strict=True)), cls)

        return make

    return factory
