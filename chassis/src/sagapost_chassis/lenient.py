"""The one module of the chassis that reaches under aio-pika: a connection whose reader survives properties the client cannot read.

`unsupported` says whether the installed client is one that this fits; without it such a message costs a connection at each delivery,
until the broker's delivery limit puts it into the dead-letter queue.
"""

import asyncio
import inspect
from importlib import metadata
from typing import Any, Final

import aio_pika
from aiormq import abc, connection
from pamqp import constants, header
from pamqp.commands import Basic

from sagapost_chassis import properties, telemetry

TESTED: Final = {"aiormq": ("7.2.4",), "pamqp": ("4.0.1",), "aio-pika": ("10.2.1",)}
# the whole of what FrameReceiver asks a reader for: one byte, six, then the rest of the frame
MENTIONS: Final[tuple[tuple[type, str, tuple[str, ...]], ...]] = (
    (connection.FrameReceiver, "get_frame", ("at_eof", "readexactly", "unmarshal")),
    (connection.Connection, "connect", ()),
    (header.ContentHeader, "unmarshal", ("_get_flags", "properties")),
    (aio_pika.Connection, "__init__", ("_parse_parameters", "kwargs")),
    (aio_pika.Connection, "connect", ("kwargs",)),
)
_HEAD_BYTES: Final = 7  # type, channel, length
_DELIVER: Final = Basic.Deliver.index.to_bytes(4, "big")


def unsupported() -> str | None:
    """Say in one sentence why the installed client must be taken as it is; None: this module fits it."""
    for name, versions in TESTED.items():
        version = metadata.version(name)
        if version not in versions:
            return f"{name} {version} is installed, and reading past unreadable properties was tested with {', '.join(versions)}"
    if "transport_factory" not in inspect.signature(connection.Connection.__init__).parameters:
        return "aiormq's Connection takes no transport_factory"
    for owner, name, mentions in MENTIONS:
        code = getattr(inspect.unwrap(getattr(owner, name, _nothing)), "__code__", None)
        for mentioned in mentions:
            if code is None or mentioned not in code.co_names:
                return f"{owner.__name__}.{name} no longer uses {mentioned}"
    return None


def _nothing() -> None:
    """Stand for a method that is not there."""


class _Reader(asyncio.StreamReader):
    """Hands on what another reader reads, each frame checked and repaired before its first byte is given away."""

    def __init__(self, source: asyncio.StreamReader) -> None:
        super().__init__()
        self._source = source
        self._frame = b""
        self._at = 0

    def at_eof(self) -> bool:
        return self._at >= len(self._frame) and self._source.at_eof()

    async def read(self, n: int = -1) -> bytes:
        return await self._source.read(n)

    async def readexactly(self, n: int) -> bytes:
        if self._at >= len(self._frame):
            self._frame, self._at = await self._next(), 0
        found = self._frame[self._at : self._at + n]
        self._at += len(found)
        # only what is no frame at all, an answer from something that is no broker, is shorter than what the client asks for
        return found if len(found) == n else found + await self._source.readexactly(n - len(found))

    async def _next(self) -> bytes:
        head = await self._source.readexactly(_HEAD_BYTES)
        if head.startswith(constants.AMQP):
            return head
        payload = await self._source.readexactly(int.from_bytes(head[3:], "big") + 1)
        if head[0] == constants.FRAME_HEADER:
            content = properties.repaired(payload[:-1])
        elif head[0] == constants.FRAME_METHOD and payload.startswith(_DELIVER):
            content = properties.repaired_delivery(payload[:-1])
        else:
            return head + payload
        return head[:3] + len(content).to_bytes(4, "big") + content + payload[-1:]


class _Transport(connection.TransportFactory):
    """Opens the client's own transport and puts a _Reader in front of it."""

    async def create(self, url: abc.URLorStr, **kwargs: object) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(url, str):
            raise TypeError("the client hands out URLs that are parsed")
        own = connection.TLSTransportFactory() if url.scheme == "amqps" else connection.TCPTransportFactory()
        reader, writer = await own.create(url, **kwargs)
        return _Reader(reader), writer


class Connection(aio_pika.Connection):
    """A plain connection that hands out messages whatever their properties; what was unreadable stands in a header."""

    @classmethod
    def _parse_parameters(cls, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {**super()._parse_parameters(kwargs), "transport_factory": _Transport()}


def connection_class() -> type[aio_pika.Connection]:
    """Give the class for connections that consume; a warning is logged when it is the client's own."""
    reason = unsupported()
    if reason is None:
        return Connection
    telemetry.log.warning("consumer.fallback", reason=reason)
    return aio_pika.Connection
