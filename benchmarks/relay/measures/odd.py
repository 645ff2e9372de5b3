"""Odd: messages that no queue takes, and what adding a message costs the one who adds it."""

import contextlib
import functools
import itertools
import pathlib
import threading
import time
from collections.abc import Iterator
from typing import Final

import msgspec

from benchmarks.relay import bench as benches
from benchmarks.relay import contenders, running, sink, world
from benchmarks.relay.measures import drain, latency

ROWS: Final = 3000
EACH: Final = 100
UNROUTABLE: Final = ROWS // EACH
_SETTLE_S: Final = 2.0
_DELIVERED_S: Final = 30.0
RATE_PER_S: Final = 200
_NOWHERE: Final = 6_000_000  # the sequences of rows that go nowhere
_EACH_S: Final = 0.05


def unroutable(bench: benches.Bench, repeat: int) -> Iterator[benches.Sample]:
    """Let each contender relay rows of which every hundredth goes nowhere."""
    for contender in bench.turn(bench.contenders, repeat):
        yield bench.sample("unroutable", contender.name, repeat, functools.partial(_nowhere, bench, contender))


def beside(bench: benches.Bench, repeat: int) -> Iterator[benches.Sample]:
    """Write at a rate, with other rows in between that no queue takes, and with as many that one does."""
    for contender in bench.named("sagapost"):
        for case in bench.turn(("without", "with"), repeat):
            yield bench.sample(
                "beside_unroutable", contender.name, repeat, functools.partial(_beside, bench, contender, case, repeat), case=case
            )


def cost(bench: benches.Bench, repeat: int) -> Iterator[benches.Sample]:
    """Compare a checkout's transaction with outbox.add and with a plain insert of the same bytes."""
    for contender in bench.named("sagapost"):
        yield bench.sample("cost", contender.name, repeat, functools.partial(_cost, bench, contender, repeat))


def _nowhere(bench: benches.Bench, contender: contenders.Contender) -> dict[str, float]:
    here = bench.world
    with here.database(bench.templates[contender.name]) as dsn, here.queue() as queue:
        running.fill(contender, dsn, ROWS, unroutable=EACH)
        with sink.Sink(sink.Order(url=here.amqp_url, queue=queue, pause_s=drain.PAUSE_S)) as device:
            with running.relaying(contender, here, dsn) as relays:
                device.expect(ROWS - UNROUTABLE)
                whole = device.enough(_DELIVERED_S)
                time.sleep(_SETTLE_S)  # the odd ones may be the last to be dealt with
                waiting, aside = world.number(dsn, contender.waiting), world.number(dsn, contender.aside)
                relays.stop()
            counts = device.stop().counts
    values: dict[str, float] = {
        "unroutable": UNROUTABLE,
        "delivered": counts.distinct,
        "set_aside": aside,
        "waiting": waiting,
        "stalled": 0 if whole else 1,
        "duplicated": counts.duplicated,
    }
    # one that stands still has lost nothing yet: it delivers nothing either
    return values | ({"silently_lost": max(0, UNROUTABLE - aside - waiting)} if whole else {})


def _beside(bench: benches.Bench, contender: contenders.Contender, case: str, repeat: int) -> dict[str, float]:
    here = bench.world
    with here.database(bench.templates[contender.name]) as dsn, here.queue() as queue:
        here.settle()
        with _disturbing(contender, dsn, unroutable=int(case == "with")):
            values = latency.at_rate(bench, contender, dsn, queue, rate=RATE_PER_S, seconds=bench.options.seconds, seed=repeat)
        return values | {"set_aside": world.number(dsn, contender.aside)}


@contextlib.contextmanager
def _disturbing(contender: contenders.Contender, dsn: str, *, unroutable: int) -> Iterator[None]:
    """Add a row each 50 ms, spread over all shards; 1: it goes nowhere."""
    stop = threading.Event()

    def add() -> None:
        with world.connect(dsn) as conn:
            for number in itertools.count(_NOWHERE):
                running.insert(conn, contender, number, number, unroutable=unroutable)
                if stop.wait(_EACH_S):
                    return

    thread = threading.Thread(target=add)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _cost(bench: benches.Bench, contender: contenders.Contender, repeat: int) -> dict[str, float]:
    here = bench.world
    with here.database(bench.templates[contender.name]) as dsn:
        here.settle()
        job = latency.job_of(bench, dsn, contender, mode="cost", seconds=bench.options.seconds, seed=repeat)
        with running.writers(contender, here, job, verb="cost") as process:
            running.finish(process, contender, here, bench.options.seconds + latency.DONE_S)
        return msgspec.json.decode(pathlib.Path(job.out).read_bytes(), type=dict[str, float])
