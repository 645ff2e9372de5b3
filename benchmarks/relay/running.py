"""A contender's processes: filling its outbox, its relays and its writers; must not know what is made of the figures."""

import dataclasses
import json
import os
import pathlib
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgspec
import psycopg

from benchmarks.relay import contenders, world, writing
from sagapost_chassis import outbox
from sagapost_contracts import topology
from sagapost_sandbox import ports, processes

ROWS_PER_TRANSACTION: Final = 100
CREATE_S: Final = 60.0
STOP_S: Final = 10.0
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_INHERITED: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR")
_USER_TIME, _SYSTEM_TIME, _RESIDENT = 11, 12, 21  # fields of /proc/PID/stat behind the name's closing bracket
_SHARDS: Final = [outbox.shard_of(f"order-{number}") for number in range(world.AGGREGATES)]


class ContenderError(RuntimeError):
    """A contender's process did not do what it was started for."""


class Relays:
    """The relay processes of one measurement."""

    def __init__(self, started: list[processes.Process]) -> None:
        self.started = started

    def cpu_s(self) -> float:
        """Processor time of all, user and system."""
        return sum(int(stat[_USER_TIME]) + int(stat[_SYSTEM_TIME]) for stat in self._stats()) / _TICKS

    def resident_bytes(self) -> int:
        """Resident memory of all."""
        return sum(int(stat[_RESIDENT]) for stat in self._stats()) * _PAGE_BYTES

    def running(self) -> bool:
        """Whether all of them run."""
        return all(one.running() for one in self.started)

    def stop(self) -> None:
        """SIGTERM for all, then SIGKILL for those that stay."""
        for one in self.started:
            one.send(signal.SIGTERM)
        for one in self.started:
            if not one.wait(STOP_S):
                one.kill()

    def _stats(self) -> Iterator[list[str]]:
        for one in self.started:
            try:
                text = pathlib.Path(f"/proc/{one.pid}/stat").read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue
            yield text.rpartition(")")[2].split()


def prepare(contender: contenders.Contender, here: world.World, size_bytes: int) -> str:
    """Make the contender's template database; give its name.

    Raises:
        ContenderError: it cannot be made; the message holds what the contender said.

    """
    name = f"template_{contender.name.replace('-', '_')}"
    dsn = here.template(name, contender.schema)
    job = writing.Job(dsn=dsn, amqp_url=here.amqp_url, exchange=topology.EXCHANGE, variant=contender.variant, size_bytes=size_bytes)
    finish(_spawn(contender, here, "create", job), contender, here, CREATE_S)
    world.run(dsn, "CREATE TABLE bench_sample AS TABLE outbox; TRUNCATE outbox; ANALYZE")
    return name


def fill(contender: contenders.Contender, dsn: str, rows: int, *, unroutable: int = 0, at_once: bool = False, first: int = 0) -> None:
    """Write rows with everything stopped, 100 a transaction or all in one; each `unroutable`th goes nowhere."""
    step = rows if at_once else ROWS_PER_TRANSACTION
    with world.connect(dsn) as conn:
        conn.execute("SET synchronous_commit = off")
        for begin in range(first, first + rows, step):
            last = min(begin + step, first + rows) - 1
            insert(conn, contender, begin, last, unroutable=unroutable)
        conn.execute("ANALYZE outbox")


def insert(
    conn: psycopg.Connection[tuple[Any, ...]], contender: contenders.Contender, first: int, last: int, *, unroutable: int = 0
) -> None:
    """Insert rows in the connection's transaction."""
    params: dict[str, object] = {"first": first, "last": last, "unroutable": unroutable}
    if contender.is_service:
        params |= {"shards": _SHARDS}
    conn.execute(contender.fill.encode(), params)


@contextmanager
def relaying(contender: contenders.Contender, here: world.World, dsn: str, count: int = 1) -> Iterator[Relays]:
    """Run relay processes for as long as the block takes."""
    relays = Relays([])
    try:
        for _ in range(count):
            relays.started.append(_start(contender, here, dsn))
        yield relays
    finally:
        for one in relays.started:
            one.kill()


@contextmanager
def writers(contender: contenders.Contender, here: world.World, job: writing.Job, *, verb: str = "write") -> Iterator[processes.Process]:
    """Run the writer's process for as long as the block takes."""
    process = _spawn(contender, here, verb, job)
    try:
        yield process
    finally:
        process.kill()


class Book(msgspec.Struct, frozen=True, kw_only=True):
    """What a writer left: (sequence, time of commit), and how long it wrote."""

    committed: list[tuple[int, float]]
    undone: int
    began_s: float
    ended_s: float
    cpu_s: float


def book(process: processes.Process, contender: contenders.Contender, here: world.World, job: writing.Job, timeout_s: float) -> Book:
    """Wait for the writer's end and read what it left."""
    finish(process, contender, here, timeout_s)
    return msgspec.json.decode(pathlib.Path(job.out).read_bytes(), type=Book)


def said(contender: contenders.Contender, here: world.World) -> str:
    """Give the end of the contender's log."""
    return processes.tail(_log(contender, here))[-500:]


def _start(contender: contenders.Contender, here: world.World, dsn: str) -> processes.Process:
    if not contender.is_service:
        job = writing.Job(dsn=dsn, amqp_url=here.amqp_url, exchange=topology.EXCHANGE, variant=contender.variant, is_relay=True)
        return _spawn(contender, here, "relay", job)
    env = _environ() | {
        "SAGAPOST_DATABASE_URL": dsn,
        "SAGAPOST_AMQP_URL": here.amqp_url,
        "SAGAPOST_HOST": "127.0.0.1",
        "SAGAPOST_PORT": str(ports.trial(1)[0]),
        "SAGAPOST_METRICS_PORT": "0",
    }
    line = [contender.python, "-m", "sagapost_relay"]
    return _saved(processes.spawn(line, log=_log(contender, here), cwd=pathlib.Path("/"), env=env), here)


def _spawn(contender: contenders.Contender, here: world.World, verb: str, job: writing.Job) -> processes.Process:
    line = [contender.python, "-P", "-m", contender.module, verb, json.dumps(dataclasses.asdict(job))]
    env = _environ()
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (env.get("PYTHONPATH"), str(contenders.ROOT))))
    return _saved(processes.spawn(line, log=_log(contender, here), cwd=pathlib.Path("/"), env=env), here)


def _saved(process: processes.Process, here: world.World) -> processes.Process:
    processes.save(process, here.folder / f"{process.pid}.pid")  # whoever cleans up after a kill -9 of ours finds it
    return process


def finish(process: processes.Process, contender: contenders.Contender, here: world.World, timeout_s: float) -> None:
    """Wait for a process' orderly end.

    Raises:
        ContenderError: it took too long or failed; the message holds what it said.

    """
    if not process.wait(timeout_s):
        process.kill()
        raise ContenderError(f"{contender.name} was not done after {timeout_s:.0f} s: {said(contender, here)}")
    if process.returncode != 0:
        raise ContenderError(f"{contender.name} ended with {process.returncode}: {said(contender, here)}")


def _environ() -> dict[str, str]:
    found = {name: os.environ[name] for name in (*_INHERITED, "PYTHONPATH") if name in os.environ}
    return found | {"PYTHONUNBUFFERED": "1"}


def _log(contender: contenders.Contender, here: world.World) -> pathlib.Path:
    return here.folder / f"{contender.name}.log"
