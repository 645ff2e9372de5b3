"""Rows, brokers and readers for the tests of the relay's publish path; what is left behind by a Broker is found here."""

import asyncio
import gc
import json
import os
import subprocess
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
from integration import lateness

from sagapost_chassis import ids
from sagapost_contracts import topology
from sagapost_relay import blocks, lanes, queries, snapshot
from sagapost_relay.blocks import Outcome
from sagapost_relay.broker import Broker
from sagapost_relay.desk import Desk
from sagapost_relay.settings import Settings
from sagapost_relay.shard import Shard
from sagapost_sandbox import packages, rabbitmq
from sagapost_sandbox.testing import containers, polling, servers

ROUTED, UNROUTED = "payment.payment.processed", "nobody.listens"
QUEUE = topology.EMAIL_QUEUE
FULL = 131072 - 8  # RabbitMQ's frame_max without the frame's own bytes
HEADERS = {"schema-version": 1, "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "note": "é€", "big": 2**40}


class Changes:
    """Counts the calls of on_change."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        """Count one."""
        self.count += 1


def row(number: int = 0, routing_key: str = ROUTED, payload: bytes | None = b"{}") -> blocks.Row:
    """Make a row with a message id of its own."""
    return blocks.Row(
        id=number,
        shard=0,
        event_id=str(ids.uuid7()),
        type=f"Type{number % 3}",
        routing_key=routing_key,
        correlation_id=f"saga-{number}",
        headers=json.dumps(HEADERS | {"n": number}, ensure_ascii=False),
        payload=payload,
        size_bytes=len(payload or b""),
        created_s=1_800_000_000 + number + 0.5,
    )


def _running() -> set[asyncio.Task[Any]]:
    """Give all tasks but those in which the test runner calls tests and fixtures."""
    return {task for task in asyncio.all_tasks() if "TestRunner" not in repr(task) and task is not asyncio.current_task()}


@asynccontextmanager
async def quiet() -> AsyncGenerator[None]:
    """After the block no task of it may run on, and no exception of it may have been left for nobody."""
    complaints: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    before, handler = _running(), loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    try:
        yield
        await until(lambda: not _running() - before, 20)
        gc.collect()
        await asyncio.sleep(0)
        assert complaints == []
    finally:
        loop.set_exception_handler(handler)


@asynccontextmanager
async def connected(
    url: str, changes: Callable[[], None] | None = None, *, plain: bool = False, exchange: str = topology.EXCHANGE
) -> AsyncGenerator[Broker]:
    """Open a Broker around the block; closing it takes less than two seconds, whatever has happened."""
    broker = Broker(url, "test", on_change=changes or Changes(), plain=plain, exchange=exchange)
    await broker.open()
    try:
        yield broker
    finally:
        async with lateness.ticking() as ticker:
            started = time.monotonic()
            await broker.close()
            assert time.monotonic() - started < 2 + ticker.late_s


async def publish(lane: lanes.Lane, *pages: Sequence[blocks.Row], deadline_s: float = 20) -> list[list[Outcome]]:
    """Send one block per page, wait until all are settled, give the outcomes."""
    settled = [asyncio.Event() for _ in pages]
    sent = [blocks.Block(page, event.set) for page, event in zip(pages, settled, strict=True)]
    async with asyncio.timeout(deadline_s):
        for block in sent:
            await lane.send(block)
        for event in settled:
            await event.wait()
    return [[Outcome(outcome) for outcome in block.outcomes] for block in sent]


def desk_with_a_shard() -> tuple[Desk, Shard]:
    """Make a relay's desk that holds one shard, without a database."""
    desk = Desk(Settings(database_url="", amqp_url=""), "test")
    desk.admit(
        queries.Cursor(shard=0, lo=snapshot.EMPTY, hi=None, last_id=0, epoch=1, strikes=0, suspect=None, system_identifier=1), float("inf")
    )
    return desk, desk.shards[0]


async def launch(desk: Desk, shard: Shard, rows: Sequence[blocks.Row]) -> list[blocks.Block]:
    """Do what the pump does with a page, and give the blocks in flight."""
    flown: list[blocks.Block] = []
    for flight in shard.plan(rows, snapshot.parse("100:100:"), len(rows) + 1):
        lane = await desk.lane(shard)
        assert lane is not None
        block = shard.launch(flight, desk.landed)
        assert block is not None
        await lane.send(block)
        flown.append(block)
    return flown


async def fly(desk: Desk, shard: Shard, rows: Sequence[blocks.Row]) -> list[Outcome]:
    """Launch a page, wait until the broker has answered for all of it, and give the answers."""
    flown = await launch(desk, shard, rows)
    await until(lambda: not any(block.left for block in flown), 20)
    desk.landed()
    return [Outcome(outcome) for block in flown for outcome in block.outcomes]


async def take(url: str, queue: str, count: int, deadline_s: float = 20) -> list[aio_pika.abc.AbstractIncomingMessage]:
    """Take `count` messages off a queue, and see that no more are there."""
    found: list[aio_pika.abc.AbstractIncomingMessage] = []
    connection = await aio_pika.connect(url)
    async with connection, asyncio.timeout(deadline_s):
        channel = await connection.channel()
        source = await channel.get_queue(queue)
        if count:
            async with source.iterator(no_ack=True) as messages:
                async for message in messages:
                    found.append(message)
                    if len(found) == count:
                        break
        assert await source.get(no_ack=True, fail=False) is None
    return found


async def until(condition: Callable[[], object], deadline_s: float = 10) -> None:
    """Wait until a plain condition is true."""

    async def met() -> object:
        return condition()

    await polling.eventually(met, deadline_s)


def rabbitmqctl(node: servers.Broker, *arguments: str) -> None:
    """Call a node's own command, wherever it runs."""
    if isinstance(node, containers.ContainerBroker):
        code, output = node.container.exec(["rabbitmqctl", *arguments])
        assert code == 0, output
        return
    found = packages.find_rabbitmq()
    assert found is not None
    assert isinstance(node, rabbitmq.Node)
    env = {"PATH": os.environ["PATH"], "HOME": str(node.folder), "ERL_EPMD_PORT": str(node.epmd_port), "LC_ALL": "C.UTF-8"}
    env["RABBITMQ_CONF_ENV_FILE"] = "no-such-file"
    command = [str(found.server.with_name("rabbitmqctl")), "-n", node.nodename, *arguments]
    subprocess.run(command, env=env, check=True, capture_output=True, timeout=30)


async def disk_alarm(node: servers.Broker, *, on: bool) -> None:
    """Make a node believe that its disk is full, or not any more."""
    await asyncio.to_thread(rabbitmqctl, node, "set_disk_free_limit", "1000000GB" if on else "50MB")
