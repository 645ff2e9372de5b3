"""Outbox rows as AMQP 0-9-1 frames, many rows in one piece of bytes; pure, it knows neither a connection nor what a message means.

A row becomes exactly what amqp.make_message and the client would send for it, at a tenth of the cost. Text is put together as
str in which one character stands for one byte (latin-1), because joining str is what CPython does fastest.
"""

from collections.abc import Callable, Sequence
from struct import Struct
from typing import Final, TypeVar

import msgspec
from pamqp import commands, encode, frame

from sagapost_contracts import topology
from sagapost_relay import blocks

CACHED: Final = 4096  # entries of a cache, which is then emptied: keys come from rows, and a column may hold anything
FRAME_MAX_BYTES: Final = 131_072  # when the broker sets no limit

_HEADERS: Final = msgspec.json.Decoder(dict[str, str | int])
_SHORT_MAX_BYTES: Final = 255
_KEY_MAX_BYTES: Final = 128
_FRAME_OVERHEAD_BYTES: Final = 8
_BASIC: Final = 60
_HEADER: Final = 2
_BODY: Final = 3
_END: Final = 0xCE
_END_BYTE: Final = bytes((_END,))
# Which properties follow, in this order: content-type, headers, delivery-mode, priority, correlation-id, message-id, timestamp, type.
_FLAGS: Final = 1 << 15 | 1 << 13 | 1 << 12 | 1 << 11 | 1 << 10 | 1 << 7 | 1 << 6 | 1 << 5
_CORRELATION_ID: Final = 1 << 10
_TYPE: Final = 1 << 5
_CONTENT_TYPE: Final = b"\x10application/json"
_PERSISTENT: Final = "\x02\x00"  # and the priority, which the client always sends
# frame type, channel, size; class, weight, body size, flags; content type; size of the headers' table
_HEAD: Final = Struct(">BHIHHQH17sI")
_HEAD_BYTES: Final = _HEAD.size - 7
_AFTER_FRAME: Final = Struct(">BBHI")  # the end of the frame before; frame type, channel, size
_LENGTH: Final = Struct(">I")
_SECONDS: Final = Struct(">Q")
_YEAR_10000: Final = 253_402_300_800

K = TypeVar("K")
V = TypeVar("V")


class RefusedError(ValueError):
    """The row at `index` cannot be written as a message; the sentence says why. No retry helps."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(reason)
        self.index = index


class Encoder:
    """Encodes rows for one channel; it remembers what repeats from row to row."""

    def __init__(self, *, channel: int, exchange: str, frame_max: int) -> None:
        self._channel = channel
        self._exchange = exchange
        self._frame_bytes = (frame_max or FRAME_MAX_BYTES) - _FRAME_OVERHEAD_BYTES
        self._methods = _Cache(self._method)
        self._names = _Cache(_name)
        self._numbers = _Cache(_number)
        self._endings = _Cache(_ending)

    def encode(self, rows: Sequence[blocks.Row]) -> bytes:
        """Give the frames of all rows: Basic.Publish (mandatory), content header, and the body's frames unless it is empty.

        Raises:
            RefusedError: one row cannot be written as a message; the others can be encoded without it.

        """
        out: list[bytes] = []
        index = 0
        try:
            for index in range(len(rows)):
                self._add(rows[index], out)
        except (ValueError, TypeError, OverflowError, msgspec.MsgspecError) as exc:
            raise RefusedError(index, str(exc)) from exc
        return b"".join(out)

    def _add(self, row: blocks.Row, out: list[bytes]) -> None:
        payload = row.payload
        if payload is None:
            raise ValueError("it has no payload")
        table = self._table(row.headers)
        flags = _FLAGS
        text = table + _PERSISTENT
        if row.correlation_id:
            text += _short(row.correlation_id)
        else:
            flags -= _CORRELATION_ID
        if not row.type:
            flags -= _TYPE
        text += _short(row.event_id) + self._endings[int(row.created_s), row.type]
        size_bytes = _HEAD_BYTES + len(text)
        if size_bytes > self._frame_bytes:
            raise ValueError(f"its headers take {size_bytes} bytes, and a frame holds {self._frame_bytes}")
        body_bytes = len(payload)
        out.append(self._methods[row.routing_key])
        out.append(_HEAD.pack(_HEADER, self._channel, size_bytes, _BASIC, 0, body_bytes, flags, _CONTENT_TYPE, len(table)))
        out.append(text.encode("latin-1"))
        if 0 < body_bytes <= self._frame_bytes:
            out.append(_AFTER_FRAME.pack(_END, _BODY, self._channel, body_bytes))
            out.append(payload)
        else:
            for start in range(0, body_bytes, self._frame_bytes):
                part = payload[start : start + self._frame_bytes]
                out.append(_AFTER_FRAME.pack(_END, _BODY, self._channel, len(part)))
                out.append(part)
        out.append(_END_BYTE)

    def _table(self, headers: str) -> str:
        found = _HEADERS.decode(headers)
        # within ASCII and without escapes every value's length in characters is its length in bytes
        ascii_only = headers.isascii() and "\\" not in headers
        names = self._names
        parts: list[str] = []
        for key, value in found.items():
            if isinstance(value, str):
                data = value if ascii_only else _latin(value)
                parts.append(names[key, len(data)])
                parts.append(data)
            else:
                parts.append(self._numbers[key, value])
        return "".join(parts)

    def _method(self, routing_key: str) -> bytes:
        _short(routing_key)
        return frame.marshal(commands.Basic.Publish(exchange=self._exchange, routing_key=routing_key, mandatory=True), self._channel)


class _Cache(dict[K, V]):
    def __init__(self, make: Callable[[K], V]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, key: K) -> V:
        if len(self) >= CACHED:
            self.clear()
        made = self[key] = self._make(key)
        return made


def _latin(text: str) -> str:
    return text.encode().decode("latin-1")


def _short(text: str) -> str:
    data = text if text.isascii() else _latin(text)
    if len(data) > _SHORT_MAX_BYTES:
        raise ValueError(f"{text[:40]!r}… takes {len(data)} bytes, and AMQP has room for {_SHORT_MAX_BYTES}")
    return chr(len(data)) + data


def _key(key: str) -> str:
    if key in topology.MORE_KEYS:  # the broker would deliver the message to these keys too, or close the channel over their form
        raise ValueError(f"it has the header {key}, which names more routing keys, and the relay sends none")
    data = _latin(key)
    if len(data) > _KEY_MAX_BYTES:
        raise ValueError(f"the header {key[:40]!r}… takes {len(data)} bytes, and a name has room for {_KEY_MAX_BYTES}")
    return chr(len(data)) + data


def _name(header: tuple[str, int]) -> str:
    """Give what stands before the text of a header, from its name and the text's length in bytes."""
    key, length = header
    return f"{_key(key)}S{_LENGTH.pack(length).decode('latin-1')}"


def _number(header: tuple[str, int]) -> str:
    """Give a whole header whose value is a number."""
    key, value = header
    # the client chooses the width by the value, and so the same width arrives whoever has sent it
    return _key(key) + encode.encode_table_value(value).decode("latin-1")


def _ending(properties: tuple[int, str]) -> str:
    """Give the timestamp and, unless it is empty, the type."""
    seconds, type_name = properties
    if not 0 <= seconds < _YEAR_10000:
        raise ValueError("it was not created between 1970 and 9999")  # and the client of who receives it would fail
    return _SECONDS.pack(seconds).decode("latin-1") + (_short(type_name) if type_name else "")
