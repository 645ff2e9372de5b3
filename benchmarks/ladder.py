"""What failing messages cost the others on one consumer: the good ones' latency beside failing and beside healthy neighbours, in turns.

Run it by itself, it starts a private broker: .venv/bin/python benchmarks/ladder.py --pairs 12
"""

import argparse
import asyncio
import contextlib
import json
import os
import pathlib
import statistics
import sys
from datetime import UTC, datetime
from typing import Final

from sagapost_chassis import amqp, consuming, errors, ids, telemetry
from sagapost_chassis import topology as declared
from sagapost_contracts import envelope, events, topology
from sagapost_sandbox.testing import polling, servers

QUEUE: Final = topology.PAYMENT_QUEUE
DELAYS_S: Final = (1, 1, 5)
NEIGHBOUR: Final = 10**9  # order ids from here on belong to the neighbours, whose own latency does not count


class Run:
    """One consumer and one publisher; neighbours fail one, two or three times each while `failing`."""

    def __init__(self) -> None:
        self.failing = False
        self.sent: dict[int, float] = {}
        self.took_ms: list[float] = []
        self.effects = 0
        self.attempts = 0
        self.now = asyncio.get_running_loop().time

    async def handle(self, delivery: consuming.Delivery) -> None:
        """Note when a good message arrived; fail a neighbour as often as its number says."""
        number = delivery.message.order_id
        self.attempts += 1
        if number >= NEIGHBOUR and self.failing and delivery.attempt <= 1 + number % 3:
            raise errors.TransientError("not yet")
        self.effects += 1
        if number < NEIGHBOUR:
            self.took_ms.append((self.now() - self.sent[number]) * 1000)

    async def phase(self, publisher: amqp.Publisher, first: int, seconds: float, rate: int, neighbours: int) -> list[float]:
        """Publish at an even `rate` a second, every so often a neighbour, until all is handled; gives the good ones' milliseconds."""
        self.took_ms, self.effects = [], 0
        every = rate // neighbours
        count = int(seconds * rate)
        began = self.now()
        async with asyncio.TaskGroup() as group:
            for nth in range(count):
                await asyncio.sleep(max(0.0, began + nth / rate - self.now()))
                number = first + nth + (NEIGHBOUR if nth % every == 0 else 0)
                self.sent[number] = self.now()
                group.create_task(publisher.publish(amqp.message_of(_sealed(number)), exchange="", routing_key=QUEUE))
        await polling.eventually(lambda: self._all(count), 60)
        return self.took_ms

    async def _all(self, count: int) -> bool:
        return self.effects == count


def _sealed(order_id: int) -> envelope.Envelope:
    command = events.CancelPayment(order_id=order_id, saga_id=ids.uuid7(), reason="benchmark", saga_version=1)
    return envelope.seal(command, message_id=ids.uuid7(), source="benchmark", time=datetime.now(UTC), causation_id=None, traceparent=None)


def _p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


async def _measure(url: str, given: argparse.Namespace) -> list[tuple[list[float], list[float]]]:
    await declared.declare(url)
    run, stop, pairs = Run(), asyncio.Event(), list[tuple[list[float], list[float]]]()
    async with amqp.Publisher(url, "benchmark") as publisher:
        consumer = consuming.Consumer(url, QUEUE, {events.CancelPayment: run.handle}, publisher, retry_delays_s=DELAYS_S)
        task = asyncio.create_task(consumer.run(stop))
        first = 1
        for pair in range(-1, given.pairs):  # the first one warms up
            measured: dict[bool, list[float]] = {}
            for failing in (False, True) if pair % 2 else (True, False):
                run.failing, before = failing, run.attempts
                measured[failing] = await run.phase(publisher, first, given.seconds, given.rate, given.neighbours)
                first += int(given.seconds * given.rate)
                sys.stderr.write(f"pair {pair + 1}/{given.pairs}, failing {failing}: p99 {_p99(measured[failing]):.1f} ms, ")
                sys.stderr.write(f"{run.attempts - before} deliveries\n")
            if pair >= 0:
                pairs.append((measured[False], measured[True]))
        stop.set()
        await task
    return pairs


def main() -> None:
    """Print the medians and the pooled quantiles of both sides, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rate", type=int, default=200, help="messages a second, neighbours among them")
    parser.add_argument("--neighbours", type=int, default=10, help="messages a second that fail one to three times in every second phase")
    given = parser.parse_args()
    with (
        pathlib.Path(os.devnull).open("w", encoding="ascii") as nowhere,
        servers.run_folder() as folder,
        servers.native_broker(folder / "broker") as broker,
    ):
        with contextlib.redirect_stderr(nowhere):
            telemetry.configure("benchmark")  # a service's log lines, with what they cost
        pairs = asyncio.run(_measure(broker.amqp_url(), given))
    alone, beside = ([_p99(pair[side]) for pair in pairs] for side in (0, 1))
    pooled = [_p99([value for pair in pairs for value in pair[side]]) for side in (0, 1)]
    medians = statistics.median(alone), statistics.median(beside)
    found = {
        "p99_ms_beside_healthy": [round(value, 2) for value in alone],
        "p99_ms_beside_failing": [round(value, 2) for value in beside],
        "median_p99_ms": [round(value, 2) for value in medians],
        "ratio_of_medians": round(medians[1] / medians[0], 3),
        "pooled_p99_ms": [round(value, 2) for value in pooled],
        "pooled_ratio": round(pooled[1] / pooled[0], 3),
        "p50_ms": [round(statistics.median([value for pair in pairs for value in pair[side]]), 2) for side in (0, 1)],
    }
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
