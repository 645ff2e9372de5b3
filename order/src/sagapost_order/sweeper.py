"""What the order service does by the clock: call one handler, wait, again; it must not know SQL."""

import asyncio
import contextlib
from typing import Final

from sagapost_chassis import db, telemetry
from sagapost_order import handlers

_PAUSE_S: Final = 60


async def run(pool: db.Pool, stop: asyncio.Event) -> None:
    """Forget the answers whose time is over, until `stop` is set; a full batch means that there may be more."""
    while not stop.is_set():
        if await _forget(pool) < handlers.FORGET_BATCH:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PAUSE_S):
                    await stop.wait()


async def _forget(pool: db.Pool) -> int:
    try:
        forgotten = await handlers.forget_answers(pool)
    except Exception as exc:  # whatever is wrong with tidying up, checkouts go on
        telemetry.log.warning("answers.not_forgotten", reason=f"{type(exc).__name__}: {exc}")
        return 0
    if forgotten:
        telemetry.log.info("answers.forgotten", count=forgotten)
    return forgotten
