"""A limit inside each async test, below that of its process: one that hangs fails alone, with a traceback of where it hangs."""

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

import pytest

SHARE: Final = 0.8  # of the limit that ends the whole process


def apply(items: Sequence[pytest.Item], usual_s: float, share: float = SHARE) -> None:
    """Give each async test `share` of the limit of its process, which is `usual_s` where the test names no other."""
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj) and not hasattr(item.obj, "hypothesis"):
            marker = item.get_closest_marker("timeout")
            hard_s = float(marker.args[0]) if marker is not None and marker.args else usual_s
            item.obj = _limited(item.obj, share * hard_s) if hard_s > 0 else item.obj


def _limited(test: Callable[..., Coroutine[Any, Any, None]], limit_s: float) -> Callable[..., Coroutine[Any, Any, None]]:
    @functools.wraps(test)
    async def limited(*arguments: object, **named: object) -> None:
        async with asyncio.timeout(limit_s):
            await test(*arguments, **named)

    return limited
