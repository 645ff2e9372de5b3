"""A PostgreSQL primary with a synchronous standby under load: the primary is killed, the standby promoted, the dead one comes back.

SAGAPOST_PROMOTIONS=20 repeats it; each time the standby of the time before is the primary, and the dead one is copied anew.
"""

import asyncio
import functools
import itertools
import os
import pathlib
import statistics
import sys
import time
import uuid
from collections.abc import Generator

import psycopg
import pytest
from faults import customers as buyers
from faults import stack as stacks

from sagapost_chassis import topology
from sagapost_ops import migrations
from sagapost_sandbox import ports, postgres, standby
from sagapost_sandbox.testing import polling, servers

PROMOTIONS = int(os.environ.get("SAGAPOST_PROMOTIONS", "1"))
pytestmark = pytest.mark.timeout(150 + 90 * PROMOTIONS)
OWNERS = {"order": ("order_user", "order_password"), "payment": ("payment_user", "payment_password")}
ZOMBIE_S = 3


class Pair:
    """Two servers on two ports that never change; which of them is the primary does."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folders = (folder / f"postgres-{number}" for number in itertools.count())
        self.ports = ports.trial(2)
        self.primary = postgres.Cluster(next(self._folders), self.ports[0], fast=True)
        self.second: standby.Standby | None = None
        self.dead: postgres.Cluster | None = None

    def url(self, name: str) -> str:
        """Give the address of a database that leads to whoever takes writes."""
        user, password = OWNERS[name]
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        return f"postgresql://{user}:{password}@{hosts}/{name}_db?target_session_attrs=read-write"

    def start(self) -> None:
        """Start the primary with both databases, and its standby."""
        self.primary.start()
        for name, (user, password) in OWNERS.items():
            migrations.upgrade(self.primary.create(user, password, f"{name}_db"), name)
        self.add_standby()

    def add_standby(self) -> None:
        """Copy the primary to the other port."""
        (port,) = set(self.ports) - {self.primary.port}
        self.second = standby.Standby(self.primary, next(self._folders), port)
        self.second.start()

    def fail_over(self) -> None:
        """Kill the primary, and promote the standby."""
        assert self.second is not None
        self.dead, (self.primary, self.second) = self.primary, (self.second, None)
        self.dead.kill()
        self.primary.promote()

    def stop(self) -> None:
        """Kill all."""
        for server in (self.second, self.primary, self.dead):
            if server is not None:
                server.kill()


@pytest.fixture
def pair(run_folder: pathlib.Path) -> Generator[Pair]:
    """Run two servers; not below tmp_path, which the servers' own user could not reach."""
    made = Pair(run_folder / f"pair-{uuid.uuid4().hex[:6]}")
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def shop(tmp_path: pathlib.Path, pair: Pair, broker: servers.Broker) -> Generator[stacks.Stack]:
    """Run every service on the pair."""
    name = f"pair-{uuid.uuid4().hex[:8]}"
    amqp_url = broker.create_vhost(name)
    asyncio.run(topology.declare(amqp_url))
    made = stacks.make(tmp_path, {name: pair.url(name) for name in OWNERS}, amqp_url, broker)
    try:
        yield made.start_all()
    finally:
        made.stop()
        broker.delete_vhost(name)


def test_a_promotion_loses_no_order_that_a_customer_was_told_of(pair: Pair, shop: stacks.Stack) -> None:
    """Every 202 has its order on the new primary, customers go on, every saga ends, and a primary that comes back is told of nothing."""
    customers = buyers.Customers(shop)
    waits_s: list[float] = []
    for trial in range(PROMOTIONS):
        if trial:
            pair.add_standby()
        before = len(customers.bought)
        with customers.buying():
            polling.eventually(functools.partial(customers.have, before + 20), 60)
            killed = time.monotonic()
            pair.fail_over()
            promoted = time.monotonic()  # an answer of before may still be on its way until then
            polling.eventually(functools.partial(customers.have, len(customers.bought) + 20), 60)
            waits_s.append(min(order.at for order in customers.bought if order.at > promoted) - killed)
            if trial == 0:
                _zombie(pair, customers)
        _all_there(pair, customers)
    sys.stdout.write(f"\n{PROMOTIONS} promotions, {len(customers.bought)} orders; from kill -9 to the first 202: ")
    sys.stdout.write(f"median {statistics.median(waits_s):.2f} s, longest {max(waits_s):.2f} s\n")
    for order in customers.bought:
        shop.ended(order.saga_id)
    shop.verified()


def _zombie(pair: Pair, customers: buyers.Customers) -> None:
    """Start the dead primary beside the new one and drive all sessions away from that: commits wait in the zombie, nobody is told."""
    assert pair.dead is not None
    pair.dead.start()
    with psycopg.connect(pair.primary.admin_dsn, autocommit=True) as conn:
        conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'order_db'")
    polling.eventually(functools.partial(_waiting, pair.dead), 30)
    before = len(customers.bought)
    until = time.monotonic() + ZOMBIE_S
    polling.eventually(lambda: time.monotonic() > until, 2 * ZOMBIE_S)
    sys.stdout.write(
        f"\na zombie for {ZOMBIE_S} s: {_waiting(pair.dead)} commits wait in it, {len(customers.bought) - before} orders answered\n"
    )
    pair.dead.kill()
    polling.eventually(functools.partial(customers.have, before + 20), 60)


def _waiting(server: postgres.Cluster) -> int:
    with psycopg.connect(server.admin_dsn, autocommit=True) as conn:
        found = conn.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'").fetchone()
    return int(found[0]) if found else 0


def _all_there(pair: Pair, customers: buyers.Customers) -> None:
    with psycopg.connect(pair.primary.dsn(*OWNERS["order"], "order_db")) as conn:
        there = {order_id for (order_id,) in conn.execute("SELECT id FROM orders").fetchall()}
    assert {order.order_id for order in customers.bought} <= there
