"""Runs the database migrations; it must not know what they contain."""

import functools
from pathlib import Path
from typing import Final

import alembic.command
import alembic.config
import alembic.runtime.migration
import alembic.script
import psycopg
import sqlalchemy
import sqlalchemy.pool

from sagapost_ops import environment

DATABASES: Final = ("order", "payment")
_LOCK: Final = 0x5A6A  # one migration per database at a time
_FOREIGN: Final = """
SELECT c.relname FROM pg_class AS c
 WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') AND to_regclass('alembic_version') IS NULL
   AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
 ORDER BY c.relname LIMIT 1
"""


class ForeignDatabaseError(Exception):
    """The database holds tables that are not Sagapost's."""


def folder() -> Path:
    """Find the migrations: SAGAPOST_MIGRATIONS, or beside this checkout's members."""
    return Path(environment.read(environment.MIGRATIONS) or Path(__file__).parents[3] / "migrations")


def _config(database: str) -> alembic.config.Config:
    config = alembic.config.Config()
    config.set_main_option("script_location", str(folder()).replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_locations", str(folder() / database).replace("%", "%%"))
    return config


def _engine(url: str) -> sqlalchemy.Engine:
    # libpq reads the address: several hosts and target_session_attrs are nothing that SQLAlchemy's own URLs know
    connect = functools.partial(psycopg.connect, url)
    return sqlalchemy.create_engine("postgresql+psycopg://", creator=connect, poolclass=sqlalchemy.pool.NullPool)


def upgrade(url: str, database: str, revision: str = "head") -> str:
    """Bring a database to a revision, usually its newest, and return that; concurrent calls wait for each other.

    Raises:
        sqlalchemy.exc.OperationalError: the database does not answer.
        ForeignDatabaseError: it holds somebody else's tables; nothing was changed.

    """
    config = _config(database)
    with _engine(url).connect() as connection:
        connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": _LOCK})
        foreign = connection.execute(sqlalchemy.text(_FOREIGN)).scalar_one_or_none()
        connection.commit()
        if foreign is not None:
            raise ForeignDatabaseError(f"it holds {foreign!r}, and no migration of Sagapost has been there")
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, revision)
        return current(url, database)[0] or ""


def current(url: str, database: str) -> tuple[str | None, str | None]:
    """Give a database's revision and the newest one there is."""
    newest = alembic.script.ScriptDirectory.from_config(_config(database)).get_current_head()
    with _engine(url).connect() as connection:
        return alembic.runtime.migration.MigrationContext.configure(connection).get_current_revision(), newest
