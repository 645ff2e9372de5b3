"""The gate's places: who has been given a turn holds one place, whether it has woken up yet or not."""

import asyncio

import pytest

from sagapost_gateway import errors, gate

pytestmark = pytest.mark.anyio


async def _served(one: gate.Gate, going_on: asyncio.Event) -> None:
    async with one.turn():
        await going_on.wait()


async def test_who_comes_in_the_moment_a_turn_is_given_back_finds_the_place_that_is_free() -> None:
    """One turn, one place to wait: the first leaves, the second has not woken up yet, and there is a place for a third."""
    one, going_on = gate.Gate(1, 1), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        async with one.turn():
            group.create_task(_served(one, going_on))
            await asyncio.sleep(0)
            assert one.full()
        assert not one.full()  # nothing has run since the turn was given back
        third = group.create_task(_served(one, going_on))
        await asyncio.sleep(0)
        assert one.full()
        going_on.set()
    assert third.exception() is None
    assert not one.full()


async def test_whoever_finds_every_place_taken_is_refused_and_takes_none() -> None:
    """Refused at once, also while the one before it still waits; who gave up waiting leaves its place."""
    one = gate.Gate(1, 1, wait_s=0.01)
    async with one.turn():
        waiting = asyncio.create_task(_served(one, asyncio.Event()))
        await asyncio.sleep(0)
        with pytest.raises(errors.OverloadedError, match="the queue is full"):
            async with one.turn():
                pass
        with pytest.raises(errors.OverloadedError, match="no turn within"):
            await waiting
        assert not one.full()
    async with one.turn():
        assert not one.full()
