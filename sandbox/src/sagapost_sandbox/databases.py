"""Roles, databases and clones of template databases on any PostgreSQL server, given its superuser; knows no table."""

from typing import Final, LiteralString

import psycopg
from psycopg import sql

CONNECT_TIMEOUT_S = 5
# What makes or changes large objects: one belongs to its maker, and the owner of the database cannot dump those of others.
LARGE_OBJECTS: Final = """
SELECT p.oid::regprocedure FROM pg_proc AS p
 WHERE p.pronamespace = 'pg_catalog'::regnamespace AND has_function_privilege('public', p.oid, 'EXECUTE')
   AND p.proname IN ('lo_creat', 'lo_create', 'lo_from_bytea', 'lo_import', 'lo_put', 'lo_unlink', 'lo_open', 'lowrite',
                     'lo_truncate', 'lo_truncate64')
"""
_NO_LARGE_OBJECTS: Final = """
DO $$
DECLARE f regprocedure; owner regrole := (SELECT datdba FROM pg_database WHERE datname = current_database());
BEGIN
    FOR f IN {functions} LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %s', f, owner);
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', f);
    END LOOP;
END $$
"""
_NO_ENTRY: Final = "REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC"


def ensure_role(admin_dsn: str, name: str, password: str) -> None:
    """Make a login role, or give an existing one this password; it may make roles itself, for who owns a database lets others in."""
    verb = sql.SQL("ALTER" if _exists(admin_dsn, "SELECT 1 FROM pg_roles WHERE rolname = %(name)s", name) else "CREATE")
    _execute(admin_dsn, sql.SQL("{} ROLE {} LOGIN CREATEROLE PASSWORD {}").format(verb, sql.Identifier(name), sql.Literal(password)))


def ensure_database(admin_dsn: str, name: str, owner: str) -> None:
    """Make an empty UTF-8 database of `owner`, unless there is one of that name; take from everybody what its owner cannot take."""
    if not _exists(admin_dsn, "SELECT 1 FROM pg_database WHERE datname = %(name)s", name):
        # template0, because only from it a database may have an encoding other than the server's own.
        statement = sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE template0 ENCODING 'UTF8'")
        _execute(admin_dsn, statement.format(sql.Identifier(name), sql.Identifier(owner)))
    with psycopg.connect(admin_dsn, dbname=name, connect_timeout=CONNECT_TIMEOUT_S) as conn:
        without_large_objects(conn)
        without_entry(conn)


def without_large_objects(conn: psycopg.Connection) -> None:
    """Let nobody but the owner make large objects in this database; the connection is a superuser's.

    A dump holds these rights. Its owner could not restore it into a database where the functions are closed to the owner, too.
    """
    conn.execute(sql.SQL(_NO_LARGE_OBJECTS).format(functions=sql.SQL(LARGE_OBJECTS)))


def without_entry(conn: psycopg.Connection) -> None:
    """Let nobody but superusers into the server's own databases, where everybody may make temporary tables."""
    conn.execute(_NO_ENTRY)


def freeze(admin_dsn: str, name: str) -> None:
    """Turn a finished database into a template: nobody connects to it any more, which cloning needs."""
    _execute(admin_dsn, sql.SQL("ALTER DATABASE {} WITH IS_TEMPLATE true ALLOW_CONNECTIONS false").format(sql.Identifier(name)))


def clone(admin_dsn: str, template: str, name: str, owner: str) -> None:
    """Make a database that is a copy of a template."""
    names = [sql.Identifier(word) for word in (name, template, owner)]
    _execute(admin_dsn, sql.SQL("CREATE DATABASE {} TEMPLATE {} OWNER {}").format(*names))


def drop(admin_dsn: str, name: str) -> None:
    """Drop a database, ending the sessions that still use it; nothing when it is gone."""
    _execute(admin_dsn, sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def _exists(admin_dsn: str, query: LiteralString, name: str) -> bool:
    with psycopg.connect(admin_dsn, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S) as conn:
        return conn.execute(query, {"name": name}).fetchone() is not None


def _execute(admin_dsn: str, statement: sql.Composed) -> None:
    with psycopg.connect(admin_dsn, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S) as conn:
        conn.execute(statement)
