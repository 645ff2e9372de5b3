"""Latency: from COMMIT returned in the writer to the message in the sink, at fixed rates of real transactions."""

import functools
import statistics
import time
from collections.abc import Iterator
from typing import Final

from benchmarks.relay import bench as benches
from benchmarks.relay import contenders, running, sink, world, writing
from sagapost_contracts import topology

RATES_PER_S: Final = (200, 1000)
DONE_S: Final = 30.0
FIRST_SEQUENCE: Final = 1000
_WARM_UP: Final = 20
_READY_S: Final = 30.0
_IDLE_S: Final = 1.0


def measure(bench: benches.Bench, repeat: int) -> Iterator[benches.Sample]:
    """Write at each rate for each contender."""
    for rate in RATES_PER_S:
        for contender in bench.turn(bench.contenders, repeat):
            take = functools.partial(_once, bench, contender, rate, repeat)
            yield bench.sample("latency", contender.name, repeat, take, case=str(rate))


def _once(bench: benches.Bench, contender: contenders.Contender, rate: int, repeat: int) -> dict[str, float]:
    here = bench.world
    with here.database(bench.templates[contender.name]) as dsn, here.queue() as queue:
        here.settle()
        return at_rate(bench, contender, dsn, queue, rate=rate, seconds=bench.options.seconds, seed=repeat)


def at_rate(
    bench: benches.Bench, contender: contenders.Contender, dsn: str, queue: str, *, rate: int, seconds: float, seed: int
) -> dict[str, float]:
    """Run a relay and a writer, and join what was committed with what arrived.

    Raises:
        ContenderError: the relay or the writer did not do their work.

    """
    here = bench.world
    job = job_of(bench, dsn, contender, mode="open", rate=rate, seconds=seconds, seed=seed)
    with sink.Sink(sink.Order(url=here.amqp_url, queue=queue)) as device, running.relaying(contender, here, dsn) as relays:
        idle_cpu_s = _settle(contender, here, dsn, device, relays)
        cpu_s = relays.cpu_s()
        with running.writers(contender, here, job) as process:
            book = running.book(process, contender, here, job, seconds + DONE_S)
        cpu_s = relays.cpu_s() - cpu_s
        device.expect(_WARM_UP + len(book.committed))
        device.enough(DONE_S)
        relays.stop()
        arrivals = device.stop()
    arrived = dict(zip(arrivals.sequences, arrivals.times_s, strict=True))
    waits_ms = sorted((arrived[sequence] - at_s) * 1000 for sequence, at_s in book.committed if sequence in arrived)
    if len(waits_ms) < 2:
        raise running.ContenderError(f"{contender.name} delivered {len(waits_ms)} of {len(book.committed)} messages")
    cuts = statistics.quantiles(waits_ms, n=1000, method="inclusive")
    return {
        "p50_ms": cuts[499],
        "p99_ms": cuts[989],
        "p999_ms": cuts[998],
        "max_ms": waits_ms[-1],
        "written_per_s": len(book.committed) / (book.ended_s - book.began_s),
        "idle_cpu_percent": idle_cpu_s / _IDLE_S * 100,
        "relay_cpu_percent": cpu_s / (book.ended_s - book.began_s) * 100,
        "writer_cpu_percent": book.cpu_s / (book.ended_s - book.began_s) * 100,
        "lost": len(book.committed) - len(waits_ms),
        "duplicated": arrivals.counts.duplicated,
        "inversions": arrivals.counts.inversions,
    }


def job_of(
    bench: benches.Bench, dsn: str, contender: contenders.Contender, *, mode: str, rate: float = 0, seconds: float, seed: int
) -> writing.Job:
    """Make a writer's job; its sequences begin behind those of the warm-up."""
    return writing.Job(
        dsn=dsn,
        amqp_url=bench.world.amqp_url,
        exchange=topology.EXCHANGE,
        variant=contender.variant,
        out=str(bench.world.folder / "book.json"),
        mode=mode,
        rate=rate,
        seconds=seconds,
        size_bytes=bench.options.size_bytes,
        seed=seed,
        first=FIRST_SEQUENCE,
    )


def _settle(contender: contenders.Contender, here: world.World, dsn: str, device: sink.Sink, relays: running.Relays) -> float:
    """Send a few messages through, so that everything is connected and planned; give the processor time of an idle second."""
    running.fill(contender, dsn, _WARM_UP)
    device.expect(_WARM_UP)
    if not device.enough(_READY_S):
        raise running.ContenderError(f"{contender.name} published nothing within {_READY_S:.0f} s: {running.said(contender, here)}")
    time.sleep(_IDLE_S / 2)
    before_s = relays.cpu_s()
    time.sleep(_IDLE_S)
    return relays.cpu_s() - before_s
