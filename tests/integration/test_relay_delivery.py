"""The relay against real PostgreSQL and RabbitMQ: nothing lost, order kept, whatever dies."""

import asyncio
import random
from uuid import UUID

import psycopg
import pytest
from integration import relay_kit
from integration.relay_kit import Start

from sagapost_chassis import crashpoints, db, outbox
from sagapost_contracts import topology
from sagapost_sandbox.testing import services

pytestmark = pytest.mark.anyio
RELAY_POINTS = [name for name in crashpoints.NAMES if name.startswith("relay.")]


async def test_a_late_commit_with_a_small_id_is_not_lost(payment_db: str, vhost: str, start_service: Start) -> None:
    """A transaction that drew its id first and commits last is published, though the cursor has moved past its id."""
    start_service("relay", relay_kit.env(payment_db, vhost)).wait_ready()
    async with await db.Connection.connect(payment_db) as late:
        (slow,) = [await outbox.add(late, relay_kit.event(1, 1), source="test")]
        (fast,) = await relay_kit.add(payment_db, relay_kit.event(2, 2))
        first = await relay_kit.collect(vhost, bool)
        await late.commit()

    second = await relay_kit.collect(vhost, bool)

    assert [first[0][0], second[0][0]] == [fast, slow]


async def test_an_early_transaction_id_does_not_invert_an_aggregates_order(payment_db: str, vhost: str, start_service: Start) -> None:
    """Two sessions write one aggregate under its lock; the one with the smaller transaction id writes second and arrives second."""
    start_service("relay", relay_kit.env(payment_db, vhost)).wait_ready()
    async with await psycopg.AsyncConnection.connect(payment_db, autocommit=True) as setup:
        await setup.execute("CREATE TABLE aggregate (id int PRIMARY KEY); INSERT INTO aggregate VALUES (1)")
    lock = "SELECT FROM aggregate WHERE id = 1 FOR UPDATE"
    async with await db.Connection.connect(payment_db) as early, await db.Connection.connect(payment_db) as later:
        await early.execute("SELECT pg_current_xact_id()")
        await later.execute(lock)
        first = await outbox.add(later, relay_kit.event(1, 1), source="test")
        waiting = asyncio.ensure_future(early.execute(lock))
        await later.commit()
        await waiting
        second = await outbox.add(early, relay_kit.event(1, 2), source="test")
        await early.commit()

    found = await relay_kit.collect(vhost, lambda rows: len(rows) >= 2)

    assert [message_id for message_id, _, _ in found] == [first, second]


async def test_contending_writers_keep_each_aggregates_order_and_lose_nothing(payment_db: str, vhost: str, start_service: Start) -> None:
    """Eight writers on five aggregates with rollbacks: each committed event arrives once, per aggregate in commit order."""
    start_service("relay", relay_kit.env(payment_db, vhost)).wait_ready()
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
                added = await outbox.add(conn, relay_kit.event(aggregate, number), source="test")
                if dice.random() < 0.1:
                    await conn.rollback()
                else:
                    await conn.commit()
                    committed.append(added)

    async with asyncio.TaskGroup() as group:
        for seed in range(8):
            group.create_task(writer(seed))
    found = await relay_kit.collect(vhost, lambda rows: len(rows) >= len(committed))

    assert sorted(message_id for message_id, _, _ in found) == sorted(committed)
    for aggregate in range(1, 6):
        numbers = [number for _, order, number in found if order == aggregate]
        assert numbers == sorted(numbers)


@pytest.mark.parametrize("point", RELAY_POINTS)
async def test_a_relay_killed_anywhere_loses_nothing(point: str, payment_db: str, vhost: str, start_service: Start) -> None:
    """After kill -9 at each named point and a restart every message arrives, in order among first deliveries."""
    sent = await relay_kit.add(payment_db, *(relay_kit.event(number % 3, number) for number in range(20)))
    await relay_kit.killed(start_service("relay", relay_kit.env(payment_db, vhost, crash=point)), payment_db)
    start_service("relay", relay_kit.env(payment_db, vhost))

    found = await relay_kit.collect_all(vhost, sent)

    assert relay_kit.in_order(found)
    await relay_kit.when(lambda: relay_kit.stored(payment_db))


async def test_a_confirmed_checkpoint_publishes_nothing_twice(payment_db: str, vhost: str, start_service: Start) -> None:
    """A relay that stopped in order leaves nothing to repeat to the next one, though it was told to stop at once."""
    relay = start_service("relay", relay_kit.env(payment_db, vhost)).wait_ready()
    sent = await relay_kit.add(payment_db, *(relay_kit.event(1, number) for number in range(5)))
    found = await relay_kit.collect(vhost, lambda rows: len(rows) >= 5)
    assert await asyncio.to_thread(relay.terminate) == 0
    start_service("relay", relay_kit.env(payment_db, vhost))
    sent += await relay_kit.add(payment_db, relay_kit.event(1, 5))

    found += await relay_kit.collect(vhost, bool)

    assert [each.message_id for each in found] == sent


async def test_a_second_relay_goes_on_where_the_first_was_killed(payment_db: str, vhost: str, start_service: Start) -> None:
    """Two relays publish each message once; after kill -9 of one the other repeats nothing that its stored checkpoint covers."""
    orders = [relay_kit.order_of(shard) for shard in range(outbox.SHARDS)]
    relays = [start_service("relay", relay_kit.env(payment_db, vhost)) for _ in range(2)]
    for relay in relays:
        relay.wait_ready()
    await relay_kit.when(lambda: _shared(payment_db))
    sent = await relay_kit.add(payment_db, *(relay_kit.event(order, number) for number in range(5) for order in orders))
    found = await relay_kit.collect_all(vhost, sent)
    await relay_kit.when(lambda: relay_kit.stored(payment_db))
    relays[0].kill()
    await relay_kit.end_leases(payment_db)
    last = await relay_kit.add(payment_db, *(relay_kit.event(order, 5) for order in orders))

    found += await relay_kit.collect_all(vhost, last)

    assert sorted(each.message_id for each in found) == sorted(sent + last)
    assert relay_kit.in_order(found)


async def _shared(dsn: str) -> bool:
    return await relay_kit.rows(dsn, "SELECT count(*) FROM outbox_cursor WHERE owner IS NOT NULL GROUP BY owner") == [(2,), (2,)]


async def test_what_no_queue_takes_waits_for_its_binding(payment_db: str, vhost: str, start_service: Start) -> None:
    """An event published while its binding is missing is not dropped: it is set aside, and arrives once the binding is back."""
    async with relay_kit.channel(vhost) as channel:
        queue = await channel.get_queue(topology.ORDER_QUEUE)
        await queue.unbind(topology.EXCHANGE, relay_kit.BODY_KEY)
        start_service("relay", relay_kit.env(payment_db, vhost, retry_base_s="0.1", retry_cap_s="0.1", retry_attempts="1000"))
        sent = await relay_kit.add(payment_db, relay_kit.event(1, 1))

        async def set_aside() -> bool:
            return await relay_kit.rows(payment_db, "SELECT event_id, state, reason FROM outbox_parked") == [
                (sent[0], "waiting", "unroutable")
            ]

        await relay_kit.when(set_aside)
        await queue.bind(topology.EXCHANGE, relay_kit.BODY_KEY)

    found = await relay_kit.collect(vhost, bool)

    assert [each.message_id for each in found] == sent


async def test_cursors_of_another_cluster_are_refused(payment_db: str, vhost: str, start_service: Start) -> None:
    """After a restore into another cluster the relay refuses to run instead of guessing what it has published."""
    await relay_kit.run(payment_db, "UPDATE outbox_cursor SET system_identifier = 42")

    relay: services.Service = start_service("relay", relay_kit.env(payment_db, vhost))

    assert await asyncio.to_thread(relay.wait) not in (0, None)
    assert "another PostgreSQL cluster" in relay.logs()
