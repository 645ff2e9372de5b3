"""The verdict of a campaign against real books: silent when customers and books agree, and loud for each way in which they do not."""

from datetime import UTC, datetime
from uuid import uuid4

import msgspec
import pytest
from integration import ops_books
from integration.ops_books import Books

from sagapost_ops.chaos import judging, rig
from sagapost_ops.load import journal
from sagapost_sandbox.testing import services

NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)


@pytest.fixture
def books(order_db: str, payment_db: str, provider: services.Service, mailbox: services.Service) -> Books:
    """Write one finished order into books of its own; its idempotency key is its saga's id."""
    return ops_books.write(order_db, payment_db, provider, mailbox)


def _line(books: Books, **changes: object) -> journal.Line:
    saga = str(books.values["saga"])
    line = journal.Line(
        what="checkout", number=1, key=saga, kind="ok", planned_at=NOW, at=NOW, order_id=books.values["order_id"], saga_id=saga
    )
    return msgspec.structs.replace(line, **changes)


def _mine(books: Books, found: judging.Verdict) -> list[str]:
    """Leave out what provider and mailbox tell of other tests' orders."""
    return [reason for reason in found.reasons if str(books.values["saga"]) in reason]


def test_what_was_promised_and_is_there_is_no_reason(books: Books) -> None:
    """One answer, one order, one charge, one mail; an answer that was repeated is the same answer."""
    unknown = _line(books, outcome="unknown", order_id=None, saga_id=None)

    found = judging.judge(books.where, [unknown, _line(books), _line(books, replayed=True)], ())

    assert _mine(books, found) == []
    assert (found.lost, found.invented, found.contradicted, found.unknown) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("changes", "count", "says"),
    [
        ({"order_id": 999}, "lost", "was answered with order 999 of saga"),
        ({"saga_id": str(uuid4())}, "lost", "which is not there"),
        ({"outcome": "refused", "order_id": None, "saga_id": None}, "contradicted", "was refused and has an order"),
        ({"outcome": "unknown", "order_id": None, "saga_id": None}, "unknown", "is unknown to this day"),
    ],
)
def test_an_answer_that_the_books_do_not_bear_out_is_named(books: Books, changes: dict[str, object], count: str, says: str) -> None:
    """Another order, another saga, a refusal that made an order, a key nobody asked about again."""
    found = judging.judge(books.where, [_line(books, **changes)], ())

    assert getattr(found, count) == 1
    assert any(says in reason for reason in _mine(books, found))


def test_one_key_with_two_answers_is_named(books: Books) -> None:
    """A repetition that is answered with another order is a second order, whether or not it can be found."""
    found = judging.judge(books.where, [_line(books), _line(books, order_id=999)], ())

    assert (found.contradicted, found.lost) == (1, 1)


def test_an_order_that_nobody_asked_for_is_named(books: Books) -> None:
    """Each order has a key, and each key was sent by a customer of this run."""
    books.change("order", "DELETE FROM idempotency_keys WHERE order_id = %(order_id)s")

    found = judging.judge(books.where, [], ())

    assert found.invented == 1


def test_an_order_that_did_not_end_is_lost(books: Books) -> None:
    """A 202 promises an end."""
    books.change("order", "UPDATE sagas SET state = 'paid', deadline_at = now(), deadline_kind = 'notify' WHERE id = %(saga)s")

    found = judging.judge(books.where, [_line(books)], ())

    assert found.lost == 1


def test_money_that_moved_twice_and_a_mail_that_came_twice_are_named(
    books: Books, provider: services.Service, mailbox: services.Service
) -> None:
    """The provider's ledger and the mailbox decide, whatever the databases say."""
    saga = books.values["saga"]
    for key in ("second", "third"):
        ops_books.refund(provider, saga, ops_books.charge(provider, saga, key=key))
    ops_books.mail(mailbox, "receipt", saga, "again")

    found = judging.judge(books.where, [_line(books)], [rig.Life(name="email", started_at=0)])

    reasons = _mine(books, found)
    assert sum("has 3 charges" in reason for reason in reasons) == 2
    assert sum("has 2 refunds" in reason for reason in reasons) == 1
    assert sum("was sent twice by one process" in reason for reason in reasons) == 1
