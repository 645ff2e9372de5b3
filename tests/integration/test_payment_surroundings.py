"""Outages longer than the whole retry schedule: a fault of the surroundings never makes a message a dead letter."""

import contextlib
import http.client
import json
import pathlib
from collections.abc import Callable
from typing import Any, Final
from uuid import uuid4

import psycopg
import pytest
from integration.test_payment_process import Start, charges, depths, moved, order_of, publish, rows
from psycopg import conninfo, sql

from sagapost_contracts import events, topology
from sagapost_sandbox import ports
from sagapost_sandbox.testing import servers, services

AWAY: Final = 3  # failures; the schedule has one delay, so that the second counted one would make a dead letter


@pytest.fixture
def env(payment_db: str, vhost: str, provider: services.Service) -> dict[str, str]:
    """Return the variables of a payment process that waits once, for a second, before a message is a dead letter."""
    return {
        "SAGAPOST_DATABASE_URL": payment_db,
        "SAGAPOST_AMQP_URL": vhost,
        "SAGAPOST_PROVIDER_URL": provider.url,
        "SAGAPOST_RETRY_DELAYS_S": "1",
    }


def _dead(vhost: str) -> int:
    return depths(vhost)[topology.dead_letter_queue(topology.PAYMENT_QUEUE)]


def _failures(service: services.Service) -> list[dict[str, Any]]:
    return [line for line in service.lines() if line["event"] == "message.handled" and str(line["outcome"]).startswith("retry_in")]


def test_a_database_that_is_away_costs_no_attempt(
    env: dict[str, str],
    database_server: servers.Databases,
    provider: services.Service,
    start_service: Start,
    eventually: Callable[..., Any],
) -> None:
    """Payment's database takes no session while an order comes again and again; then it does, and the order is paid."""
    payment_db, vhost = env["SAGAPOST_DATABASE_URL"], env["SAGAPOST_AMQP_URL"]
    service = start_service("payment", env).wait_ready()
    name = str(conninfo.conninfo_to_dict(payment_db)["dbname"])
    order = order_of()
    with psycopg.connect(database_server.admin_dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(sql.Identifier(name)))
        admin.execute("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s", (name,))
        publish(vhost, order, uuid4())
        eventually(lambda: len(_failures(service)) >= AWAY, 60)
        assert {line["attempt"] for line in _failures(service)} == {1}
        admin.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(sql.Identifier(name)))

    eventually(lambda: rows(payment_db, "SELECT status FROM payments") == [("captured",)], 60)
    assert charges(provider, order.saga_id) == 1
    assert _dead(vhost) == 0


def test_a_provider_that_is_away_costs_no_attempt(
    env: dict[str, str],
    tmp_path: pathlib.Path,
    start_service: Start,
    eventually: Callable[..., Any],
) -> None:
    """Nothing listens where the provider should while an order comes again and again; then it does, and the order is paid."""
    port = str(ports.trial(1)[0])
    payment_db, vhost = env["SAGAPOST_DATABASE_URL"], env["SAGAPOST_AMQP_URL"]
    service = start_service("payment", env | {"SAGAPOST_PROVIDER_URL": f"http://127.0.0.1:{port}"}).wait_ready()
    order = order_of()
    publish(vhost, order, uuid4())
    eventually(lambda: len(_failures(service)) >= AWAY, 60)
    assert {line["attempt"] for line in _failures(service)} == {1}

    back = start_service(
        "sagapost_sandbox.provider", {"SAGAPOST_PORT": port, "SAGAPOST_PROVIDER_LEDGER": str(tmp_path / "ledger")}
    ).wait_ready()
    eventually(lambda: rows(payment_db, "SELECT status FROM payments") == [("captured",)], 60)
    assert charges(back, order.saga_id) == 1
    assert _dead(vhost) == 0


def test_a_provider_that_is_too_busy_to_refund_costs_no_attempt(
    env: dict[str, str], tmp_path: pathlib.Path, start_service: Start, eventually: Callable[..., Any]
) -> None:
    """The provider answers 503 to a refund more often than the schedule has delays; then it refunds, once."""
    ledger = {"SAGAPOST_PROVIDER_LEDGER": str(tmp_path / "ledger")}
    provider = start_service("sagapost_sandbox.provider", ledger).wait_ready()
    payment_db, vhost = env["SAGAPOST_DATABASE_URL"], env["SAGAPOST_AMQP_URL"]
    start_service("payment", env | {"SAGAPOST_PROVIDER_URL": provider.url}).wait_ready()
    order = order_of()
    publish(vhost, order, uuid4())
    eventually(lambda: rows(payment_db, "SELECT status FROM payments") == [("captured",)], 60)

    _behave(provider, refund_failures=AWAY + 1)
    publish(vhost, events.CancelPayment(order_id=order.order_id, saga_id=order.saga_id, reason="customer", saga_version=2), uuid4())
    eventually(lambda: rows(payment_db, "SELECT status FROM payments") == [("refunded",)], 60)
    assert moved(provider, order.saga_id) == ["charge", "refund"]
    assert _dead(vhost) == 0


def _behave(provider: services.Service, **behaviour: object) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", provider.port, timeout=5)
    with contextlib.closing(connection):
        connection.request("PUT", "/v1/behaviour", json.dumps(behaviour), {"Content-Type": "application/json"})
        assert connection.getresponse().status < 300
