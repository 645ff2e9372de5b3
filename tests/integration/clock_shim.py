"""A clock of one database's own that a test can set: sessions that begin from now on find these functions before PostgreSQL's."""

from typing import Final

import psycopg

_SHIM: Final = """
CREATE SCHEMA shim;
CREATE TABLE shim.clock (step interval NOT NULL);
INSERT INTO shim.clock VALUES ('0');
CREATE FUNCTION shim.now() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT pg_catalog.now() + step FROM shim.clock';
CREATE FUNCTION shim.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS 'SELECT pg_catalog.clock_timestamp() + step FROM shim.clock';
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = shim, pg_catalog, public', current_database()); END $$
"""


def install(dsn: str) -> None:
    """Install a clock that can be set in a database; it begins with the right time."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(_SHIM)


def step(dsn: str, by: str) -> None:
    """Set the clock to what is `by` away from the right time, an interval as PostgreSQL writes it."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("UPDATE shim.clock SET step = %s::interval", [by])
