"""A relay beside a broker that takes nothing, or is away; and what wakes a relay that has nothing to do."""

import asyncio

import pytest
from integration import relay_kit, relay_lanes
from integration.relay_kit import Start

from sagapost_chassis import db, outbox
from sagapost_relay import leases
from sagapost_relay.desk import Desk
from sagapost_relay.settings import Settings
from sagapost_sandbox.testing import servers, services

pytestmark = pytest.mark.anyio

CONFIRM_S = 5.0


async def _rabbitmqctl(node: servers.Broker, *arguments: str) -> None:
    await asyncio.to_thread(relay_lanes.rabbitmqctl, node, *arguments)


async def test_a_broker_that_takes_nothing_or_restarts_costs_no_message(
    payment_db: str, private_broker: servers.Broker, start_service: Start
) -> None:
    """Under an alarm readiness names the broker, and what was in flight is not sent again; after it, and after a restart, all arrives."""
    url = private_broker.amqp_url()
    env = relay_kit.env(payment_db, url, **relay_kit.measured(confirm_timeout_s=str(CONFIRM_S)))
    relay = start_service("relay", env).wait_ready()
    sent = await relay_kit.add(payment_db, *(relay_kit.event(order, 1) for order in range(20)))
    found = await relay_kit.collect_all(url, sent)
    await relay_kit.when(lambda: relay_kit.stored(payment_db))

    await _rabbitmqctl(private_broker, "set_disk_free_limit", "1000000GB")
    sent += await relay_kit.add(payment_db, *(relay_kit.event(order, number) for order in range(4) for number in range(2, 202)))
    await relay_kit.when(lambda: _says(relay, "unready", ["rabbitmq"]))
    blocked_at = asyncio.get_running_loop().time()
    await relay_kit.when(lambda: _past(blocked_at + 1.2 * CONFIRM_S))  # longer than a confirm may take
    await _rabbitmqctl(private_broker, "set_disk_free_limit", "50MB")
    found += await relay_kit.collect_all(url, sent[20:])
    await relay_kit.when(lambda: _says(relay, "ok", []))
    await relay_kit.when(lambda: relay_kit.stored(payment_db))
    assert [await relay_kit.metric(relay, f"sagapost_relay_{name}_total") for name in ("published", "republished")] == [len(sent), 0]
    assert len(found) == len(sent)

    await asyncio.to_thread(private_broker.stop)
    sent += await relay_kit.add(payment_db, *(relay_kit.event(order, 1000) for order in range(20)))
    await relay_kit.when(lambda: _says(relay, "unready", ["rabbitmq"]))
    await asyncio.to_thread(private_broker.start)
    found += await relay_kit.collect_all(url, sent[820:])

    assert sorted(each.message_id for each in found) == sorted(sent)
    assert relay_kit.in_order(found)


async def _says(relay: services.Service, status: str, failing: list[str]) -> bool:
    health = await relay_kit.ready(relay)
    return (health["status"], health["failing"]) == (status, failing)


async def _past(moment: float) -> bool:
    return asyncio.get_running_loop().time() > moment


async def test_a_commit_is_told_to_the_relays_from_another_session(payment_db: str) -> None:
    """The checkout's own transaction never notifies; what was rolled back is not told; a relay that hears of it looks at once."""
    hints = outbox.Hints(payment_db, "test-hints")
    stop = asyncio.Event()
    listener = await db.Connection.connect(payment_db, autocommit=True)
    config = Settings(database_url=payment_db, amqp_url="amqp://nobody")
    desk = Desk(config, "relay-test-1-a")
    async with listener, db.open_pool(payment_db, "test", max_size=1, on_commit=hints.soon) as pool, asyncio.TaskGroup() as group:
        await pool.wait(30)
        group.create_task(hints.run(stop))
        await listener.execute(f"LISTEN {outbox.CHANNEL}")
        with pytest.raises(ZeroDivisionError):
            await _add_and_fail(pool)
        assert not [said async for said in listener.notifies(timeout=0.2, stop_after=1)]

        async with db.transaction(pool) as conn:
            await outbox.add(conn, relay_kit.event(1, 1), source="test")
            writer = conn.info.backend_pid
        (said,) = [said async for said in listener.notifies(timeout=10, stop_after=1)]
        listening = group.create_task(leases.listen(listener, desk))
        async with db.transaction(pool) as conn:
            await outbox.add(conn, relay_kit.event(1, 2), source="test")
        async with asyncio.timeout(10):
            await desk.wake.wait()
        turn_too = desk.turn.is_set()
        listening.cancel()
        stop.set()

    assert (said.channel, said.payload) == (outbox.CHANNEL, "rows")
    assert said.pid != writer
    assert not turn_too


async def _add_and_fail(pool: db.Pool) -> None:
    async with db.transaction(pool) as conn:
        await outbox.add(conn, relay_kit.event(1, 1), source="test")
        raise ZeroDivisionError
