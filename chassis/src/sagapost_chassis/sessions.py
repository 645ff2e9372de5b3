"""What every database session must keep to be relied on, and the sentence for one that does not; knows no pool and no table."""

import asyncio
from typing import Any, Final

from psycopg import AsyncConnection as Connection

# what every transaction relies on, and a role or a pooler can take away
_RELIED_ON: Final = """
SELECT current_setting('synchronous_commit'), current_setting('synchronous_standby_names') <> '',
       '0' IN (current_setting('statement_timeout'), current_setting('lock_timeout'),
               current_setting('idle_in_transaction_session_timeout')),
       pg_is_in_recovery(), current_setting('default_transaction_read_only') = 'on', current_user
"""
_BACKEND: Final = "SELECT pg_backend_pid()"
_POOLER_S: Final = 3.0  # what a pooler with a single session would make its second client wait for


async def fault(conn: Connection[Any], *, standby_ok: bool = False) -> str:
    """Return what is wrong with a session, in a sentence that says what to do; empty when it may be relied on."""
    asked = await (await conn.execute(_RELIED_ON, prepare=False)).fetchone()
    level, replicated, unbounded, is_standby, read_only, role = asked if asked is not None else ("", False, False, False, False, "")
    if level == "off" or (level == "local" and replicated):
        return (
            f"synchronous_commit is {level} for the role {role}, so that an order that was answered could be lost with the server; "
            "set it to on (ALTER ROLE or ALTER DATABASE … RESET synchronous_commit)"
        )
    if unbounded:
        return (
            "statement_timeout, lock_timeout or idle_in_transaction_session_timeout is not in force for this session; connect without a "
            "pooler that ignores startup parameters, or set them for the role"
        )
    if is_standby and not standby_ok:
        return "it is read-only, a standby; connect to the primary, or name all servers in the URL and add target_session_attrs=read-write"
    if read_only and not is_standby:
        return f"it is read-only (default_transaction_read_only is on for the role {role} or the database); set it to off"
    return ""


async def pooler_fault(conn: Connection[Any], dsn: str) -> str:
    """Return what is wrong with a pooler in front of the server; empty when there is none, or it keeps a session for each client.

    A pooler reports a process id of its own when a client connects, so it differs from pg_backend_pid(). In transaction mode a second
    connection takes the server's session of `conn`, and `conn` runs in another one. Both connections must be in autocommit mode.
    """
    first = await _backend(conn)
    if first == conn.info.backend_pid:
        return ""
    try:
        is_moved = await _is_moved(conn, first, dsn)
    except TimeoutError:
        return (
            f"a pooler stands before it that had no second session free for {_POOLER_S:.0f} s; raise its pool size, or connect without it"
        )
    if not is_moved:
        return ""
    return (
        "a pooler in transaction mode stands before it, behind which prepared statements, LISTEN and what is set for a session are lost; "
        "connect without it, or use session mode"
    )


async def _is_moved(conn: Connection[Any], first: int, dsn: str) -> bool:
    async with asyncio.timeout(_POOLER_S), await Connection.connect(dsn, autocommit=True, prepare_threshold=None) as other:
        for extra in range(3):
            for _ in range(extra):  # else a pooler that goes round could come back to the same session each time
                await other.execute("SELECT 1")
            async with other.transaction():
                await other.execute("SELECT 1")
                if await _backend(conn) != first:
                    return True
    return False


async def _backend(conn: Connection[Any]) -> int:
    row = await (await conn.execute(_BACKEND, prepare=False)).fetchone()
    return int(row[0]) if row is not None else 0
