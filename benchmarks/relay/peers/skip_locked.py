"""The relay everybody writes: lock some rows with SKIP LOCKED, publish them, delete them; and its cousin with a cursor on xid.

`skip_locked` is the recipe of many a blog; `horizon` reads behind a cursor what is older than every running transaction.
"""

import asyncio
import sys
from typing import Any, Final

import aio_pika
import psycopg
import uvloop
from aio_pika import abc

from benchmarks.relay import stamps, writing
from benchmarks.relay.peers import business, contending

BATCH: Final = 500
IDLE_S: Final = 0.005
_INSERT: Final = "INSERT INTO outbox (routing_key, payload) VALUES (%s, %s)"
_TAKE: Final = "SELECT id, routing_key, payload FROM outbox ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED"
_DELETE: Final = "DELETE FROM outbox WHERE id = ANY(%s)"
_BEHIND: Final = """
SELECT id, routing_key, payload, xid::text FROM outbox
 WHERE (xid, id) > (%s::text::xid8, %s) AND xid < pg_snapshot_xmin(pg_current_snapshot()) ORDER BY xid, id LIMIT %s
"""
_MOVE: Final = "UPDATE outbox_cursor SET xid = %s::text::xid8, id = %s"
Connection = psycopg.AsyncConnection[tuple[Any, ...]]


async def create(job: writing.Job) -> None:
    """Make the one row that a backlog's rows are copied from."""
    async with await psycopg.AsyncConnection.connect(job.dsn) as conn:
        await conn.execute(_INSERT, (stamps.ROUTED, stamps.body(0, 0, 0, job.size_bytes)))


async def write(job: writing.Job) -> None:
    """Write the business rows and the outbox row in one transaction."""

    async def connect() -> writing.Transact:
        conn = await psycopg.AsyncConnection.connect(job.dsn, autocommit=True)

        async def transact(step: writing.Step) -> None:
            async with conn.transaction():
                number = await business.change(conn, step)
                await conn.execute(_INSERT, (stamps.ROUTED, stamps.body(step.sequence, step.aggregate, number, job.size_bytes)))
                await writing.pause(step.after_s)
                if step.undone:
                    raise writing.UndoneError

        return transact

    await writing.write(job, connect)


async def relay(job: writing.Job) -> None:
    """Relay until SIGTERM."""
    stop = contending.until_terminated()
    broker = await aio_pika.connect_robust(job.amqp_url)
    async with broker, await psycopg.AsyncConnection.connect(job.dsn, autocommit=True) as conn:
        channel = await broker.channel(publisher_confirms=True)
        exchange = await channel.get_exchange(job.exchange)
        turn = _skip_locked if job.variant == "skip_locked" else _horizon
        while not stop.is_set():
            if await turn(conn, exchange) < BATCH:
                await asyncio.sleep(IDLE_S)


async def _skip_locked(conn: Connection, exchange: abc.AbstractExchange) -> int:
    async with conn.transaction():
        cursor = await conn.execute(_TAKE, (BATCH,))
        rows = await cursor.fetchall()
        if rows:
            await _publish(exchange, rows)
            await conn.execute(_DELETE, ([row[0] for row in rows],))
    return len(rows)


async def _horizon(conn: Connection, exchange: abc.AbstractExchange) -> int:
    cursor = await conn.execute("SELECT xid::text, id FROM outbox_cursor")
    found = await cursor.fetchone()
    if found is None:
        raise LookupError("outbox_cursor is empty")
    cursor = await conn.execute(_BEHIND, (*found, BATCH))
    rows = await cursor.fetchall()
    if rows:
        await _publish(exchange, rows)
        await conn.execute(_MOVE, (rows[-1][3], rows[-1][0]))
    return len(rows)


async def _publish(exchange: abc.AbstractExchange, rows: list[tuple[Any, ...]]) -> None:
    messages = [(aio_pika.Message(row[2], delivery_mode=aio_pika.DeliveryMode.PERSISTENT, message_id=str(row[0])), row[1]) for row in rows]
    await asyncio.gather(*(exchange.publish(message, key) for message, key in messages))


if __name__ == "__main__":
    verbs = {"create": create, "write": write, "relay": relay}
    sys.exit(contending.main(verbs, lambda _: asyncio.Runner(loop_factory=uvloop.new_event_loop)))
