"""Poison of every kind among good messages, deployments under load, and a ladder whose broker is full or away.

SAGAPOST_POISON=1000 runs the long campaign (5,000 good ones), SAGAPOST_DEPLOYS=50 the long row of deployments, SEED=… repeats an order.
"""

import asyncio
import collections
import functools
import itertools
import os
import pathlib
import random
import re
import statistics
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import aio_pika
import msgspec
import prometheus_client
import psycopg
import pytest
from integration import poison_frames, relay_kit, relay_lanes

from sagapost_chassis import amqp, consuming, errors, ids
from sagapost_contracts import events, topology
from sagapost_sandbox.testing import polling, servers, services

POISON = int(os.environ.get("SAGAPOST_POISON", "30"))
DEPLOYS = int(os.environ.get("SAGAPOST_DEPLOYS", "3"))
SEED = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120 + POISON + DEPLOYS * 15)]
GOOD_PER_POISON = 5
WORKERS = 3
DIP_S = 10
ALARM_S = 15  # what is refused meanwhile would be handled or stored again
QUEUE = topology.PAYMENT_QUEUE
DEAD = topology.dead_letter_queue(QUEUE)
KIND = "CancelPayment"
NUMBER = re.compile(rb'"order_id": ?"?(\d+)')
Start = Callable[[str, Mapping[str, str]], services.Service]


class Poison(NamedTuple):
    """A message as raw bytes, and what its dead letter must say."""

    properties: bytes
    body: bytes
    exception: str
    reason: str


def _body(number: int, reason: str = "ok", size: int = 0) -> bytes:
    message = events.CancelPayment(order_id=number, saga_id=ids.uuid7(), reason=reason, saga_version=1)
    return msgspec.json.encode(message).ljust(size)


def _properties(type_name: str = KIND, version: int = 1) -> bytes:
    return poison_frames.listed(poison_frames.plain(str(ids.uuid7()), type_name, version))


def _of_body(body: bytes) -> Poison:
    return Poison(_properties(), body, "UndecodableError", "CancelPayment does not decode: ")


def _of_property(kind: str, number: int) -> Poison:
    size = 700 + list(poison_frames.PROPERTIES).index(kind)  # by its length the rewriter knows what the broker refused
    properties = poison_frames.poisoned(kind, str(ids.uuid7()), KIND)
    return Poison(properties, _body(number, size=size), "UndecodableError", poison_frames.REASONS[kind])


KINDS: dict[str, Callable[[int], Poison]] = {
    "corrupt": lambda number: _of_body(b'{"order_id":%d,"saga_id"' % number),
    "bad UTF-8": lambda number: _of_body(_body(number).replace(b'"ok"', b'"\xff\xfe"')),
    "deep": lambda number: _of_body(b'{"order_id":%d,"more":%s%s}' % (number, b"[" * 2_000, b"]" * 2_000)),
    "wrong types": lambda number: _of_body(b'{"order_id":"%d","saga_id":[],"reason":1,"saga_version":{}}' % number),
    "unknown type": lambda number: Poison(
        _properties("NoSuchThing"), _body(number), "UndecodableError", "unknown message type 'NoSuchThing'"
    ),
    "newer version": lambda number: Poison(_properties(version=99), _body(number), "UndecodableError", "CancelPayment of version 99"),
    "oversized": lambda number: Poison(_properties(), _body(number, size=1_000_001), "UndecodableError", "a body of 1000001 bytes"),
    **{kind: functools.partial(_of_property, kind) for kind in poison_frames.PROPERTIES},
    "raises": lambda number: Poison(_properties(), _body(number, "raise"), "ZeroDivisionError", "always"),
    "kills": lambda number: Poison(_properties(), _body(number, "kill"), "", "delivery_limit"),
}
KILLERS = POISON // len(KINDS)  # the last of the kinds; each kills 21 processes


@pytest.fixture
def database(payment_db: str) -> str:
    """Give a payment database with a table of effects."""
    with psycopg.connect(payment_db) as conn:
        conn.execute("CREATE TABLE effects (number bigint NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp())")
    return payment_db


def _env(url: str, broker_url: str, database: str, **more: str) -> dict[str, str]:
    return {
        "PYTHONPATH": str(pathlib.Path(__file__).parents[1]),
        "SAGAPOST_AMQP_URL": url,
        "SAGAPOST_BROKER_URL": broker_url,
        "SAGAPOST_DATABASE_URL": database,
        "SAGAPOST_LOG_LEVEL": "error",
        **more,
    }


async def _depth(url: str, queue: str) -> int:
    async with relay_kit.channel(url) as channel:
        return (await channel.declare_queue(queue, passive=True)).declaration_result.message_count or 0


async def _consumers(url: str) -> int:
    async with relay_kit.channel(url) as channel:
        return (await channel.declare_queue(QUEUE, passive=True)).declaration_result.consumer_count or 0


async def _effects(database: str) -> int:
    return int((await relay_kit.rows(database, "SELECT count(*) FROM effects"))[0][0])


def _equals(read: Callable[[], Awaitable[int]], wanted: int) -> Callable[[], Awaitable[bool]]:
    async def equal() -> bool:
        return await read() == wanted

    return equal


def _publish(url: str, rewriter: poison_frames.Rewriter, messages: list[bytes | Poison]) -> None:
    with poison_frames.Publisher(url) as raw:
        for message in messages:
            if isinstance(message, bytes):
                assert raw.publish(_properties(), message, QUEUE.encode()) is None
            elif raw.publish(message.properties, message.body, QUEUE.encode()) is not None:
                rewriter.put(len(message.body), message.properties)  # what the broker refuses may still arrive another way
                assert raw.publish(_properties(), message.body, QUEUE.encode()) is None


async def _dead_letters(url: str) -> list[aio_pika.abc.AbstractIncomingMessage]:
    """Take what there is."""
    found: list[aio_pika.abc.AbstractIncomingMessage] = []
    async with relay_kit.channel(url) as channel:
        source = await channel.get_queue(DEAD)
        while (message := await source.get(no_ack=True, fail=False)) is not None:
            found.append(message)
    return found


async def _measure(url: str, took_s: list[float]) -> None:
    """Connect to the broker again and again, and note how long it takes here and now."""
    now = asyncio.get_running_loop().time
    while True:
        began = now()
        await _depth(url, QUEUE)
        took_s.append(now() - began)
        await asyncio.sleep(0.2)


def _said(message: aio_pika.abc.AbstractIncomingMessage) -> tuple[str, str]:
    history: Any = message.headers.get("x-death")
    if history and "x-exception-type" not in message.headers:
        return "", str(history[0]["reason"])
    return str(message.headers["x-exception-type"]), str(message.headers["x-exception-message"])


def _number(body: bytes) -> int:
    found = NUMBER.search(body)
    assert found is not None, body[:100]
    return int(found[1])


async def test_poison_of_every_kind_costs_no_good_message(vhost: str, database: str, start_service: Start) -> None:
    """Every good message has its effect once, the dead letters are exactly the poison with true reasons, and the consumers live."""
    dice = random.Random(SEED)
    good = [_body(number) for number in range(1, POISON * GOOD_PER_POISON + 1)]
    poison = {number: make(number) for number, make in zip(range(10**6, 10**6 + POISON), itertools.cycle(KINDS.values()), strict=False)}
    messages: list[bytes | Poison] = [*good, *poison.values()]
    dice.shuffle(messages)
    rewriter = poison_frames.Rewriter(vhost)
    found: list[aio_pika.abc.AbstractIncomingMessage] = []
    connecting_s: list[float] = []

    async def all_dead() -> bool:
        found.extend(await _dead_letters(vhost))
        return {_number(message.body) for message in found} >= poison.keys()

    async with rewriter.listening() as url:
        env = _env(url, vhost, database, SAGAPOST_LOG_LEVEL="warning")
        workers = [start_service("faults.poison_worker", env) for _ in range(WORKERS)]
        await polling.eventually(_equals(lambda: _consumers(vhost), WORKERS), 30)
        control = asyncio.create_task(_measure(vhost, connecting_s))
        await asyncio.to_thread(_publish, vhost, rewriter, messages)
        await polling.eventually(_equals(lambda: _effects(database), len(good)), 60 + POISON)
        control.cancel()
        await asyncio.gather(control, return_exceptions=True)
        # a process may be killed between the confirm of a dead letter and the acknowledgement of its message: that is delivered again
        await polling.eventually(all_dead, 60 + POISON)
        await polling.eventually(_equals(lambda: _consumers(vhost), WORKERS), 30)
        assert all(worker.running() for worker in workers)
        dips = await relay_kit.rows(
            database,
            "SELECT extract(epoch FROM max(gap)), extract(epoch FROM sum(gap))"
            " FROM (SELECT at - lag(at) OVER (ORDER BY at) AS gap FROM effects) AS gaps",
        )
        await asyncio.to_thread(_publish, vhost, rewriter, [_body(len(good) + number + 1) for number in range(100)])
        await polling.eventually(_equals(lambda: _effects(database), len(good) + 100), 30)
        connections = rewriter.connections
        assert [await asyncio.to_thread(worker.terminate) for worker in workers] == [0] * WORKERS

    found += await _dead_letters(vhost)
    dead = {_number(message.body): message for message in found}
    numbers = await relay_kit.rows(database, "SELECT number FROM effects ORDER BY number")
    longest_s, took_s = dips[0]
    sys.stdout.write(
        f"\n{len(good)} good, {len(poison)} poison, {connections} connections, {KILLERS} killers; "
        f"{len(found) - len(dead)} dead letters twice; longest time without an effect {longest_s:.2f} s of {took_s:.1f} s; SEED={SEED}\n"
    )
    assert [number for (number,) in numbers] == list(range(1, len(good) + 101))
    assert sorted(dead) == sorted(poison)
    wrong: list[str] = []
    for message in found:
        wanted = poison[_number(message.body)]
        assert message.body == wanted.body
        exception, reason = _said(message)
        if exception != wanted.exception or wanted.reason not in reason:
            wrong.append(f"{wanted.reason}: {exception} {reason}")
    assert not wrong
    lost = [line for worker in workers for line in worker.logs().splitlines() if "broker.lost" in line]
    never_made = sum("no connection to the broker" in line for line in lost)
    kills = topology.DELIVERY_LIMIT + 1
    assert connections <= WORKERS + KILLERS * kills + never_made, "something else than a killer cost a connection"
    # while each process has a killer in hand nothing else is handled: what that takes is a connection for each death
    assert longest_s <= DIP_S + max(connecting_s) + WORKERS * kills * statistics.mean(connecting_s)


def _started(worker: services.Service) -> None:
    polling.eventually(lambda: "consumer.started" in worker.logs(), 30)


async def test_a_deployment_dead_letters_nothing(vhost: str, database: str, start_service: Start) -> None:
    """SIGTERM to all consumers under load, again and again: each ends with 0, every message has its effect once, none is a dead letter."""
    env, sent = _env(vhost, vhost, database, SAGAPOST_LOG_LEVEL="info"), 0
    rewriter = poison_frames.Rewriter(vhost)
    workers = [start_service("faults.poison_worker", env) for _ in range(WORKERS)]
    for _ in range(DEPLOYS):
        await asyncio.gather(*(asyncio.to_thread(_started, worker) for worker in workers))
        before = await _effects(database)
        batch: list[bytes | Poison] = [_body(sent + number, "slow") for number in range(1, 301)]
        sent += len(batch)
        load = asyncio.create_task(asyncio.to_thread(_publish, vhost, rewriter, batch))

        async def under_way(before: int = before) -> bool:
            return await _effects(database) > before

        await polling.eventually(under_way, 30)
        codes = await asyncio.gather(*(asyncio.to_thread(worker.terminate) for worker in workers))
        assert codes == [0] * WORKERS
        workers = [start_service("faults.poison_worker", env) for _ in range(WORKERS)]
        await load

    await polling.eventually(_equals(lambda: _effects(database), sent), 60)
    await polling.eventually(_equals(lambda: _depth(vhost, QUEUE), 0), 30)
    assert await relay_kit.rows(database, "SELECT number FROM effects GROUP BY number HAVING count(*) > 1") == []
    assert [await _depth(vhost, topology.retry_queue(QUEUE, delay_s)) for delay_s in topology.RETRY_DELAYS_S] == [0] * 5
    assert await _depth(vhost, DEAD) == 0


async def test_a_ladder_loses_nothing_under_an_alarm_and_over_a_restart(
    private_broker: servers.Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the broker takes nothing, failures stay unacknowledged and no dead letter is made; what waits on a step outlives a kill -9."""
    monkeypatch.setattr(amqp, "PUBLISH_TIMEOUT_S", 3)
    url, count = private_broker.amqp_url(), 60
    attempts: dict[int, list[int]] = collections.defaultdict(list)
    alarm = asyncio.Event()

    async def handler(delivery: consuming.Delivery) -> None:
        attempts[delivery.message.order_id].append(delivery.attempt)
        if delivery.attempt == 2:
            await alarm.wait()  # the second failures are published while the alarm stands, however long it takes to raise it
        if delivery.attempt < 4:
            raise errors.TransientError("not yet")

    def all_reached(attempt: int) -> Callable[[], Awaitable[bool]]:
        async def reached() -> bool:
            return len(attempts) == count and all(attempt in seen for seen in attempts.values())

        return reached

    stop = asyncio.Event()
    async with amqp.Publisher(url, "test") as publisher:
        consumer = consuming.Consumer(url, QUEUE, {events.CancelPayment: handler}, publisher, concurrency=64, retry_delays_s=(1, 1, 5))
        task = asyncio.create_task(consumer.run(stop))
        await asyncio.to_thread(_publish, url, poison_frames.Rewriter(url), [_body(number) for number in range(count)])
        await polling.eventually(all_reached(2), 30)

        await asyncio.to_thread(relay_lanes.rabbitmqctl, private_broker, "set_vm_memory_high_watermark", "0.00001")
        alarm.set()
        began = asyncio.get_running_loop().time()
        await polling.eventually(lambda: _past(began + ALARM_S), 2 * ALARM_S)
        assert await consumer.check(), "who only consumes is not blocked"
        assert not await consumer.flows()
        assert prometheus_client.REGISTRY.get_sample_value("sagapost_broker_blocked") == 1
        assert max(max(seen) for seen in attempts.values()) == 2
        await asyncio.to_thread(relay_lanes.rabbitmqctl, private_broker, "set_vm_memory_high_watermark", "0.4")
        await polling.eventually(all_reached(3), 60)
        assert {tuple(seen) for seen in attempts.values()} == {(1, 2, 3)}  # what the alarm held up was stored once
        await polling.eventually(_reads_zero, 5)

        private_broker.kill()
        await asyncio.to_thread(private_broker.start)
        await polling.eventually(all_reached(4), 60)
        for queue in (topology.retry_queue(QUEUE, 1), topology.retry_queue(QUEUE, 5), QUEUE):  # the kill may have doubled some
            await polling.eventually(_equals(functools.partial(_depth, url, queue), 0), 30)
        stop.set()
        await task

    assert await _depth(url, DEAD) == 0


async def _reads_zero() -> bool:
    return prometheus_client.REGISTRY.get_sample_value("sagapost_broker_blocked") == 0


async def _past(moment: float) -> bool:
    return asyncio.get_running_loop().time() > moment
