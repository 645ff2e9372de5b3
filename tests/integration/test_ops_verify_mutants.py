"""A checker that has never fired is no evidence: each safeguard is taken out of a running service, and `verify` must fail."""

import http.client
import json
import pathlib
import signal
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import pytest
from integration.ops_lab import Lab, StartService, handled, publish, sealed, soon

from sagapost_chassis import ids
from sagapost_contracts import events
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
NO_SAGA_INBOX_CHECK = """
from sagapost_order import saga_queries
saga_queries._TAKE = saga_queries._TAKE.replace(b"claimed.message_id IS NOT NULL AS is_new", b"true AS is_new")
"""
NO_SAGA_INBOX = """
from sagapost_order import saga_queries
claim = b"INSERT INTO inbox (message_id, type) SELECT message_id, type FROM m ON CONFLICT DO NOTHING RETURNING message_id"
saga_queries._TAKE = saga_queries._TAKE.replace(claim, b"SELECT message_id FROM m")
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


@pytest.fixture
def lab(
    *, start_service: StartService, tmp_path: pathlib.Path, order_db: str, payment_db: str, vhost: str, provider: services.Service
) -> Lab:
    """Give a lab of this test's own."""
    return Lab(start_service, tmp_path, {"order": order_db, "payment": payment_db, "vhost": vhost}, provider)


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
        (NO_SAGA_INBOX_CHECK, 6, "has applied PaymentProcessed"),
        (NO_SAGA_INBOX, 7, "which was not taken in"),
    ],
    ids=["as it is", "without the inbox check", "without the inbox"],
)
async def test_verify_fails_when_the_saga_has_no_inbox(mutation: str, number: int, sentence: str | None, lab: Lab) -> None:
    """A payment that is told twice is applied once; without the inbox it shows twice, or shows without having been taken in."""
    order = lab.start("order", mutation)
    order_id, saga_id = _check_out(order)
    told = sealed(
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

    await publish(lab.vhost, told, told)

    await polling.eventually(soon(lambda: handled(order) >= 2), 30)
    found = lab.violations(number)
    assert (
        any(sentence in violation for violation in found) if sentence else not any("PaymentProcessed" in violation for violation in found)
    )


@pytest.mark.parametrize("mutation", ["", NO_INBOX_CHECK], ids=["as it is", "without the inbox check"])
async def test_verify_fails_when_payment_has_no_inbox(mutation: str, lab: Lab) -> None:
    """A cancellation that arrives twice is answered once; without the inbox check it is answered twice."""
    payment = lab.start("payment", mutation)
    command = sealed(events.CancelPayment(order_id=7, saga_id=ids.uuid7(), reason="test", saga_version=1))

    await publish(lab.vhost, command, command)

    await polling.eventually(soon(lambda: handled(payment) >= 2), 30)
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
    await publish(lab.vhost, sealed(created))
    assert doomed.wait() == -signal.SIGKILL

    again = lab.start("payment", mutation)

    unfinished = "payment of order 8 is processing with 0 captures and 0 refunds"
    if not mutation:
        await polling.eventually(soon(lambda: handled(again) >= 1), 30)
    assert (unfinished in lab.violations(3)) == bool(mutation)
