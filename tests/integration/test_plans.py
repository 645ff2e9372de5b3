"""What checkouts, messages and deadlines do in the database finds its rows by an index, however few rows its plan was made for."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import psycopg
import pytest
from integration import order_walk, payment_till

from sagapost_chassis import db
from sagapost_order import moves, states
from sagapost_payment import provider as providers
from sagapost_sandbox.testing import services

pytestmark = pytest.mark.anyio

CROWD = 24
# what sessions have counted is there when they have ended
READ_WHOLE = "SELECT relname, seq_scan, seq_tup_read FROM pg_stat_user_tables WHERE seq_tup_read > 0 ORDER BY relname"
WRITTEN = "SELECT coalesce(sum(n_tup_ins), 0)::bigint FROM pg_stat_user_tables WHERE relname = %s"


def read_whole(dsn: str, eventually: Callable[..., Any], table: str, rows: int) -> list[tuple[Any, ...]]:
    """Give the tables that were read from end to end, once the statistics know of all that was written."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        eventually(lambda: (conn.execute(WRITTEN, (table,)).fetchone() or (0,))[0] >= rows, 30)
        return conn.execute(READ_WHOLE).fetchall()


async def test_payment_reads_no_table_whole(payment_db: str, provider: services.Service, eventually: Callable[..., Any]) -> None:
    """Orders that are charged, that come again and that are cancelled: a table that grows costs each of them the same."""
    async with db.open_pool(payment_db, "test") as pool, providers.open_provider(f"http://127.0.0.1:{provider.port}", 10) as psp:
        till = payment_till.Till(pool, psp, payment_db, provider)
        orders = [msgspec.structs.replace(payment_till.order_of(), order_id=number) for number in range(1, CROWD + 1)]
        for _ in range(2):
            await asyncio.gather(*(till.order(order) for order in orders))
        await asyncio.gather(*(till.cancel(order) for order in orders[:8]))

    assert await asyncio.to_thread(read_whole, payment_db, eventually, "inbox", 2 * CROWD + 8) == []


async def test_the_order_service_reads_no_table_whole(order_db: str, eventually: Callable[..., Any]) -> None:
    """Checkouts, payments, receipts, cancellations and deadlines: a table that grows costs each of them the same."""
    async with db.open_pool(order_db, "test") as pool:
        ways = [states.NOTIFIED, states.COMPENSATED, states.CREATED]
        await asyncio.gather(*(order_walk.place(pool, way) for way in ways * (CROWD // 3)))
        async with db.connection(pool) as conn:
            await conn.execute("UPDATE outbox_cursor SET lo = pg_current_snapshot() WHERE shard = ANY ('{0,1,2,3}')")
            await conn.execute("UPDATE sagas SET deadline_at = now() WHERE deadline_at IS NOT NULL")
        swept = 0
        while await moves.sweep(pool, states.POLICY, (), moves.Swept()):
            swept += 1
        assert swept == CROWD // 3

    assert await asyncio.to_thread(read_whole, order_db, eventually, "sagas", CROWD) == []
