"""Each safeguard of the money is taken out of a running payment service, and `verify` must fail; with all of them it must not."""

import http.client
import json
import pathlib
from collections.abc import Generator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import psycopg
import pytest
from integration import ops_books
from integration.ops_lab import Lab, StartService, handled, publish, sealed, soon

from sagapost_chassis import ids
from sagapost_contracts import events
from sagapost_sandbox.testing import polling, services

pytestmark = pytest.mark.anyio

# python reads sitecustomize before it runs the service: the repository's code stays as it is
NO_TOMBSTONE = """
from sagapost_payment import handlers
answer = handlers._answer
async def forgetful(conn, delivery, payment, terms):
    await answer(conn, delivery, payment, terms)
    await conn.execute("DELETE FROM payments WHERE id = %s AND status = 'voided'", (payment.id,))
handlers._answer = forgetful
"""
NO_FOR_UPDATE = """
from sagapost_payment import queries
queries._LOCK = queries._LOCK.removesuffix("FOR UPDATE")
"""
LATE_SUCCESS_IGNORED = """
from sagapost_payment import domain
domain.must_go_back = lambda payment: False
"""
REFUND_WITHOUT_KEY = """
import uuid
from sagapost_payment import domain
domain.refund_key = lambda saga_id: str(uuid.uuid4())
"""
ORDER_ID = 9
AMOUNT = Decimal("49.99")
PAYMENT = """
INSERT INTO payments
    (order_id, saga_id, status, version, amount, currency, payment_method, user_email, items, pay_before, uncertain, look_at)
VALUES (9, %(saga_id)s, %(status)s, 2, 49.99, 'USD', 'pm_card_ok', 'mutant@example.com', '[]', now(), true, %(look_at)s)
"""
CAPTURED = "UPDATE payments SET status = 'captured', version = 3, transaction_id = %(charge_id)s, look_at = NULL WHERE order_id = 9"
LEDGER = "INSERT INTO ledger (order_id, kind, amount, currency, transaction_id) VALUES (9, 'capture', 49.99, 'USD', %(charge_id)s)"
LOCKED = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


@pytest.fixture
def lab(
    *, start_service: StartService, tmp_path: pathlib.Path, order_db: str, payment_db: str, vhost: str, provider: services.Service
) -> Generator[Lab]:
    """Give a lab of this test's own, and leave the provider well-behaved."""
    yield Lab(start_service, tmp_path, {"order": order_db, "payment": payment_db, "vhost": vhost}, provider)
    behave(provider)


def behave(provider: services.Service, **behaviour: object) -> None:
    """Let the provider misbehave; nothing given: no more."""
    connection = http.client.HTTPConnection("127.0.0.1", provider.port, timeout=10)
    connection.request("PUT", "/v1/behaviour", json.dumps(behaviour), {"Content-Type": "application/json"})
    assert connection.getresponse().status == 200
    connection.close()


def cancellation(saga_id: UUID) -> events.CancelPayment:
    """Make the command to cancel."""
    return events.CancelPayment(order_id=ORDER_ID, saga_id=saga_id, reason="test", saga_version=2)


def status(lab: Lab) -> str:
    """Read how the payment stands."""
    with psycopg.connect(lab.payment_db) as conn:
        row = conn.execute("SELECT status FROM payments").fetchone()
    return str(row[0]) if row else ""


@pytest.mark.parametrize("mutation", ["", NO_TOMBSTONE], ids=["as it is", "without the tombstone"])
async def test_verify_fails_when_a_void_leaves_no_tombstone(mutation: str, lab: Lab) -> None:
    """An order that comes after its cancellation is not charged; without the tombstone it is, and `verify` says so."""
    payment, saga_id = lab.start("payment", mutation), ids.uuid7()
    with psycopg.connect(lab.payment_db) as conn:  # to delete a payment is to look for what refers to it
        conn.execute("GRANT UPDATE ON duplicate_charges TO CURRENT_USER")
    await publish(lab.vhost, sealed(cancellation(saga_id)))
    await polling.eventually(soon(lambda: handled(payment) >= 1), 30)
    order = events.OrderCreated(
        order_id=ORDER_ID,
        saga_id=saga_id,
        user_id=1,
        user_email="mutant@example.com",
        amount=AMOUNT,
        items=(),
        payment_method="pm_card_ok",
        pay_before=datetime.now(UTC) + timedelta(minutes=5),
    )

    await publish(lab.vhost, sealed(order))

    await polling.eventually(soon(lambda: handled(payment) >= 2), 30)
    charged = f"saga {saga_id} was charged after PaymentVoided had said that it would not be"
    assert (charged in lab.violations(3)) == bool(mutation)


@pytest.mark.parametrize("mutation", ["", NO_FOR_UPDATE], ids=["as it is", "without FOR UPDATE"])
async def test_verify_fails_when_the_payment_is_not_locked(mutation: str, lab: Lab) -> None:
    """A cancellation that meets a capture being written waits for it and refunds; without the lock it is noted too late, and lost."""
    payment, saga_id = lab.start("payment", mutation), ids.uuid7()
    values = {"saga_id": saga_id, "charge_id": ops_books.charge(lab.provider, saga_id, amount=AMOUNT)}
    with psycopg.connect(lab.payment_db, autocommit=True) as replica, psycopg.connect(lab.payment_db, autocommit=True) as watch:
        replica.execute(PAYMENT, values | {"status": "processing", "look_at": datetime.now(UTC) + timedelta(hours=1)})
        with replica.transaction():
            replica.execute("SELECT 1 FROM payments WHERE order_id = 9 FOR UPDATE")
            await publish(lab.vhost, sealed(cancellation(saga_id)))
            await polling.eventually(soon(lambda: watch.execute(LOCKED).fetchone() is not None), 30)
            replica.execute(CAPTURED, values)
            replica.execute(LEDGER, values)

    await polling.eventually(soon(lambda: handled(payment) >= 1), 30)
    assert status(lab) == ("captured" if mutation else "refunded")
    assert ("payment of order 9 was to be cancelled and is captured" in lab.violations(3)) == bool(mutation)


@pytest.mark.parametrize("mutation", ["", LATE_SUCCESS_IGNORED], ids=["as it is", "late success ignored"])
async def test_verify_fails_when_a_late_success_is_ignored(mutation: str, lab: Lab) -> None:
    """A charge that appears behind a void goes back; whoever ignores it keeps the customer's money, and `verify` says so."""
    saga_id = ids.uuid7()
    ops_books.charge(lab.provider, saga_id, amount=AMOUNT)
    with psycopg.connect(lab.payment_db) as conn:
        conn.execute(PAYMENT, {"saga_id": saga_id, "status": "voided", "look_at": datetime.now(UTC)})

    payment = lab.start("payment", mutation)

    if mutation:
        seen = "payment.late_charge"
        await polling.eventually(soon(lambda: any(line.get("event") == seen for line in payment.lines())), 30)
    else:
        await polling.eventually(soon(lambda: status(lab) == "refunded"), 30)
    kept = f"saga {saga_id} has a charge of {AMOUNT} at the provider, and our ledger has none"
    assert (kept in lab.violations(3)) == bool(mutation)


@pytest.mark.parametrize("mutation", ["", REFUND_WITHOUT_KEY], ids=["as it is", "refund without a key"])
async def test_verify_fails_when_a_refund_has_no_key(mutation: str, lab: Lab) -> None:
    """Two commands at once, at a provider that does not count what it gives back: one refund, for both calls have one key."""
    saga_id = ids.uuid7()
    values = {"saga_id": saga_id, "charge_id": ops_books.charge(lab.provider, saga_id, amount=AMOUNT)}
    with psycopg.connect(lab.payment_db) as conn:
        conn.execute(PAYMENT, values | {"status": "processing", "look_at": datetime.now(UTC) + timedelta(hours=1)})
        conn.execute(CAPTURED, values)
        conn.execute(LEDGER, values)
    payment = lab.start("payment", mutation)
    behave(lab.provider, refunds_unchecked=True, delay_s=5)

    await publish(lab.vhost, sealed(cancellation(saga_id)), sealed(cancellation(saga_id)))

    await polling.eventually(soon(lambda: handled(payment) >= 2), 30)
    assert status(lab) == "refunded"
    assert (f"saga {saga_id} has 2 refunds at the provider" in lab.violations(3)) == bool(mutation)
