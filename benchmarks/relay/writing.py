"""How every contender's writer writes: at a fixed rate, or in contention; stands on the standard library only, for all environments.

A writer opens connections with the contender's own client and gives a function that runs one business transaction with its
outbox row. Right after COMMIT has returned the time is taken here: that is where commit -> received begins.
"""

import asyncio
import dataclasses
import json
import pathlib
import time
import zlib
from collections.abc import Awaitable, Callable
from typing import Final

NOISE: Final = "INSERT INTO bench_noise (note) VALUES ('an early transaction id')"
CONNECTIONS: Final = 16
_SETTLE_S: Final = 0.3


class UndoneError(Exception):
    """Raised by a transaction that is to be rolled back."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What one process of a contender is to do; `mode` is how to write: open, contention or cost."""

    dsn: str
    amqp_url: str
    exchange: str
    variant: str
    out: str = ""
    mode: str = "open"
    rate: float = 0.0
    seconds: float = 0.0
    aggregates: int = 50
    size_bytes: int = 300
    seed: int = 1
    first: int = 0
    is_relay: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One transaction: pauses in seconds, whether it takes a transaction id early, and whether it is rolled back."""

    sequence: int
    aggregate: int
    early: bool = False
    early_s: float = 0.0
    held_s: float = 0.0
    after_s: float = 0.0
    undone: bool = False


Transact = Callable[[Step], Awaitable[None]]
Connect = Callable[[], Awaitable[Transact]]


class Dice:
    """The same throws for every contender; no secrets depend on them."""

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self._thrown = 0

    def share(self) -> float:
        """Throw a number from 0 to 1."""
        self._thrown += 1
        return zlib.crc32(f"{self._seed}:{self._thrown}".encode()) / 2**32

    def upto(self, limit: float) -> float:
        """Throw a number from 0 to a limit."""
        return self.share() * limit

    def below(self, limit: int) -> int:
        """Throw an index."""
        return int(self.share() * limit)


class Book:
    """What was committed, and when."""

    def __init__(self, first: int) -> None:
        self.committed: list[tuple[int, float]] = []
        self.undone = 0
        self.began_s = self.ended_s = 0.0
        self._next = first

    def sequence(self) -> int:
        """Draw the next sequence."""
        self._next += 1
        return self._next - 1

    def write(self, path: str) -> None:
        """Leave it for the report, with the processor time that writing took."""
        cpu_s = time.process_time()
        found = {"committed": self.committed, "undone": self.undone, "began_s": self.began_s, "ended_s": self.ended_s, "cpu_s": cpu_s}
        leave(path, found)


def leave(path: str, found: object) -> None:
    """Write JSON where whoever started this process looks for it."""
    pathlib.Path(path).write_text(json.dumps(found), encoding="ascii")


async def write(job: Job, connect: Connect) -> None:
    """Do the job and leave the book at `job.out`."""
    book = Book(job.first)
    transacts = [await connect() for _ in range(CONNECTIONS)]
    await asyncio.sleep(_SETTLE_S)
    book.began_s = time.monotonic()
    if job.mode == "open":
        await _at_rate(job, book, transacts)
    else:
        await asyncio.gather(*(_contend(job, book, one, Dice(f"{job.seed}-{number}")) for number, one in enumerate(transacts)))
    book.ended_s = time.monotonic()
    book.write(job.out)


async def _at_rate(job: Job, book: Book, transacts: list[Transact]) -> None:
    """Begin one transaction each 1/rate seconds, however long the others take."""
    dice = Dice(str(job.seed))
    free: asyncio.Queue[Transact] = asyncio.Queue()
    for transact in transacts:
        free.put_nowait(transact)
    running: set[asyncio.Task[None]] = set()
    for number in range(int(job.rate * job.seconds)):
        due_s = book.began_s + number / job.rate
        if (wait_s := due_s - time.monotonic()) > 0:
            await asyncio.sleep(wait_s)
        task = asyncio.create_task(_borrow(free, book, Step(sequence=book.sequence(), aggregate=dice.below(job.aggregates))))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)


async def _borrow(free: asyncio.Queue[Transact], book: Book, step: Step) -> None:
    transact = await free.get()
    await transact(step)
    book.committed.append((step.sequence, time.monotonic()))
    free.put_nowait(transact)


async def _contend(job: Job, book: Book, transact: Transact, dice: Dice) -> None:
    """Pause at random before, while and after the aggregate is locked; some take a transaction id long before, some roll back."""
    while time.monotonic() < book.began_s + job.seconds:
        early = dice.share() < 0.5
        step = Step(
            sequence=book.sequence(),
            aggregate=dice.below(job.aggregates),
            early=early,
            early_s=dice.upto(0.03 if early else 0.005),
            held_s=dice.upto(0.005),
            after_s=dice.upto(0.005),
            undone=dice.share() < 0.05,
        )
        try:
            await transact(step)
        except UndoneError:
            book.undone += 1
        else:
            book.committed.append((step.sequence, time.monotonic()))


async def pause(seconds: float) -> None:
    """Sleep, unless there is nothing to sleep."""
    if seconds > 0:
        await asyncio.sleep(seconds)
