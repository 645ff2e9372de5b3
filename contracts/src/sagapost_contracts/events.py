"""Every event and command on the wire, as Structs; readers ignore fields they do not know, new fields have defaults."""

from datetime import datetime
from decimal import Decimal
from typing import Annotated, ClassVar, Final
from uuid import UUID

import msgspec

from sagapost_contracts import money

# What the readers' columns take: what does not fit is refused when it is decoded, and not tried again and again.
Id = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
BigInt = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Name = Annotated[str, msgspec.Meta(pattern=r"\A[^\x00]*\Z", max_length=1_000)]
Text = Annotated[str, msgspec.Meta(pattern=r"\A[^\x00]*\Z", max_length=10_000)]
Time = Annotated[datetime, msgspec.Meta(tz=True)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=366 * 24 * 3600)]


_YEARS: Final = range(1900, 9000)  # beyond these, adding a time zone or a wait can leave the calendar of Python or PostgreSQL


def _within_calendar(time: datetime) -> None:
    if time.year not in _YEARS:
        raise ValueError(f"the year {time.year} is not from {_YEARS[0]} to {_YEARS[-1]}")


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line of an order as the customer bought it."""

    product_id: Id
    name: Name
    quantity: Count
    price: Decimal

    def __post_init__(self) -> None:
        """Refuse a price that is not an exact amount."""
        money.parse_amount(self.price)


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """What every message carries; `key` is its routing key, `version` its schema version."""

    key: ClassVar[str]
    version: ClassVar[int] = 1

    order_id: Id
    saga_id: UUID


class Amounted(Message, frozen=True, kw_only=True):
    """A message about money; the amount is checked when it is decoded."""

    amount: Decimal
    currency: str = money.CURRENCY

    def __post_init__(self) -> None:
        """Refuse an amount that is not exact or a currency that is not ours."""
        money.Money(amount=self.amount, currency=self.currency)


def _currency() -> str:
    return money.CURRENCY


class OrderCreated(Amounted, frozen=True, kw_only=True, omit_defaults=True):
    """An order that is to be paid.

    `pay_within_s`: for how many seconds it may be paid, counted by payment's clock from when payment hears of it; absent in old messages,
    where `pay_before`, a time of the order database's clock, says until when.
    """

    key: ClassVar[str] = "order.order.created"

    # a default that is made is always written, so that only an absent `pay_within_s` is left out and version 1 stays as it was
    currency: str = msgspec.field(default_factory=_currency)
    user_id: BigInt
    user_email: Name
    items: tuple[Line, ...]
    payment_method: Name
    pay_before: Time
    pay_within_s: Seconds | None = None

    def __post_init__(self) -> None:
        """Refuse an amount that is not exact and a year outside of 1900 to 8999."""
        super().__post_init__()
        _within_calendar(self.pay_before)


class OrderCancelled(Amounted, frozen=True, kw_only=True):
    """An order ended without a sale; whatever was captured is refunded."""

    key: ClassVar[str] = "order.order.cancelled"

    user_email: Name
    reason: Text
    refunded: Decimal
    amount: Decimal = Decimal("0.00")
    items: tuple[Line, ...] = ()

    def __post_init__(self) -> None:
        """Refuse amounts that are not exact."""
        super().__post_init__()
        money.parse_amount(self.refunded)


class CancelPayment(Message, frozen=True, kw_only=True):
    """Command to payment: see to it that nothing stays captured for this order."""

    key: ClassVar[str] = "order.payment.cancel_requested"

    reason: Text
    saga_version: Count


class RequestNotification(Amounted, frozen=True, kw_only=True):
    """Command to email: send this mail again."""

    key: ClassVar[str] = "order.notification.requested"

    template: Name
    user_email: Name
    attempt: Count
    amount: Decimal = Decimal("0.00")
    items: tuple[Line, ...] = ()
    transaction_id: Name | None = None
    reason: Text | None = None


class PaymentProcessed(Amounted, frozen=True, kw_only=True):
    """The amount was captured."""

    key: ClassVar[str] = "payment.payment.processed"

    payment_id: Id
    payment_version: Count
    transaction_id: Name
    captured_at: Time
    user_email: Name
    items: tuple[Line, ...]

    def __post_init__(self) -> None:
        """Refuse an amount that is not exact and a year outside of 1900 to 8999."""
        super().__post_init__()
        _within_calendar(self.captured_at)


class PaymentFailed(Message, frozen=True, kw_only=True):
    """The capture was refused for good; nothing was taken."""

    key: ClassVar[str] = "payment.payment.failed"

    payment_version: Count
    code: Name
    reason: Text


class PaymentVoided(Message, frozen=True, kw_only=True):
    """No capture stands and none will come."""

    key: ClassVar[str] = "payment.payment.voided"

    payment_version: Count
    code: Name
    reason: Text


class PaymentRefunded(Amounted, frozen=True, kw_only=True):
    """What was captured went back."""

    key: ClassVar[str] = "payment.payment.refunded"

    payment_version: Count
    refund_id: Name


class RefundFailed(Amounted, frozen=True, kw_only=True):
    """A refund did not go through; `permanent` says that repeating it will not help."""

    key: ClassVar[str] = "payment.refund.failed"

    payment_version: Count
    code: Name
    permanent: bool


class EmailSent(Message, frozen=True, kw_only=True):
    """The mail server took the mail."""

    key: ClassVar[str] = "email.email.sent"

    template: Name
    smtp_message_id: Name


class EmailFailed(Message, frozen=True, kw_only=True):
    """The mail could not be delivered; `permanent` says that repeating it will not help."""

    key: ClassVar[str] = "email.email.failed"

    template: Name
    code: Name
    permanent: bool


RECEIPT: Final = "receipt"
CANCELLATION: Final = "cancellation"
