"""Named places where a process can be made to die, for the fault tests; without SAGAPOST_CRASH they do nothing."""

import asyncio
import os
import signal
from typing import Final

# every point has a fault test: the tests are parametrised from this registry
NAMES: Final = (
    "order.before_commit",
    "order.after_commit",
    "saga.after_commit",
    "sweeper.after_commit",
    "payment.after_intent",
    "payment.after_charge",
    "payment.after_commit",
    "payment.after_refund",
    "email.after_accept",
    "email.after_publish",
    "relay.after_read",
    "relay.before_confirm",
    "relay.after_confirm",
    "relay.mid_batch",
    "dlq.after_publish",
)


class CrashPointError(RuntimeError):
    """Raised at a point that is told to raise."""


def _plan(text: str) -> tuple[str, str]:
    name, _, action = text.partition(":")
    if name and name not in NAMES:
        raise ValueError(f"SAGAPOST_CRASH names {name!r}; the points are {', '.join(NAMES)}")
    return name, action or "1"


_NAME, _ACTION = _plan(os.environ.get("SAGAPOST_CRASH", ""))
_hits = iter(range(1, 1 << 62))


async def crashpoint(name: str) -> None:
    """Die here if SAGAPOST_CRASH says so: `name[:nth]` kills -9, `:stop` stops, `:sleep=N` waits N seconds, `:raise` raises."""
    if name != _NAME:
        return
    if _ACTION == "raise":
        raise CrashPointError(name)
    if _ACTION == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif _ACTION.startswith("sleep="):
        await asyncio.sleep(float(_ACTION.removeprefix("sleep=")))
    elif next(_hits) == int(_ACTION):
        os.kill(os.getpid(), signal.SIGKILL)
