"""`verify` and receipts of orders that were taken back: one that was accepted after the refund was decided is found."""

import pytest
from integration import ops_books
from integration.ops_books import STRANGERS, TOTAL, Books

from sagapost_ops import verify
from sagapost_ops.invariants.outcome import Expectations
from sagapost_sandbox.testing import services

# the cancellation, decided at `decided`; before it the receipt was reported, or not
UNREPORTED = ("DELETE FROM saga_history WHERE saga_id = %(saga)s AND seq = 3",)
DECIDED = """
INSERT INTO saga_history (saga_id, seq, from_state, to_state, event, outcome, source, facts, at)
SELECT saga_id, 4, to_state, 'compensating', 'CancelRequested', 'applied', 'http', facts, %(decided)s::timestamptz
  FROM saga_history WHERE saga_id = %(saga)s AND seq = %(last)s
"""
TAKEN_BACK = "UPDATE sagas SET state = 'compensated', refunded = captured WHERE id = %(saga)s"
# the state that payment's refund leads to; the decision is the first row that leaves the order's standing
AFTERWARDS = """
INSERT INTO saga_history (saga_id, seq, from_state, to_state, event, outcome, source, facts, at)
SELECT saga_id, 5, 'compensating', 'compensated', 'PaymentRefunded', 'applied', 'event', facts, now() + interval '1 day'
  FROM saga_history WHERE saga_id = %(saga)s AND seq = 4
"""
BEFORE, AFTER = "2020-01-01T00:00:00Z", "2100-01-01T00:00:00Z"


@pytest.fixture
def books(order_db: str, payment_db: str, provider: services.Service, mailbox: services.Service) -> Books:
    """Write one finished order into books of its own; its receipt is accepted now."""
    return ops_books.write(order_db, payment_db, provider, mailbox)


def _take_back(books: Books, decided: str, *, is_reported: bool) -> None:
    books.values.update({"decided": decided, "last": 3 if is_reported else 2})
    books.change("order", DECIDED, AFTERWARDS, *(() if is_reported else UNREPORTED), TAKEN_BACK)


def _late(books: Books, expected: Expectations = STRANGERS) -> list[str]:
    return [one for one in books.violations(expected).get(5, ()) if "after the refund was decided" in one]


@pytest.mark.parametrize(("decided", "is_late"), [(BEFORE, True), (AFTER, False)])
def test_a_receipt_that_was_accepted_after_the_refund_was_decided_is_found(books: Books, decided: str, *, is_late: bool) -> None:
    """No customer is told that the payment went through when the order has been taken back already."""
    _take_back(books, decided, is_reported=False)

    found = _late(books)

    assert len(found) == is_late
    assert all(f"the receipt receipt-{books.values['saga']}@sagapost.example was accepted " in one for one in found)


def test_a_receipt_that_was_reported_before_the_refund_was_not_late_whatever_clocks_say(books: Books) -> None:
    """The order of the history counts: a clock that was set back makes no violation."""
    _take_back(books, BEFORE, is_reported=True)

    assert _late(books) == []


def test_a_second_copy_after_the_refund_is_late_although_the_first_was_not(books: Books, mailbox: services.Service) -> None:
    """One report stands for one mail."""
    _take_back(books, BEFORE, is_reported=True)
    ops_books.mail(mailbox, "receipt", books.values["saga"], f"You paid {TOTAL:,} USD.")

    assert len(_late(books)) == 1


def test_as_many_late_receipts_as_email_processes_died_with_are_right(books: Books) -> None:
    """The gap between a mail server's answer and the report of it is the one that is allowed for, here as for second copies."""
    _take_back(books, BEFORE, is_reported=False)

    assert _late(books, Expectations(strangers=True, duplicate_mails=1)) == []


@pytest.mark.parametrize("is_taken_back", [True, False])
def test_cancelled_orders_with_a_receipt_are_counted(books: Books, *, is_taken_back: bool) -> None:
    """It is no violation to be cancelled after the receipt; how many were is said."""
    if is_taken_back:
        _take_back(books, AFTER, is_reported=True)

    notes = verify.run(books.where, STRANGERS).notes

    assert ("1 cancelled orders have a receipt" in notes) == is_taken_back
