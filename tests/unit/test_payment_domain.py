"""The pure rules of payment."""

from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

import msgspec
import pytest

from sagapost_chassis import settings as environment
from sagapost_payment import domain
from sagapost_payment.settings import Settings

SAGA = UUID("0193b1c2-7d4e-7a10-9f0e-5f2f6c1d8a11")
NOW = datetime(2026, 11, 22, tzinfo=UTC)
OPEN = domain.Payment(
    id=7,
    order_id=1042,
    saga_id=SAGA,
    status=domain.Status.PROCESSING,
    version=1,
    amount=Decimal("1299.99"),
    currency="USD",
    payment_method="pm_card_ok",
    transaction_id=None,
    code=None,
    reason=None,
    user_email="test@example.com",
    items=(),
    unanswered_calls=0,
    cancel_requested_at=None,
    expired=False,
)
REQUIRED = {
    "SAGAPOST_DATABASE_URL": "postgresql://u:p@127.0.0.1/d",
    "SAGAPOST_AMQP_URL": "amqp://u:p@127.0.0.1/",
    "SAGAPOST_PROVIDER_URL": "http://127.0.0.1:8004",
}


def test_keys_follow_from_the_saga_alone() -> None:
    """However often an order is charged or refunded, the provider sees one key for each."""
    assert domain.charge_key(SAGA) == f"cap:{SAGA}"
    assert domain.refund_key(SAGA) == f"ref:{SAGA}"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, None),
        ({"unanswered_calls": 2}, None),
        ({"unanswered_calls": 3}, domain.PROVIDER_TIMEOUT),
        ({"expired": True}, domain.EXPIRED),
        ({"cancel_requested_at": NOW}, domain.CANCELLED),
        ({"cancel_requested_at": NOW, "expired": True, "unanswered_calls": 9}, domain.CANCELLED),
    ],
)
def test_a_charge_is_given_up_only_for_a_reason(changes: dict[str, object], code: str | None) -> None:
    """An order that nobody cancelled, in time and not left unanswered too often, is charged again."""
    given_up = domain.reason_to_give_up(msgspec.structs.replace(OPEN, **changes), 3)

    assert (given_up.code if given_up else None) == code


@pytest.mark.parametrize("status", list(domain.Status))
@pytest.mark.parametrize("cancelled", [False, True])
def test_a_late_capture_goes_back_where_nobody_waits_for_it(status: domain.Status, *, cancelled: bool) -> None:
    """Money that arrives after a void or a cancellation is refunded; any other status keeps what it has."""
    payment = msgspec.structs.replace(OPEN, status=status, cancel_requested_at=NOW if cancelled else None)

    expected = status is domain.Status.VOIDED or (status is domain.Status.PROCESSING and cancelled)
    assert domain.must_go_back(payment) is expected


def test_the_event_tells_what_was_really_taken() -> None:
    """The provider's amount, not the order's, goes into PaymentProcessed: the saga compares them."""
    captured = domain.Captured(transaction_id="ch_1", amount=Decimal("999.99"), currency="USD", at=NOW)

    event = domain.processed(msgspec.structs.replace(OPEN, version=2), captured)

    assert (event.amount, event.payment_version, event.transaction_id) == (Decimal("999.99"), 2, "ch_1")


def test_a_missing_variable_is_named() -> None:
    """A start without its variables names every one of them."""
    with pytest.raises(environment.SettingsError) as caught:
        environment.load(Settings, {})

    assert all(name in str(caught.value) for name in REQUIRED)


@pytest.mark.parametrize("wrong", [{"SAGAPOST_PROVIDER_TIMEOUT_S": "0"}, {"SAGAPOST_PROVIDER_ATTEMPTS": "0"}])
def test_limits_that_let_no_call_through_are_refused(wrong: dict[str, str]) -> None:
    """A time-out or a number of calls of nothing ends the start."""
    with pytest.raises(environment.SettingsError, match="PROVIDER_"):
        environment.load(Settings, REQUIRED | wrong)
