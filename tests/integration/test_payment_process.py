"""Payment as a process: messages from the broker, kill -9 at its crash points, SIGTERM, a start without its database."""

import asyncio
import http.client
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID, uuid4

import aio_pika
import msgspec
import psycopg
import pytest

from sagapost_chassis import amqp, ids
from sagapost_contracts import envelope, events, topology
from sagapost_sandbox import ports
from sagapost_sandbox.testing import services

TRACE_ID: Final = "4bf92f3577b34da6a3ce929d0e0e4736"
CANCELLED_AND_FORGOTTEN: Final = """
INSERT INTO payments
    (order_id, saga_id, status, amount, currency, payment_method, user_email, items, pay_before, cancel_requested_at, look_at)
VALUES (%(order_id)s, %(saga_id)s, 'processing', 49.99, 'USD', 'pm_card_ok', 'test@example.com', '[]', now() + interval '15 min',
        now(), now())
"""
Start = Callable[[str, Mapping[str, str]], services.Service]


@pytest.fixture
def env(payment_db: str, vhost: str, provider: services.Service) -> dict[str, str]:
    """Give the variables of a payment process."""
    return {"SAGAPOST_DATABASE_URL": payment_db, "SAGAPOST_AMQP_URL": vhost, "SAGAPOST_PROVIDER_URL": provider.url}


def order_of(payment_method: str = "pm_card_ok") -> events.OrderCreated:
    """Make an order of one line that wants to be paid with this token."""
    return events.OrderCreated(
        order_id=1042,
        saga_id=ids.uuid7(),
        user_id=1,
        user_email="test@example.com",
        amount=Decimal("49.99"),
        items=(events.Line(product_id=2, name="Wireless Mouse", quantity=1, price=Decimal("49.99")),),
        payment_method=payment_method,
        pay_before=datetime.now(UTC) + timedelta(minutes=15),
    )


def publish(vhost: str, message: events.Message, message_id: UUID, *, sent: datetime | None = None) -> None:
    """Publish as the relay does; `sent`: what the clock of who sends it says, now unless given."""

    async def run() -> None:
        async with amqp.Publisher(vhost, "test") as publisher:
            sealed = envelope.seal(
                message,
                message_id=message_id,
                source="order",
                time=sent or datetime.now(UTC),
                causation_id=None,
                traceparent=f"00-{TRACE_ID}-00f067aa0ba902b7-01",
            )
            await publisher.publish(amqp.message_of(sealed), exchange=topology.EXCHANGE, routing_key=sealed.routing_key)

    asyncio.run(run())


def depths(vhost: str) -> dict[str, int]:
    """Count what is ready in payment's queues."""

    async def run() -> dict[str, int]:
        connection = await aio_pika.connect(vhost)
        async with connection:
            channel = await connection.channel()
            names = [queue.name for queue in topology.queues() if queue.name.startswith(topology.PAYMENT_QUEUE)]
            found = [await channel.declare_queue(name, passive=True) for name in names]
            return {queue.name: queue.declaration_result.message_count or 0 for queue in found}

    return asyncio.run(run())


def rows(dsn: str, statement: str) -> list[tuple[Any, ...]]:
    """Read from the payment database."""
    with psycopg.connect(dsn) as conn:
        return conn.execute(statement.encode()).fetchall()


def moved(provider: services.Service, saga_id: UUID) -> list[str]:
    """List what the provider really moved."""
    connection = http.client.HTTPConnection("127.0.0.1", provider.port, timeout=5)
    try:
        connection.request("GET", f"/v1/ledger?reference={saga_id}")
        return [entry["kind"] for entry in json.loads(connection.getresponse().read())]
    finally:
        connection.close()


def got(port: int, path: str) -> str:
    """Read a page."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def charge(provider: services.Service, order: events.OrderCreated) -> None:
    """Charge as a payment process does that dies before it hears of it."""
    connection = http.client.HTTPConnection("127.0.0.1", provider.port, timeout=5)
    try:
        body = {"amount": "49.99", "currency": "USD", "reference": str(order.saga_id), "payment_method": "pm_card_ok"}
        headers = {"Content-Type": "application/json", "Idempotency-Key": f"cap:{order.saga_id}"}
        connection.request("POST", "/v1/charges", json.dumps(body), headers)
        assert connection.getresponse().status == 200
    finally:
        connection.close()


def charges(provider: services.Service, saga_id: UUID) -> int:
    """Count what the provider really charged."""
    return moved(provider, saga_id).count("charge")


def test_an_order_from_the_broker_is_charged_in_its_trace(
    env: dict[str, str], provider: services.Service, start_service: Start, eventually: Callable[..., Any]
) -> None:
    """OrderCreated ends as one capture and one event of the same trace, caused by that message; a copy is answered under its id."""
    dsn, vhost, order, message_id = env["SAGAPOST_DATABASE_URL"], env["SAGAPOST_AMQP_URL"], order_of(), uuid4()
    service = start_service("payment", env).wait_ready()

    publish(vhost, order, message_id)
    eventually(lambda: rows(dsn, "SELECT 1 FROM payments WHERE status = 'captured'"))
    publish(vhost, order, message_id)
    eventually(lambda: [line for line in service.lines() if line["event"] == "message.handled"][1:])

    assert charges(provider, order.saga_id) == 1
    (kind, headers, correlation_id), _ = rows(dsn, "SELECT type, headers, correlation_id FROM outbox ORDER BY id")
    assert rows(dsn, "SELECT count(DISTINCT (event_id, payload)) FROM outbox") == [(1,)]
    assert (kind, correlation_id, headers["causation-id"]) == ("PaymentProcessed", str(order.saga_id), str(message_id))
    assert TRACE_ID in headers["traceparent"]
    assert "test@example.com" not in service.logs()
    assert service.terminate() == 0


@pytest.mark.parametrize("point", ["payment.after_intent", "payment.after_charge", "payment.after_commit"])
def test_a_kill_at_any_point_charges_once(
    point: str, env: dict[str, str], provider: services.Service, start_service: Start, eventually: Callable[..., Any]
) -> None:
    """Killed with -9 between any two steps and started again, payment ends with one charge, one ledger row, one event."""
    dsn, order = env["SAGAPOST_DATABASE_URL"], order_of()
    doomed = start_service("payment", env | {"SAGAPOST_CRASH": point}).wait_ready()
    publish(env["SAGAPOST_AMQP_URL"], order, uuid4())
    assert doomed.wait() == -9

    service = start_service("payment", env).wait_ready()
    eventually(lambda: [line for line in service.lines() if line["event"] == "message.handled"])

    assert rows(dsn, "SELECT status, version FROM payments") == [("captured", 2)]
    assert charges(provider, order.saga_id) == 1
    assert rows(dsn, "SELECT type, count(DISTINCT event_id) FROM outbox GROUP BY type") == [("PaymentProcessed", 1)]
    assert rows(dsn, "SELECT kind FROM ledger") == [("capture",)]
    assert rows(dsn, "SELECT type FROM inbox") == [("OrderCreated",)]
    assert service.terminate() == 0
    assert set(depths(env["SAGAPOST_AMQP_URL"]).values()) == {0}


def test_a_kill_after_the_refund_refunds_once(
    env: dict[str, str], provider: services.Service, start_service: Start, eventually: Callable[..., Any]
) -> None:
    """Killed with -9 between the provider's refund and our books and started again, payment ends with one refund and one answer."""
    dsn, vhost, order = env["SAGAPOST_DATABASE_URL"], env["SAGAPOST_AMQP_URL"], order_of()
    doomed = start_service("payment", env | {"SAGAPOST_CRASH": "payment.after_refund"}).wait_ready()
    publish(vhost, order, uuid4())
    eventually(lambda: rows(dsn, "SELECT 1 FROM payments WHERE status = 'captured'"))
    publish(vhost, events.CancelPayment(order_id=order.order_id, saga_id=order.saga_id, reason="test", saga_version=2), uuid4())
    assert doomed.wait() == -9
    assert rows(dsn, "SELECT status FROM payments") == [("refunding",)]

    service = start_service("payment", env).wait_ready()
    eventually(lambda: rows(dsn, "SELECT 1 FROM payments WHERE status = 'refunded'"))

    assert rows(dsn, "SELECT status, version FROM payments") == [("refunded", 4)]
    assert moved(provider, order.saga_id) == ["charge", "refund"]
    assert rows(dsn, "SELECT type FROM outbox ORDER BY id") == [("PaymentProcessed",), ("PaymentRefunded",)]
    assert rows(dsn, "SELECT kind FROM ledger ORDER BY id") == [("capture",), ("refund",)]
    assert service.terminate() == 0
    assert set(depths(vhost).values()) == {0}


def test_a_kill_in_a_look_leaves_the_payment_to_the_next_look(
    env: dict[str, str], provider: services.Service, start_service: Start, eventually: Callable[..., Any]
) -> None:
    """No message is left: a replica's look is killed after the refund, another one's finds the refund and tells of it."""
    dsn, order = env["SAGAPOST_DATABASE_URL"], order_of()
    quick = env | {"SAGAPOST_LOOK_S": "0.1", "SAGAPOST_PROVIDER_TIMEOUT_S": "0.5"}
    doomed = start_service("payment", quick | {"SAGAPOST_CRASH": "payment.after_refund"}).wait_ready()
    charge(provider, order)
    with psycopg.connect(dsn) as conn:
        conn.execute(CANCELLED_AND_FORGOTTEN, {"order_id": order.order_id, "saga_id": order.saga_id})
    assert doomed.wait() == -9

    service = start_service("payment", quick).wait_ready()
    eventually(lambda: rows(dsn, "SELECT 1 FROM payments WHERE status = 'refunded'"))

    assert moved(provider, order.saga_id) == ["charge", "refund"]
    assert rows(dsn, "SELECT type FROM outbox") == [("PaymentRefunded",)]
    assert rows(dsn, "SELECT kind FROM ledger ORDER BY id") == [("capture",), ("refund",)]
    assert service.terminate() == 0


@pytest.mark.parametrize("hours", [-1, 1])
@pytest.mark.parametrize("wrong", ["service", "database"])
def test_clocks_that_differ_cancel_nothing_and_show(
    env: dict[str, str], start_service: Start, eventually: Callable[..., Any], wrong: str, *, hours: int
) -> None:
    """The order's clocks are an hour off: it is paid all the same, the gauge says by how much, and readiness is degraded, not unready."""
    dsn, vhost = env["SAGAPOST_DATABASE_URL"], env["SAGAPOST_AMQP_URL"]
    metrics = ports.trial(1)[0]
    service = start_service("payment", env | {"SAGAPOST_METRICS_PORT": str(metrics)}).wait_ready()
    there = datetime.now(UTC) + timedelta(hours=hours)
    order = msgspec.structs.replace(order_of(), pay_before=there + timedelta(seconds=900), pay_within_s=900.0)
    if wrong == "service":
        order = msgspec.structs.replace(order, pay_before=datetime.now(UTC) + timedelta(seconds=900))

    publish(vhost, order, uuid4(), sent=there if wrong == "service" else None)
    eventually(lambda: rows(dsn, "SELECT 1 FROM payments WHERE status = 'captured'"))

    health = json.loads(got(service.port, "/health/ready"))
    assert (health["status"], health["degraded"]) == ("ok", ["clock-skew"])
    (gauge,) = [line for line in got(metrics, "/metrics").splitlines() if line.startswith("sagapost_clock_skew_seconds ")]
    assert float(gauge.split()[1]) == pytest.approx(-3600 * hours, abs=60)


def test_clocks_that_agree_are_shown_so(env: dict[str, str], start_service: Start, eventually: Callable[..., Any]) -> None:
    """A message that waited for an hour says nothing about the clocks as soon as one that did not has come."""
    dsn, vhost = env["SAGAPOST_DATABASE_URL"], env["SAGAPOST_AMQP_URL"]
    service = start_service("payment", env).wait_ready()
    hour_ago = datetime.now(UTC) - timedelta(hours=1)
    waited = msgspec.structs.replace(order_of(), pay_before=hour_ago + timedelta(seconds=900), pay_within_s=900.0)
    fresh = msgspec.structs.replace(order_of(), pay_within_s=900.0)

    publish(vhost, waited, uuid4(), sent=hour_ago)
    publish(vhost, fresh, uuid4())
    eventually(lambda: rows(dsn, "SELECT 1 FROM payments WHERE status = 'captured'")[1:])

    assert json.loads(got(service.port, "/health/ready"))["degraded"] == []


def test_sigterm_lets_a_slow_charge_finish(
    env: dict[str, str], provider: services.Service, start_service: Start, eventually: Callable[..., Any]
) -> None:
    """A deployment in the middle of a six-second charge loses nothing, dead-letters nothing and exits with 0."""
    dsn, order = env["SAGAPOST_DATABASE_URL"], order_of("pm_slow")
    service = start_service("payment", env).wait_ready()
    publish(env["SAGAPOST_AMQP_URL"], order, uuid4())
    eventually(lambda: rows(dsn, "SELECT 1 FROM payments WHERE status = 'processing'"))

    assert service.terminate() == 0

    assert rows(dsn, "SELECT status FROM payments") == [("captured",)]
    assert charges(provider, order.saga_id) == 1
    assert set(depths(env["SAGAPOST_AMQP_URL"]).values()) == {0}


def test_a_provider_that_is_down_sends_the_order_up_the_ladder(
    env: dict[str, str], start_service: Start, eventually: Callable[..., Any]
) -> None:
    """Nothing listens where the provider should: the order waits in the retry queues and is not dead-lettered."""
    vhost = env["SAGAPOST_AMQP_URL"]
    service = start_service("payment", env | {"SAGAPOST_PROVIDER_URL": "http://127.0.0.1:1"}).wait_ready()

    publish(vhost, order_of(), uuid4())
    eventually(lambda: depths(vhost)[topology.retry_queue(topology.PAYMENT_QUEUE, 5)])

    def outcomes() -> list[object]:
        return [line["outcome"] for line in service.lines() if line["event"] == "message.handled"][:2]

    assert depths(vhost)[topology.dead_letter_queue(topology.PAYMENT_QUEUE)] == 0
    eventually(lambda: len(outcomes()) == 2)  # a line is written behind what it tells of
    assert outcomes() == ["retry_in_1s", "retry_in_5s"]
