"""Which payments say something that their sagas do not know, asked of two real databases."""

from typing import Final

import pytest
from integration import ops_books

from sagapost_ops import database
from sagapost_ops.restoring import order_side, payment_side
from sagapost_sandbox.testing import services

STATES: Final = ("created", "paid", "notified", "notify_failed", "compensating", "compensated", "compensation_failed")
PAID: Final = {"paid", "notified", "notify_failed"}
RESTING: Final = PAID | {"compensated", "compensation_failed"}  # they do not ask payment again, or only after hours
UNAWARE: Final = {
    "processing": set[str](),
    "captured": set[str](),
    "refunding": PAID,
    "refunded": RESTING,
    "failed": PAID,
    "voided": PAID,
}


@pytest.fixture
def books(order_db: str, payment_db: str, provider: services.Service, mailbox: services.Service) -> ops_books.Books:
    """Write one finished order into both databases."""
    made = ops_books.write(order_db, payment_db, provider, mailbox)
    # a state without its history and its deadline
    made.change("order", "ALTER TABLE sagas DISABLE TRIGGER USER", "ALTER TABLE sagas DROP CONSTRAINT sagas_deadline_check")
    return made


def _unaware(books: ops_books.Books) -> list[tuple[str, str | None]]:
    where = books.where
    with (
        database.opened(str(where.order_database_url), "test") as order,
        database.opened(str(where.payment_database_url), "test") as payment,
    ):
        return [(one.status, one.state) for one in order_side.look(order, payment, waiting=0).unaware]


def test_a_saga_is_found_only_where_it_does_not_ask_by_itself(books: ops_books.Books) -> None:
    """Every status beside every state: a saga that asks payment again by itself, and one that knows of its refund, are left out."""
    found: dict[str, set[str]] = {}
    for status in UNAWARE:
        books.values["status"] = status
        books.change("payment", "UPDATE payments SET status = %(status)s")
        found[status] = set()
        for state in STATES:
            books.values["state"] = state
            books.change("order", "UPDATE sagas SET state = %(state)s, captured = CASE %(state)s WHEN 'compensated' THEN 0 ELSE amount END")
            found[status] |= {str(one) for _, one in _unaware(books)}

    books.change("payment", "UPDATE payments SET status = 'refunded'")
    books.change("order", "UPDATE sagas SET state = 'compensated', captured = amount, refunded = amount")

    assert found == UNAWARE
    assert _unaware(books) == []


def test_money_that_an_operator_gave_back_is_not_given_back_again(books: ops_books.Books) -> None:
    """After a restore the payment of a cancelled order is cancelled again if it is captured, but not when it was paid back by hand."""
    books.change("order", "UPDATE sagas SET state = 'compensated', refunded = captured")
    found = [_cancelled(books)]
    books.change(
        "order",
        "ALTER TABLE saga_history DISABLE TRIGGER USER",
        "GRANT UPDATE ON saga_history TO CURRENT_USER",
        "UPDATE saga_history SET from_state = 'compensating', event = 'OperatorMarkRefunded', to_state = 'compensated'"
        " WHERE seq = (SELECT max(seq) FROM saga_history)",
    )
    found.append(_cancelled(books))

    assert found == [1, 0]


def _cancelled(books: ops_books.Books) -> int:
    where = books.where
    with (
        database.opened(str(where.order_database_url), "test") as order,
        database.opened(str(where.payment_database_url), "test") as payment,
    ):
        return len(payment_side.look(order, payment).cancelled)
