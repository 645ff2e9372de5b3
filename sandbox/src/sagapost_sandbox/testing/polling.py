"""Waiting for a condition with a deadline, the only kind of waiting tests do."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar, overload

DEADLINE_S: Final = 10.0
POLL_S: Final = 0.05

T = TypeVar("T")


@overload
def eventually(condition: Callable[[], Awaitable[T]], deadline_s: float = DEADLINE_S) -> Awaitable[T]: ...
@overload
def eventually(condition: Callable[[], T], deadline_s: float = DEADLINE_S) -> T: ...
def eventually(condition: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
    """Call `condition` until it returns something true, and return that.

    With an async condition the result must be awaited, and the event loop goes on meanwhile; a plain one blocks it.

    Raises:
        AssertionError: it was still false after `deadline_s`; names the condition and its last value.

    """
    deadline = time.monotonic() + deadline_s
    value = condition()
    if inspect.isawaitable(value):
        return _eventually(condition, value, deadline)
    while not value:
        _check(condition, value, deadline)
        time.sleep(POLL_S)
        value = condition()
    return value


async def _eventually(condition: Callable[[], Any], first: Awaitable[Any], deadline: float) -> object:
    value: object = await first
    while not value:
        _check(condition, value, deadline)
        await asyncio.sleep(POLL_S)
        value = await condition()
    return value


def _check(condition: Callable[[], object], value: object, deadline: float) -> None:
    if time.monotonic() > deadline:
        name = getattr(condition, "__qualname__", repr(condition))
        raise AssertionError(f"{name} did not come true in time; its last value was {value!r}")
