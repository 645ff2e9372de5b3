"""What the inbox knows already is acknowledged behind a commit that synchronous standbys have: only who writes waits for them."""

import psycopg
import pytest
from integration import pool_kit

from sagapost_chassis import db, ids, inbox

pytestmark = pytest.mark.anyio

# a transaction that has no id has written nothing, and its COMMIT returns without asking any standby
WRITES = "SELECT pg_current_xact_id_if_assigned() IS NOT NULL"


async def _writes(conn: db.Connection) -> bool:
    found = await (await conn.execute(WRITES)).fetchone()
    return found == (True,)


async def test_a_message_that_is_known_is_acknowledged_behind_a_commit_that_waits(payment_db: str) -> None:
    """Claimed before, by a transaction that maybe the primary alone has: this one has something to commit, too."""
    message_id = ids.uuid7()
    async with pool_kit.opened(payment_db) as pool:
        async with db.transaction(pool) as conn:
            assert not await _writes(conn)
            assert await inbox.claim(conn, message_id, "OrderCreated")
        async with db.transaction(pool) as conn:
            assert not await inbox.claim(conn, message_id, "OrderCreated")
            assert await _writes(conn)


async def test_many_messages_that_are_known_are_acknowledged_behind_a_commit_that_waits(payment_db: str) -> None:
    """Ticked off together: what was ticked off before is there once, and the transaction has something to commit; for none it has not."""
    messages = [(ids.uuid7(), "OrderCreated") for _ in range(3)]
    async with pool_kit.opened(payment_db) as pool:
        async with db.transaction(pool) as conn:
            await inbox.claim_all(conn, [])
            assert not await _writes(conn)
        for _ in range(2):
            async with db.transaction(pool) as conn:
                await inbox.claim_all(conn, messages)
                assert await _writes(conn)
    with psycopg.connect(payment_db) as conn:
        assert conn.execute("SELECT count(*) FROM inbox").fetchone() == (3,)
