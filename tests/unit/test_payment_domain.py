"""The pure rules of payment."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import msgspec
import pytest

from sagapost_chassis import settings as environment
from sagapost_payment import clock, domain
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
    uncertain=False,
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
    assert domain.duplicate_key("ch_2") == "dup:ch_2"
    assert [domain.key_of(domain.charge_key(SAGA), generation) for generation in (1, 2, 3)] == [
        f"cap:{SAGA}",
        f"cap:{SAGA}:2",
        f"cap:{SAGA}:3",
    ]


@pytest.mark.parametrize(
    ("outcome", "errors_count", "kept"),
    [
        (domain.Unknown(cause="503", unanswered=False, is_error=True), 2, False),
        (domain.Unknown(cause="503", unanswered=False, is_error=True), 3, True),
        (domain.Unknown(cause="503", unanswered=False, is_error=True, is_kept=True), 1, True),
        (domain.Unknown(cause="silence", unanswered=True), 9, False),
    ],
)
def test_only_an_error_that_is_kept_gives_a_key_up(outcome: domain.Unknown, errors_count: int, *, kept: bool) -> None:
    """The provider says that it repeats itself, or has answered three calls with an error; silence proves nothing."""
    assert domain.is_kept(outcome, errors_count) is kept


@pytest.mark.parametrize(("later_s", "again"), [(0, False), (1, False), (-1, False), (3, True), (3600, True), (-3600, True)])
def test_a_repetition_is_younger_than_its_saga(later_s: float, *, again: bool) -> None:
    """The saga's id says when it was made, and the envelope when the message was; a saga id without a time may be any repetition."""
    made = datetime.fromtimestamp((SAGA.int >> 80) / 1000, UTC)

    assert domain.was_asked_before(SAGA, made + timedelta(seconds=later_s)) is again
    assert domain.was_asked_before(UUID(int=SAGA.int, version=4), made)


def test_the_skew_is_the_least_difference_of_the_last_seconds() -> None:
    """Waiting only adds, so that the quickest message counts; of two clocks the one that is further off does; the old is forgotten."""
    skew = clock.Skew(10)
    empty = skew.estimate_s()
    for later_s, at_s in ((600.0, 0.0), (3.0, 1.0), (40.0, 2.0)):
        skew.note("service", later_s, at_s)
    quick = skew.estimate_s()
    skew.note("database", -3600.0, 3.0)
    behind = skew.estimate_s()
    skew.note("database", 0.5, 3.0 + clock.WINDOW_S + 5)
    skew.note("service", 900.0, 3.0 + clock.WINDOW_S + 5)

    assert (empty, quick, behind, skew.estimate_s()) == (0.0, 3.0, -3600.0, 900.0)


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
    given_up = domain.reason_to_give_up(msgspec.structs.replace(OPEN, **changes), domain.Terms(max_unanswered=3))

    assert (given_up.code if given_up else None) == code


@pytest.mark.parametrize("status", list(domain.Status))
@pytest.mark.parametrize("cancelled", [False, True])
def test_a_late_capture_goes_back_where_nobody_waits_for_it(status: domain.Status, *, cancelled: bool) -> None:
    """Money that arrives after a void, a refusal or a cancellation is refunded; any other status keeps what it has."""
    payment = msgspec.structs.replace(OPEN, status=status, cancel_requested_at=NOW if cancelled else None)

    expected = status in {domain.Status.VOIDED, domain.Status.FAILED} or (status is domain.Status.PROCESSING and cancelled)
    assert domain.must_go_back(payment) is expected


def charge_of(name: str, *refunds: str) -> domain.Captured:
    """Make a charge of 10.00 with these refunds."""
    returned = tuple(
        domain.Refunded(transaction_id=f"re_{number}", amount=Decimal(amount), currency="USD", at=NOW)
        for number, amount in enumerate(refunds)
    )
    return domain.Captured(transaction_id=name, amount=Decimal("10.00"), currency="USD", at=NOW, refunds=returned)


def test_surplus_is_what_is_neither_ours_nor_noted() -> None:
    """A charge that went back and was not noted is surplus still: its note was lost."""
    charges = [charge_of("ch_1"), charge_of("ch_2"), charge_of("ch_3", "10.00"), charge_of("ch_4", "10.00")]

    found = domain.surplus(charges, "ch_1", {"ch_4"})

    assert [charge.transaction_id for charge in found] == ["ch_2", "ch_3"]


@pytest.mark.parametrize(
    ("refunds", "left", "back"),
    [((), "10.00", None), (("4.00",), "6.00", None), (("4.00", "6.00"), "0.00", "re_1"), (("10.00",), "0.00", "re_0")],
)
def test_a_charge_has_gone_back_when_nothing_is_left_of_it(refunds: tuple[str, ...], left: str, back: str | None) -> None:
    """Refunds in parts count as one, of the whole amount and named like the last; a part alone is none."""
    charge = charge_of("ch_1", *refunds)

    found = domain.gone_back(charge)

    assert domain.left_of(charge) == Decimal(left)
    assert (found.transaction_id if found else None) == back
    assert found is None or found.amount == charge.amount


def test_no_look_may_begin_while_a_call_is_under_way() -> None:
    """The pause before a look covers the provider's time-out and the look-ups before and behind it."""
    terms = environment.load(Settings, REQUIRED | {"SAGAPOST_PROVIDER_TIMEOUT_S": "10"}).terms()

    assert (terms.look_s, terms.call_s) == (60, 25)


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


@pytest.mark.parametrize("wrong", [{"SAGAPOST_PROVIDER_TIMEOUT_S": "0"}, {"SAGAPOST_PROVIDER_ATTEMPTS": "0"}, {"SAGAPOST_LOOK_S": "0"}])
def test_limits_that_let_no_call_through_are_refused(wrong: dict[str, str]) -> None:
    """A time-out or a number of calls of nothing ends the start."""
    with pytest.raises(environment.SettingsError, match="PROVIDER_"):
        environment.load(Settings, REQUIRED | wrong)


def test_a_skew_that_would_always_show_is_refused() -> None:
    """Clocks never agree to the nanosecond."""
    with pytest.raises(environment.SettingsError, match="MAX_CLOCK_SKEW_S"):
        environment.load(Settings, REQUIRED | {"SAGAPOST_MAX_CLOCK_SKEW_S": "0"})
