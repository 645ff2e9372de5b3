"""A PostgreSQL primary with a synchronous standby under load: the primary is killed, the standby promoted, the dead one comes back.

SAGAPOST_PROMOTIONS=20 repeats it; each time the standby of the time before is the primary, and the dead one is copied anew.
"""

import functools
import os
import statistics
import sys
import time

import psycopg
import pytest
from faults import customers as buyers
from faults import pairs
from faults import stack as stacks

from sagapost_sandbox import postgres
from sagapost_sandbox.testing import polling

PROMOTIONS = int(os.environ.get("SAGAPOST_PROMOTIONS", "1"))
pytestmark = pytest.mark.timeout(150 + 90 * PROMOTIONS)
ZOMBIE_S = 3


def test_a_promotion_loses_no_order_that_a_customer_was_told_of(pair: pairs.Pair, paired_shop: stacks.Stack) -> None:
    """Every 202 has its order on the new primary, customers go on, every saga ends, and a primary that comes back is told of nothing."""
    customers = buyers.Customers(paired_shop)
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
        paired_shop.ended(order.saga_id)
    paired_shop.verified()


def _zombie(pair: pairs.Pair, customers: buyers.Customers) -> None:
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


def _all_there(pair: pairs.Pair, customers: buyers.Customers) -> None:
    with psycopg.connect(pair.primary.dsn(*pairs.OWNERS["order"], "order_db")) as conn:
        there = {order_id for (order_id,) in conn.execute("SELECT id FROM orders").fetchall()}
    assert {order.order_id for order in customers.bought} <= there
