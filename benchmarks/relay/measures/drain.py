"""Drain: rows written with everything stopped, then one relay; how fast they come out, and what that costs."""

import functools
import re
import time
from collections.abc import Iterator
from typing import Final

from benchmarks.relay import bench as benches
from benchmarks.relay import ceiling, contenders, running, sink, world

PAUSE_S: Final = 0.001
FIRST_S: Final = 30.0
LINGER_S: Final = 0.3
_SLOWEST_PER_S: Final = 100
_FEWEST_ROWS: Final = 1000
_MESSAGES: Final = re.compile(r"outbox(_\d)?")
_MIB: Final = 1024 * 1024


def measure(bench: benches.Bench, repeat: int) -> Iterator[benches.Sample]:
    """Drain each contender's outbox once, and the ceilings before them."""
    for headers in (True, False):
        case = "" if headers else "without headers"
        yield bench.sample("drain", "ceiling", repeat, functools.partial(_ceiling, bench, headers=headers), case=case)
    for contender in bench.turn(bench.contenders, repeat):
        rows = max(_FEWEST_ROWS, int(bench.options.rows * contender.share))
        yield bench.sample("drain", contender.name, repeat, functools.partial(once, bench, contender, rows))


def warm_up(bench: benches.Bench) -> None:
    """Let the broker compile its hot paths once, for nobody's account."""
    bench.tell("warming up the broker")
    _ceiling(bench, headers=True)


def once(bench: benches.Bench, contender: contenders.Contender, rows: int) -> dict[str, float]:
    """Fill an outbox, start the relay, and follow what comes out."""
    here = bench.world
    with here.database(bench.templates[contender.name]) as dsn, here.queue() as queue:
        here.settle()
        running.fill(contender, dsn, rows)
        return watch(bench, contender, dsn, queue, rows) | dead(dsn)


def dead(dsn: str) -> dict[str, float]:
    """Count dead tuples: those that are there in the tables of messages, and all that were made in any outbox table."""
    found = world.tables(dsn)
    return {
        "dead": sum(one.dead for one in found if _MESSAGES.fullmatch(one.name)),
        "dead_made": sum(one.updated + one.deleted for one in found),
    }


def watch(
    bench: benches.Bench, contender: contenders.Contender, dsn: str, queue: str, rows: int, *, first_s: float = FIRST_S
) -> dict[str, float]:
    """Start one relay on a filled outbox and follow it until all rows have come.

    Raises:
        ContenderError: nothing came within `first_s`.

    """
    here = bench.world
    with sink.Sink(sink.Order(url=here.amqp_url, queue=queue, pause_s=PAUSE_S)) as device:
        wal, started_s = here.wal_bytes(), time.monotonic()
        with running.relaying(contender, here, dsn) as relays:
            if not device.first(first_s):
                raise running.ContenderError(f"{contender.name} published nothing within {first_s:.0f} s: {running.said(contender, here)}")
            cpu_s = relays.cpu_s()
            resident = _follow(device, relays, rows)
            cpu_s = relays.cpu_s() - cpu_s
            time.sleep(LINGER_S)  # for what may come twice
            relays.stop()
        wal = here.wal_bytes() - wal
        counts = device.stop().counts
    return figures(counts, rows) | {
        "cpu_us": cpu_s / rows * 1e6,
        "wal_bytes": wal / rows,
        "since_start_s": counts.last_s - started_s,
        "resident_mib": max(resident) / _MIB,
        "resident_early_mib": resident[min(2, len(resident) - 1)] / _MIB,
    }


def figures(counts: sink.Counts, rows: int) -> dict[str, float]:
    """Give the rate, and what was wrong."""
    return {
        "rows": rows,
        "per_s": counts.per_s,
        "lost": rows - counts.distinct,
        "duplicated": counts.duplicated,
        "inversions": counts.inversions,
    }


def _follow(device: sink.Sink, relays: running.Relays, rows: int) -> list[int]:
    """Wait until all rows have come, or too long; give the resident bytes seen on the way."""
    device.expect(rows)
    resident = [relays.resident_bytes()]
    deadline = time.monotonic() + FIRST_S + rows / _SLOWEST_PER_S
    while not device.enough(0.5) and time.monotonic() < deadline and relays.running():
        resident.append(relays.resident_bytes())
    return [*resident, relays.resident_bytes()]


def _ceiling(bench: benches.Bench, *, headers: bool) -> dict[str, float]:
    here, rows = bench.world, bench.options.rows
    with here.queue() as queue, sink.Sink(sink.Order(url=here.amqp_url, queue=queue, pause_s=PAUSE_S)) as device:
        device.expect(rows)
        order = ceiling.Order(url=here.amqp_url, count=rows, size_bytes=bench.options.size_bytes, headers=headers)
        confirmed_per_s = ceiling.run(order)
        device.enough(FIRST_S)
        counts = device.stop().counts
    return figures(counts, rows) | {"per_s": confirmed_per_s, "received_per_s": counts.per_s}
