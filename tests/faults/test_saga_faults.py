"""The saga among late money, refunds that fail and mails that nobody takes: on real servers, against the provider's own ledger."""

import asyncio
import concurrent.futures
import functools
import os
import random
import smtplib
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

import psycopg
import pytest
from faults.stack import Stack

from sagapost_chassis import amqp, ids
from sagapost_contracts import envelope, events, topology
from sagapost_email import domain as mails
from sagapost_email import sender, templates
from sagapost_sandbox.testing import polling

PRICE: Final = "1299.99"
RACES: Final = 200
OUTAGE_S: Final = float(os.environ.get("SAGAPOST_OUTAGE_S", "3"))


@pytest.fixture(autouse=True)
def behaves_again(impatient_stack: Stack) -> Iterator[None]:
    """Let provider and mail server behave again after each test."""
    yield
    impatient_stack.provider_behaves()
    impatient_stack.mailbox_behaves()


def moved(stack: Stack, saga_id: str) -> Counter[str]:
    """Count what really moved at the provider."""
    return Counter(entry["kind"] for entry in stack.movements(saga_id))


def neutral(stack: Stack, saga_id: str) -> bool:
    """Tell whether as much went back as was taken, if anything."""
    found = moved(stack, saga_id)
    return found["charge"] == found["refund"] <= 1


def bought(stack: Stack, payment_method: str = "pm_card_ok") -> dict[str, Any]:
    """Buy, and give the answer."""
    status, answer = stack.checkout(payment_method)
    assert status == 202
    return answer


def intended(stack: Stack, order_id: int) -> bool:
    """Tell whether payment is about to charge an order: from then on it does."""
    with psycopg.connect(str(stack.known.payment_database_url)) as conn:
        return conn.execute("SELECT FROM payments WHERE order_id = %s AND status = 'processing'", (order_id,)).fetchone() is not None


def test_a_payment_that_succeeds_after_the_deadline_goes_back(impatient_stack: Stack) -> None:
    """The provider takes the money after the order was given up: it goes back, once, and the customer is told of a cancellation."""
    impatient_stack.provider_behaves(delay_s=14)
    answer = bought(impatient_stack)

    saga = impatient_stack.reached(answer["saga_id"], "compensated", deadline_s=40)
    assert saga["reason"] in {"timeout", "expired"}  # payment's clock or the order's: whichever ends first
    polling.eventually(lambda: moved(impatient_stack, answer["saga_id"])["charge"], 20)
    impatient_stack.provider_behaves()
    polling.eventually(lambda: moved(impatient_stack, answer["saga_id"])["refund"], 30)

    polling.eventually(lambda: impatient_stack.reached(answer["saga_id"], "compensated")["refunded"] == PRICE)
    assert neutral(impatient_stack, answer["saga_id"])
    polling.eventually(lambda: impatient_stack.mails(answer["user_email"]))
    assert [mail["MessageID"].partition("-")[0] for mail in impatient_stack.mails(answer["user_email"])] == ["cancellation"]


def test_a_payment_that_succeeds_after_a_cancellation_goes_back(impatient_stack: Stack) -> None:
    """Cancelled while the provider is still at it (pm_slow takes 6 s): whatever comes of the call, the money ends where it was."""
    answer = bought(impatient_stack, "pm_slow")
    polling.eventually(lambda: intended(impatient_stack, answer["id"]))  # a cancellation that is sooner leaves nothing to charge
    assert impatient_stack.cancel(answer["id"]) == 202

    saga = impatient_stack.ended(answer["saga_id"])

    assert (saga["state"], saga["reason"]) == ("compensated", "cancelled")
    polling.eventually(lambda: moved(impatient_stack, answer["saga_id"])["refund"], 30)
    assert neutral(impatient_stack, answer["saga_id"])
    assert impatient_stack.cancel(answer["id"]) == 200


def test_a_sold_order_is_cancelled_and_refunded(impatient_stack: Stack) -> None:
    """Inside its window a finished order goes back as a whole: refund, cancellation mail, neutral money."""
    answer = bought(impatient_stack)
    assert impatient_stack.ended(answer["saga_id"])["state"] == "notified"

    assert impatient_stack.cancel(answer["id"]) == 202

    saga = impatient_stack.reached(answer["saga_id"], "compensated")
    assert (saga["captured"], saga["refunded"]) == (PRICE, PRICE)
    assert neutral(impatient_stack, answer["saga_id"])
    assert impatient_stack.cancel(answer["id"]) == 200


def test_a_refund_that_fails_three_times_succeeds_at_last(impatient_stack: Stack) -> None:
    """Three passing faults, then the same key again: one refund, and the saga never called anybody."""
    answer = bought(impatient_stack)
    impatient_stack.ended(answer["saga_id"])
    impatient_stack.provider_behaves(refund_failures=3)

    assert impatient_stack.cancel(answer["id"]) == 202

    saga = impatient_stack.reached(answer["saga_id"], "compensated", deadline_s=60)
    assert neutral(impatient_stack, answer["saga_id"])
    assert moved(impatient_stack, answer["saga_id"])["refund"] == 1
    assert saga["attention"] is None


def test_a_refund_that_is_refused_is_parked_and_retried_for_ever(impatient_stack: Stack) -> None:
    """A definite no parks the order and calls an operator; CancelPayment goes on, and when the provider gives in, the order ends."""
    answer = bought(impatient_stack)
    impatient_stack.ended(answer["saga_id"])
    impatient_stack.provider_behaves(refund_declined="charge_closed")

    assert impatient_stack.cancel(answer["id"]) == 202

    saga = impatient_stack.reached(answer["saga_id"], "compensation_failed")
    assert (saga["attention"], saga["captured"], saga["refunded"]) == ("refund_failed", PRICE, "0.00")
    polling.eventually(lambda: _deadlines(impatient_stack, answer["saga_id"], "compensation_failed") >= 3, 20)
    impatient_stack.provider_behaves()
    ended = impatient_stack.reached(answer["saga_id"], "compensated")
    assert (ended["attention"], ended["refunded"]) == (None, PRICE)
    assert neutral(impatient_stack, answer["saga_id"])


def test_a_receipt_that_nobody_takes_is_parked_and_the_money_kept(impatient_stack: Stack) -> None:
    """Refused for good by the mail server, the order waits for a person, sold; the next try after the mending ends it."""
    impatient_stack.mailbox_behaves(reject=550, reject_at="rcpt")
    answer = bought(impatient_stack)

    saga = impatient_stack.reached(answer["saga_id"], "notify_failed")
    assert (saga["attention"], saga["captured"], saga["refunded"]) == ("receipt_failed", PRICE, "0.00")
    polling.eventually(lambda: _deadlines(impatient_stack, answer["saga_id"], "notify_failed") >= 2, 20)
    impatient_stack.mailbox_behaves()
    ended = impatient_stack.reached(answer["saga_id"], "notified")
    assert ended["attention"] is None
    assert moved(impatient_stack, answer["saga_id"]) == {"charge": 1}


def test_a_receipt_that_is_reported_before_its_payment_counts(impatient_stack: Stack) -> None:
    """EmailSent overtakes PaymentProcessed: paid, then notified at once, from the fact that was kept."""
    impatient_stack.provider_behaves(down=True)
    answer = bought(impatient_stack)
    _deliver_receipt(impatient_stack, answer)  # the email service sends none that was reported before
    early = events.EmailSent(order_id=answer["id"], saga_id=uuid.UUID(answer["saga_id"]), template="receipt", smtp_message_id="<early>")
    asyncio.run(_publish(impatient_stack, early))
    polling.eventually(lambda: "EmailSent" in _events(impatient_stack, answer["saga_id"]))
    impatient_stack.provider_behaves()

    saga = impatient_stack.ended(answer["saga_id"])

    names = [row["event"] for row in saga["history"]]
    captured = names.index("PaymentProcessed")
    assert names[0] == "OrderCreated"
    assert names.index("EmailSent") < captured
    assert (names[captured + 1], saga["history"][captured + 1]["to"]) == ("EmailSent", "notified")
    assert saga["state"] == "notified"


def _deliver_receipt(stack: Stack, answer: dict[str, Any]) -> None:
    """Hand the receipt of an order to the mail server, as an email service does that is faster than the saga."""
    request = mails.of_receipt(
        events.PaymentProcessed(
            order_id=answer["id"],
            saga_id=uuid.UUID(answer["saga_id"]),
            payment_id=1,
            payment_version=2,
            amount=Decimal(PRICE),
            transaction_id="early",
            captured_at=datetime.now(UTC),
            user_email=answer["user_email"],
            items=(),
        )
    )
    message = sender.compose(request, templates.render(request), mail_from="no-reply@sagapost.example", traceparent=None)
    with smtplib.SMTP("127.0.0.1", int(stack.environment("email")["SAGAPOST_SMTP_PORT"])) as server:
        server.send_message(message)


def test_cancelling_races_with_capturing(impatient_stack: Stack) -> None:
    """Two hundred orders, each cancelled at some moment around its capture: money as the state says, at most one charge and one refund."""
    impatient_stack.provider_behaves(delay_s=0.05)
    dice = random.Random(42)
    began = time.monotonic()
    impatient_stack.reached(bought(impatient_stack)["saga_id"], "paid", "notified")
    paid_s = time.monotonic() - began

    def race(pause_s: float) -> dict[str, Any]:
        answer = bought(impatient_stack)
        time.sleep(pause_s)
        assert impatient_stack.cancel(answer["id"]) in {200, 202}
        return answer

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(race, [dice.uniform(0, 2 * paid_s) for _ in range(RACES)]))

    ends = Counter[str]()
    for answer in answers:
        saga = impatient_stack.reached(answer["saga_id"], "compensated", deadline_s=60)
        polling.eventually(functools.partial(neutral, impatient_stack, answer["saga_id"]), 30)
        assert saga["captured"] == saga["refunded"]
        ends[next(row["from"] for row in saga["history"] if row["event"] == "CancelRequested")] += 1
    assert len(ends) > 1, f"the race was none: {ends}"


def test_a_provider_that_forgets_its_keys_is_found_out(impatient_stack: Stack) -> None:
    """Charged twice for one order under one key: the surplus goes back by itself, and somebody is told."""
    impatient_stack.provider_behaves(delay_s=6, ignore_idempotency_keys=True)
    answer = bought(impatient_stack)
    polling.eventually(lambda: moved(impatient_stack, answer["saga_id"])["charge"] >= 2, 30)
    impatient_stack.provider_behaves()

    def reconciled() -> bool:
        kept = 1 if impatient_stack.ended(answer["saga_id"])["state"] == "notified" else 0
        found = moved(impatient_stack, answer["saga_id"])
        with psycopg.connect(str(impatient_stack.known.payment_database_url)) as conn:
            surplus = conn.execute("SELECT count(*) FROM duplicate_charges").fetchone()
        told = impatient_stack.running["payment"].logs().count("payment.charged_twice")  # the last to happen
        return found["charge"] - found["refund"] == kept and surplus == (found["charge"] - 1,) and told == found["charge"] - 1

    polling.eventually(reconciled, 60)


def test_a_provider_that_is_down_costs_time_and_no_order(impatient_stack: Stack) -> None:
    """While nobody can pay, orders wait or are given up in time; nothing is charged twice, and those that wait are sold."""
    impatient_stack.provider_behaves(down=True)
    mended = threading.Timer(OUTAGE_S, impatient_stack.provider_behaves)
    mended.start()
    answers = [bought(impatient_stack) for _ in range(5)]

    ends = {impatient_stack.ended(answer["saga_id"], OUTAGE_S + 60)["state"] for answer in answers}

    mended.join()
    assert ends == ({"notified"} if OUTAGE_S < 5 else {"compensated"})
    assert all(moved(impatient_stack, answer["saga_id"])["charge"] <= 1 for answer in answers)


def test_every_invariant_holds_after_all_of_them(impatient_stack: Stack) -> None:
    """Databases, broker, provider and mailbox agree about everything that was done to this stack."""
    impatient_stack.verified()


async def _publish(stack: Stack, message: events.Message) -> None:
    async with amqp.Publisher(str(stack.known.amqp_url), "test") as publisher:
        sealed = envelope.seal(message, message_id=ids.uuid7(), source="email", time=datetime.now(UTC), causation_id=None, traceparent=None)
        await publisher.publish(amqp.message_of(sealed), exchange=topology.EXCHANGE, routing_key=sealed.routing_key)


def _events(stack: Stack, saga_id: str) -> list[str]:
    _, saga = stack.call("GET", f"/api/sagas/{saga_id}")
    return [row["event"] for row in saga["history"]]


def _deadlines(stack: Stack, saga_id: str, state: str) -> int:
    _, saga = stack.call("GET", f"/api/sagas/{saga_id}")
    return sum(row["event"] == "Deadline" and row["from"] == state for row in saga["history"])
