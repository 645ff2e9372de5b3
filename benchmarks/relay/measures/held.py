"""Held: throughput and latency while another session holds a snapshot, or a write transaction, against the same without it."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Final

import psycopg

from benchmarks.relay import bench as benches
from benchmarks.relay import contenders, running, world
from benchmarks.relay.measures import drain, latency

WITHOUT: Final = "without"
WITH: Final = "with"
RATE_PER_S: Final = 1000
UNCOMMITTED: Final = 10_000
_BEYOND: Final = 5_000_000  # the sequences of rows that are never committed
_FIRST_S: Final = 10.0

Hold = Callable[[contenders.Contender, str], contextlib.AbstractContextManager[None]]


def snapshot(bench: benches.Bench, repeat: int) -> Iterator[benches.Sample]:
    """Hold a REPEATABLE READ READ ONLY snapshot from before the first row."""
    yield from _pairs(bench, repeat, "held_snapshot", ("sagapost", "skip_locked", "txoutbox-tuned"), _hold_snapshot)


def write(bench: benches.Bench, repeat: int) -> Iterator[benches.Sample]:
    """Hold a transaction that has a transaction id and 10,000 uncommitted rows in the outbox itself."""
    yield from _pairs(bench, repeat, "held_write", ("sagapost", "skip_locked", "horizon"), _hold_write)


def _pairs(bench: benches.Bench, repeat: int, measure: str, names: tuple[str, ...], hold: Hold) -> Iterator[benches.Sample]:
    for contender in bench.turn(bench.named(*names), repeat):
        for case in bench.turn((WITHOUT, WITH), repeat):
            take = functools.partial(_once, bench, contender, hold if case == WITH else None, repeat)
            yield bench.sample(measure, contender.name, repeat, take, case=case)


def _once(bench: benches.Bench, contender: contenders.Contender, hold: Hold | None, repeat: int) -> dict[str, float]:
    """Drain twice, so that the second drain works beside what the first left; then write at a rate."""
    here, rows = bench.world, bench.options.rows
    with here.database(bench.templates[contender.name]) as dsn, here.queue() as queue:
        here.settle()
        with hold(contender, dsn) if hold else contextlib.nullcontext():
            running.fill(contender, dsn, rows)
            first = drain.watch(bench, contender, dsn, queue, rows, first_s=_FIRST_S)
            running.fill(contender, dsn, rows, first=rows)
            second = drain.watch(bench, contender, dsn, queue, rows, first_s=_FIRST_S)
            waits = latency.at_rate(bench, contender, dsn, queue, rate=RATE_PER_S, seconds=bench.options.seconds / 2, seed=repeat)
            left = drain.dead(dsn)
    wrong = {name: first[name] + second[name] + waits[name] for name in ("lost", "duplicated", "inversions")}
    return {"per_s": second["per_s"], "p50_ms": waits["p50_ms"], "p99_ms": waits["p99_ms"]} | left | wrong


@contextlib.contextmanager
def _hold_snapshot(_: contenders.Contender, dsn: str) -> Iterator[None]:
    with psycopg.connect(dsn) as conn:
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        conn.read_only = True
        conn.execute("SELECT count(*) FROM bench_order")
        yield
        conn.rollback()


@contextlib.contextmanager
def _hold_write(contender: contenders.Contender, dsn: str) -> Iterator[None]:
    with world.connect(dsn) as conn, conn.transaction(force_rollback=True):
        conn.execute("INSERT INTO bench_noise (note) VALUES ('an open transaction')")
        running.insert(conn, contender, _BEYOND, _BEYOND + UNCOMMITTED - 1)
        yield
