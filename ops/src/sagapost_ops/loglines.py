"""Reads the JSON lines that services log and makes them readable; it must not know where they lie."""

from datetime import datetime
from typing import Final

import msgspec

from sagapost_ops import screen

_COLOURS: Final = {"debug": "dim", "info": "", "warning": "yellow", "error": "bold red"}
_FIRST: Final = ("at", "level", "event", "service", "trace_id")


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line of one log; `fields` are empty when it was not JSON."""

    source: str
    raw: str
    at: str
    fields: dict[str, object]


def parse(source: str, raw: str, previous_at: str) -> Line:
    """Read one line; what is not JSON, a traceback for instance, belongs to the moment of the line before it."""
    try:
        fields = msgspec.json.decode(raw, type=dict[str, object])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Line(source=source, raw=raw, at=previous_at, fields={})
    at = fields.get("at")
    return Line(source=source, raw=raw, at=at if isinstance(at, str) else previous_at, fields=fields)


def parse_all(source: str, lines: list[str]) -> list[Line]:
    """Read the lines of one log, in order."""
    found: list[Line] = []
    at = ""
    for raw in lines:
        line = parse(source, raw, at)
        at = line.at
        found.append(line)
    return found


def pretty(line: Line) -> tuple[screen.Part, ...]:
    """Make one readable line: time, service, event, and what belongs to it."""
    if not line.fields:
        return f"{line.source:14} ", line.raw
    level = str(line.fields.get("level", "info"))
    rest = "  ".join(f"{name}={_short(value)}" for name, value in line.fields.items() if name not in _FIRST)
    return (
        screen.Styled(f"{_clock(line.at)} ", "dim"),
        screen.Styled(f"{line.source:14} ", "cyan"),
        screen.Styled(f"{line.fields.get('event', '')}", _COLOURS.get(level, "")),
        f"  {rest}",
    )


def _clock(at: str) -> str:
    try:
        return f"{datetime.fromisoformat(at):%H:%M:%S.%f}"[:-3]
    except ValueError:
        return at


def _short(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
