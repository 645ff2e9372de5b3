"""What adding a message costs: a checkout-like transaction with outbox.add, and the same into a plain table, in turn.

The plain table is called `outbox` too, in a schema of its own that comes first on the other connections' search_path: the same
code and the same statement, into a table with the same columns but no index, no partitions and no transaction id.
"""

import asyncio
import statistics
import time
from typing import Final
from uuid import UUID

from benchmarks.relay import measured, stamps, writing
from sagapost_chassis import db, outbox

_CLIENTS: Final = 4
_BLOCK: Final = 25  # transactions per client before it is the other's turn
_PLAIN: Final = """
CREATE SCHEMA plain;
CREATE TABLE plain.outbox (LIKE public.outbox);
ALTER TABLE plain.outbox ALTER id SET DEFAULT 0, ALTER bucket SET DEFAULT 0, ALTER xid SET DEFAULT '0';
"""
_INSERT: Final = "INSERT INTO bench_order (aggregate, number, note) VALUES (%s, %s, %s)"
_SELECT: Final = "SELECT id, number FROM bench_aggregate WHERE id = %s"


async def cost(job: writing.Job) -> None:
    """Write both kinds in turn for `job.seconds`, and leave their rates."""
    async with await db.Connection.connect(job.dsn, autocommit=True) as conn:
        await conn.execute(_PLAIN.encode(), prepare=False)
    kinds = {"outbox": await _clients(job, "public"), "plain": await _clients(job, "plain")}
    for clients in kinds.values():
        await _block(clients, job)
    took_s: dict[str, list[float]] = {kind: [] for kind in kinds}
    ends_s, order = time.monotonic() + job.seconds, list(kinds)
    while time.monotonic() < ends_s:
        for kind in order:
            took_s[kind].append(await _block(kinds[kind], job))
        order.reverse()
    each = _CLIENTS * _BLOCK
    ratios = [plain / own for own, plain in zip(took_s["outbox"], took_s["plain"], strict=True)]
    found = {f"{kind}_per_s": each / statistics.median(took_s[kind]) for kind in kinds} | {"ratio": statistics.median(ratios)}
    writing.leave(job.out, found | {"blocks": len(ratios)})


async def _clients(job: writing.Job, schema: str) -> list[db.Connection]:
    options = f"-c search_path={schema},public"
    return [await db.Connection.connect(job.dsn, autocommit=True, options=options) for _ in range(_CLIENTS)]


async def _block(clients: list[db.Connection], job: writing.Job) -> float:
    """Run a block of transactions on each client at once; give the seconds it took."""
    began_s = time.perf_counter()
    await asyncio.gather(*(_checkouts(conn, job, number) for number, conn in enumerate(clients)))
    return time.perf_counter() - began_s


async def _checkouts(conn: db.Connection, job: writing.Job, client: int) -> None:
    found = stamps.fields(0, client, 0, job.size_bytes)
    for number in range(_BLOCK):
        async with conn.transaction():
            await conn.execute(_SELECT, (client,))
            for note in ("order", "item", "saga", "history"):
                await conn.execute(_INSERT, (client, number, note))
            message = measured.Measured(
                order_id=int(found["order_id"]), saga_id=UUID(stamps.SAGA), stamp=str(found["stamp"]), pad=str(found["pad"])
            )
            await outbox.add(conn, message, source="bench")
