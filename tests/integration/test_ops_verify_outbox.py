"""`verify` and the outbox: what stands aside, cursors of another cluster, and what only rows that have left the ring could tell."""

import psycopg
import pytest
from integration import ops_books
from integration.ops_books import STRANGERS, Books

from sagapost_ops import verify
from sagapost_ops.invariants.outcome import Expectations
from sagapost_sandbox.testing import services

SET_ASIDE = """
INSERT INTO outbox_parked (id, shard, event_id, aggregate, type, routing_key, correlation_id, headers, payload, created_at,
                           state, reason, detail, attempts, retry_at)
SELECT id, shard, event_id, aggregate, type, routing_key, correlation_id, headers, payload, created_at, %s, 'unroutable', '', 8, now()
  FROM outbox
"""
# what three hours and the relay do: everything ages, the ring has come round, and its first partition was emptied
TURN = (
    "UPDATE outbox SET created_at = created_at - interval '3 hours'",
    "TRUNCATE outbox_0",
    "UPDATE outbox_bucket SET opened_at = now() - mod(4 - bucket, 4) * interval '30 minutes'",
    "SELECT setval('outbox_ring', 4)",
)
AGE = "UPDATE sagas SET created_at = created_at - interval '3 hours'"
AGE_PAYMENTS = "UPDATE payments SET created_at = created_at - interval '3 hours'"
CANCELLED_BEFORE = """
INSERT INTO saga_history (saga_id, seq, from_state, to_state, event, outcome, message_id, source, facts, at)
VALUES (%(saga)s, 9, 'created', 'compensated', 'PaymentFailed', 'applied', NULL, 'event', '{}', now())
"""
REPEATED = """
INSERT INTO outbox (shard, event_id, aggregate, type, routing_key, correlation_id, headers, payload, created_at)
VALUES (0, %(processed)s, 'order', 'PaymentProcessed', 'payment.payment.processed', %(saga)s::text, '{}', '', now() - %(age)s::interval)
"""
REFUNDED = """
INSERT INTO outbox (shard, event_id, aggregate, type, routing_key, correlation_id, headers, payload, created_at)
VALUES (0, %(other)s, 'order', 'PaymentRefunded', 'payment.payment.refunded', %(saga)s::text, '{}', '', now())
"""


@pytest.fixture
def books(order_db: str, payment_db: str, provider: services.Service, mailbox: services.Service) -> Books:
    """Write one finished order into books of its own."""
    return ops_books.write(order_db, payment_db, provider, mailbox)


def _set_aside(books: Books, state: str) -> None:
    with psycopg.connect(str(books.where.payment_database_url), autocommit=True) as conn:
        conn.execute(SET_ASIDE, (state,))


def test_a_message_that_waits_for_another_try_is_found(books: Books) -> None:
    """The system is not at rest while the relay still tries; nothing expected can excuse that."""
    _set_aside(books, "waiting")

    found = books.violations(Expectations(strangers=True, parked_rows=1))[7]

    message = f"PaymentProcessed {books.values['processed']} of saga {books.values['saga']}"
    assert found[0] == f"{message} was not taken by the broker (unroutable) and is tried again"


def test_a_parked_message_is_found_unless_it_is_expected(books: Books) -> None:
    """The number must be met exactly, and each parked message is named when it is not."""
    _set_aside(books, "parked")
    named = f"PaymentProcessed {books.values['processed']} of saga {books.values['saga']} is parked (unroutable)"

    assert books.violations() == {7: ("1 messages are parked, expected 0", named)}
    assert books.violations(Expectations(strangers=True, parked_rows=1)) == {}
    assert books.violations(Expectations(strangers=True, parked_rows=2)) == {7: ("1 messages are parked, expected 2", named)}


def test_a_message_that_stands_aside_was_not_published(books: Books) -> None:
    """Nobody can have processed it: that the saga has not is no second fault."""
    _set_aside(books, "parked")
    books.change("order", "DELETE FROM inbox WHERE message_id = %(processed)s")

    found = books.violations(Expectations(strangers=True, parked_rows=1))

    assert not any("never processed" in violation for violation in found.get(7, ()))


@pytest.mark.parametrize(
    "foreign",
    ["UPDATE outbox_cursor SET system_identifier = 42 WHERE shard = 2", "UPDATE outbox_cursor SET lo = '9000000:9000000:' WHERE shard = 2"],
)
def test_cursors_of_another_cluster_are_found(foreign: str, books: Books) -> None:
    """They say of every row that it was published, and mean nothing; the sentence names the way out."""
    books.change("payment", foreign)

    assert books.violations() == {7: ("the cursor of shard 2 was written in another PostgreSQL cluster; see: ./sagapost outbox repair",)}


def test_an_order_whose_messages_have_left_the_ring_is_not_judged(books: Books) -> None:
    """After a real TRUNCATE the old order violates nothing and is counted as not judged; before it, it was judged."""
    before = verify.run(books.where, STRANGERS)
    books.change("order", AGE, *TURN)
    books.change("payment", AGE_PAYMENTS, *TURN)

    report = verify.run(books.where, STRANGERS)

    assert report.ok, report
    assert [invariant.unjudged for invariant in before.invariants] == [0] * 8
    assert [invariant.unjudged for invariant in report.invariants] == [1, 0, 1, 0, 0, 0, 0, 0]


def test_an_order_that_is_younger_than_the_ring_is_judged_as_ever(
    *, books: Books, order_db: str, payment_db: str, provider: services.Service, mailbox: services.Service
) -> None:
    """Beside an order that has left the ring, one whose announcement is missing is found."""
    books.change("order", AGE, *TURN)
    books.change("payment", AGE_PAYMENTS, *TURN)
    young = ops_books.write(order_db, payment_db, provider, mailbox)
    young.change("order", "DELETE FROM outbox WHERE event_id = %(created)s")

    assert young.violations() == {1: (f"saga {young.values['saga']} has told of its order under 0 ids",)}


def test_a_lost_announcement_is_found_until_the_ring_has_come_round(books: Books) -> None:
    """Old books alone excuse nothing: while the ring has never come round, everything must be there."""
    books.change("order", AGE, "SELECT setval('outbox_ring', 3)", "UPDATE outbox_bucket SET opened_at = now()", "TRUNCATE outbox_0")

    assert "has told of its order under 0 ids" in books.violations()[1][0]


def test_an_old_cancellation_is_believed_by_its_history_alone(books: Books, mailbox: services.Service) -> None:
    """A cancellation mail of an order whose announcement left the ring is not judged; one that was never cancelled is found as ever."""
    ops_books.mail(mailbox, "cancellation", books.values["saga"], "Cancelled.")
    books.change("order", AGE, "UPDATE sagas SET cancellation_sent_at = now()", *TURN)

    never = verify.run(books.where, STRANGERS).invariants[4]
    books.change("order", CANCELLED_BEFORE)
    once = verify.run(books.where, STRANGERS).invariants[4]

    assert (never.unjudged, len(never.violations)) == (0, 1)
    assert "which was not cancelled" in never.violations[0]
    assert (once.unjudged, once.violations) == (1, ())


@pytest.mark.parametrize(("age", "is_found"), [("3 hours", False), ("1 minute", True)])
def test_a_capture_that_was_sent_again_is_no_late_capture(age: str, books: Books, *, is_found: bool) -> None:
    """A copy's place behind the refund tells nothing once the first row may be gone; within the ring's memory it does."""
    books.change("payment", "DELETE FROM outbox", *TURN, REFUNDED)
    books.values["age"] = age
    books.change("payment", REPEATED)

    found = (
        any("was charged after PaymentRefunded" in violation for violation in books.violations()[3]) if 3 in books.violations() else False
    )

    assert found == is_found


def test_a_replay_is_no_second_message(books: Books) -> None:
    """Copies of every row under their old ids violate nothing."""
    again = """
    INSERT INTO outbox (shard, event_id, aggregate, type, routing_key, correlation_id, headers, payload, created_at)
    SELECT shard, event_id, aggregate, type, routing_key, correlation_id, headers, payload, created_at FROM outbox ORDER BY id
    """
    for database in ("order", "payment"):
        books.change(database, again, ops_books.PASSED)

    assert books.violations() == {}
