"""The retry ladder as settings name it, and which step a failure waits on; knows no broker."""

from collections.abc import Sequence
from typing import Final

from sagapost_contracts import topology

MAX_STEPS: Final = 100
PAUSE_MAX_S: Final = 30  # a failure that costs no attempt waits no longer than this, unless it asks for more: the cause may be gone soon


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


def pause(delays_s: Sequence[int], waits: int, wish_s: float) -> int:
    """Return the seconds to wait after a failure that costs no attempt; `waits` is how many such waits came before.

    The waits become longer, up to `PAUSE_MAX_S`, and there is no last one. `wish_s` is kept where the ladder has a step as long.
    """
    steps = sorted(set(delays_s))
    growing = [delay_s for delay_s in steps if delay_s <= PAUSE_MAX_S] or steps[:1]
    least_s = max(growing[min(waits, len(growing) - 1)], wish_s)
    return next((delay_s for delay_s in steps if delay_s >= least_s), steps[-1])
