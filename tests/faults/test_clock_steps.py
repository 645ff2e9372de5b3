"""A database's clock is set by an hour under load: checkouts are accepted, and none is cancelled by the clock."""

import http.client
import json
import pathlib
from collections.abc import Generator, Mapping
from typing import Any

import psycopg
import pytest
from faults import conftest as stacks_of
from faults import customers as buyers
from faults.stack import Stack
from integration import clock_shim

from sagapost_sandbox.testing import polling, servers

pytestmark = pytest.mark.timeout(400)

FLAKY = 4
CANCELLED = 4
MORE = 10
ENDS_S = 120
LEFT = "SELECT count(*) FROM sagas WHERE deadline_at IS NOT NULL"
ENDS = "SELECT id::text, state, reason FROM sagas"


@pytest.fixture
def urls(database_server: servers.Databases, templates: Mapping[str, str]) -> Generator[dict[str, str]]:
    """Make databases whose clocks can be set."""
    with stacks_of.cloned(database_server, templates) as made:
        for url in made.values():
            clock_shim.install(url)
        yield made


@pytest.fixture
def shop(
    tmp_path: pathlib.Path,
    database_server: servers.Databases,
    broker: servers.Broker,
    templates: Mapping[str, str],
    urls: dict[str, str],
) -> Generator[Stack]:
    """Run every service on them."""
    with stacks_of.running(tmp_path, database_server, broker, templates, elsewhere=urls) as made:
        yield made


@pytest.mark.parametrize("by", ["1 hour", "-1 hour"])
@pytest.mark.parametrize("service", ["order", "payment"])
def test_a_step_of_a_databases_clock_cancels_nothing(shop: Stack, urls: dict[str, str], service: str, by: str) -> None:
    """And back again: with receipts on their way, charges that fail at first and cancellations, each order ends as its customer wanted."""
    customers = buyers.Customers(shop)
    shop.mailbox_behaves(delay_s=1)
    with customers.buying():
        cancelled = _step(shop, customers, urls[service], by)
        polling.eventually(lambda: "clock-skew" in _degraded(shop), 90)
        cancelled |= _step(shop, customers, urls[service], "0")
        _more(customers)
    shop.mailbox_behaves()

    with psycopg.connect(urls["order"], autocommit=True) as sql:
        polling.eventually(lambda: sql.execute(LEFT).fetchone() == (0,), ENDS_S)
        ends = {saga_id: (state, reason) for saga_id, state, reason in sql.execute(ENDS).fetchall()}
    unwanted = {saga_id: end for saga_id, end in ends.items() if saga_id not in cancelled and end[0] != "notified"}
    assert unwanted == {}
    assert {ends[saga_id][0] for saga_id in cancelled} <= {"compensated"}
    assert {str(saga_id) for saga_id in shop.accepted} <= set(ends)
    polling.eventually(lambda: shop.checkout()[0] == 202 and "clock-skew" not in _degraded(shop), 90)
    if service == "order":  # docs/saga.md: a cancellation within the quarter of a second after a step forward may find the lease over
        shop.mail_gap_crashes += len(cancelled)
    shop.verified()


def _step(shop: Stack, customers: buyers.Customers, url: str, by: str) -> set[str]:
    """Set the clock while orders are in every state; return the sagas that are cancelled right after it."""
    _more(customers)
    for _ in range(FLAKY):
        polling.eventually(lambda: shop.checkout("pm_flaky")[0] == 202, 30)
    chosen = customers.bought[-CANCELLED:]
    clock_shim.step(url, by)
    cancelled = {bought.saga_id for bought in chosen if shop.cancel(bought.order_id) == 202}
    _more(customers)
    return cancelled


def _more(customers: buyers.Customers) -> None:
    wanted = len(customers.bought) + MORE
    polling.eventually(lambda: customers.have(wanted), 60)


def _degraded(shop: Stack) -> list[str]:
    """Return what payment's readiness names."""
    connection = http.client.HTTPConnection("127.0.0.1", shop.running["payment"].port, timeout=10)
    connection.request("GET", "/health/ready")
    found: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    return list(found["degraded"])
