"""The retry ladder as settings name it, and which step a failure waits on; knows no broker."""

from collections.abc import Sequence
from typing import Final

from sagapost_contracts import topology

MAX_STEPS: Final = 100


def named(delays_s: Sequence[int]) -> str:
    """Write a ladder as its setting does."""
    return ",".join(str(delay_s) for delay_s in delays_s)


DEFAULT: Final = named(topology.RETRY_DELAYS_S)


def parse(text: str) -> tuple[int, ...]:
    """Read a ladder, delays in seconds with commas between.

    Raises:
        ValueError: a delay for which no retry queue is declared; the sentence begins with the setting's name.

    """
    parts = [part.strip() for part in text.split(",")]
    known = {str(delay_s): delay_s for delay_s in topology.RETRY_DELAYS_S}
    wrong = [part for part in parts if part not in known]
    if wrong or len(parts) > MAX_STEPS:
        named_wrong = repr(wrong[0][:20]) if wrong else f"{len(parts)} delays"
        raise ValueError(
            f"RETRY_DELAYS_S must be up to {MAX_STEPS} delays with commas between, each one of {DEFAULT} (seconds), not {named_wrong}"
        )
    return tuple(known[part] for part in parts)


def step(delays_s: Sequence[int], attempt: int, wish_s: float) -> int | None:
    """Give the seconds to wait after this attempt (from 1) failed, `wish_s` at least where a step is as long; None: none is left."""
    left = delays_s[attempt - 1 :]
    if not left:
        return None
    return next((delay_s for delay_s in left if delay_s >= wish_s), delays_s[-1])
