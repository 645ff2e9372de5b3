"""Volume: a backlog of a million rows against one of thirty thousand, and one to four relays on the four shards."""

import functools
import time
from collections.abc import Iterator
from typing import Final

from benchmarks.relay import bench as benches
from benchmarks.relay import contenders, running, sink, world
from benchmarks.relay.measures import drain

RELAYS: Final = (1, 2, 3, 4)
_SHARED_S: Final = 30.0
_OWNERS: Final = "SELECT count(DISTINCT owner) FROM outbox_cursor"


def backlog(bench: benches.Bench, repeat: int) -> Iterator[benches.Sample]:
    """Drain the small backlog and the large one."""
    for contender in bench.named("sagapost"):
        for rows in bench.turn((bench.options.rows, bench.options.backlog_rows), repeat):
            yield bench.sample("backlog", contender.name, repeat, functools.partial(drain.once, bench, contender, rows), case=str(rows))


def relays(bench: benches.Bench, repeat: int) -> Iterator[benches.Sample]:
    """Let one to four processes share the shards, then commit all rows in one transaction."""
    for contender in bench.named("sagapost"):
        for count in bench.turn(RELAYS, repeat):
            yield bench.sample("relays", contender.name, repeat, functools.partial(_shared, bench, contender, count), case=str(count))


def _shared(bench: benches.Bench, contender: contenders.Contender, count: int) -> dict[str, float]:
    here, rows = bench.world, bench.options.rows * 2
    with here.database(bench.templates[contender.name]) as dsn, here.queue() as queue:
        here.settle()
        with sink.Sink(sink.Order(url=here.amqp_url, queue=queue, pause_s=drain.PAUSE_S)) as device:
            with running.relaying(contender, here, dsn, count) as started:
                _wait_until_shared(contender, here, dsn, count)
                device.expect(rows)
                cpu_s = started.cpu_s()
                running.fill(contender, dsn, rows, at_once=True)
                device.enough(drain.FIRST_S * 2)
                cpu_s = started.cpu_s() - cpu_s
                time.sleep(drain.LINGER_S)
                started.stop()
            counts = device.stop().counts
    return drain.figures(counts, rows) | {"cpu_us": cpu_s / rows * 1e6}


def _wait_until_shared(contender: contenders.Contender, here: world.World, dsn: str, count: int) -> None:
    deadline = time.monotonic() + _SHARED_S
    while world.number(dsn, _OWNERS) < count:
        if time.monotonic() > deadline:
            raise running.ContenderError(
                f"{count} relays did not share the shards within {_SHARED_S:.0f} s: {running.said(contender, here)}"
            )
        time.sleep(0.1)
