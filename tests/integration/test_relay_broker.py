"""The relay's connection in bad times: closed, cut, blocked, killed, or made by another client than the one we know."""

import asyncio
import urllib.parse
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from importlib import metadata
from typing import Any

import aio_pika
import aiormq
import pytest
import structlog
from integration import relay_lanes

from sagapost_chassis import amqp
from sagapost_relay import blocks, channels, lanes
from sagapost_relay.blocks import Outcome
from sagapost_relay.broker import Broker
from sagapost_sandbox import management
from sagapost_sandbox.testing import polling, servers

pytestmark = pytest.mark.anyio
OPEN_CHANNEL = bytes.fromhex("01 0001 00000006 0014 000a 0130 ce")  # Channel.Open, channel 1
both_lanes = pytest.mark.parametrize("plain", [False, True], ids=["block", "plain"])


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncGenerator[None]:
    """Fail a test that leaves a task or an exception behind."""
    async with relay_lanes.quiet():
        yield


async def _exchange(url: str, *, there: bool) -> str:
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel()
        if there:
            exchange = await channel.declare_exchange("passing", aio_pika.ExchangeType.TOPIC)
            await (await channel.get_queue(relay_lanes.QUEUE)).bind(exchange, "#")
        else:
            await channel.exchange_delete("passing")
    return "passing"


@asynccontextmanager
async def _deaf_to(frame: bytes, url: str) -> AsyncGenerator[str]:
    """Run a way to the broker on which one frame is always lost."""
    real = urllib.parse.urlsplit(url)

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError):
                while data := await reader.read(65536):
                    writer.write(data.replace(frame, b""))
        finally:
            writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(real.hostname, real.port)
        await asyncio.gather(copy(reader, back), copy(there, writer))

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        yield real._replace(netloc=f"{real.username}:{real.password}@127.0.0.1:{server.sockets[0].getsockname()[1]}").geturl()


async def _send_for_ever(lane: lanes.Lane, size: int = 1) -> None:
    while True:
        await lane.send(blocks.Block([relay_lanes.row() for _ in range(size)], relay_lanes.Changes()))
        await asyncio.sleep(0)


def _more_than_a_socket_holds() -> list[blocks.Row]:
    return [relay_lanes.row(number, payload=bytes(2_000_000)) for number in range(5)]


def _stays_full(lane: lanes.Lane) -> bool:
    """Fill the client's queue; true when it was still full, for its writer waits for a broker that does not read."""
    assert isinstance(lane, channels.BlockChannel)
    was_full = lane.write_queue.full()
    while not lane.write_queue.full():
        lane.write_queue.put_nowait(aiormq.abc.ChannelFrame(payload=b"", should_close=False))
    return was_full


@both_lanes
async def test_a_channel_that_the_broker_closes_says_why_and_the_others_go_on(vhost: str, *, plain: bool) -> None:
    """A missing exchange closes the one channel with 404; its rows stay unsettled, other lanes and a new one publish as before."""
    changes = relay_lanes.Changes()
    async with relay_lanes.connected(vhost, changes, plain=plain, exchange=await _exchange(vhost, there=True)) as broker:
        other, lane = await broker.lane(0), await broker.lane(1)
        await _exchange(vhost, there=False)
        block = blocks.Block([relay_lanes.row(), relay_lanes.row()], relay_lanes.Changes())

        await lane.send(block)
        if plain:
            await relay_lanes.until(lambda: lane.closed)
        with pytest.raises(amqp.BrokerUnavailableError, match="404 NOT_FOUND"):
            await _send_for_ever(lane)  # one frame after the client's answer to the close would cost the connection

        assert lane.reply_code == 404
        assert str(lane.closed).startswith("404 NOT_FOUND - no exchange 'passing'")
        assert changes.count == 1
        assert list(block.outcomes) == [Outcome.UNKNOWN] * 2
        await _exchange(vhost, there=True)
        assert other.closed is None
        assert broker.is_open
        for usable in (other, await broker.lane(1)):
            assert await relay_lanes.publish(usable, [relay_lanes.row(), relay_lanes.row()]) == [[Outcome.CONFIRMED] * 2]


@both_lanes
async def test_a_lane_is_dropped_and_a_new_one_takes_its_place(vhost: str, *, plain: bool) -> None:
    """A dropped lane takes nothing more, has no reply code, and costs neither the connection nor the next lane."""
    async with relay_lanes.connected(vhost, plain=plain) as broker:
        first = await broker.lane(0)
        assert await relay_lanes.publish(first, [relay_lanes.row()]) == [[Outcome.CONFIRMED]]

        await first.drop()
        await first.drop()

        assert (first.closed, first.reply_code) == ("dropped", None)
        with pytest.raises(amqp.BrokerUnavailableError, match="dropped"):
            await first.send(blocks.Block([relay_lanes.row()], relay_lanes.Changes()))
        assert await relay_lanes.publish(await broker.lane(0), [relay_lanes.row()]) == [[Outcome.CONFIRMED]]


@both_lanes
async def test_closing_while_rows_are_being_sent_leaves_nothing_behind(vhost: str, *, plain: bool) -> None:
    """Whoever sends on hears of it, and no row waits for ever for a writer that has ended."""
    async with relay_lanes.connected(vhost, plain=plain) as broker:
        lane = await broker.lane(0)
        sending = asyncio.ensure_future(_send_for_ever(lane, 50))
        await relay_lanes.publish(await broker.lane(1), [relay_lanes.row()])

        await broker.close()

        assert (await asyncio.wait((sending,), timeout=10))[0]
        assert isinstance(sending.exception(), amqp.BrokerUnavailableError)
        assert lane.closed


@both_lanes
async def test_a_connection_closed_by_an_operator_ends_its_lanes(vhost: str, broker: servers.Broker, *, plain: bool) -> None:
    """Closed from the management page: every lane says so without a reply code of its own, and nothing hangs."""
    changes = relay_lanes.Changes()
    name = vhost.rpartition("/")[2]
    async with relay_lanes.connected(vhost, changes, plain=plain) as opened:
        first, second = await opened.lane(0), await opened.lane(1)
        assert await relay_lanes.publish(first, [relay_lanes.row()]) == [[Outcome.CONFIRMED]]

        async def close_all() -> bool:
            found: Any = management.request(broker.management, "GET", f"/api/vhosts/{name}/connections")
            for connection in found:
                management.request(broker.management, "DELETE", f"/api/connections/{urllib.parse.quote(connection['name'])}")
            return bool(first.closed and second.closed)

        await polling.eventually(close_all, 20)

        assert "CONNECTION_FORCED" in str(first.closed)
        assert (first.reply_code, second.reply_code) == (None, None)
        assert not opened.is_open
        assert changes.count == 3
        for attempt in (first.send(blocks.Block([relay_lanes.row()], relay_lanes.Changes())), opened.lane(0)):
            with pytest.raises(amqp.BrokerUnavailableError):
                await attempt


async def test_a_broker_without_memory_or_disk_blocks_and_goes_on(private_broker: servers.Broker) -> None:
    """While the broker's alarm is on the connection says blocked and rows stay unsettled; afterwards the same rows are settled."""
    url = private_broker.amqp_url()
    changes = relay_lanes.Changes()
    rows = [relay_lanes.row(number, payload=b"late") for number in range(50)]
    async with relay_lanes.connected(url, changes) as one, relay_lanes.connected(url, plain=True) as other:
        opened = [await one.lane(0), await other.lane(0)]
        assert not one.blocked
        await relay_lanes.disk_alarm(private_broker, on=True)
        for lane in opened:  # a connection is blocked when it publishes
            await lane.send(blocks.Block([relay_lanes.row()], relay_lanes.Changes()))
        await relay_lanes.until(lambda: one.blocked and other.blocked)
        assert changes.count == 1
        waiting = [asyncio.ensure_future(relay_lanes.publish(lane, rows[:20], rows[20:])) for lane in opened]
        late = asyncio.ensure_future(relay_lanes.publish(opened[0], _more_than_a_socket_holds(), *([row] for row in rows[:8])))
        assert not (await asyncio.wait((*waiting, late), timeout=0.1))[0]
        assert isinstance(opened[0], channels.BlockChannel)
        assert opened[0].write_queue.qsize() < 4  # a lane leaves the client's ten places to the others, and to the answer to a close

        await relay_lanes.disk_alarm(private_broker, on=False)

        confirmed = Outcome.CONFIRMED
        assert await waiting[0] == await waiting[1] == [[confirmed] * 20, [confirmed] * 30]
        assert await late == [[confirmed] * 5, *[[confirmed]] * 8]
        await relay_lanes.until(lambda: not one.blocked and not other.blocked)
        assert changes.count == 2
        assert [lane.closed for lane in opened] == [None, None]


async def test_a_broker_that_dies_while_it_is_full_leaves_nobody_waiting(private_broker: servers.Broker) -> None:
    """SIGKILL with megabytes unread and senders waiting: each send ends, each lane says so, and closing takes no two seconds."""
    url = private_broker.amqp_url()
    async with relay_lanes.connected(url) as one, relay_lanes.connected(url, plain=True) as other, relay_lanes.connected(url) as third:
        first, second, cut = [await one.lane(shard) for shard in range(3)]
        plain, last = await other.lane(0), await third.lane(0)
        await relay_lanes.disk_alarm(private_broker, on=True)
        for lane in (first, plain, last):
            await lane.send(blocks.Block([relay_lanes.row()], relay_lanes.Changes()))
        await relay_lanes.until(lambda: one.blocked and other.blocked and third.blocked)
        await plain.send(blocks.Block(_more_than_a_socket_holds(), relay_lanes.Changes()))
        sends = [
            asyncio.ensure_future(relay_lanes.publish(lane, _more_than_a_socket_holds(), [relay_lanes.row()])) for lane in (first, last)
        ]
        await relay_lanes.until(lambda: _stays_full(first))
        sends += [asyncio.ensure_future(relay_lanes.publish(lane, [relay_lanes.row()])) for lane in (second, cut, cut)]
        assert not (await asyncio.wait(sends, timeout=0.1))[0]

        sends[-2].cancel()
        await relay_lanes.until(lambda: cut.closed)
        await third.close()  # nobody reads what it wrote
        await relay_lanes.until(lambda: last.closed)
        private_broker.kill()
        results = await asyncio.gather(*sends, return_exceptions=True)

        assert [type(result) for result in results] == [
            amqp.BrokerUnavailableError,
            amqp.BrokerUnavailableError,
            amqp.BrokerUnavailableError,
            asyncio.CancelledError,
            amqp.BrokerUnavailableError,
        ]
        assert cut.closed == "a block was not written"  # and what follows it would get the wrong answers
        await relay_lanes.until(lambda: plain.closed)
        assert [lane.reply_code for lane in (first, second, cut, plain, last)] == [None] * 5
        assert not one.is_open


async def test_a_broker_that_cannot_be_reached_is_unavailable() -> None:
    """No listener, or one that hangs up: BrokerUnavailableError, and closing what was never open is nothing."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    for close_first in (False, True):
        if close_first:
            server.close()
            await server.wait_closed()
        broker = Broker(f"amqp://u:p@127.0.0.1:{port}/", "test", on_change=relay_lanes.Changes())

        with pytest.raises(amqp.BrokerUnavailableError, match="no connection to the broker"):
            await broker.open()

        with pytest.raises(amqp.BrokerUnavailableError, match="not open"):
            await broker.lane(0)
        assert (broker.is_open, broker.blocked) == (False, False)
        await broker.close()


async def test_a_lane_that_is_being_opened_while_the_broker_is_closed_is_unavailable(vhost: str) -> None:
    """Whoever waits for the channel hears of it at once."""
    async with _deaf_to(OPEN_CHANNEL, vhost) as url, relay_lanes.connected(url) as broker:
        opening = asyncio.ensure_future(broker.lane(0))
        assert not (await asyncio.wait((opening,), timeout=0.1))[0]

        await broker.close()

        assert (await asyncio.wait((opening,), timeout=10))[0]
        with pytest.raises(amqp.BrokerUnavailableError, match="no channel for shard 0") as heard:
            await opening
        assert not isinstance(heard.value.__cause__, TimeoutError)  # which comes by itself, later


async def test_aiormq_is_what_the_block_publish_relies_on() -> None:
    """Fails when an upgrade of the client changes what BlockChannel reaches into: then read its channel.py again, and TESTED follows."""
    assert channels.unsupported() is None


DIFFERENT: list[tuple[Any, str, object, str]] = [
    (metadata, "version", lambda _: "7.3.0", "aiormq 7.3.0 is installed"),
    (aiormq.Channel, "_get_frame", None, "has no Channel._get_frame"),
    (
        aiormq.Channel,
        "_on_confirm_frame",
        lambda self, frame, more: (self, frame, more),
        "another Channel._on_confirm_frame(self, frame, more)",
    ),
    (aiormq.Channel, "_reader", lambda self: self, "no longer uses _on_confirm_frame in Channel._reader"),
    (aiormq.Connection, "_Connection__writer", None, "no longer uses payload in Connection._Connection__writer"),
    (aiormq.abc, "ChannelFrame", aiormq.abc.FrameReceived, "another ChannelFrame"),
]


@pytest.mark.parametrize("different", DIFFERENT, ids=[words for *_, words in DIFFERENT])
async def test_what_is_different_in_aiormq_is_named(monkeypatch: pytest.MonkeyPatch, different: tuple[Any, str, object, str]) -> None:
    """A version that nobody tested, a method that is gone, takes something else or is no longer called: one sentence says which."""
    target, name, value, words = different
    with monkeypatch.context() as changed:
        if isinstance(target, type):  # a subclass: other threads of this run declare topologies with the class meanwhile
            changed_class = type(target.__name__, (target,), {name: value})
            for table in ("RELIES_ON", "MENTIONS"):
                rows = [(changed_class if owner is target else owner, *rest) for owner, *rest in getattr(channels, table)]
                changed.setattr(channels, table, rows)
        else:
            changed.setattr(target, name, value)
        reason = channels.unsupported()

    assert words in str(reason)


async def test_with_another_aiormq_the_plain_lane_publishes(vhost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One warning says why, and rows are confirmed as ever."""
    monkeypatch.setattr(metadata, "version", lambda _: "7.3.0")
    structlog.reset_defaults()  # another test may have set a level that hides warnings

    with structlog.testing.capture_logs() as logs:
        async with relay_lanes.connected(vhost) as broker:
            lane = await broker.lane(0)
            outcomes = await relay_lanes.publish(lane, [relay_lanes.row()])

    assert isinstance(lane, lanes.PlainLane)
    assert outcomes == [[Outcome.CONFIRMED]]
    assert [(line["event"], line["log_level"], line["reason"]) for line in logs] == [
        ("relay.plain_publish", "warning", "aiormq 7.3.0 is installed, and the block publish was tested with 7.2.4")
    ]
