"""A pooler in transaction mode before a PostgreSQL server: each transaction gets the session that has been idle for longest."""

import asyncio
import contextlib
import itertools
import struct
from collections import deque
from collections.abc import AsyncGenerator
from typing import Final

_SSL, _GSS = 80877103, 80877104  # the codes of SSLRequest and GSSENCRequest
_NEEDS_ANSWER: Final = (3, 5, 10, 11)  # kinds of authentication requests, as in the protocol's "Message Formats"
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Pooler:
    """Runs each transaction of its clients in the session that has been idle for longest; of `clients` at a time, the others wait."""

    def __init__(self, host: str, port: int, clients: int) -> None:
        self._address = host, port
        self._places = asyncio.Semaphore(clients)
        self._idle: deque[Stream] = deque()
        self._returned = asyncio.Condition()
        self._pids = itertools.count(1)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client until it hangs up."""
        async with self._places:
            with contextlib.closing(writer):
                await self._serve(reader, writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await self._give_back(await self._introduced(reader, writer))
            while True:
                await self._transaction(reader, writer)

    async def _introduced(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Stream:
        """Open a session with the client's own words; the client is told a process id of ours."""
        while True:
            (size,) = struct.unpack("!I", await reader.readexactly(4))
            words = await reader.readexactly(size - 4)
            if struct.unpack("!I", words[:4])[0] not in {_SSL, _GSS}:
                break
            writer.write(b"N")
        server = await asyncio.open_connection(*self._address)
        server[1].write(struct.pack("!I", size) + words)
        while True:
            kind, body = await _message(server[0])
            if kind == b"K":
                body = struct.pack("!I", next(self._pids)) + body[4:]
            _send(writer, kind, body)
            if kind == b"R" and struct.unpack("!I", body[:4])[0] in _NEEDS_ANSWER:
                _send(server[1], *await _message(reader))
            if kind == b"Z":
                return server

    async def _transaction(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kind, body = await _message(reader)
        if kind == b"X":
            raise ConnectionResetError("the client hangs up")
        async with self._returned:
            await self._returned.wait_for(lambda: self._idle)
            server = self._idle.popleft()
        try:
            while True:
                _send(server[1], kind, body)
                if kind in {b"Q", b"S"} and await _answered(server[0], writer):
                    return
                kind, body = await _message(reader)
        finally:
            await self._give_back(server)

    async def _give_back(self, server: Stream) -> None:
        async with self._returned:
            self._idle.append(server)
            self._returned.notify()

    def close(self) -> None:
        """Close every idle session."""
        for _, writer in self._idle:
            writer.close()


async def _answered(server: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Hand an answer on, and return whether the transaction is over with it."""
    while True:
        kind, body = await _message(server)
        _send(writer, kind, body)
        if kind == b"Z":
            return body == b"I"


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    kind = await reader.readexactly(1)
    (size,) = struct.unpack("!I", await reader.readexactly(4))
    return kind, await reader.readexactly(size - 4)


def _send(writer: asyncio.StreamWriter, kind: bytes, body: bytes) -> None:
    writer.write(kind + struct.pack("!I", len(body) + 4) + body)


@contextlib.asynccontextmanager
async def before(host: str, port: int, clients: int = 100) -> AsyncGenerator[int]:
    """Run a pooler before a server, and give its port on 127.0.0.1."""
    pooler = Pooler(host, port, clients)
    listener = await asyncio.start_server(pooler.serve, "127.0.0.1", 0)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        pooler.close()
