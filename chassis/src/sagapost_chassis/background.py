"""Tasks that run beside the work: none ends without being noticed; it must not know what they do."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import TypeVar

from sagapost_chassis import telemetry

T = TypeVar("T")


class EndedError(Exception):
    """A task that should run until the process stops has ended by itself."""


async def until(stop: asyncio.Event, work: Coroutine[object, object, object]) -> None:
    """Run `work`, which never ends by itself, until `stop` is set.

    Raises:
        EndedError: it returned.
        Exception: what it raised.

    """
    task = asyncio.ensure_future(work)
    waiting = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if task.done() and not stop.is_set():
            task.result()
            raise EndedError(f"{getattr(work, '__qualname__', 'a task')} ended")
    finally:
        waiting.cancel()
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # it was cancelled: its exception is read, so that asyncio does not log it


def watched(task: asyncio.Task[T], name: str, on_failure: Callable[[], None], *, cancelled: bool = True) -> None:
    """Log and call `on_failure` when the task raises, or is cancelled and `cancelled` is true; do nothing when it returns."""

    def ended(done: asyncio.Task[T]) -> None:
        exc = None if done.cancelled() else done.exception()
        if exc is not None or (done.cancelled() and cancelled):
            on_failure()
            reason = f"{type(exc).__name__}: {telemetry.first_line(exc)}" if exc else "cancelled"
            telemetry.log.error("task.failed", task=name, reason=reason)

    task.add_done_callback(ended)
