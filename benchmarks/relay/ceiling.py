"""What a publisher that costs nothing gets confirmed: encoded frames on a plain socket; must not know any database."""

import multiprocessing
import multiprocessing.connection
import signal
import struct
import time
from datetime import UTC, datetime
from typing import Final

import msgspec
import pamqp.commands

from benchmarks.relay import measured, stamps, wire
from sagapost_chassis import ids
from sagapost_contracts import envelope, topology

UNCONFIRMED: Final = 2048
AGGREGATES: Final = 100
_BLOCK: Final = 64
_TIMEOUT_S: Final = 120.0
_METHOD: Final = struct.Struct(">BHIHH")  # frame type, channel, size, class, method
_TAG: Final = struct.Struct(">QB")
_ACK: Final = (60, 80)
_FRAME_BYTES: Final = 8


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to publish; without headers a message is as light as the peers send it."""

    url: str
    count: int
    size_bytes: int
    headers: bool


def run(order: Order) -> float:
    """Publish in a process of its own; give the messages confirmed per second.

    Raises:
        WireError: the broker refused or did not confirm in time.

    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(theirs, order), daemon=True, name="ceiling")
    process.start()
    theirs.close()
    try:
        if not ours.poll(_TIMEOUT_S):
            raise wire.WireError(f"the ceiling's messages were not confirmed within {_TIMEOUT_S:.0f} s")
        kind, value = ours.recv()
    finally:
        process.kill()
        process.join()
        ours.close()
    if kind == "failed":
        raise wire.WireError(f"the ceiling's publisher ended: {value}")
    return float(value)


def _run(pipe: multiprocessing.connection.Connection, order: Order) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        link = wire.Link(order.url)
        link.call(pamqp.commands.Confirm.Select(), pamqp.commands.Confirm.SelectOk)
        blocks = _encode(order)
        started = time.perf_counter()
        _publish(link, blocks, order.count)
        pipe.send(("rate", order.count / (time.perf_counter() - started)))
    except (OSError, wire.WireError) as exc:
        pipe.send(("failed", f"{type(exc).__name__}: {exc}"))


def _encode(order: Order) -> list[bytes]:
    """Encode everything beforehand, in blocks; one message is the template of all."""
    sealed = envelope.seal(
        measured.Measured(order_id=0, saga_id=ids.uuid7(), stamp="", pad=""),
        message_id=ids.uuid7(),
        source="bench",
        time=datetime.now(UTC),
        causation_id=None,
        traceparent=None,
    )
    properties = pamqp.commands.Basic.Properties(
        content_type="application/json",
        delivery_mode=2,
        message_id=str(sealed.message_id),
        correlation_id=sealed.correlation_id if order.headers else None,
        timestamp=sealed.time if order.headers else None,
        message_type=sealed.type if order.headers else None,
        headers=dict(sealed.headers()) if order.headers else None,
    )
    template = stamps.body(0, 0, 0, order.size_bytes)
    frames = wire.encode(template, exchange=topology.EXCHANGE, routing_key=stamps.ROUTED, properties=properties)
    placeholder = stamps.stamp(0, 0, 0).encode()
    messages = [
        frames.replace(placeholder, stamps.stamp(number, number % AGGREGATES, number // AGGREGATES).encode())
        for number in range(order.count)
    ]
    return [b"".join(messages[first : first + _BLOCK]) for first in range(0, len(messages), _BLOCK)]


class Confirms:
    """Which tags are confirmed: all up to `floor`, and some above it."""

    def __init__(self, left: bytes) -> None:
        self._left = left
        self._floor = 0
        self._above: set[int] = set()

    @property
    def count(self) -> int:
        """How many are confirmed."""
        return self._floor + len(self._above)

    def read(self, received: bytes) -> None:
        """Take in what the broker sent; an incomplete frame waits for its rest."""
        self._left += received
        position = 0
        while len(self._left) - position >= _METHOD.size:
            _, _, size, *method = _METHOD.unpack_from(self._left, position)
            if len(self._left) - position < size + _FRAME_BYTES:
                break
            if tuple(method) != _ACK:
                raise wire.WireError(f"the broker sent method {tuple(method)} instead of a confirm")
            self._take(*_TAG.unpack_from(self._left, position + _METHOD.size))
            position += size + _FRAME_BYTES
        self._left = self._left[position:]

    def _take(self, tag: int, multiple: int) -> None:
        if multiple:
            self._floor = max(self._floor, tag)
            self._above = {one for one in self._above if one > self._floor}
        else:
            self._above.add(tag)
        while self._floor + 1 in self._above:
            self._floor += 1
            self._above.remove(self._floor)


def _publish(link: wire.Link, blocks: list[bytes], count: int) -> None:
    """Keep the window full, and read confirms only when it is."""
    confirms, sent = Confirms(link.left), 0
    for block in blocks:
        while sent + _BLOCK - confirms.count > UNCONFIRMED:
            confirms.read(_more(link))
        link.socket.sendall(block)
        sent += _BLOCK
    while confirms.count < count:
        confirms.read(_more(link))


def _more(link: wire.Link) -> bytes:
    received = link.socket.recv(65536)
    if not received:
        raise wire.WireError("the broker closed the publisher's connection")
    return received
