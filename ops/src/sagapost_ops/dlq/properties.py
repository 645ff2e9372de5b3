"""A message's properties, read whatever they hold, and written again with some headers changed and all others kept to the byte; pure."""

import struct
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

MAX_DEPTH: Final = 100  # the services' client reads a few hundred levels at most
_LAST_SECOND: Final = 253_402_300_799  # of the year 9999, where datetime ends
# in the order of the protocol, from bit 15 downwards
_FIELDS: Final = (
    ("content_type", "s"),
    ("content_encoding", "s"),
    ("headers", "F"),
    ("delivery_mode", "B"),
    ("priority", "B"),
    ("correlation_id", "s"),
    ("reply_to", "s"),
    ("expiration", "s"),
    ("message_id", "s"),
    ("timestamp", "T"),
    ("type", "s"),
    ("user_id", "s"),
    ("app_id", "s"),
    ("cluster_id", "s"),
)
_HEADERS_BIT: Final = 13
_FIXED: Final = {
    ord(kind): (size, form)
    for kind, size, form in (
        ("t", 1, ">?"),
        ("b", 1, ">b"),
        ("B", 1, ">B"),
        ("s", 2, ">h"),
        ("u", 2, ">H"),
        ("I", 4, ">i"),
        ("i", 4, ">I"),
        ("l", 8, ">q"),
        ("L", 8, ">q"),
        ("f", 4, ">f"),
        ("d", 8, ">d"),
        ("T", 8, ">Q"),
        ("V", 0, ""),
        ("D", 5, ""),
    )
}
_SIZED: Final = frozenset(b"SxFA")


class Field(msgspec.Struct, frozen=True, kw_only=True):
    """One property as it came."""

    name: str
    bit: int
    raw: bytes


class Properties(msgspec.Struct, frozen=True, kw_only=True):
    """What could be read; `faults` says what the services' client would choke on, one sentence each."""

    fields: tuple[Field, ...]
    values: dict[str, str | int]
    headers: dict[str, Any]
    faults: tuple[str, ...]


def read(raw: bytes) -> Properties:
    """Read the bytes behind the body's size in a content header; never raises for what they hold."""
    faults: list[str] = []
    fields: list[Field] = []
    values: dict[str, str | int] = {}
    headers: dict[str, Any] = {}
    try:
        for field in _fields(raw):
            fields.append(field)
            if field.name == "headers":
                headers = _table(field.raw[4:], faults, 1)
            else:
                values[field.name] = _value(field, faults)
    except (IndexError, struct.error) as exc:
        faults.append(f"the properties end too early: {exc}")
    return Properties(fields=tuple(fields), values=values, headers=headers, faults=tuple(dict.fromkeys(faults)))


def rewritten(
    properties: Properties, drop: Callable[[str], bool], add: Mapping[str, str | int], without: frozenset[str] = frozenset()
) -> bytes:
    """Write properties again: no header that `drop` names, these ones added, no field named in `without`, all else to the byte."""
    kept: dict[int, bytes] = {field.bit: field.raw for field in properties.fields if field.name not in without}
    table = kept.get(_HEADERS_BIT, bytes(4))[4:]
    entries = [entry for name, _, entry in _entries(table) if not drop(_text(name)) and _text(name) not in add]
    entries += [_entry(name, value) for name, value in add.items()]
    content = b"".join(entries)
    kept[_HEADERS_BIT] = struct.pack(">I", len(content)) + content
    flags = sum(1 << bit for bit in kept)
    return struct.pack(">H", flags) + b"".join(kept[bit] for bit in sorted(kept, reverse=True))


def _fields(raw: bytes) -> Iterator[Field]:
    (flags,) = struct.unpack_from(">H", raw)
    at = 2
    for place, (name, kind) in enumerate(_FIELDS):
        bit = 15 - place
        if not flags & 1 << bit:
            continue
        size = _size(kind, raw, at)
        if at + size > len(raw):
            raise IndexError(name)
        yield Field(name=name, bit=bit, raw=raw[at : at + size])
        at += size


def _size(kind: str, raw: bytes, at: int) -> int:
    if kind == "s":
        return 1 + raw[at]
    return 4 + _length(raw, at) if kind == "F" else _FIXED[ord(kind)][0]


def _value(field: Field, faults: list[str]) -> str | int:
    if field.name in {"delivery_mode", "priority"}:
        if field.name == "delivery_mode" and field.raw[0] not in {1, 2}:
            faults.append(f"delivery_mode is {field.raw[0]}; it can be 1 or 2")
        return field.raw[0]
    if field.name == "timestamp":
        seconds = int.from_bytes(field.raw, "big")
        if seconds > _LAST_SECOND:
            faults.append("timestamp lies after the year 9999")
        return seconds
    return _checked(field.raw[1:], field.name, faults)


def _checked(raw: bytes, what: str, faults: list[str]) -> str:
    text = _text(raw)
    try:
        raw.decode()
    except UnicodeDecodeError:
        faults.append(f"{what} is not UTF-8")
    return text


def _text(raw: bytes) -> str:
    return raw.decode(errors="backslashreplace")


def _entries(table: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    """Give name, place of the value in the entry, and the whole entry."""
    at = 0
    while at < len(table):
        value_at = 1 + table[at]
        end = _end(table, at + value_at)
        yield table[at + 1 : at + value_at], value_at, table[at:end]
        at = end


def _end(data: bytes, at: int) -> int:
    """Find where a value ends that begins with its kind, without looking into tables."""
    kind, end = data[at], at + 1
    if kind in _SIZED:
        end += 4 + _length(data, end)
    elif kind in _FIXED:
        end += _FIXED[kind][0]
    else:  # nobody knows what belongs to it
        end = len(data)
    if end > len(data):
        raise IndexError("a header")
    return end


def _length(data: bytes, at: int) -> int:
    return int(struct.unpack_from(">I", data, at)[0])


def _table(data: bytes, faults: list[str], depth: int) -> dict[str, Any]:
    return {_checked(name, "a header's name", faults): _decoded(entry[at:], faults, depth) for name, at, entry in _entries(data)}


def _decoded(raw: bytes, faults: list[str], depth: int) -> object:
    kind, data = raw[0], raw[1:]
    if kind in b"FA":
        if depth >= MAX_DEPTH:
            faults.append(f"headers are nested deeper than {MAX_DEPTH} levels")
            return "…"
        return (_table if kind == ord("F") else _array)(data[4:], faults, depth + 1)
    if kind in b"Sx":
        return _text(data[4:])  # any bytes may be there: the client gives those that are no text as bytes
    if kind == ord("T"):
        return _moment(data, faults)
    return _scalar(kind, data, faults)


def _scalar(kind: int, data: bytes, faults: list[str]) -> object:
    if kind == ord("D"):
        return f"{int.from_bytes(data[1:5], 'big', signed=True)}e-{data[0]}"
    if kind not in _FIXED:
        faults.append(f"a header is of the unknown kind {chr(kind)!r}")
    form = _FIXED.get(kind, (0, ""))[1]
    value = struct.unpack(form, data)[0] if form else None
    return str(value) if isinstance(value, float) else value  # JSON knows no NaN


def _array(data: bytes, faults: list[str], depth: int) -> list[object]:
    found: list[object] = []
    at = 0
    while at < len(data):
        end = _end(data, at)
        found.append(_decoded(data[at:end], faults, depth))
        at = end
    return found


def _moment(data: bytes, faults: list[str]) -> object:
    seconds = int.from_bytes(data, "big")
    if seconds > _LAST_SECOND:
        faults.append("a header's time lies after the year 9999")
        return seconds
    return datetime.fromtimestamp(seconds, UTC)


def _entry(name: str, value: str | int) -> bytes:
    key = name.encode()
    if isinstance(value, int):
        return bytes((len(key),)) + key + b"l" + struct.pack(">q", value)
    text = value.encode()
    return bytes((len(key),)) + key + b"S" + struct.pack(">I", len(text)) + text
