"""Reads and repairs a message's properties one by one, as bytes and as values; knows no connection and no message type.

The client reads all properties or none, and what it cannot read ends its connection: one message would end it at each delivery.
"""

import struct
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from pamqp import common, decode, encode, header
from pamqp.commands import Basic

# Stands in a repaired header and says what is missing there. A sender may forge it: its message is then dead with the sender's reason.
UNREADABLE: Final = "x-sagapost-unreadable"
LEFT_OUT: Final = "x-headers-left-out"  # how many
MAX_DEPTH: Final = 32  # of a header value that is sent on; the client writes recursively
MAX_HEADERS_BYTES: Final = 65_536  # all properties of a message must fit into one frame, 131,072 bytes by default
_MAX_TEXT: Final = 500
_MAX_SHORT: Final = 255
_FIXED_BYTES: Final = 12  # class, weight, body size
# what pamqp raises on malformed values: bytes that are no text, a year that does not exist, a table nested too deep, an unknown type
_BROKEN: Final = (struct.error, ValueError, TypeError, LookupError, ArithmeticError, OSError, RecursionError)
_SIZES: Final = {
    b"t": 1,
    b"b": 1,
    b"B": 1,
    b"s": 2,
    b"u": 2,
    b"I": 4,
    b"i": 4,
    b"f": 4,
    b"D": 5,
    b"l": 8,
    b"L": 8,
    b"d": 8,
    b"T": 8,
    b"V": 0,
}
_COUNTED: Final = (b"S", b"A", b"F", b"x")  # four bytes of length, then the value


def repaired(payload: bytes) -> bytes:
    """Give a content header that the client can read: the same one, or one with what can be read and the reasons for the rest."""
    try:
        header.ContentHeader().unmarshal(payload)
    except _BROKEN:
        with suppress(*_BROKEN):  # cut off in the middle, which no broker sends: the client says so
            return _rewritten(payload)
    return payload


def repaired_delivery(payload: bytes) -> bytes:
    """Give a Basic.Deliver that the client can read: the routing key may hold bytes that are no text."""
    key_at = 4 + 1 + payload[4] + 8 + 1  # index, consumer tag, delivery tag, redelivered
    key_at += 1 + payload[key_at]  # exchange
    key = payload[key_at + 1 : key_at + 1 + payload[key_at]]
    try:
        key.decode()
    except UnicodeDecodeError:
        shown = key.decode("ascii", "replace").encode("ascii", "replace")
        return payload[:key_at] + bytes([len(shown)]) + shown
    return payload


def _rewritten(payload: bytes) -> bytes:
    body_size = struct.unpack(">Q", payload[4:_FIXED_BYTES])[0]
    faults: list[str] = []
    found = Basic.Properties()
    headers: common.FieldTable = {}
    for name, raw in _raw(payload, faults):
        try:
            value = decode.by_type(raw, Basic.Properties.amqp_type(name))[1]
        except _BROKEN as exc:
            if name == "headers":
                headers = _entries(raw[4:], faults)
            else:
                faults.append(f"{name.removeprefix('message_') if name == 'message_type' else name}: {_why(exc)}, bytes {raw[:40]!r}")
            continue
        if name == "headers" and isinstance(value, dict):
            headers = {key: writable(each) for key, each in value.items()}
        else:
            setattr(found, name, value)
    found.headers = fitting({**headers, UNREADABLE: text("; ".join(faults))})
    return header.ContentHeader(0, body_size, found).marshal()


def _raw(payload: bytes, faults: list[str]) -> list[tuple[str, bytes]]:
    """Cut the properties apart by their lengths."""
    at = _FIXED_BYTES
    flags = int.from_bytes(payload[at : at + 2], "big")
    while payload[at + 1] & 1:  # more words of flags, which no property of this class has
        at += 2
    at += 2
    found: list[tuple[str, bytes]] = []
    for name in Basic.Properties.attributes():
        if not flags & Basic.Properties.flags[name]:
            continue
        kind = Basic.Properties.amqp_type(name)
        if kind == "shortstr":
            size = 1 + int.from_bytes(payload[at : at + 1], "big")
        elif kind == "table":
            size = 4 + int.from_bytes(payload[at : at + 4], "big")
        else:
            size = 8 if kind == "timestamp" else 1
        if at + size > len(payload):
            faults.append(f"{name}: longer than the frame")
            break
        found.append((name, payload[at : at + size]))
        at += size
    return found


def _entries(table: bytes, faults: list[str]) -> common.FieldTable:
    """Read a table's entries one by one, without looking into those that cannot be read."""
    found: common.FieldTable = {}
    at = 0
    while at < len(table):
        start = at + 1 + table[at]
        name = table[at + 1 : start].decode("utf-8", "backslashreplace")
        kind = table[start : start + 1]
        size = _SIZES.get(kind)
        if kind in _COUNTED:
            size = 4 + int.from_bytes(table[start + 1 : start + 5], "big")
        if size is None or start + 1 + size > len(table):
            faults.append(f"header {name!r}: of unknown type or length, and what follows it")
            break
        at = start + 1 + size
        try:
            found[name] = writable(decode.embedded_value(table[start:at])[1])
        except _BROKEN as exc:
            faults.append(f"header {name!r}: {_why(exc)}")
    if not faults:  # each by itself can be read: a name was not text
        faults.append("headers: a name is not text")
    return found


def _why(exc: BaseException) -> str:
    reason = exc.__cause__ or exc
    return "nested too deep" if isinstance(reason, RecursionError) else str(reason)[:120]


def text(value: object) -> str:
    """Give any value as a short text that can be a header; never raises."""
    try:
        shown = str(value)
    except Exception as exc:  # an exception's own __str__ may be what is broken
        shown = f"({type(value).__name__} without a text: {type(exc).__name__})"
    return shown[:_MAX_TEXT].encode("utf-8", "backslashreplace").decode()


def short(value: object) -> str | None:
    """Give a value that fits a short string property; None when it is none."""
    return value if isinstance(value, str) and 0 < len(value.encode("utf-8", "replace")) <= _MAX_SHORT else None


def writable(value: common.FieldValue) -> common.FieldValue:
    """Give a header value that the client can write: itself, or a text in its place."""
    if isinstance(value, bytes | bytearray):
        return value.decode("utf-8", "backslashreplace")
    if _deeper(value, MAX_DEPTH):
        return f"(nested deeper than {MAX_DEPTH})"
    try:
        encode.encode_table_value(value)
    except _BROKEN:  # bytes inside a list, a float too large for four bytes, a number too large for eight
        return text(value)
    return value


def _deeper(value: common.FieldValue, limit: int) -> bool:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return bool(inside) and (limit == 0 or any(_deeper(item, limit - 1) for item in inside))


def fitting(headers: Mapping[str, common.FieldValue]) -> common.FieldTable:
    """Leave out the largest headers until all fit into a frame with room to spare; the values must be writable."""
    sizes = {name: len(encode.encode_table_value(value)) + len(name.encode()) + 1 for name, value in headers.items()}
    total = sum(sizes.values())
    kept = dict(headers)
    for name in sorted(sizes, key=sizes.__getitem__, reverse=True):
        if total <= MAX_HEADERS_BYTES:
            break
        total -= sizes[name]
        del kept[name]
    if len(kept) < len(headers):
        kept[LEFT_OUT] = len(headers) - len(kept)
    return kept
