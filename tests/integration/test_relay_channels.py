"""Publishing blocks to a real broker on both kinds of lane: the same answer for every row."""

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime
from typing import Any

import aio_pika
import pytest
from integration import relay_lanes

from sagapost_contracts import topology
from sagapost_relay import blocks, channels
from sagapost_relay import shard as relay_shard
from sagapost_relay.blocks import Outcome

pytestmark = pytest.mark.anyio
both_lanes = pytest.mark.parametrize("plain", [False, True], ids=["block", "plain"])
LIMITED = "limited.key"


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncGenerator[None]:
    """Fail a test that leaves a task or an exception behind."""
    async with relay_lanes.quiet():
        yield


async def _limited_queue(url: str, length: int) -> str:
    """Declare a queue that rejects what goes beyond its length."""
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel()
        arguments: dict[str, Any] = {"x-max-length": length, "x-overflow": "reject-publish"}
        queue = await channel.declare_queue("limited", durable=True, arguments=arguments)
        await queue.bind(topology.EXCHANGE, LIMITED)
    return "limited"


def _facts(message: aio_pika.abc.AbstractIncomingMessage) -> tuple[Any, ...]:
    return (
        message.body,
        message.message_id,
        message.type,
        message.correlation_id,
        message.routing_key,
        dict(message.headers),
        message.timestamp,
        message.delivery_mode,
        message.content_type,
    )


def _expected(row: blocks.Row) -> tuple[Any, ...]:
    time = datetime.fromtimestamp(int(row.created_s), UTC)
    headers = json.loads(row.headers)
    return (row.payload, row.event_id, row.type, row.correlation_id, row.routing_key, headers, time, 2, "application/json")


def _bodies(found: Sequence[aio_pika.abc.AbstractIncomingMessage]) -> list[bytes]:
    return [message.body for message in found]


@both_lanes
async def test_two_thousand_rows_in_blocks_are_confirmed_and_arrive_in_order(vhost: str, *, plain: bool) -> None:
    """Each row is CONFIRMED and arrives once, in the order of sending, with exactly the properties that amqp.make_message gives."""
    rows = [relay_lanes.row(number, payload=b'{"n":%d}' % number) for number in range(2000)]
    pages = [rows[:1], rows[1:257], *(rows[start : start + 256] for start in range(257, 2000, 256))]

    async with relay_lanes.connected(vhost, plain=plain) as broker:
        outcomes = await relay_lanes.publish(await broker.lane(0), *pages)

    assert [outcome for page in outcomes for outcome in page] == [Outcome.CONFIRMED] * 2000
    assert [_facts(message) for message in await relay_lanes.take(vhost, relay_lanes.QUEUE, 2000)] == [_expected(row) for row in rows]


@both_lanes
async def test_several_lanes_share_a_connection(vhost: str, *, plain: bool) -> None:
    """Four lanes at once: each is confirmed by its own channel, and keeps its own order."""
    pages = [[relay_lanes.row(number, payload=b"%d-%d" % (shard, number)) for number in range(300)] for shard in range(4)]

    async with relay_lanes.connected(vhost, plain=plain) as broker:
        opened = [await broker.lane(shard) for shard in range(4)]
        done = await asyncio.gather(*(relay_lanes.publish(lane, page[:100], page[100:]) for lane, page in zip(opened, pages, strict=True)))

    assert {outcome for outcomes in done for page in outcomes for outcome in page} == {Outcome.CONFIRMED}
    found = _bodies(await relay_lanes.take(vhost, relay_lanes.QUEUE, 1200))
    for shard in range(4):
        assert [body for body in found if body.startswith(b"%d-" % shard)] == [row.payload for row in pages[shard]]


@both_lanes
async def test_an_unroutable_row_is_returned_and_the_others_stand(vhost: str, *, plain: bool) -> None:
    """Wherever it stands in the block, and with whatever body, it alone is RETURNED, with the broker's reason; the rest arrives."""
    shapes = ["xrrrr", "rrxrr", "rrrrx", "xxxxx", "xrxrx"]
    pages = [
        [
            relay_lanes.row(n, relay_lanes.UNROUTED if kind == "x" else relay_lanes.ROUTED, b"" if n == 0 else b"%d" % n * relay_lanes.FULL)
            for n, kind in enumerate(shape)
        ]
        for shape in shapes
    ]

    async with relay_lanes.connected(vhost, plain=plain) as broker:
        lane = await broker.lane(0)
        outcomes = await relay_lanes.publish(lane, *pages)
        block = blocks.Block([relay_lanes.row(0, relay_lanes.UNROUTED)], relay_lanes.Changes())
        await lane.send(block)
        await relay_lanes.until(lambda: block.left == 0)

    wanted = [[Outcome.RETURNED if kind == "x" else Outcome.CONFIRMED for kind in shape] for shape in shapes]
    assert outcomes == wanted
    assert block.details == {0: "312 NO_ROUTE"}
    assert plain or (isinstance(lane, channels.BlockChannel) and lane.rpc_frames.empty())  # bodies that nobody read end there
    routed = [row for page in pages for row in page if row.routing_key == relay_lanes.ROUTED]
    assert _bodies(await relay_lanes.take(vhost, relay_lanes.QUEUE, len(routed))) == [row.payload for row in routed]


@both_lanes
async def test_what_a_full_queue_rejects_is_nacked_and_the_others_stand(vhost: str, *, plain: bool) -> None:
    """A rejected row is NACKED and not in the queue; a confirmed one is; rows for other queues are not touched."""
    limited = await _limited_queue(vhost, 10)
    rows = [relay_lanes.row(number, LIMITED if number % 3 else relay_lanes.ROUTED, b"%d" % number) for number in range(120)]

    async with relay_lanes.connected(vhost, plain=plain) as broker:
        outcomes = [outcome for page in await relay_lanes.publish(await broker.lane(0), rows[:50], rows[50:]) for outcome in page]

    said = list(zip(rows, outcomes, strict=True))
    assert {outcome for row, outcome in said if row.routing_key == relay_lanes.ROUTED} == {Outcome.CONFIRMED}
    assert {outcome for row, outcome in said if row.routing_key == LIMITED} == {Outcome.CONFIRMED, Outcome.NACKED}
    confirmed = [row.payload for row, outcome in said if row.routing_key == LIMITED and outcome == Outcome.CONFIRMED]
    assert _bodies(await relay_lanes.take(vhost, limited, len(confirmed))) == confirmed


@both_lanes
async def test_a_lane_on_which_a_queue_rejected_something_is_replaced(vhost: str, monkeypatch: pytest.MonkeyPatch, *, plain: bool) -> None:
    """After a while, when neither rows nor retries are in flight on it; the pump reads nothing until then. Others stay."""
    await _limited_queue(vhost, 1)
    desk, shard = relay_lanes.desk_with_a_shard()
    fitting = [relay_lanes.row(number) for number in range(3)]

    async with relay_lanes.connected(vhost, plain=plain) as desk.broker:
        confirmed = await relay_lanes.fly(desk, shard, fitting)
        first = await desk.lane(shard)
        monkeypatch.setattr(relay_shard, "FRESH_S", 3600)
        rejected = await relay_lanes.fly(desk, shard, [relay_lanes.row(number, LIMITED) for number in range(3, 6)])
        young = (await desk.lane(shard), shard.limit(256))
        flown = await relay_lanes.launch(desk, shard, [relay_lanes.row(6)])
        monkeypatch.setattr(relay_shard, "FRESH_S", 0)
        in_flight = (await desk.lane(shard), shard.limit(256))
        await relay_lanes.until(lambda: not flown[0].left)
        desk.landed()
        shard.retrying = True
        retrying = await desk.lane(shard)
        shard.retrying = False
        settled = (await desk.lane(shard), shard.limit(256))
        again = await relay_lanes.fly(desk, shard, fitting)
        kept = await desk.lane(shard)

    assert (confirmed, rejected, again) == ([Outcome.CONFIRMED] * 3, [Outcome.CONFIRMED, *[Outcome.NACKED] * 2], [Outcome.CONFIRMED] * 3)
    assert young == (first, 256)
    assert in_flight == (first, 0)
    assert retrying is first
    assert settled == (kept, 256)
    assert kept is not first


@both_lanes
async def test_bodies_of_any_size_arrive_whole(vhost: str, *, plain: bool) -> None:
    """Nothing at all, one frame to the last byte, one byte more, and 3 MB, one after the other in one block."""
    content = os.urandom(3_000_000)
    rows = [
        relay_lanes.row(number, payload=content[:size])
        for number, size in enumerate((0, relay_lanes.FULL, 1, relay_lanes.FULL + 1, 0, len(content), 2))
    ]

    async with relay_lanes.connected(vhost, plain=plain) as broker:
        outcomes = await relay_lanes.publish(await broker.lane(0), rows)

    assert outcomes == [[Outcome.CONFIRMED] * len(rows)]
    assert [_facts(message) for message in await relay_lanes.take(vhost, relay_lanes.QUEUE, len(rows))] == [_expected(row) for row in rows]


@both_lanes
async def test_a_row_that_cannot_be_a_message_is_refused_and_the_others_stand(vhost: str, *, plain: bool) -> None:
    """No body, headers that are none, or larger than a frame: REFUSED with a sentence, and the broker sees only the others."""
    bad = [
        relay_lanes.row(1, payload=None),
        relay_lanes.row(2)._replace(headers="[1]"),
        relay_lanes.row(3)._replace(headers=json.dumps({"h": "x" * relay_lanes.FULL})),
    ]
    rows = [bad[0], relay_lanes.row(4, payload=b"a"), bad[1], bad[2], relay_lanes.row(5, payload=b"b")]

    async with relay_lanes.connected(vhost, plain=plain) as broker:
        lane = await broker.lane(0)
        block = blocks.Block(rows, relay_lanes.Changes())
        await lane.send(block)
        await relay_lanes.until(lambda: block.left == 0)
        only_bad = await relay_lanes.publish(lane, bad)
        after = await relay_lanes.publish(lane, [relay_lanes.row(6, payload=b"c")])

    refused, confirmed = Outcome.REFUSED, Outcome.CONFIRMED
    assert list(block.outcomes) == [refused, confirmed, refused, refused, confirmed]
    assert sorted(block.details) == [0, 2, 3]
    assert all(block.details.values())
    assert (only_bad, after) == ([[refused] * 3], [[confirmed]])
    assert _bodies(await relay_lanes.take(vhost, relay_lanes.QUEUE, 3)) == [b"a", b"b", b"c"]
