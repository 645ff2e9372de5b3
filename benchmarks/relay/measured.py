"""The measured message as Sagapost's own types have it; the peers send the same body."""

from typing import ClassVar

from benchmarks.relay import stamps
from sagapost_contracts import events


class Measured(events.Message, frozen=True, kw_only=True):
    """Its JSON is that of stamps.body, byte for byte."""

    key: ClassVar[str] = stamps.ROUTED

    stamp: str
    pad: str
