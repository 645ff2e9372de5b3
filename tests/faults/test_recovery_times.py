"""How soon work goes on when what was away is back: broker, database, and connections that died without a word.

SAGAPOST_TRIALS=20 gives distributions; the times are printed, and are no assertion: these tests fail when work does not go on at all.
"""

import asyncio
import functools
import os
import pathlib
import statistics
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Generator, Sequence
from typing import Self
from urllib.parse import urlsplit

import psycopg
import pytest
from faults import customers as buyers
from faults import pairs
from faults import stack as stacks

from sagapost_chassis import topology
from sagapost_sandbox import management, ports
from sagapost_sandbox.testing import polling, proxy, servers

TRIALS = int(os.environ.get("SAGAPOST_TRIALS", "1"))
LOOK_S = 0.01
pytestmark = pytest.mark.timeout(180 + 60 * TRIALS)


@pytest.fixture
def line(private_broker: servers.Broker) -> Generator[proxy.Proxy]:
    """Give a line to the broker that can be lost."""
    parts = urlsplit(private_broker.amqp_url())
    with proxy.Proxy(str(parts.hostname), int(parts.port or 0)) as made:
        yield made


@pytest.fixture
def shop(
    tmp_path: pathlib.Path, private_databases: servers.Databases, private_broker: servers.Broker, line: proxy.Proxy
) -> Generator[stacks.Stack]:
    """Run every service on servers of its own, the broker behind the line."""
    urls = pairs.databases_on(private_databases)
    parts = urlsplit(private_broker.amqp_url())
    asyncio.run(topology.declare(private_broker.amqp_url()))
    through = parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@{proxy.HOST}:{line.port}").geturl()
    made = stacks.make(tmp_path, urls, through, private_broker, {"relay-order": {"SAGAPOST_METRICS_PORT": str(ports.trial(1)[0])}})
    try:
        yield made.start_all()
    finally:
        made.stop()


class Opening:
    """Watches from a thread for the moment in which a server answers again."""

    def __init__(self, answers: Callable[[], bool]) -> None:
        self._answers = answers
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.at = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(LOOK_S):
            if self._answers():
                self.at = time.monotonic()
                return


def _speaks(broker: servers.Broker) -> bool:
    parts = urlsplit(broker.amqp_url())
    return management.speaks_amqp(str(parts.hostname), int(parts.port or 0))


def _accepts(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=1).close()
    except psycopg.OperationalError:
        return False
    return True


def _confirmed(shop: stacks.Stack) -> float:
    """Count what the relay of the order database has had confirmed."""
    port = shop.environment("relay-order")["SAGAPOST_METRICS_PORT"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith("sagapost_relay_published_total"):
                return float(line.split()[-1])
    return 0


def _moved(shop: stacks.Stack, than: float) -> bool:
    return _confirmed(shop) > than


def _told(what: str, times_s: Sequence[float]) -> None:
    spread = f"median {statistics.median(times_s):.2f} s, longest {max(times_s):.2f} s"
    sys.stdout.write(f"\n{what}, {len(times_s)} times: {spread}; {[round(each, 2) for each in times_s]}\n")


def _whole(shop: stacks.Stack, customers: buyers.Customers) -> None:
    for order in customers.bought:
        shop.ended(order.saga_id, deadline_s=90)
    shop.verified()


def test_confirms_go_on_when_the_broker_is_back(shop: stacks.Stack, private_broker: servers.Broker) -> None:
    """Killed and started under load: the relay publishes again by itself, from the port's opening on."""
    customers, times_s = buyers.Customers(shop), list[float]()
    with customers.buying():
        for _ in range(TRIALS):
            polling.eventually(functools.partial(customers.have, len(customers.bought) + 5), 60)
            private_broker.kill()
            polling.eventually(functools.partial(customers.have, len(customers.bought) + 5), 60)
            before = _confirmed(shop)
            with Opening(functools.partial(_speaks, private_broker)) as opening:
                starting = threading.Thread(target=private_broker.start)
                starting.start()
                polling.eventually(functools.partial(_moved, shop, before), 90)
                times_s.append(time.monotonic() - opening.at)
                starting.join()
    _told("from the broker's first word to the first confirm", times_s)
    _whole(shop, customers)


def test_checkouts_go_on_when_the_database_is_back(shop: stacks.Stack, private_databases: servers.Databases) -> None:
    """Killed and started under load: the first 202 follows by itself, and what was answered 202 before is there."""
    customers, times_s = buyers.Customers(shop), list[float]()
    with customers.buying():
        for _ in range(TRIALS):
            polling.eventually(functools.partial(customers.have, len(customers.bought) + 5), 60)
            private_databases.kill()
            with Opening(functools.partial(_accepts, str(shop.known.order_database_url))) as opening:
                private_databases.start()
                polling.eventually(functools.partial(_bought_after, customers, opening), 60)
            times_s.append(min(order.at for order in customers.bought if order.at > opening.at) - opening.at)
    _told("from the database's first connection to the first 202", times_s)
    _whole(shop, customers)


def test_a_connection_that_died_without_a_word_is_given_up(shop: stacks.Stack, line: proxy.Proxy) -> None:
    """What is sent on it vanishes and nothing is closed: heartbeats tell, a new connection is made, and the rows are published again."""
    customers, times_s = buyers.Customers(shop), list[float]()
    with customers.buying():
        for _ in range(TRIALS):
            polling.eventually(functools.partial(customers.have, len(customers.bought) + 5), 60)
            line.blackhole()
            line.resume()
            lost = time.monotonic()
            # some orders later whatever had been confirmed before the loss is counted
            polling.eventually(functools.partial(customers.have, len(customers.bought) + 5), 60)
            before = _confirmed(shop)
            polling.eventually(functools.partial(_moved, shop, before), 90)
            times_s.append(time.monotonic() - lost)
    _told("from the loss of every connection to the broker to the next confirm", times_s)
    _whole(shop, customers)


def _bought_after(customers: buyers.Customers, opening: Opening) -> bool:
    return opening.at > 0 and bool(customers.bought) and customers.bought[-1].at > opening.at
