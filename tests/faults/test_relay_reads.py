"""A relay's loops beside each other: a read of the outbox that takes longer than its shard's channel lives."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import UUID

import aio_pika
import pytest
from faults import relay_books

from sagapost_chassis import db, ids, outbox
from sagapost_contracts import events, topology
from sagapost_relay import pump, queries
from sagapost_relay.broker import Broker
from sagapost_relay.desk import Desk
from sagapost_relay.settings import Settings
from sagapost_sandbox.testing import proxy

pytestmark = pytest.mark.anyio
Eventually = Callable[..., Awaitable[Any]]
PATIENT: Final = "SET lock_timeout = 0; SET statement_timeout = 0"  # a read waits for as long as a test wants it to
LOCK: Final = "LOCK TABLE outbox_0, outbox_1, outbox_2, outbox_3 IN ACCESS EXCLUSIVE MODE"
WAITS: Final = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %(pid)s AND wait_event_type = 'Lock')"


async def test_a_read_that_outlasts_its_channel_passes_no_row_by(payment_db: str, vhost: str, eventually: Eventually) -> None:
    """A row that was in flight when its connection died, while the next read was waiting in PostgreSQL, is published after all."""
    with proxy.Proxy(str(urlsplit(vhost).hostname), urlsplit(vhost).port or 0) as link:
        async with _relay(payment_db, proxy.through(vhost, link)) as (desk, reader), await _connect(payment_db) as other:
            before = await _add(other, 0)
            await eventually(lambda: _queued(vhost, 1))
            await eventually(lambda: _holds(not any(shard.flights for shard in desk.shards.values())))  # or it would be published again
            link.pause()
            first = await _add(other, 1)
            await eventually(lambda: _holds(any(shard.flights for shard in desk.shards.values())))
            async with await _connect(payment_db) as locker, locker.transaction():
                await locker.execute(LOCK)
                await other.execute("SELECT pg_current_xact_id()")  # a transaction has ended: there is something to look for
                await eventually(lambda: _waits(other, reader.info.backend_pid))
                link.reset()
                link.resume()
                await _replace_broker(desk, proxy.through(vhost, link))
            second = await _add(other, 2)
            await eventually(lambda: _queued(vhost, 3))

    assert [event.id for event in await relay_books.journal(vhost)] == [before, first, second]


async def test_what_was_read_of_a_shard_that_is_left_since_is_not_sent(payment_db: str, vhost: str, eventually: Eventually) -> None:
    """The shard is given back when nothing is in flight, and whoever is next would publish the same rows again."""
    async with _relay(payment_db, vhost) as (desk, reader), await _connect(payment_db) as other:
        broker, desk.broker = desk.broker, None
        await _add(other, 0)
        async with await _connect(payment_db) as locker, locker.transaction():
            await locker.execute(LOCK)
            desk.broker = broker
            await eventually(lambda: _waits(other, reader.info.backend_pid))
            polled_at = desk.polled_at
            for shard in desk.shards.values():
                shard.leaving = True
        await eventually(lambda: _holds(desk.polled_at > polled_at))
        flown = [shard.number for shard in desk.shards.values() if shard.flights]

    assert flown == []
    assert await relay_books.journal(vhost) == []


@contextlib.asynccontextmanager
async def _relay(dsn: str, url: str) -> AsyncGenerator[tuple[Desk, db.Connection]]:
    """Run the reading loop alone, with all shards, and give its connection to the database."""
    desk = Desk(Settings(database_url=dsn, amqp_url=url), "test")
    async with await _connect(dsn) as reader, await _connect(dsn) as control:
        await reader.execute(PATIENT)
        async with control.transaction():
            cursors = await queries.claim(control, desk.owner, [], outbox.SHARDS, 3600)
        for cursor in cursors:
            desk.admit(cursor, float("inf"))
        await _replace_broker(desk, url)
        running = asyncio.create_task(pump.run(reader, control, desk))
        try:
            yield desk, reader
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            if desk.broker is not None:
                await desk.broker.close()


async def _replace_broker(desk: Desk, url: str) -> None:
    """Do what the relay does when a connection is of no more use."""
    if desk.broker is not None:
        await desk.broker.close()
        desk.watch()
    desk.broker = Broker(url, "test", on_change=desk.wake.set)
    await desk.broker.open()


async def _connect(dsn: str) -> db.Connection:
    return await db.Connection.connect(db.dsn_of(dsn, "test"), autocommit=True)


async def _add(conn: db.Connection, number: int) -> UUID:
    message = events.EmailSent(order_id=1, saga_id=ids.uuid7(), template="receipt", smtp_message_id=str(number))
    async with conn.transaction():
        return await outbox.add(conn, message, source="test")


async def _holds(condition: bool) -> bool:
    return condition


async def _waits(conn: db.Connection, pid: int) -> bool:
    return await (await conn.execute(WAITS, {"pid": pid})).fetchone() == (True,)


async def _queued(url: str, count: int) -> bool:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(topology.ORDER_QUEUE, passive=True)
        return queue.declaration_result.message_count == count
