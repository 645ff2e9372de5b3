"""Messages as raw frames: properties that no client library would write, published on a plain socket or put in on the way to a client."""

import asyncio
import contextlib
import socket
import struct
import urllib.parse
from collections.abc import AsyncGenerator, Mapping
from typing import Final, Self

from pamqp import base, commands, constants, frame, header
from pamqp.commands import Basic

TIMEOUT_S: Final = 10


def short(value: bytes) -> bytes:
    """Write a short string."""
    return bytes([len(value)]) + value


def long(value: bytes) -> bytes:
    """Write what begins with its length in four bytes: a table, a long string."""
    return struct.pack(">I", len(value)) + value


def nested(depth: int) -> bytes:
    """Write a header table that holds a table that holds a table."""
    table = b""
    for _ in range(depth):
        table = short(b"n") + b"F" + long(table)
    return long(table)


PROPERTIES: Final[Mapping[str, tuple[str, bytes]]] = {
    "delivery mode": ("delivery_mode", b"\x03"),
    "expiration": ("expiration", short(b"soon")),
    "message id": ("message_id", short(b"\xff\xfe")),
    "type": ("message_type", short(b"Cancel\xff")),
    "timestamp": ("timestamp", struct.pack(">Q", 2**63)),
    "nested headers": ("headers", nested(2_000)),
}
REASONS: Final[Mapping[str, str]] = {
    "delivery mode": "delivery_mode 3 is neither 1 nor 2",
    "expiration": "expiration 'soon' is not a number",
    "message id": "unreadable properties: message_id: ",
    "type": "unreadable properties: type: ",
    "timestamp": "unreadable properties: timestamp: ",
    "nested headers": "unreadable properties: header 'n': nested too deep",
}


def listed(values: Mapping[str, bytes]) -> bytes:
    """Write a list of properties as it stands in a content header."""
    flags = sum(Basic.Properties.flags[name] for name in values)
    return struct.pack(">H", flags) + b"".join(values[name] for name in Basic.Properties.attributes() if name in values)


def plain(message_id: str, type_name: str, version: int = 1) -> dict[str, bytes]:
    """Write the properties of a good message, one by one."""
    return {
        "content_type": short(b"application/json"),
        "headers": long(short(b"schema-version") + b"I" + struct.pack(">i", version)),
        "delivery_mode": b"\x02",
        "message_id": short(message_id.encode()),
        "message_type": short(type_name.encode()),
    }


def poisoned(kind: str, message_id: str, type_name: str) -> bytes:
    """Write the properties of a message of which one is poison."""
    name, raw = PROPERTIES[kind]
    return listed({**plain(message_id, type_name), name: raw})


class Publisher:
    """A connection on a plain socket that publishes whatever bytes it is given, confirmed."""

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        self._socket = socket.create_connection((parts.hostname or "", parts.port or 0), timeout=TIMEOUT_S)
        self._socket.sendall(header.ProtocolHeader().marshal())
        self._wait(commands.Connection.Start)
        names = [urllib.parse.unquote(part or "") for part in ("", parts.username, parts.password)]
        self._send(0, commands.Connection.StartOk({}, "PLAIN", "\0".join(names), "en_US"))
        self._wait(commands.Connection.Tune)
        self._send(0, commands.Connection.TuneOk(2_047, 131_072, 0))
        self._send(0, commands.Connection.Open(urllib.parse.unquote(parts.path[1:])))
        self._wait(commands.Connection.OpenOk)
        self._channel = 0
        self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def publish(self, properties: bytes, content: bytes, routing_key: bytes, exchange: str = "") -> str | None:
        """Publish one message; say why the broker refused it, None when it is stored."""
        method = struct.pack(">IH", Basic.Publish.index, 0) + short(exchange.encode()) + short(routing_key) + b"\0"
        top = struct.pack(">HHQ", commands.Basic.frame_id, 0, len(content)) + properties
        parts = [(constants.FRAME_METHOD, method), (constants.FRAME_HEADER, top)]
        parts += [(constants.FRAME_BODY, content[at : at + 100_000]) for at in range(0, len(content), 100_000)]
        self._socket.sendall(b"".join(_frame(kind, self._channel, payload) for kind, payload in parts))
        answer = self._wait(Basic.Ack, Basic.Nack, commands.Channel.Close)
        if isinstance(answer, commands.Channel.Close):
            self._send(self._channel, commands.Channel.CloseOk())
            self._open()
            return str(answer.reply_text)
        return None if isinstance(answer, Basic.Ack) else "nacked"

    def _open(self) -> None:
        self._channel += 1
        self._send(self._channel, commands.Channel.Open())
        self._wait(commands.Channel.OpenOk)
        self._send(self._channel, commands.Confirm.Select())
        self._wait(commands.Confirm.SelectOk)

    def _send(self, channel: int, method: base.Frame) -> None:
        self._socket.sendall(frame.marshal(method, channel))

    def _wait(self, *wanted: type[base.Frame]) -> base.Frame:
        while True:
            head = self._exactly(7)
            data = head + self._exactly(int.from_bytes(head[3:], "big") + 1)
            found = frame.unmarshal(data)[2]
            if isinstance(found, base.Frame) and isinstance(found, wanted):
                return found
            assert not isinstance(found, commands.Connection.Close), found.reply_text

    def _exactly(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            more = self._socket.recv(size - len(found))
            assert more, "the broker hung up"
            found += more
        return found


def _frame(kind: int, channel: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + constants.FRAME_END_CHAR


class Rewriter:
    """Stands between a client and the broker, and gives messages of `body_bytes` other properties; counts the connections."""

    def __init__(self, url: str) -> None:
        self._parts = urllib.parse.urlsplit(url)
        self.replaced: dict[int, bytes] = {}
        self.connections = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def put(self, body_bytes: int, properties: bytes) -> None:
        """Give each message whose body is exactly this long these properties."""
        self.replaced[body_bytes] = properties

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncGenerator[str]:
        """Run it on a free port, and give the URL that leads through it."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            yield self._parts._replace(netloc=f"{self._parts.netloc.rpartition('@')[0]}@127.0.0.1:{port}").geturl()
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
        source, target = await asyncio.open_connection(self._parts.hostname, self._parts.port)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_copied(reader, target))
                group.create_task(self._frames(source, writer))
        finally:
            target.close()
            writer.close()

    async def _frames(self, source: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError, RuntimeError):  # uvloop: the transport is closed
            while True:
                head = await source.readexactly(7)
                payload = (await source.readexactly(int.from_bytes(head[3:], "big") + 1))[:-1]
                if head[0] == constants.FRAME_HEADER:
                    payload = payload[:12] + self.replaced.get(int.from_bytes(payload[4:12], "big"), payload[12:])
                writer.write(_frame(head[0], int.from_bytes(head[1:3], "big"), payload))
                await writer.drain()
        writer.close()


async def _copied(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, RuntimeError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()
