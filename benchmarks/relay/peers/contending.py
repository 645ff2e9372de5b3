"""The command line that each contender's processes share: create, write or relay one job; standard library only."""

import asyncio
import json
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping

from benchmarks.relay import writing

Verb = Callable[[writing.Job], Awaitable[None]]


def main(verbs: Mapping[str, Verb], runner: Callable[[writing.Job], asyncio.Runner] | None = None) -> int:
    """Run `VERB JOB` from the command line; the job is JSON."""
    verb, job = sys.argv[1], writing.Job(**json.loads(sys.argv[2]))
    with runner(job) if runner else asyncio.Runner() as loop:
        loop.run(_run(verbs[verb], job))
    return 0


async def _run(verb: Verb, job: writing.Job) -> None:
    await verb(job)


def until_terminated() -> asyncio.Event:
    """Give an event that SIGTERM sets."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    return stop
