"""What the relay does when the broker takes a message not now: it waits without end, keeps the order, and says what is missing."""

import asyncio
import json
import os
import subprocess
import sys
from uuid import UUID

import pytest
from integration import relay_kit
from integration.relay_kit import Start

from sagapost_chassis import db, outbox
from sagapost_chassis import topology as declaring
from sagapost_contracts import topology
from sagapost_sandbox.testing import services

pytestmark = pytest.mark.anyio

ORDER = relay_kit.order_of(2)
OTHER = next(order for order in range(ORDER + 1, 1000) if outbox.shard_of(f"order-{order}") == 2)
QUICK = {"retry_base_s": "0.1", "retry_cap_s": "0.1", "retry_attempts": "2"}
_ASIDE = "SELECT event_id, state, reason FROM outbox_parked ORDER BY id"


def _stats(dsn: str) -> list[str]:
    line = [sys.executable, "-m", "sagapost_ops", "outbox", "stats", "--database", "payment", "--json"]
    done = subprocess.run(
        line, env={**os.environ, "SAGAPOST_PAYMENT_DATABASE_URL": dsn}, check=False, timeout=60, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)["attention"]
    return found


async def _attention(dsn: str) -> list[str]:
    return await asyncio.to_thread(_stats, dsn)


async def _tried(dsn: str, event_id: UUID, attempts: int) -> bool:
    found = await relay_kit.rows(dsn, "SELECT attempts FROM outbox_parked WHERE event_id = %(event_id)s", event_id=event_id)
    return bool(found) and found[0][0] >= attempts


async def _says(relay: services.Service, failing: list[str], degraded: list[str]) -> bool:
    health = await relay_kit.ready(relay)
    return (health["failing"], health["degraded"]) == (failing, degraded)


async def _put(dsn: str, order: int, *numbers: int, key: str = "email.email.sent") -> list[UUID]:
    async with await db.Connection.connect(dsn) as conn:
        return [await relay_kit.put(conn, order, number, key=key) for number in numbers]


async def test_what_no_queue_takes_waits_without_end_and_its_order_waits_behind_it(
    payment_db: str, vhost: str, start_service: Start
) -> None:
    """Past every limit of attempts, and across a relay's death: others go on, readiness and `outbox` say it, and all arrive in order."""
    env = relay_kit.env(payment_db, vhost, **relay_kit.measured(**QUICK))
    relay = start_service("relay", env)
    (lonely,) = await _put(payment_db, ORDER, 0, key="nobody.listens")
    await relay_kit.when(lambda: _tried(payment_db, lonely, 6))
    behind = await _put(payment_db, ORDER, 1, 2)
    others = await _put(payment_db, OTHER, 1, 2, 3)

    found = await relay_kit.collect_all(vhost, others)
    await relay_kit.when(lambda: relay_kit.stored(payment_db))
    assert [each.message_id for each in found] == others
    assert await relay_kit.rows(payment_db, _ASIDE) == [
        (lonely, "waiting", "unroutable"),
        *((event_id, "waiting", "behind") for event_id in behind),
    ]
    await relay_kit.when(lambda: _says(relay, [], ["waiting"]))
    assert await relay_kit.metric(relay, 'sagapost_relay_parked_rows{reason="unroutable",state="waiting"}') == 1
    await relay_kit.when(lambda: _is_told(payment_db, "3 messages wait for the broker (2 behind, 1 unroutable)"))
    relay.kill()
    await relay_kit.end_leases(payment_db)
    relay = start_service("relay", env)
    behind += await _put(payment_db, ORDER, 3)
    await relay_kit.when(lambda: relay_kit.stored(payment_db))
    async with relay_kit.channel(vhost) as channel:
        await (await channel.get_queue(topology.ORDER_QUEUE)).bind(topology.EXCHANGE, "nobody.listens")

    found = await relay_kit.collect_all(vhost, [lonely, *behind])

    assert [each.message_id for each in found] == [lonely, *behind]
    await relay_kit.when(lambda: _says(relay, [], []))
    later = await _put(payment_db, ORDER, 4)
    assert [each.message_id for each in await relay_kit.collect_all(vhost, later)] == later
    assert await relay_kit.rows(payment_db, _ASIDE) == []


async def test_rows_of_one_order_that_a_full_queue_rejects_arrive_in_their_order(payment_db: str, vhost: str, start_service: Start) -> None:
    """Only the first of them is tried until the queue takes it, whatever the others' own waits are."""
    async with relay_kit.channel(vhost) as channel:
        await channel.declare_queue("narrow", durable=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
        await (await channel.get_queue("narrow")).bind(topology.EXCHANGE, "narrow")
    start_service("relay", relay_kit.env(payment_db, vhost, **QUICK))
    full = await _put(payment_db, OTHER, 0, key="narrow")
    await relay_kit.when(lambda: relay_kit.stored(payment_db))
    sent = await _put(payment_db, ORDER, *range(1, 9), key="narrow")
    await relay_kit.when(lambda: relay_kit.stored(payment_db))
    await relay_kit.when(lambda: _tried(payment_db, sent[0], 4))

    found = await relay_kit.collect(vhost, lambda found: {each.message_id for each in found} >= {*full, *sent}, queue="narrow")

    assert [each.message_id for each in found] == [*full, *sent]
    await relay_kit.when(lambda: _is_empty(payment_db))


async def _is_empty(dsn: str) -> bool:
    return await relay_kit.rows(dsn, _ASIDE) == []


async def test_what_the_version_before_parked_for_the_brokers_state_is_tried_again(
    payment_db: str, vhost: str, start_service: Start
) -> None:
    """A relay of the version before gave it up after eight tries; this one does not wait for a person."""
    env = relay_kit.env(payment_db, vhost, **QUICK)
    start_service("relay", env)
    (lonely,) = await _put(payment_db, ORDER, 0, key="nobody.listens")
    await relay_kit.when(lambda: _tried(payment_db, lonely, 1))
    await relay_kit.run(payment_db, "UPDATE outbox_parked SET state = 'parked', attempts = 8")

    async with relay_kit.channel(vhost) as channel:
        await (await channel.get_queue(topology.ORDER_QUEUE)).bind(topology.EXCHANGE, "nobody.listens")

    assert [each.message_id for each in await relay_kit.collect_all(vhost, [lonely])] == [lonely]


async def test_a_missing_exchange_is_named_at_the_first_message(payment_db: str, vhost: str, start_service: Start) -> None:
    """Readiness and `outbox stats` say which; when it is declared again everything arrives and nothing needs a person."""
    relay = start_service("relay", relay_kit.env(payment_db, vhost)).wait_ready()
    async with relay_kit.channel(vhost) as channel:
        await channel.exchange_delete(topology.EXCHANGE)
    sent = await _put(payment_db, ORDER, 1, 2, 3)

    await relay_kit.when(lambda: _says(relay, ["exchange ecommerce_events"], []))
    await relay_kit.when(lambda: _is_told(payment_db, "no exchange 'ecommerce_events'"))
    await declaring.declare(vhost)

    assert [each.message_id for each in await relay_kit.collect_all(vhost, sent)] == sent
    await relay_kit.when(lambda: _says(relay, [], []))
    await relay_kit.when(lambda: _is_quiet(payment_db))


async def _is_told(dsn: str, words: str) -> bool:
    return any(words in sentence for sentence in await _attention(dsn))


async def _is_quiet(dsn: str) -> bool:
    return await _attention(dsn) == []
