"""What a load did, one JSON line each, on disk before it goes on; it must not judge."""

from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import msgspec

from sagapost_ops.load import shop

What = Literal["checkout", "cancel", "end"]


class Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One answer to a checkout or a cancellation, or the end of a saga; latency in milliseconds from the planned time."""

    what: What
    number: int
    key: str
    kind: str
    planned_at: datetime
    at: datetime
    attempt: int = 1
    outcome: shop.Outcome | Literal["ended", "unfinished"] = "ok"
    status: int = 0
    error: str = ""
    order_id: int | None = None
    saga_id: str | None = None
    replayed: bool = False
    latency_ms: float = 0.0
    state: str = ""
    version: int = 0
    went_back: bool = False


class Journal:
    """An append-only file; a line that was written survives the end of this process, however that comes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._encoder = msgspec.json.Encoder()

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab")
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def write(self, line: Line) -> None:
        """Append one line."""
        self._file.write(self._encoder.encode(line) + b"\n")
        self._file.flush()


def read(path: Path) -> list[Line]:
    """Give all lines; one that was cut off by the end of the process is left out."""
    lines = path.read_bytes().splitlines(keepends=True)
    return [msgspec.json.decode(line, type=Line) for line in lines if line.endswith(b"\n")]


def instant(seconds: float) -> datetime:
    """Give a time of the wall clock as an instant."""
    return datetime.fromtimestamp(seconds, UTC)
