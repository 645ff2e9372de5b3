"""Every named crash point: kill -9 there, start again, and the checkout ends once: one order, one charge, one receipt."""

import functools
import signal
from typing import Any

import psycopg
import pytest
from faults.stack import Stack

from sagapost_chassis import crashpoints
from sagapost_sandbox.testing import polling, services

OWNERS = {"order": "order", "saga": "order", "payment": "payment", "email": "email"}
# points off the happy path: who has the test
ELSEWHERE = {
    "sweeper.after_commit": "test_saga_deadlines.py",
    "payment.after_refund": "below",
    "dlq.after_publish": "test_ops_dlq_replay.py",
}
MAIL_GAP = {"email.after_accept", "email.after_publish"}  # the server took the mail, the broker does not know: e-mail is at least once


def _owners(point: str) -> list[str]:
    kind = point.partition(".")[0]
    return ["relay-order", "relay-payment"] if kind == "relay" else [OWNERS[kind]]


@pytest.mark.parametrize(
    ("point", "owner"), [(point, owner) for point in crashpoints.NAMES if point not in ELSEWHERE for owner in _owners(point)]
)
def test_a_checkout_survives_kill_9_at(point: str, owner: str, stack: Stack) -> None:
    """After the restart there is one order with one charge and one receipt, and every invariant holds."""
    before = _orders(stack)
    if owner.startswith("relay"):
        status, answer, doomed = _relay_dies(stack, owner, point)
    else:
        doomed = stack.replace(owner, point).wait_ready()
        status, answer = stack.checkout()
    assert doomed.wait() == -signal.SIGKILL
    stack.start(owner).wait_ready()

    if point == "order.before_commit":
        assert status in {503, 504}  # the gateway asks again until its deadline; order comes back later than that
        assert _orders(stack) == before
        status, answer = polling.eventually(functools.partial(_bought, stack)) or (0, {})  # as soon as the gateway's breaker has closed
    saga_id = answer["saga_id"] if status == 202 else _newest_saga(stack)
    saga = stack.ended(saga_id)
    assert saga["state"] == "notified"
    assert [entry["kind"] for entry in stack.movements(saga_id)] == ["charge"]
    mails = polling.eventually(lambda: stack.mails(_email(stack, saga_id)))
    stack.mail_gap_crashes += point in MAIL_GAP
    assert len(mails) <= (2 if point in MAIL_GAP else 1)
    stack.verified()


def test_a_cancellation_survives_kill_9_behind_its_refund(stack: Stack) -> None:
    """The provider gave the money back and payment died before it could say so: started again, it finds that out, and refunds once."""
    doomed = stack.replace("payment", "payment.after_refund").wait_ready()
    _, answer = stack.checkout()
    stack.ended(answer["saga_id"])
    assert stack.cancel(answer["id"]) == 202
    assert doomed.wait() == -signal.SIGKILL
    stack.start("payment").wait_ready()

    assert stack.reached(answer["saga_id"], "compensated")["refunded"] == "1299.99"
    assert [entry["kind"] for entry in stack.movements(answer["saga_id"])] == ["charge", "refund"]
    stack.verified()


def _relay_dies(stack: Stack, owner: str, point: str) -> tuple[int, dict[str, Any], services.Service]:
    """Let two messages wait, so that the relay that is to die finds a batch with a middle."""
    stack.running[owner].terminate()
    sagas = [stack.checkout() for _ in range(2)]
    if owner == "relay-payment":
        polling.eventually(functools.partial(_told_of_payment, stack, [answer["saga_id"] for _, answer in sagas]))
    return *sagas[0], stack.start(owner, point)


def _told_of_payment(stack: Stack, saga_ids: list[str]) -> bool:
    """Tell whether payment has an event for each of these sagas in its outbox; its relay is down."""
    with psycopg.connect(str(stack.known.payment_database_url)) as conn:
        found = conn.execute(
            "SELECT count(*) FROM outbox WHERE type = 'PaymentProcessed' AND correlation_id = ANY(%s)", (saga_ids,)
        ).fetchone()
    return found == (len(saga_ids),)


def _orders(stack: Stack) -> int:
    return int(_value(stack, "SELECT count(*) FROM orders"))


def _bought(stack: Stack) -> tuple[int, dict[str, Any]] | None:
    status, answer = stack.checkout()
    return (status, answer) if status == 202 else None


def _newest_saga(stack: Stack) -> str:
    return _value(stack, "SELECT id FROM sagas ORDER BY created_at DESC LIMIT 1")


def _email(stack: Stack, saga_id: str) -> str:
    return _value(stack, "SELECT o.user_email FROM orders AS o JOIN sagas AS s ON s.order_id = o.id WHERE s.id = %s", saga_id)


def _value(stack: Stack, query: str, *arguments: str) -> str:
    with psycopg.connect(str(stack.known.order_database_url)) as conn:
        found = conn.execute(query.encode(), arguments).fetchone()
    assert found is not None
    return str(found[0])
