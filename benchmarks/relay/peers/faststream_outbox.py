"""faststream-outbox with FastStream's RabbitMQ broker, stacked as its relay page says; `documented` or `tuned`."""

import asyncio
import sys
from typing import Any, Final

import faststream.rabbit
import faststream_outbox
import sqlalchemy
import uvloop
from faststream.rabbit.publisher import RabbitPublisher
from sqlalchemy.ext import asyncio as sqlasync

from benchmarks.relay import stamps, writing
from benchmarks.relay.peers import contending

QUEUE: Final = "measured"
LOST: Final = "nobody"
# What its subscriber and performance pages offer for speed: workers, larger fetches, deletes in batches, autovacuum settings.
TUNED: Final[dict[str, Any]] = {
    "max_workers": 8,
    "fetch_batch_size": 500,
    "min_fetch_interval": 0.005,
    "max_fetch_interval": 0.05,
    "terminal_flush_batch_size": 100,
}
_CHANGE: Final = sqlalchemy.text("""
WITH locked AS (UPDATE bench_aggregate SET number = number + 1 WHERE id = :aggregate RETURNING id, number)
INSERT INTO bench_order (aggregate, number, note) SELECT id, number, 'one line of business' FROM locked RETURNING number
""")


def boxes(job: writing.Job, *, pool_size: int) -> tuple[sqlasync.AsyncEngine, sqlalchemy.MetaData, faststream_outbox.OutboxBroker]:
    """Make the engine, the schema and the outbox broker."""
    metadata = sqlalchemy.MetaData()
    engine = sqlasync.create_async_engine(job.dsn.replace("postgresql://", "postgresql+asyncpg://"), pool_size=pool_size)
    table = faststream_outbox.make_outbox_table(metadata, table_name="outbox")
    return engine, metadata, faststream_outbox.OutboxBroker(engine, outbox_table=table, logger=None)


async def create(job: writing.Job) -> None:
    """Make its table, and one row for the others to be copied from."""
    engine, metadata, box = boxes(job, pool_size=2)
    async with engine.begin() as conn:
        await conn.run_sync(metadata.create_all)
        if job.variant == "tuned":
            await conn.execute(sqlalchemy.text(faststream_outbox.outbox_autovacuum_ddl("outbox")))
        await box.publish(stamps.fields(0, 0, 0, job.size_bytes), queue=QUEUE, session=conn)
    await engine.dispose()


async def write(job: writing.Job) -> None:
    """Write the business rows and the outbox row in one transaction."""
    engine, _, box = boxes(job, pool_size=writing.CONNECTIONS)

    async def connect() -> writing.Transact:
        conn = await engine.connect()

        async def transact(step: writing.Step) -> None:
            async with conn.begin():
                if step.early:
                    await conn.execute(sqlalchemy.text(writing.NOISE))
                await writing.pause(step.early_s)
                number = int((await conn.execute(_CHANGE, {"aggregate": step.aggregate})).scalar_one())
                await writing.pause(step.held_s)
                fields = stamps.fields(step.sequence, step.aggregate, number, job.size_bytes)
                await box.publish(fields, queue=QUEUE, session=conn)
                await writing.pause(step.after_s)
                if step.undone:
                    raise writing.UndoneError

        return transact

    await writing.write(job, connect)


async def relay(job: writing.Job) -> None:
    """Relay until SIGTERM."""
    options = TUNED if job.variant == "tuned" else {}
    engine, _, box = boxes(job, pool_size=2 * (options.get("max_workers", 1) + 1))
    broker = faststream.rabbit.RabbitBroker(job.amqp_url, logger=None)
    exchange = faststream.rabbit.RabbitExchange(job.exchange, type=faststream.rabbit.ExchangeType.TOPIC, durable=True)
    for queue, key in ((QUEUE, stamps.ROUTED), (LOST, stamps.UNROUTED)):
        _stack(box, broker.publisher(routing_key=key, exchange=exchange, persist=True), queue, options)
    stop = contending.until_terminated()
    await broker.start()
    await box.start()
    await stop.wait()
    await box.stop()
    await broker.stop()
    await engine.dispose()


def _stack(box: faststream_outbox.OutboxBroker, publisher: RabbitPublisher, queue: str, options: dict[str, Any]) -> None:
    @publisher
    @box.subscriber(queue, **options)
    async def relay_one(body: dict[str, Any]) -> dict[str, Any]:
        return body


def _runner(job: writing.Job) -> asyncio.Runner:
    return asyncio.Runner(loop_factory=uvloop.new_event_loop if job.variant == "tuned" or not job.is_relay else None)


if __name__ == "__main__":
    sys.exit(contending.main({"create": create, "write": write, "relay": relay}, _runner))
