"""Makes the databases' roles and gives each exactly its rights; it must not know what they are."""

from collections.abc import Mapping
from typing import Final, LiteralString

import psycopg
from psycopg import conninfo, sql

from sagapost_ops import errors, roles
from sagapost_sandbox import databases

_LOCK: Final = "SELECT pg_advisory_xact_lock(23147)"  # GRANTs of two calls at once would fail over each other's catalogue rows
_PRESENT: Final = "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = %(name)s)"
_IS_SUPERUSER: Final = "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"
_IS_ALONE: Final = """
SELECT NOT EXISTS (SELECT FROM pg_database WHERE datname NOT IN ('postgres', 'template0', 'template1', current_database()))
"""
_IS_OPEN: Final = f"SELECT EXISTS ({databases.LARGE_OBJECTS})"
_MAY_ENTER: Final = """
SELECT EXISTS (SELECT FROM pg_database WHERE datname = 'postgres' AND has_database_privilege('public', oid, 'CONNECT'))
"""
# A role may set these for itself at any time, and they hold from its next session on.
_RESET: Final = (sql.SQL("ALTER ROLE {role} RESET ALL"), sql.SQL("ALTER ROLE {role} IN DATABASE {database} RESET ALL"))
# What everybody may do by default: connect to this database, make temporary tables; on databases made before PostgreSQL 15 also tables.
_CLOSE: Final = (
    sql.SQL("REVOKE ALL ON DATABASE {database} FROM PUBLIC"),
    sql.SQL("REVOKE CREATE ON SCHEMA public FROM PUBLIC"),
    sql.SQL("GRANT USAGE ON SCHEMA public TO PUBLIC"),
)
_TAKE_BACK: Final = (
    sql.SQL("REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {role}"),
    sql.SQL("REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM {role}"),
    sql.SQL("REVOKE ALL ON ALL FUNCTIONS IN SCHEMA public FROM {role}"),
    sql.SQL("GRANT CONNECT ON DATABASE {database} TO {role}"),
)


def make(url: str, database: str, chosen: Mapping[str, str]) -> tuple[str, ...]:
    """Make each role of a database or give it its password, and reset its settings; the connection's user may create roles.

    Take from everybody what only a superuser can take. Return what a superuser has to do, when the connection's user is none.

    Raises:
        UnfitError: it may not.

    """
    with psycopg.connect(url, connect_timeout=5) as conn:
        conn.execute(_LOCK)
        names = {"database": sql.Identifier(conn.info.dbname)}
        for role in roles.of(database):
            verb = sql.SQL("ALTER" if _present(conn, role.name) else "CREATE")
            statement = sql.SQL("{} ROLE {} LOGIN NOINHERIT PASSWORD {}")
            try:
                conn.execute(statement.format(verb, sql.Identifier(role.name), sql.Literal(_scrambled(conn, role.name, chosen[role.name]))))
                for reset in _RESET:
                    conn.execute(reset.format(role=sql.Identifier(role.name), **names))
            except psycopg.errors.InsufficientPrivilege as exc:
                raise errors.UnfitError(
                    f"user {conn.info.user} may not make the role {role.name}: ALTER ROLE {conn.info.user} CREATEROLE as a superuser, "
                    f"or make the roles by hand and leave --roles out"
                ) from exc
        return _take_from_everybody(conn)


def _take_from_everybody(conn: psycopg.Connection) -> tuple[str, ...]:
    if _asked(conn, _IS_SUPERUSER):
        databases.without_large_objects(conn)
        if _asked(conn, _IS_ALONE):  # another database on this server may be of somebody who enters `postgres`
            databases.without_entry(conn)
        return ()
    left: list[str] = []
    if _asked(conn, _IS_OPEN):
        left.append(
            f"everybody may make large objects in {conn.info.dbname}, and one of a service's role breaks its owner's pg_dump; "
            "as a superuser: REVOKE EXECUTE ON FUNCTION lo_creat, lo_create, lo_from_bytea, lo_put, lo_unlink, lo_open, lowrite, "
            f"lo_truncate, lo_truncate64 FROM PUBLIC, and GRANT EXECUTE on the same TO {conn.info.user}, "
            "who could not restore a dump without it"
        )
    if _asked(conn, _MAY_ENTER):
        left.append(
            "everybody may enter the database postgres of this server and make temporary tables there; as a superuser, when the server has "
            "no other users: REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC"
        )
    return tuple(left)


def _asked(conn: psycopg.Connection, question: LiteralString) -> bool:
    found = conn.execute(question).fetchone()
    return found is not None and bool(found[0])


def grant(url: str, database: str) -> int:
    """Give every role of a database that is there exactly its rights, in one transaction; return how many are there."""
    with psycopg.connect(url, connect_timeout=5) as conn:
        conn.execute(_LOCK)
        present = [role for role in roles.of(database) if _present(conn, role.name)]
        names = {"database": sql.Identifier(str(conninfo.conninfo_to_dict(conn.info.dsn)["dbname"]))}
        for statement in _CLOSE if present else ():
            conn.execute(statement.format(**names))
        for role in present:
            for statement in _TAKE_BACK:
                conn.execute(statement.format(role=sql.Identifier(role.name), **names))
            for kind, rights in ((sql.SQL("TABLE"), role.tables), (sql.SQL("SEQUENCE"), role.sequences)):
                for name, words in rights.items():
                    conn.execute(_grant(kind, name, words, role.name))
            for name in role.functions:
                conn.execute(sql.SQL("GRANT EXECUTE ON FUNCTION {} TO {}").format(sql.Identifier(name), sql.Identifier(role.name)))
        return len(present)


def _grant(kind: sql.SQL, name: str, rights: roles.Rights, role: str) -> sql.Composed:
    listed = sql.SQL(", ").join(sql.SQL(right) for right in rights)
    return sql.SQL("GRANT {} ON {} {} TO {}").format(listed, kind, sql.Identifier(name), sql.Identifier(role))


def _present(conn: psycopg.Connection, name: str) -> bool:
    found = conn.execute(_PRESENT, {"name": name}).fetchone()
    return found is not None and bool(found[0])


def _scrambled(conn: psycopg.Connection, name: str, password: str) -> str:
    """Give what the server stores, so that no statement log holds the password."""
    return conn.pgconn.encrypt_password(password.encode(), name.encode(), b"scram-sha-256").decode()
