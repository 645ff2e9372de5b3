"""Ten minutes without a broker at 50 checkouts a second: what was answered meanwhile, how fast it drained, when all was as before.

It starts a stack of its own, without delays of provider and mail server: .venv/bin/python benchmarks/outage.py --minutes 10 --rate 50
"""

import argparse
import asyncio
import collections
import itertools
import json
import os
import pathlib
import statistics
import sys
import time
import uuid
from typing import Final

import aiohttp
import psycopg
import uvloop

from sagapost_ops import plan, state
from sagapost_ops.chaos import rig
from sagapost_sandbox import packages, ports
from sagapost_sandbox.testing import servers

BUCKET_S: Final = 10
LINES: Final = 100
NORMAL: Final = 2.0  # times the p99 from before the outage, or 50 ms more than it, counts as back to normal
NORMAL_MS: Final = 50
REST_S: Final = 1800

_ORDERS: Final = """
SELECT extract(epoch FROM o.created_at)::float8,
       (SELECT extract(epoch FROM min(h.at))::float8 FROM saga_history h WHERE h.saga_id = s.id AND h.to_state = 'paid'),
       (SELECT extract(epoch FROM min(h.at))::float8 FROM saga_history h WHERE h.saga_id = s.id AND h.to_state = 'notified')
FROM sagas s JOIN orders o ON o.id = s.order_id ORDER BY 1
"""


class Till:
    """Customers who come at a rate, whatever happens to them."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.answers: collections.Counter[str] = collections.Counter()
        self.took_ms: list[float] = []
        self.late = 0

    async def run(self, rate: float, stop: asyncio.Event) -> None:
        """Check out `rate` times a second until `stop` is set; each customer once, with a key of the customer's own."""
        began, sent = time.monotonic(), 0
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=LINES)) as session, asyncio.TaskGroup() as group:
            while not stop.is_set():
                due = int((time.monotonic() - began) * rate) - sent
                for _ in range(due):
                    sent += 1
                    group.create_task(self._buy(session))
                await asyncio.sleep(0.01)

    async def _buy(self, session: aiohttp.ClientSession) -> None:
        body = {"user_id": 1, "user_email": "outage@example.com", "items": [{"product_id": 1, "quantity": 1, "price": "1299.99"}]}
        began = time.perf_counter()
        try:
            async with session.post(f"{self._url}/api/checkout", json=body, headers={"Idempotency-Key": uuid.uuid4().hex}) as answer:
                await answer.read()
                self.answers[str(answer.status)] += 1
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            self.answers[type(exc).__name__] += 1
        self.took_ms.append((time.perf_counter() - began) * 1000)


async def _published(port: int) -> float:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return next((float(line.split()[1]) for line in lines if line.startswith("sagapost_relay_published_total")), 0.0)


async def _drained(port: int, until: asyncio.Event) -> list[tuple[float, float]]:
    found: list[tuple[float, float]] = []
    while not until.is_set():
        found.append((time.time(), await _published(port)))
        await asyncio.sleep(0.5)
    return found


async def _rest(dsn: str) -> None:
    deadline = time.monotonic() + REST_S
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        while time.monotonic() < deadline:
            row = await (await conn.execute("SELECT count(*) FROM sagas WHERE state IN ('created', 'paid')")).fetchone()
            if row == (0,):
                return
            sys.stderr.write(f"{row} sagas are under way\n")
            await asyncio.sleep(5)


def judge(rows: list[tuple[float, float | None, float | None]], away: tuple[float, float], rate: float) -> dict[str, object]:
    """Compare what was before with what came after; times are seconds since the epoch, `away` is the outage."""
    down, up = away
    lag = collections.defaultdict[int, list[float]](list)
    for created, paid, _ in rows:
        if paid is not None:
            lag[int((created - up) // BUCKET_S)].append((paid - created) * 1000)
    first = int((rows[0][0] - up) // BUCKET_S) + 1  # the first bucket warms up
    last = int((down - up) // BUCKET_S) - 1
    before = [value for bucket in range(first, last) for value in lag[bucket]]
    normal = statistics.quantiles(before, n=100)[98]
    p99s = {bucket: round(statistics.quantiles(values, n=100)[98]) for bucket, values in sorted(lag.items()) if len(values) > 1}
    high = [bucket for bucket, p99 in p99s.items() if bucket >= 0 and p99 > max(NORMAL * normal, normal + NORMAL_MS)]
    waiting = [paid for created, paid, _ in rows if paid is not None and created < up <= paid]
    paid_until = max(waiting, default=up)
    told_until = max((told for created, _, told in rows if told is not None and created < up), default=up)
    while_draining = sum(1 for _, paid, _ in rows if paid is not None and up <= paid <= paid_until)
    return {
        "orders": len(rows),
        "not_paid": sum(paid is None for _, paid, _ in rows),
        "not_notified": sum(told is None for _, _, told in rows),
        "waiting_when_the_broker_came_back": len(waiting),
        "the_last_of_them_was_paid_after_s": round(paid_until - up, 1),
        "paid_per_s_meanwhile": round(while_draining / max(0.001, paid_until - up)),
        "times_the_arrivals": round(while_draining / max(0.001, paid_until - up) / rate, 2),
        "the_last_of_them_was_notified_after_s": round(told_until - up, 1),
        "p99_ms_before": round(normal, 1),
        "p99_normal_again_after_s": (max(high) + 1) * BUCKET_S if high else 0,
        "p99_ms_of_10_s_from_the_return": {bucket * BUCKET_S: p99 for bucket, p99 in p99s.items() if bucket >= 0},
    }


async def measure(given: argparse.Namespace, folder: pathlib.Path) -> dict[str, object]:
    """Run the stack, the customers and the outage, and wait until all is at rest."""
    offset = given.port_offset
    home = folder / "outage"
    state.prepare(home)
    options = plan.Options(port_offset=offset, payment_delay_s=0, email_delay_s=0)
    world = rig.Rig(plan.make(options, plan.choose_ports(options, ports.next_free), home), home, dying=False)
    dsn = world.plan.addresses.order_database_url
    stop, over = asyncio.Event(), asyncio.Event()
    try:
        await world.start()
        till = Till(world.plan.addresses.gateway_url)
        buying = asyncio.create_task(till.run(given.rate, stop))
        await asyncio.sleep(given.before)
        down, before = time.time(), till.answers.copy()
        await world.kill_server("rabbitmq")
        await asyncio.sleep(given.minutes * 60)
        meanwhile = till.answers - before
        watching = asyncio.create_task(_drained(int(world.units["relay-order"].environ["SAGAPOST_METRICS_PORT"]), over))
        await world.start_server("rabbitmq")
        up = world.life("rabbitmq").ready_at
        sys.stderr.write(f"{dict(meanwhile)} were the answers meanwhile, the broker is back\n")
        await asyncio.sleep(given.after)
        stop.set()
        await buying
        over.set()
        samples = await watching
        await _rest(dsn)
        with psycopg.connect(dsn) as conn:
            rows = conn.execute(_ORDERS).fetchall()
    finally:
        await world.stop()
    rates = [(count - before) / (at - since) for (since, before), (at, count) in itertools.pairwise(samples)]
    return {
        "cpus": os.cpu_count(),
        "rate_per_s": given.rate,
        "outage_s": round(up - down, 1),
        "answers_before": dict(before),
        "answers_meanwhile": dict(meanwhile),
        "answers_after": dict(till.answers - before - meanwhile),
        "answer_ms": {"p50": round(statistics.median(till.took_ms), 1), "p99": round(statistics.quantiles(till.took_ms, n=100)[98], 1)},
        "relay_published_per_s_at_most": round(max(rates, default=0)),
        **judge(rows, (down, up), given.rate),
    }


def main() -> None:
    """Print what was measured as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=50, help="checkouts a second")
    parser.add_argument("--minutes", type=float, default=10, help="how long the broker is away")
    parser.add_argument("--before", type=float, default=60, help="seconds of normal life before it")
    parser.add_argument("--after", type=float, default=240, help="seconds of customers after it")
    parser.add_argument("--port-offset", type=int, default=6000)
    given = parser.parse_args()
    packages.ensure()
    with servers.run_folder() as folder:
        found = uvloop.run(measure(given, folder))
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
