"""AMQP 0-9-1 on a plain socket; content headers stay bytes, so that no message can make it fail. It must not know any queue."""

import collections
import socket
import ssl
import struct
import time
import urllib.parse
from types import TracebackType
from typing import Final, Literal, Self, TypeVar

import msgspec
import pamqp.base
import pamqp.commands
import pamqp.common
import pamqp.exceptions
import pamqp.frame

from sagapost_chassis import amqp

TIMEOUT_S: Final = 10.0
CONFIRM_S: Final = 30.0
_GREETING: Final = b"AMQP\x00\x00\x09\x01"
_CHUNK_BYTES: Final = 262_144
_METHOD: Final = 1
_HEADER: Final = 2
_BODY: Final = 3
_END: Final = b"\xce"
_DELIVER: Final = 60 << 16 | 60
_RETURN: Final = 60 << 16 | 50
_CAPABILITIES: Final = {
    "authentication_failure_close": True,  # otherwise a wrong password looks like a broken network
    "basic.nack": True,
    "connection.blocked": True,
    "consumer_cancel_notify": True,
    "publisher_confirms": True,
}

F = TypeVar("F", bound=pamqp.base.Frame)
Outcome = Literal["stored", "unroutable", "refused"]


class WireError(RuntimeError):
    """The connection cannot be made or broke; what was under way may or may not have happened."""


class RefusedError(WireError):
    """The broker closed connection or channel and said why; `code` is AMQP's."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """A message as it came: `properties` are the bytes behind the body's size in its content header."""

    channel: int
    tag: int
    properties: bytes
    body: bytes


class _Coming(msgspec.Struct):
    """A message of which not everything has arrived; a returned one has no tag."""

    tag: int | None
    missing_bytes: int = 0
    properties: bytes = b""
    parts: list[bytes] = msgspec.field(default_factory=list[bytes])


class Link:
    """One connection; every call waits for its answer."""

    def __init__(self, url: str, name: str) -> None:
        self.blocked = ""  # the broker's reason to take nothing for now
        self._channels = 0
        self._frame_max = 131_072
        self._buffer = bytearray()
        self._answers: list[tuple[int, pamqp.base.Frame]] = []
        self._coming: dict[int, _Coming] = {}
        self._delivered: dict[int, collections.deque[Delivery]] = {}
        self._returned = 0
        parts, self._socket = _reached(url)
        try:
            self._shake_hands(parts, name)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if exc is None:  # in order, so that the last acknowledgements are taken
                self.call(0, pamqp.commands.Connection.Close(reply_code=200, class_id=0, method_id=0), pamqp.commands.Connection.CloseOk)
        finally:
            self._socket.close()

    def channel(self, *, confirms: bool = False) -> int:
        """Open one more channel, and give its number."""
        self._channels += 1
        self.call(self._channels, pamqp.commands.Channel.Open(), pamqp.commands.Channel.OpenOk)
        if confirms:
            self.call(self._channels, pamqp.commands.Confirm.Select(), pamqp.commands.Confirm.SelectOk)
        return self._channels

    def close_channel(self, channel: int) -> None:
        """Close a channel: what it has not acknowledged goes back to its place."""
        self.call(channel, pamqp.commands.Channel.Close(reply_code=200, class_id=0, method_id=0), pamqp.commands.Channel.CloseOk)
        self._delivered.pop(channel, None)

    def consume(self, channel: int, queue: str, at_most: int) -> None:
        """Let messages come, at most so many unacknowledged."""
        self.call(channel, pamqp.commands.Basic.Qos(prefetch_count=at_most), pamqp.commands.Basic.QosOk)
        self.call(channel, pamqp.commands.Basic.Consume(queue=queue, consumer_tag=_tag(channel)), pamqp.commands.Basic.ConsumeOk)

    def cancel(self, channel: int) -> None:
        """Let no further messages come; those that came stay unacknowledged."""
        self.call(channel, pamqp.commands.Basic.Cancel(consumer_tag=_tag(channel)), pamqp.commands.Basic.CancelOk)

    def depth(self, channel: int, queue: str) -> int:
        """Count the messages that are ready in a queue.

        Raises:
            RefusedError: 404, there is no such queue; 403, it may not be seen.

        """
        asked = pamqp.commands.Queue.Declare(queue=queue, passive=True)
        return self.call(channel, asked, pamqp.commands.Queue.DeclareOk).message_count or 0

    def take(self, channel: int, timeout_s: float) -> Delivery | None:
        """Give the next message of a channel, or None when none came in time."""
        waiting = self._delivered.setdefault(channel, collections.deque())
        deadline = time.monotonic() + timeout_s
        while not waiting:
            if not self._step(max(0.0, deadline - time.monotonic())):
                return None
        return waiting.popleft()

    def ack(self, delivery: Delivery) -> None:
        """Acknowledge one message; the broker does not answer to that."""
        self._send(delivery.channel, pamqp.commands.Basic.Ack(delivery_tag=delivery.tag))

    def publish(self, channel: int, queue: str, properties: bytes, body: bytes) -> Outcome:
        """Publish to one queue through the default exchange, mandatory, on a channel with confirms, and wait for what became of it.

        Raises:
            WireError: nobody knows whether it was stored.

        """
        self._returned = 0
        method = pamqp.frame.marshal(pamqp.commands.Basic.Publish(exchange="", routing_key=queue, mandatory=True), channel)
        header = _framed(_HEADER, channel, struct.pack(">HHQ", 60, 0, len(body)) + properties)
        size = self._frame_max - 8
        bodies = [_framed(_BODY, channel, body[at : at + size]) for at in range(0, len(body), size)]
        self._write(b"".join((method, header, *bodies)))
        answer = self._answer(channel, (pamqp.commands.Basic.Ack, pamqp.commands.Basic.Nack), CONFIRM_S)
        if isinstance(answer, pamqp.commands.Basic.Nack):
            return "refused"
        return "unroutable" if self._returned else "stored"

    def call(self, channel: int, method: pamqp.base.Frame, answer: type[F]) -> F:
        """Send a method and wait for its answer.

        Raises:
            RefusedError: the broker does not want it.
            WireError: no answer.

        """
        self._send(channel, method)
        found = self._answer(channel, (answer,), TIMEOUT_S)
        if not isinstance(found, answer):
            raise WireError(f"the broker answered {type(found).__name__}")
        return found

    def _shake_hands(self, parts: urllib.parse.SplitResult, name: str) -> None:
        user, password = (urllib.parse.unquote(given or "guest") for given in (parts.username, parts.password))
        self._write(_GREETING)
        self._answer(0, (pamqp.commands.Connection.Start,), TIMEOUT_S)
        known: dict[str, pamqp.common.FieldValue] = {"connection_name": name, "product": "sagapost", "capabilities": dict(_CAPABILITIES)}
        self._send(0, pamqp.commands.Connection.StartOk(client_properties=known, response=f"\0{user}\0{password}"))
        tune = self._answer(0, (pamqp.commands.Connection.Tune,), TIMEOUT_S)
        if not isinstance(tune, pamqp.commands.Connection.Tune):
            raise WireError("the broker does not speak AMQP 0-9-1")
        self._frame_max = tune.frame_max or self._frame_max
        # no heartbeats: nobody would answer them between two reads; every wait here has an end of its own
        self._send(0, pamqp.commands.Connection.TuneOk(channel_max=tune.channel_max, frame_max=self._frame_max, heartbeat=0))
        vhost = urllib.parse.unquote(parts.path.removeprefix("/")) or "/"
        self.call(0, pamqp.commands.Connection.Open(virtual_host=vhost), pamqp.commands.Connection.OpenOk)

    def _send(self, channel: int, method: pamqp.base.Frame) -> None:
        self._write(pamqp.frame.marshal(method, channel))

    def _write(self, data: bytes) -> None:
        try:
            self._socket.settimeout(CONFIRM_S)
            self._socket.sendall(data)
        except OSError as exc:
            raise WireError(f"the connection broke: {exc}") from exc

    def _answer(self, channel: int, kinds: tuple[type[pamqp.base.Frame], ...], timeout_s: float) -> pamqp.base.Frame:
        deadline = time.monotonic() + timeout_s
        while True:
            for place, (number, method) in enumerate(self._answers):
                if number == channel and isinstance(method, kinds):
                    del self._answers[place]
                    return method
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not self._step(left_s):
                why = f"; it takes no messages for now: {self.blocked}" if self.blocked else ""
                raise WireError(f"the broker did not answer within {timeout_s:.0f} s{why}")

    def _step(self, timeout_s: float) -> bool:
        """Read one frame; False when none came in time."""
        frame = self._frame(timeout_s)
        if frame is None:
            return False
        kind, channel, payload = frame[0], int.from_bytes(frame[1:3], "big"), frame[7:-1]
        if kind == _METHOD:
            self._on_method(channel, frame, payload)
        elif kind == _HEADER:
            coming = self._coming[channel]
            coming.missing_bytes = int.from_bytes(payload[4:12], "big")
            coming.properties = payload[12:]
            self._maybe_whole(channel, coming)
        elif kind == _BODY:
            coming = self._coming[channel]
            coming.parts.append(payload)
            coming.missing_bytes -= len(payload)
            self._maybe_whole(channel, coming)
        return True

    def _on_method(self, channel: int, frame: bytes, payload: bytes) -> None:
        index = int.from_bytes(payload[:4], "big")
        if index == _DELIVER:  # by hand: a routing key need not be UTF-8
            start = 5 + payload[4]
            self._coming[channel] = _Coming(tag=int.from_bytes(payload[start : start + 8], "big"))
            return
        if index == _RETURN:
            self._returned += 1
            self._coming[channel] = _Coming(tag=None)
            return
        try:
            method = pamqp.frame.unmarshal(frame)[2]
        except pamqp.exceptions.PAMQPException as exc:
            raise WireError(f"the broker sent what cannot be read: {exc}") from exc
        if isinstance(method, pamqp.commands.Connection.Close | pamqp.commands.Channel.Close):
            is_channel = isinstance(method, pamqp.commands.Channel.Close)
            self._send(channel, pamqp.commands.Channel.CloseOk() if is_channel else pamqp.commands.Connection.CloseOk())
            raise RefusedError(method.reply_code or 0, method.reply_text)
        if isinstance(method, pamqp.commands.Basic.Cancel):
            raise WireError("the queue was deleted, or its leader is gone")
        if isinstance(method, pamqp.commands.Connection.Blocked):
            self.blocked = method.reason or "no reason given"
        elif isinstance(method, pamqp.commands.Connection.Unblocked):
            self.blocked = ""
        elif isinstance(method, pamqp.base.Frame):
            self._answers.append((channel, method))

    def _maybe_whole(self, channel: int, coming: _Coming) -> None:
        if coming.missing_bytes > 0:
            return
        del self._coming[channel]
        if coming.tag is not None:
            whole = Delivery(channel=channel, tag=coming.tag, properties=coming.properties, body=b"".join(coming.parts))
            self._delivered.setdefault(channel, collections.deque()).append(whole)

    def _frame(self, timeout_s: float) -> bytes | None:
        deadline = time.monotonic() + timeout_s
        while True:
            if len(self._buffer) >= 7:
                size = 8 + int.from_bytes(self._buffer[3:7], "big")
                if len(self._buffer) >= size:
                    frame = bytes(self._buffer[:size])
                    del self._buffer[:size]
                    return frame
            try:
                self._socket.settimeout(max(0.001, deadline - time.monotonic()))
                more = self._socket.recv(_CHUNK_BYTES)
            except TimeoutError:
                return None
            except OSError as exc:
                raise WireError(f"the connection broke: {exc}") from exc
            if not more:
                raise WireError("the broker closed the connection")
            self._buffer += more


def _reached(url: str) -> tuple[urllib.parse.SplitResult, socket.socket]:
    """Connect to the first node of a cluster that answers."""
    left = [urllib.parse.urlsplit(node) for node in amqp.nodes(url)]
    while True:
        parts = left.pop()
        try:
            return parts, _connected(parts)
        except WireError:
            if not left:
                raise


def _connected(parts: urllib.parse.SplitResult) -> socket.socket:
    secure = parts.scheme == "amqps"
    host = parts.hostname or "127.0.0.1"
    try:
        made = socket.create_connection((host, parts.port or (5671 if secure else 5672)), timeout=TIMEOUT_S)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not secure:
            return made
        authority = dict(urllib.parse.parse_qsl(parts.query)).get("cafile")
        return ssl.create_default_context(cafile=authority).wrap_socket(made, server_hostname=host)
    except OSError as exc:
        raise WireError(f"no connection: {exc}") from exc


def _framed(kind: int, channel: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + _END


def _tag(channel: int) -> str:
    return f"sagapost-dlq-{channel}"
