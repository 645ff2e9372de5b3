"""txoutbox on asyncpg, publishing through aio-pika as its README says (one function); `documented` or `tuned`."""

import asyncio
import sys
from datetime import timedelta
from typing import Final

import aio_pika
import asyncpg
import txoutbox
import uvloop
from txoutbox.adapters import postgres

from benchmarks.relay import stamps, writing
from benchmarks.relay.peers import contending

# What its documentation offers for speed, with order by key kept: larger rounds, LISTEN/NOTIFY, rows deleted, no long sleeps.
TUNED: Final = txoutbox.RelayConfig(batch_size=2000, concurrency=2000, lease=timedelta(seconds=60), poll_min=0.005, poll_max=0.05)
_CHANGE: Final = """
WITH locked AS (UPDATE bench_aggregate SET number = number + 1 WHERE id = $1 RETURNING id, number)
INSERT INTO bench_order (aggregate, number, note) SELECT id, number, 'one line of business' FROM locked RETURNING number
"""


def storage(pool: asyncpg.Pool, job: writing.Job) -> postgres.PostgresStorage:
    """Make the storage of a variant."""
    if job.variant == "tuned":
        return postgres.PostgresStorage(pool, delete_on_ack=True, notify_channel="outbox")
    return postgres.PostgresStorage(pool)


async def create(job: writing.Job) -> None:
    """Make its schema, and one row for the others to be copied from."""
    async with asyncpg.create_pool(job.dsn) as pool:
        box = storage(pool, job)
        await box.create_schema()
        await box.add(stamps.ROUTED, stamps.body(0, 0, 0, job.size_bytes), key="order-0")


async def write(job: writing.Job) -> None:
    """Write the business rows and the outbox row in one transaction."""
    pool = await asyncpg.create_pool(job.dsn, min_size=writing.CONNECTIONS, max_size=writing.CONNECTIONS)
    box = storage(pool, job)

    async def connect() -> writing.Transact:
        conn = await pool.acquire()

        async def transact(step: writing.Step) -> None:
            async with conn.transaction():
                if step.early:
                    await conn.execute(writing.NOISE)
                await writing.pause(step.early_s)
                number = await conn.fetchval(_CHANGE, step.aggregate)
                await writing.pause(step.held_s)
                payload = stamps.body(step.sequence, step.aggregate, number, job.size_bytes)
                await box.insert(conn, stamps.ROUTED, payload, key=f"order-{step.aggregate}")
                await writing.pause(step.after_s)
                if step.undone:
                    raise writing.UndoneError

        return transact

    await writing.write(job, connect)


async def relay(job: writing.Job) -> None:
    """Relay until SIGTERM, which it handles itself."""
    async with asyncpg.create_pool(job.dsn) as pool, await aio_pika.connect_robust(job.amqp_url) as broker:
        channel = await broker.channel(publisher_confirms=True)
        exchange = await channel.get_exchange(job.exchange)

        async def publish(message: txoutbox.OutboxMessage) -> None:
            made = aio_pika.Message(message.payload, delivery_mode=aio_pika.DeliveryMode.PERSISTENT, message_id=str(message.id))
            await exchange.publish(made, routing_key=message.topic)

        box = storage(pool, job)
        if job.variant == "tuned":
            moving = txoutbox.Relay(box, publish, config=TUNED)
            await box.listen(moving.wake)
        else:
            moving = txoutbox.Relay(box, publish)
        await moving.run(handle_signals=True)


def _runner(job: writing.Job) -> asyncio.Runner:
    return asyncio.Runner(loop_factory=uvloop.new_event_loop if job.variant == "tuned" or not job.is_relay else None)


if __name__ == "__main__":
    sys.exit(contending.main({"create": create, "write": write, "relay": relay}, _runner))
