"""Odd: messages that no queue takes, and what adding a message costs the one who adds it."""

import functools
import pathlib
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


def unroutable(bench: benches.Bench, repeat: int) -> Iterator[benches.Sample]:
    """Let each contender relay rows of which every hundredth goes nowhere."""
    for contender in bench.turn(bench.contenders, repeat):
        yield bench.sample("unroutable", contender.name, repeat, functools.partial(_nowhere, bench, contender))


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


def _cost(bench: benches.Bench, contender: contenders.Contender, repeat: int) -> dict[str, float]:
    here = bench.world
    with here.database(bench.templates[contender.name]) as dsn:
        here.settle()
        job = latency.job_of(bench, dsn, contender, mode="cost", seconds=bench.options.seconds, seed=repeat)
        with running.writers(contender, here, job, verb="cost") as process:
            running.finish(process, contender, here, bench.options.seconds + latency.DONE_S)
        return msgspec.json.decode(pathlib.Path(job.out).read_bytes(), type=dict[str, float])
