"""Answers 429 in numbers: the first of each second are sent at once, the others late, and none of them keeps a place meanwhile."""

import asyncio
from typing import cast

import pytest
from litestar import types

from sagapost_gateway import holding

pytestmark = pytest.mark.anyio


async def _settled(tasks: list[asyncio.Task[None]]) -> int:
    """Let everything run that can, and count what has ended."""
    for _ in range(5):
        await asyncio.sleep(0)
    return sum(task.done() for task in tasks)


async def test_refusals_beyond_the_first_of_a_second_wait() -> None:
    """A client that asks again at once gets its hundred refusals a second, and no more; the next second begins anew."""
    now = [10.0]
    refusals = holding.Refusals(lambda: now[0])
    first = [asyncio.create_task(refusals.wait()) for _ in range(holding.AT_ONCE + 7)]
    at_once = await _settled(first)
    now[0] += 1
    second = [asyncio.create_task(refusals.wait()) for _ in range(holding.AT_ONCE + 3)]
    again = await _settled(second)
    for task in (*first, *second):
        task.cancel()
    await asyncio.gather(*first, *second, return_exceptions=True)

    assert (at_once, again) == (holding.AT_ONCE, holding.AT_ONCE)


async def test_no_more_than_a_thousand_wait() -> None:
    """What is held back costs memory: beyond the maximum refusals are sent at once."""
    refusals = holding.Refusals(lambda: 10.0)
    tasks = [asyncio.create_task(refusals.wait()) for _ in range(holding.AT_ONCE + holding.MAX_HELD + 9)]
    done = await _settled(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    assert done == holding.AT_ONCE + 9


async def test_a_refusal_is_held_when_the_call_has_ended() -> None:
    """The call behind it has given its place back by then, and the answer arrives whole; other answers pass as they are made."""
    seen: list[str] = []

    async def inner(scope: types.Scope, _: types.Receive, send: types.Send) -> None:
        status = 429 if scope["path"] == "/limited" else 202
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": False})
        seen.append("ended")

    async def send(message: types.Message) -> None:
        seen.append(message["type"])

    async def receive() -> types.HTTPReceiveMessage | types.WebSocketReceiveMessage:
        return {"type": "http.disconnect"}

    app = holding.holding(inner)
    for path in ("/limited", "/"):
        await app(cast("types.Scope", {"type": "http", "path": path}), receive, send)

    told = ["http.response.start", "http.response.body"]
    assert seen == ["ended", *told, *told, "ended"]
