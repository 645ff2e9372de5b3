"""A checker that has never fired is no evidence: each safeguard is taken out of a running service, and `verify` must fail."""

import http.client
import json
import pathlib
import signal
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Protocol
from uuid import UUID

import pytest

from sagapost_chassis import amqp, ids
from sagapost_contracts import envelope, events, topology
from sagapost_ops import targets, verify
from sagapost_ops.invariants.outcome import Expectations
from sagapost_sandbox.testing import polling, services

pytestmark = pytest.mark.anyio

# python reads sitecustomize before it runs the service: the repository's code stays as it is
NO_INBOX_CHECK = """
from sagapost_chassis import inbox
claim = inbox.claim
async def always(conn, message_id, message_type):
    await claim(conn, message_id, message_type)
    return True
inbox.claim = always
"""
NO_INBOX = """
from sagapost_chassis import inbox
async def always(conn, message_id, message_type):
    return True
inbox.claim = always
"""
ACKNOWLEDGED_FIRST = """
from sagapost_chassis import consuming
handle = consuming.Consumer._handle
async def acknowledged(self, incoming, kind):
    await incoming.ack()
    await handle(self, incoming, kind)
consuming.Consumer._handle = acknowledged
"""
AMOUNT = Decimal("1299.99")


class StartService(Protocol):
    """The fixture that starts services."""

    def __call__(self, name: str, env: dict[str, str]) -> services.Service:
        """Start one."""
        ...


class Lab:
    """Two fresh databases, a fresh virtual host, and services that may be mutated."""

    def __init__(self, start: StartService, folder: pathlib.Path, urls: dict[str, str], provider: services.Service) -> None:
        self.vhost = urls["vhost"]
        self._start = start
        self._folder = folder
        self._urls = urls
        self._provider = provider

    def start(self, name: str, mutation: str, crash: str = "") -> services.Service:
        """Start order or payment with this mutation; an empty one changes nothing."""
        (self._folder / "sitecustomize.py").write_text(mutation, encoding="utf-8")
        env = {
            "PYTHONPATH": str(self._folder),
            "SAGAPOST_CRASH": crash,
            "SAGAPOST_DATABASE_URL": self._urls[name],
            "SAGAPOST_AMQP_URL": self.vhost,
            "SAGAPOST_PROVIDER_URL": self._provider.url,
        }
        return self._start(name, env).wait_ready()

    def violations(self, number: int) -> tuple[str, ...]:
        """Verify, and give what one invariant has to say."""
        where = targets.Targets(order_database_url=self._urls["order"], payment_database_url=self._urls["payment"])
        return verify.run(where, Expectations(consumers=False)).invariants[number - 1].violations


@pytest.fixture
def lab(
    *, start_service: StartService, tmp_path: pathlib.Path, order_db: str, payment_db: str, vhost: str, provider: services.Service
) -> Lab:
    """Give a lab of this test's own."""
    return Lab(start_service, tmp_path, {"order": order_db, "payment": payment_db, "vhost": vhost}, provider)


def _sealed(message: events.Message, message_id: UUID | None = None) -> envelope.Envelope:
    return envelope.seal(
        message, message_id=message_id or ids.uuid7(), source="test", time=datetime.now(UTC), causation_id=None, traceparent=None
    )


async def _publish(url: str, *sealed: envelope.Envelope) -> None:
    async with amqp.Publisher(url, "mutants") as publisher:
        for one in sealed:
            await publisher.publish(amqp.message_of(one), exchange=topology.EXCHANGE, routing_key=one.routing_key)


def _handled(service: services.Service) -> int:
    return sum(line.get("event") == "message.handled" for line in service.lines())


def _check_out(service: services.Service) -> tuple[int, UUID]:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=10)
    item = {"product_id": 1, "quantity": 1, "price": str(AMOUNT)}
    body = json.dumps({"user_id": 1, "user_email": "mutant@example.com", "items": [item]})
    connection.request("POST", "/checkout", body, {"Content-Type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return answer["id"], UUID(answer["saga_id"])


@pytest.mark.parametrize(
    ("mutation", "number", "sentence"),
    [
        ("", 6, None),
        (NO_INBOX_CHECK, 6, "has applied PaymentProcessed"),
        (NO_INBOX, 7, "which was not taken in"),
    ],
    ids=["as it is", "without the inbox check", "without the inbox"],
)
async def test_verify_fails_when_the_saga_has_no_inbox(mutation: str, number: int, sentence: str | None, lab: Lab) -> None:
    """A payment that is told twice is applied once; without the inbox it shows twice, or shows without having been taken in."""
    order = lab.start("order", mutation)
    order_id, saga_id = _check_out(order)
    told = _sealed(
        events.PaymentProcessed(
            order_id=order_id,
            saga_id=saga_id,
            payment_id=1,
            payment_version=2,
            amount=AMOUNT,
            transaction_id="ch_1",
            captured_at=datetime.now(UTC),
            user_email="mutant@example.com",
            items=(),
        )
    )

    await _publish(lab.vhost, told, told)

    await polling.eventually(_async(lambda: _handled(order) >= 2), 30)
    found = lab.violations(number)
    assert (
        any(sentence in violation for violation in found) if sentence else not any("PaymentProcessed" in violation for violation in found)
    )


@pytest.mark.parametrize("mutation", ["", NO_INBOX_CHECK], ids=["as it is", "without the inbox check"])
async def test_verify_fails_when_payment_has_no_inbox(mutation: str, lab: Lab) -> None:
    """A cancellation that arrives twice is answered once; without the inbox check it is answered twice."""
    payment = lab.start("payment", mutation)
    command = _sealed(events.CancelPayment(order_id=7, saga_id=ids.uuid7(), reason="test", saga_version=1))

    await _publish(lab.vhost, command, command)

    await polling.eventually(_async(lambda: _handled(payment) >= 2), 30)
    twice = f"message {command.message_id} was answered 2 times with PaymentVoided"
    assert (twice in lab.violations(7)) == bool(mutation)


@pytest.mark.parametrize("mutation", ["", ACKNOWLEDGED_FIRST], ids=["as it is", "acknowledged first"])
async def test_verify_fails_when_a_message_is_acknowledged_before_its_effect(mutation: str, lab: Lab) -> None:
    """After kill -9 between intent and charge the message comes again and the payment ends; acknowledged too early, it never ends."""
    doomed = lab.start("payment", mutation, "payment.after_intent")
    saga_id = ids.uuid7()
    created = events.OrderCreated(
        order_id=8,
        saga_id=saga_id,
        user_id=1,
        user_email="mutant@example.com",
        amount=AMOUNT,
        items=(),
        payment_method="pm_card_ok",
        pay_before=datetime.now(UTC) + timedelta(minutes=5),
    )
    await _publish(lab.vhost, _sealed(created))
    assert doomed.wait() == -signal.SIGKILL

    again = lab.start("payment", mutation)

    unfinished = "payment of order 8 is processing with 0 captures and 0 refunds"
    if not mutation:
        await polling.eventually(_async(lambda: _handled(again) >= 1), 30)
    assert (unfinished in lab.violations(3)) == bool(mutation)


def _async(condition: Callable[[], bool]) -> Callable[[], Coroutine[None, None, bool]]:
    async def asked() -> bool:
        return condition()

    return asked
