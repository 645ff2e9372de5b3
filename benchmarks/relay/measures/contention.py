"""Contention: 16 writers on 50 aggregates with pauses, locks, early transaction ids and rollbacks; counts what goes wrong."""

import functools
from collections.abc import Iterator
from typing import Final

from benchmarks.relay import bench as benches
from benchmarks.relay import contenders, running, sink
from benchmarks.relay.measures import latency

_DELIVERED_S: Final = 60.0


def measure(bench: benches.Bench, repeat: int) -> Iterator[benches.Sample]:
    """Run each contender once."""
    for contender in bench.turn(bench.contenders, repeat):
        yield bench.sample("contention", contender.name, repeat, functools.partial(_once, bench, contender, repeat))


def _once(bench: benches.Bench, contender: contenders.Contender, repeat: int) -> dict[str, float]:
    here, seconds = bench.world, bench.options.contention_s
    with here.database(bench.templates[contender.name]) as dsn, here.queue() as queue:
        here.settle()
        job = latency.job_of(bench, dsn, contender, mode="contention", seconds=seconds, seed=repeat)
        with sink.Sink(sink.Order(url=here.amqp_url, queue=queue)) as device, running.relaying(contender, here, dsn) as relays:
            with running.writers(contender, here, job) as process:
                book = running.book(process, contender, here, job, seconds + latency.DONE_S)
            device.expect(len(book.committed))
            device.enough(_DELIVERED_S)
            relays.stop()
            arrivals = device.stop()
    committed, received = {sequence for sequence, _ in book.committed}, set(arrivals.sequences)
    return {
        "events": len(committed),
        "rolled_back": book.undone,
        "lost": len(committed - received),
        "phantoms": len(received - committed),
        "duplicated": arrivals.counts.duplicated,
        "inversions": arrivals.counts.inversions,
    }
