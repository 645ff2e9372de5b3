"""The relay against real PostgreSQL and RabbitMQ: nothing lost, order kept, whatever dies."""

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import aio_pika
import msgspec
import psycopg
import pytest

from sagapost_chassis import crashpoints, db, ids, outbox
from sagapost_contracts import events, topology
from sagapost_sandbox.testing import services

pytestmark = pytest.mark.anyio
Start = Callable[[str, dict[str, str]], services.Service]
Eventually = Callable[..., Awaitable[Any]]
RELAY_POINTS = [name for name in crashpoints.NAMES if name.startswith("relay.")]


def _event(order_id: int, number: int) -> events.EmailSent:
    return events.EmailSent(order_id=order_id, saga_id=ids.uuid7(), template="receipt", smtp_message_id=str(number))


async def _add(dsn: str, *messages: events.Message) -> list[UUID]:
    async with await db.Connection.connect(dsn) as conn:
        return [await outbox.add(conn, message, source="test") for message in messages]


async def _collect(url: str, until: Callable[[list[Any]], bool], deadline_s: float = 30) -> list[tuple[UUID, int, int]]:
    """Take (message id, order id, number) off the order queue until `until` says enough."""
    found: list[tuple[UUID, int, int]] = []
    connection = await aio_pika.connect(url)
    async with connection, asyncio.timeout(deadline_s):
        channel = await connection.channel()
        queue = await channel.get_queue(topology.ORDER_QUEUE)
        async with queue.iterator() as messages:
            async for message in messages:
                await message.ack()
                event = msgspec.json.decode(message.body, type=events.EmailSent)
                found.append((UUID(str(message.message_id)), event.order_id, int(event.smtp_message_id)))
                if until(found):
                    break
    return found


def _env(dsn: str, url: str, crash: str = "") -> dict[str, str]:
    return {"SAGAPOST_DATABASE_URL": dsn, "SAGAPOST_AMQP_URL": url, "SAGAPOST_CRASH": crash}


def _first_deliveries(found: list[tuple[UUID, int, int]]) -> list[tuple[UUID, int, int]]:
    return list({message_id: (message_id, order, number) for message_id, order, number in reversed(found)}.values())[::-1]


async def test_a_late_commit_with_a_small_id_is_not_lost(payment_db: str, vhost: str, start_service: Start) -> None:
    """A transaction that drew its id first and commits last is published, though the cursor has moved past its id."""
    start_service("relay", _env(payment_db, vhost)).wait_ready()
    async with await db.Connection.connect(payment_db) as late:
        (slow,) = [await outbox.add(late, _event(1, 1), source="test")]
        (fast,) = await _add(payment_db, _event(2, 2))
        first = await _collect(vhost, bool)
        await late.commit()

    second = await _collect(vhost, bool)

    assert [first[0][0], second[0][0]] == [fast, slow]


async def test_an_early_transaction_id_does_not_invert_an_aggregates_order(payment_db: str, vhost: str, start_service: Start) -> None:
    """Two sessions write one aggregate under its lock; the one with the smaller transaction id writes second and arrives second."""
    start_service("relay", _env(payment_db, vhost)).wait_ready()
    async with await psycopg.AsyncConnection.connect(payment_db, autocommit=True) as setup:
        await setup.execute("CREATE TABLE aggregate (id int PRIMARY KEY); INSERT INTO aggregate VALUES (1)")
    lock = "SELECT FROM aggregate WHERE id = 1 FOR UPDATE"
    async with await db.Connection.connect(payment_db) as early, await db.Connection.connect(payment_db) as later:
        await early.execute("SELECT pg_current_xact_id()")
        await later.execute(lock)
        first = await outbox.add(later, _event(1, 1), source="test")
        waiting = asyncio.ensure_future(early.execute(lock))
        await later.commit()
        await waiting
        second = await outbox.add(early, _event(1, 2), source="test")
        await early.commit()

    found = await _collect(vhost, lambda rows: len(rows) >= 2)

    assert [message_id for message_id, _, _ in found] == [first, second]


async def test_contending_writers_keep_each_aggregates_order_and_lose_nothing(payment_db: str, vhost: str, start_service: Start) -> None:
    """Eight writers on five aggregates with rollbacks: each committed event arrives once, per aggregate in commit order."""
    start_service("relay", _env(payment_db, vhost)).wait_ready()
    async with await psycopg.AsyncConnection.connect(payment_db, autocommit=True) as setup:
        await setup.execute("CREATE TABLE aggregate (id int PRIMARY KEY, n int NOT NULL)")
        await setup.execute("INSERT INTO aggregate SELECT g, 0 FROM generate_series(1, 5) AS g")
    committed: list[UUID] = []

    async def writer(seed: int) -> None:
        dice = random.Random(seed)
        async with await db.Connection.connect(payment_db) as conn:
            for _ in range(40):
                if dice.random() < 0.5:
                    await conn.execute("SELECT pg_current_xact_id()")
                aggregate = dice.randint(1, 5)
                cursor = await conn.execute("UPDATE aggregate SET n = n + 1 WHERE id = %s RETURNING n", (aggregate,))
                number = (await cursor.fetchone() or (0,))[0]
                added = await outbox.add(conn, _event(aggregate, number), source="test")
                if dice.random() < 0.1:
                    await conn.rollback()
                else:
                    await conn.commit()
                    committed.append(added)

    async with asyncio.TaskGroup() as group:
        for seed in range(8):
            group.create_task(writer(seed))
    found = await _collect(vhost, lambda rows: len(rows) >= len(committed))

    assert sorted(message_id for message_id, _, _ in found) == sorted(committed)
    for aggregate in range(1, 6):
        numbers = [number for _, order, number in found if order == aggregate]
        assert numbers == sorted(numbers)


@pytest.mark.parametrize("point", RELAY_POINTS)
async def test_a_relay_killed_anywhere_loses_nothing(
    point: str, payment_db: str, vhost: str, start_service: Start, eventually: Eventually
) -> None:
    """After kill -9 at each named point and a restart every message arrives, in order among first deliveries."""
    sent = await _add(payment_db, *(_event(number % 3, number) for number in range(20)))
    doomed = start_service("relay", _env(payment_db, vhost, point))
    assert await asyncio.to_thread(doomed.wait) == -signal.SIGKILL
    start_service("relay", _env(payment_db, vhost))

    found = await _collect(vhost, lambda rows: {row[0] for row in rows} >= set(sent))

    firsts = _first_deliveries(found)
    assert {row[0] for row in firsts} == set(sent)
    for order in range(3):
        numbers = [number for _, aggregate, number in firsts if aggregate == order]
        assert numbers == sorted(numbers)
    await eventually(lambda: _drained(payment_db))


async def test_a_confirmed_checkpoint_publishes_nothing_twice(payment_db: str, vhost: str, start_service: Start) -> None:
    """A relay that stopped in order leaves nothing to repeat to the next one."""
    relay = start_service("relay", _env(payment_db, vhost)).wait_ready()
    sent = await _add(payment_db, *(_event(1, number) for number in range(5)))
    found = await _collect(vhost, lambda rows: len(rows) >= 5)
    relay.terminate()
    assert await asyncio.to_thread(relay.wait) == 0
    start_service("relay", _env(payment_db, vhost)).wait_ready()
    (last,) = await _add(payment_db, _event(1, 5))

    found += await _collect(vhost, bool)

    assert [row[0] for row in found] == [*sent, last]


async def test_a_second_relay_stands_by_until_the_first_is_gone(payment_db: str, vhost: str, start_service: Start) -> None:
    """Two relays on one database publish each message once; the second takes over after kill -9 of the first."""
    first = start_service("relay", _env(payment_db, vhost)).wait_ready()
    start_service("relay", _env(payment_db, vhost)).wait_ready()
    sent = await _add(payment_db, *(_event(1, number) for number in range(5)))
    found = await _collect(vhost, lambda rows: len(rows) >= 5)
    first.kill()
    sent += await _add(payment_db, _event(1, 5))

    found += await _collect(vhost, bool)

    assert [row[0] for row in found] == sent


async def test_what_no_queue_takes_waits_for_its_binding(payment_db: str, vhost: str, start_service: Start, eventually: Eventually) -> None:
    """An event published while its binding is missing is not dropped: it arrives once the binding is back."""
    connection = await aio_pika.connect(vhost)
    async with connection:
        channel = await connection.channel()
        queue = await channel.get_queue(topology.ORDER_QUEUE)
        await queue.unbind(topology.EXCHANGE, "email.email.*")
        relay = start_service("relay", _env(payment_db, vhost)).wait_ready()
        sent = await _add(payment_db, _event(1, 1))

        async def complained() -> bool:
            return "UnroutableError" in relay.logs()

        await eventually(complained)
        await queue.bind(topology.EXCHANGE, "email.email.*")

    found = await _collect(vhost, bool)

    assert [row[0] for row in found][:1] == sent


async def test_cursors_of_another_cluster_are_refused(payment_db: str, vhost: str, start_service: Start) -> None:
    """After a restore into another cluster the relay refuses to run instead of guessing what it has published."""
    async with await psycopg.AsyncConnection.connect(payment_db, autocommit=True) as conn:
        await conn.execute("UPDATE outbox_cursor SET system_identifier = 42")

    relay: services.Service = start_service("relay", _env(payment_db, vhost))

    assert await asyncio.to_thread(relay.wait) not in (0, None)
    assert "another PostgreSQL cluster" in relay.logs()


async def _drained(dsn: str) -> bool:
    query = "SELECT count(*) FROM outbox AS o JOIN outbox_cursor AS c USING (shard) WHERE NOT pg_visible_in_snapshot(o.xid, c.lo)"
    async with await db.Connection.connect(dsn) as conn:
        found = await (await conn.execute(query)).fetchone()
    return found == (0,)
