"""Every event and command on the wire, as Structs; readers ignore fields they do not know, new fields have defaults."""

from datetime import datetime
from decimal import Decimal
from typing import ClassVar, Final
from uuid import UUID

import msgspec

from sagapost_contracts import money


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line of an order as the customer bought it."""

    product_id: int
    name: str
    quantity: int
    price: Decimal

    def __post_init__(self) -> None:
        """Refuse a price that is not an exact amount."""
        money.parse_amount(self.price)


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """What every message carries; `key` is its routing key, `version` its schema version."""

    key: ClassVar[str]
    version: ClassVar[int] = 1

    order_id: int
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
    user_id: int
    user_email: str
    items: tuple[Line, ...]
    payment_method: str
    pay_before: datetime
    pay_within_s: float | None = None


class OrderCancelled(Message, frozen=True, kw_only=True):
    """An order ended without a sale; whatever was captured is refunded."""

    key: ClassVar[str] = "order.order.cancelled"

    user_email: str
    reason: str
    refunded: Decimal
    amount: Decimal = Decimal("0.00")
    currency: str = money.CURRENCY
    items: tuple[Line, ...] = ()


class CancelPayment(Message, frozen=True, kw_only=True):
    """Command to payment: see to it that nothing stays captured for this order."""

    key: ClassVar[str] = "order.payment.cancel_requested"

    reason: str
    saga_version: int


class RequestNotification(Message, frozen=True, kw_only=True):
    """Command to email: send this mail again."""

    key: ClassVar[str] = "order.notification.requested"

    template: str
    user_email: str
    attempt: int
    amount: Decimal = Decimal("0.00")
    currency: str = money.CURRENCY
    items: tuple[Line, ...] = ()
    transaction_id: str | None = None
    reason: str | None = None


class PaymentProcessed(Amounted, frozen=True, kw_only=True):
    """The amount was captured."""

    key: ClassVar[str] = "payment.payment.processed"

    payment_id: int
    payment_version: int
    transaction_id: str
    captured_at: datetime
    user_email: str
    items: tuple[Line, ...]


class PaymentFailed(Message, frozen=True, kw_only=True):
    """The capture was refused for good; nothing was taken."""

    key: ClassVar[str] = "payment.payment.failed"

    payment_version: int
    code: str
    reason: str


class PaymentVoided(Message, frozen=True, kw_only=True):
    """No capture stands and none will come."""

    key: ClassVar[str] = "payment.payment.voided"

    payment_version: int
    code: str
    reason: str


class PaymentRefunded(Amounted, frozen=True, kw_only=True):
    """What was captured went back."""

    key: ClassVar[str] = "payment.payment.refunded"

    payment_version: int
    refund_id: str


class RefundFailed(Amounted, frozen=True, kw_only=True):
    """A refund did not go through; `permanent` says that repeating it will not help."""

    key: ClassVar[str] = "payment.refund.failed"

    payment_version: int
    code: str
    permanent: bool


class EmailSent(Message, frozen=True, kw_only=True):
    """The mail server took the mail."""

    key: ClassVar[str] = "email.email.sent"

    template: str
    smtp_message_id: str


class EmailFailed(Message, frozen=True, kw_only=True):
    """The mail could not be delivered; `permanent` says that repeating it will not help."""

    key: ClassVar[str] = "email.email.failed"

    template: str
    code: str
    permanent: bool


RECEIPT: Final = "receipt"
CANCELLATION: Final = "cancellation"
