"""Opens a database for one command and reads its rows as Structs; it must not know any table."""

import contextlib
from collections.abc import Generator, Mapping
from typing import Any, Final, LiteralString, TypeVar

import msgspec
import psycopg
from psycopg import sql

from sagapost_chassis import urls
from sagapost_ops import errors

PATIENCE_S: Final = 60

Connection = psycopg.Connection[tuple[Any, ...]]
T = TypeVar("T")


def connect(url: str, name: str, *, writing: bool = False, patience_s: int = PATIENCE_S) -> Connection:
    """Open a database, read-only unless `writing`; a statement may take `patience_s` seconds.

    Raises:
        UnfitError: it cannot be used.

    """
    options = f"-c statement_timeout={patience_s * 1000} -c lock_timeout=5000 -c timezone=UTC"
    try:
        conn = psycopg.connect(url, autocommit=True, connect_timeout=5, options=options, application_name=name)
        if not writing:  # not among the options: an address with target_session_attrs=read-write would refuse its own session
            conn.execute("SET default_transaction_read_only = on")
    except psycopg.ProgrammingError as exc:
        raise errors.UnfitError(f"the database at {urls.shown(url)} cannot be used: {urls.PARAMETERS}; correct it") from exc
    except psycopg.OperationalError as exc:
        raise errors.UnfitError(f"the database at {urls.shown(url)} cannot be used: {_reason(exc)}; see ./sagapost status") from exc
    return conn


@contextlib.contextmanager
def opened(url: str, name: str, *, writing: bool = False, patience_s: int = PATIENCE_S) -> Generator[Connection]:
    """Open a database for the length of a block; what it answers instead of rows ends the command with one sentence.

    Raises:
        UnfitError: it cannot be used, or its schema is another one.
        FailedError: it gave up in the middle.

    """
    where = f"the database at {urls.shown(url)}"
    with contextlib.closing(connect(url, name, writing=writing, patience_s=patience_s)) as conn:
        try:
            yield conn
        except psycopg.errors.ProgrammingError as exc:
            raise errors.UnfitError(f"{where} cannot be used: {_reason(exc)}; see ./sagapost migrate status") from exc
        except psycopg.OperationalError as exc:
            raise errors.FailedError(f"{where} gave up: {_reason(exc)}; see ./sagapost status and call again") from exc


def rows(conn: Connection, query: LiteralString | sql.Composed, kind: type[T], values: Mapping[str, Any] | None = None) -> list[T]:
    """Run a query and convert each row to `kind` by column name."""
    cursor = conn.execute(query, values)
    names = [column.name for column in cursor.description or ()]
    return [msgspec.convert(dict(zip(names, found, strict=True)), kind) for found in cursor]


def _reason(exc: psycopg.Error) -> str:
    lines = str(exc).strip().splitlines()
    return (lines[0] if exc.sqlstate else lines[-1]) if lines else type(exc).__name__
