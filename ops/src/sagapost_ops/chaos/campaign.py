"""One campaign from an empty stack to its verdict; it must not know how anything is started or killed."""

import asyncio
import concurrent.futures
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from uuid import UUID

import msgspec

from sagapost_ops import plan, screen, targets, verify, versions
from sagapost_ops.chaos import faults, judging, report, rig, schedule
from sagapost_ops.invariants.outcome import Expectations
from sagapost_ops.load import journal, planning, sending, session, shop

SETTLE_S: Final = 600.0
VERIFY_S: Final = 120.0
_THREADS: Final = 32


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for."""

    seed: int
    checkouts: int
    minutes: float
    mix: dict[str, float]
    planned: schedule.Schedule

    @property
    def rate_per_s(self) -> float:
        """How many checkouts a second are planned."""
        return self.checkouts / (self.minutes * 60)


async def run(wanted: Wanted, made: plan.Plan, home: Path, console: screen.Screen) -> report.Course:
    """Start the stack, make the load and the faults, wait until all is at rest, judge, and stop the stack.

    Raises:
        StartError: a process cannot be started.

    """
    load_before = os.getloadavg()[0]
    asyncio.get_running_loop().set_default_executor(concurrent.futures.ThreadPoolExecutor(_THREADS))
    world = rig.Rig(made, home)
    try:
        with console.status("starting a stack of its own"):
            await world.start()
        console.line(f"{wanted.checkouts:,} checkouts in {wanted.minutes:g} minutes, {wanted.planned.kills:,} deaths; seed {wanted.seed}")
        with journal.Journal(home / "logs" / "journal.jsonl") as book:
            load, done, settled_s = await _trouble(wanted, world, book, console)
        with console.status("everything runs again: waiting for rest, comparing the books"):
            await done.replays.empty()
            return await _judged(wanted, world, load, done, settled_s=settled_s, load_before=load_before)
    finally:
        with console.status("stopping the stack"):
            await world.stop()


async def _trouble(
    wanted: Wanted, world: rig.Rig, book: journal.Journal, console: screen.Screen
) -> tuple[sending.Load, faults.Faults, float]:
    async with shop.Shop(world.plan.addresses.gateway_url) as counter:
        load = sending.Load(counter, book, patient=True)
        done = faults.Faults(world, wanted.planned, load, wanted.minutes * 60)
        sent = session.Wanted(planned=_arrivals(wanted, done), rate_per_s=wanted.rate_per_s, expected=wanted.checkouts, settle_s=SETTLE_S)
        with session.interruptible(load):
            async with asyncio.TaskGroup() as group:
                group.create_task(done.run())
                group.create_task(session.hold(load, sent, console))
    return load, done, time.time() - load.began_at - load.lasted_s


def _arrivals(wanted: Wanted, done: faults.Faults) -> Iterator[planning.Checkout]:
    """Go on until the number is reached and every fault has happened: a crash point needs somebody who comes by."""
    for checkout in planning.checkouts(wanted.mix, wanted.rate_per_s, seed=wanted.seed, run=f"chaos-{wanted.seed}"):
        if checkout.number >= wanted.checkouts and done.over.is_set():
            return
        yield checkout


async def _judged(
    wanted: Wanted, world: rig.Rig, load: sending.Load, done: faults.Faults, *, settled_s: float, load_before: float
) -> report.Course:
    where = msgspec.convert(msgspec.to_builtins(world.plan.addresses), targets.Targets)
    lines = await asyncio.to_thread(journal.read, load.journal.path)
    accepted = tuple(UUID(course.saga_id) for course in load.courses if course.outcome == "ok" and course.saga_id)
    # one look first, so that as many duplicates are allowed as deaths explain, and no more
    first = await asyncio.to_thread(judging.judge, where, lines, world.lives)
    expected = Expectations(accepted=accepted, duplicate_mails=first.duplicate_mails - first.unexplained_mails)
    invariants = await asyncio.to_thread(verify.run, where, expected, settle_s=VERIFY_S)
    return report.Course(
        seed=wanted.seed,
        mix=",".join(f"{kind}={weight:g}" for kind, weight in wanted.mix.items()),
        planned=wanted.planned,
        done=done,
        lives=tuple(world.lives),
        load=load,
        settled_s=settled_s,
        verdict=await asyncio.to_thread(judging.judge, where, lines, world.lives),
        invariants=invariants,
        versions={str(kind): version for kind, version in versions.of_stack().items() if kind in {"postgres", "rabbitmq"}},
        load_before=load_before,
    )
