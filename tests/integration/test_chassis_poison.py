"""Messages that the client cannot read, or cannot write again: dead letters at first sight, and no connection is lost."""

import asyncio
import contextlib
import struct
from collections.abc import AsyncGenerator, Callable
from importlib import metadata
from typing import Any

import msgspec
import pytest
from integration import poison_frames, queue_kit
from integration.poison_frames import long, short

from sagapost_chassis import amqp, consuming, ids
from sagapost_contracts import events, topology
from sagapost_sandbox.testing import polling

pytestmark = pytest.mark.anyio
QUEUE = topology.PAYMENT_QUEUE
DEAD = topology.dead_letter_queue(QUEUE)
KIND = "CancelPayment"


class Box:
    """Where a test's handler keeps what it was given."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.seen: list[consuming.Delivery] = []
        self.failure = failure

    async def handle(self, delivery: consuming.Delivery) -> None:
        """Keep it, and fail when the test says so."""
        self.seen.append(delivery)
        if self.failure is not None:
            raise self.failure


@contextlib.asynccontextmanager
async def _consuming(url: str, broker_url: str, box: Box, queue: str = QUEUE) -> AsyncGenerator[None]:
    """Consume through `url` and publish copies straight to the broker, for as long as the block takes."""
    stop = asyncio.Event()
    async with amqp.Publisher(broker_url, "test") as publisher:
        handlers: dict[type[events.Message], consuming.Handler] = {events.CancelPayment: box.handle, events.EmailSent: box.handle}
        consumer = consuming.Consumer(url, queue, handlers, publisher, retry_delays_s=(1,))
        task = asyncio.create_task(consumer.run(stop))
        await polling.eventually(consumer.check, 60)
        yield
        stop.set()
        await task


def _body(number: int, size: int = 0) -> bytes:
    message = events.CancelPayment(order_id=number, saga_id=ids.uuid7(), reason="test", saga_version=1)
    return msgspec.json.encode(message).ljust(size)


def _holds(box: Box, count: int) -> Callable[[], Any]:
    async def holds() -> bool:
        return len(box.seen) >= count

    return holds


@pytest.mark.parametrize("kind", poison_frames.PROPERTIES)
async def test_an_unreadable_property_is_a_dead_letter_and_no_lost_connection(kind: str, vhost: str) -> None:
    """Among good messages it is set aside once, its body byte for byte and the reason true, on the one connection that goes on."""
    box, rewriter, poison_id = Box(), poison_frames.Rewriter(vhost), str(ids.uuid7())
    poison = poison_frames.poisoned(kind, poison_id, KIND)
    body = _body(2, 777)
    async with rewriter.listening() as url, _consuming(url, vhost, box):
        with poison_frames.Publisher(vhost) as raw:
            for number in (1, 2, 3):
                good = poison_frames.listed(poison_frames.plain(str(ids.uuid7()), KIND))
                if number != 2:
                    assert raw.publish(good, _body(number), QUEUE.encode()) is None
                elif raw.publish(poison, body, QUEUE.encode()) is not None:  # a broker that refuses it may still get it another way
                    rewriter.put(len(body), poison)
                    assert raw.publish(good, body, QUEUE.encode()) is None
        dead = await queue_kit.take(vhost, DEAD)
        await polling.eventually(_holds(box, 2))

    assert sorted(delivery.message.order_id for delivery in box.seen) == [1, 3]
    assert rewriter.connections == 1
    assert dead.body == body
    assert poison_frames.REASONS[kind] in str(dead.headers["x-exception-message"])
    assert (dead.headers["x-exception-type"], dead.headers["x-attempt"]) == ("UndecodableError", 1)
    assert dead.headers["x-fingerprint"] == "UndecodableError@arrivals.py:check"
    assert dead.headers["x-original-routing-key"] == QUEUE
    assert dead.headers["x-first-failed-at"] == dead.headers["x-failed-at"]
    assert dead.headers.get("schema-version") == (None if kind == "nested headers" else 1)
    assert (dead.message_id == poison_id) == (kind != "message id")  # the client makes one up where there is none
    assert dead.type == (None if kind == "type" else KIND)
    assert [await queue_kit.depth(vhost, name) for name in (QUEUE, DEAD)] == [0, 0]


async def test_a_routing_key_that_is_no_text_is_read_past(vhost: str) -> None:
    """A topic binding lets any bytes through; the message is good, so it is handled, and the connection stays."""
    box, rewriter = Box(), poison_frames.Rewriter(vhost)
    message = events.EmailSent(order_id=7, saga_id=ids.uuid7(), template="receipt", smtp_message_id="1")
    async with rewriter.listening() as url, _consuming(url, vhost, box, topology.ORDER_QUEUE):
        with poison_frames.Publisher(vhost) as raw:
            good = poison_frames.listed(poison_frames.plain(str(ids.uuid7()), "EmailSent"))
            assert raw.publish(good, msgspec.json.encode(message), b"email.email.\xff\xfe", topology.EXCHANGE) is None
        await polling.eventually(_holds(box, 1))

    assert box.seen[0].message == message
    assert rewriter.connections == 1


ODD_HEADERS = {
    "as large as a frame": (short(b"large") + b"S" + long(b"x" * 130_000), {"x-headers-left-out": 1}),
    "a float of eight bytes": (short(b"float") + b"d" + struct.pack(">d", 1e300), {"float": "1e+300"}),
    "bytes": (short(b"bytes") + b"S" + long(b"\xff"), {"bytes": "\\xff"}),
    "bytes in a list": (short(b"list") + b"A" + long(b"S" + long(b"\xff")), {"list": "[b'\\xff']"}),
    "nested as deep as can be read": (short(b"deep") + b"F" + poison_frames.nested(200), {"deep": "(nested deeper than 32)"}),
    "a name of 255 bytes": (short(b"n" * 255) + b"t\x01", {"n" * 128: True}),
    "marks of a replay": (
        short(b"x-replay-id") + b"S" + long(b"r-1") + short(b"x-replay-count") + b"I" + struct.pack(">i", 2),
        {"x-replay-id": "r-1", "x-replay-count": 2},
    ),
}


@pytest.mark.parametrize(("entry", "kept"), ODD_HEADERS.values(), ids=ODD_HEADERS)
async def test_any_header_that_can_be_read_survives_the_ladder(entry: bytes, kept: dict[str, Any], vhost: str) -> None:
    """A message that fails reaches its dead-letter queue with its headers, or a text for what cannot be sent, and no other queue."""
    box = Box(ValueError("always \ud800"))
    values = poison_frames.plain(str(ids.uuid7()), KIND)
    values["headers"] = long(values["headers"][4:] + entry)
    async with _consuming(vhost, vhost, box):
        with poison_frames.Publisher(vhost) as raw:
            assert raw.publish(poison_frames.listed(values), _body(1), QUEUE.encode()) is None
        dead = await queue_kit.take(vhost, DEAD)

    added = {
        "x-delivery-count",  # the broker's, of this queue
        "x-exception-type",
        "x-exception-message",
        "x-attempt",
        "x-fingerprint",
        "x-first-failed-at",
        "x-failed-at",
        "x-original-routing-key",
    }
    assert [delivery.attempt for delivery in box.seen] == [1, 2]
    assert (dead.headers["x-exception-type"], dead.headers["x-exception-message"]) == ("ValueError", "always \\ud800")
    assert (dead.headers["x-attempt"], dead.headers["x-original-routing-key"]) == (2, QUEUE)
    assert str(dead.headers["x-first-failed-at"]) < str(dead.headers["x-failed-at"])
    assert {name: value for name, value in dead.headers.items() if name not in added} == {"schema-version": 1, **kept}
    assert await queue_kit.depth(vhost, topology.EMAIL_QUEUE) == 0


async def test_a_body_beyond_the_limit_is_not_decoded(vhost: str) -> None:
    """It is set aside whole, and said how long it is."""
    box, body = Box(), _body(1, 1_000_001)
    async with _consuming(vhost, vhost, box):
        with poison_frames.Publisher(vhost) as raw:
            assert raw.publish(poison_frames.listed(poison_frames.plain(str(ids.uuid7()), KIND)), body, QUEUE.encode()) is None
        dead = await queue_kit.take(vhost, DEAD)

    assert dead.headers["x-exception-message"] == "a body of 1000001 bytes; at most 1000000 are read"
    assert dead.body == body
    assert not box.seen


async def test_with_another_client_the_broker_sets_it_aside(vhost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the lenient reader each delivery costs a connection, up to the delivery limit; a good message behind it is handled."""
    monkeypatch.setattr(metadata, "version", lambda _: "99.1")
    box, rewriter = Box(), poison_frames.Rewriter(vhost)
    with poison_frames.Publisher(vhost) as raw:
        assert raw.publish(poison_frames.poisoned("timestamp", str(ids.uuid7()), KIND), _body(1), QUEUE.encode()) is None
        assert raw.publish(poison_frames.listed(poison_frames.plain(str(ids.uuid7()), KIND)), _body(2), QUEUE.encode()) is None
    async with rewriter.listening() as url, _consuming(url, vhost, box):
        await polling.eventually(_holds(box, 1), 60)

        async def dead() -> bool:
            return await queue_kit.depth(vhost, DEAD) == 1

        await polling.eventually(dead, 30)

    assert [delivery.message.order_id for delivery in box.seen] == [2]
    assert rewriter.connections > topology.DELIVERY_LIMIT
