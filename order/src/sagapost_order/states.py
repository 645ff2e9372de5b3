"""The words of the saga: its states, its events, the messages that it sends and its waits; it must not know any rule."""

from datetime import datetime
from decimal import Decimal
from typing import Final, Literal

import msgspec

from sagapost_chassis import steps
from sagapost_contracts import events, money

NONE: Final = "none"
CREATED: Final = "created"
PAID: Final = "paid"
NOTIFIED: Final = "notified"
COMPENSATING: Final = "compensating"
COMPENSATED: Final = "compensated"
NOTIFY_FAILED: Final = "notify_failed"
COMPENSATION_FAILED: Final = "compensation_failed"
STATES: Final = (CREATED, PAID, NOTIFIED, COMPENSATING, COMPENSATED, NOTIFY_FAILED, COMPENSATION_FAILED)
DONE: Final = frozenset({NOTIFIED, COMPENSATED})

# messages
ORDER_CREATED: Final = "OrderCreated"
PAYMENT_PROCESSED: Final = "PaymentProcessed"
PAYMENT_FAILED: Final = "PaymentFailed"
PAYMENT_VOIDED: Final = "PaymentVoided"
PAYMENT_REFUNDED: Final = "PaymentRefunded"
REFUND_FAILED: Final = "RefundFailed"
EMAIL_SENT: Final = "EmailSent"
EMAIL_FAILED: Final = "EmailFailed"
EVENTS: Final = (
    PAYMENT_PROCESSED,
    PAYMENT_FAILED,
    PAYMENT_VOIDED,
    PAYMENT_REFUNDED,
    REFUND_FAILED,
    EMAIL_SENT,
    EMAIL_FAILED,
)
# the customer, the email service before it sends, the clock and operators
CANCEL_REQUESTED: Final = "CancelRequested"
RECEIPT_ASKED: Final = "ReceiptAsked"
DEADLINE: Final = "Deadline"
OPERATOR_RETRY: Final = "OperatorRetry"
OPERATOR_COMPENSATE: Final = "OperatorCompensate"
OPERATOR_WAIVE_NOTIFY: Final = "OperatorWaiveNotify"
OPERATOR_MARK_REFUNDED: Final = "OperatorMarkRefunded"
OPERATOR: Final = (OPERATOR_RETRY, OPERATOR_COMPENSATE, OPERATOR_WAIVE_NOTIFY, OPERATOR_MARK_REFUNDED)

# what is emitted beside OrderCreated
ORDER_CANCELLED: Final = "OrderCancelled"
CANCEL_PAYMENT: Final = "CancelPayment"
REQUEST_NOTIFICATION: Final = "RequestNotification"

# deadline kinds
NUDGE: Final = "nudge"
PAY: Final = "pay"
ANSWER: Final = "answer"
NOTIFY: Final = "notify"
COMPENSATE: Final = "compensate"
RECEIPT: Final = "receipt"
CANCELLATION: Final = "cancellation"

# what `attention` says of a parked saga; it goes when the saga leaves that state
PARKED: Final = {NOTIFY_FAILED: "receipt_failed", COMPENSATION_FAILED: "refund_failed"}
# the same of every state: what is no longer true when the saga leaves it
PASSING: Final = PARKED | {CREATED: "payment_silent"}

# an order that stands: its receipt may be sent, and a cancellation may wait for the receipt's outcome
OPEN: Final = frozenset({CREATED, PAID, NOTIFY_FAILED})
# what is done with an order that does not: the money goes back, then the customer gets the cancellation mail
CANCELLED: Final = frozenset({COMPENSATING, COMPENSATED, COMPENSATION_FAILED})

ORDER_STATUS: Final = {
    CREATED: "pending",
    PAID: "paid",
    NOTIFIED: "completed",
    COMPENSATING: "cancelling",
    COMPENSATED: "cancelled",
    NOTIFY_FAILED: "attention",
    COMPENSATION_FAILED: "attention",
}


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """Waits in seconds and numbers of attempts; a wait doubles with each attempt up to its maximum.

    `cancel_window_s` counts from the order's creation and bounds the cancellation of a finished order; `notify_failure`
    says what becomes of an order whose receipt cannot be delivered. `receipt_lease_s`: how long the email service may take to send a
    receipt; RFC 5321, 4.5.3.2.6 asks for ten minutes behind the final dot alone. `declines_per_user_hour`: so many declined or open
    payments of a user in an hour refuse the user's next checkout; 0: no limit.
    """

    notify_s: float = 60
    notify_max_s: float = 3600
    notify_attempts: int = 8
    notify_parked_s: float = 3600
    compensate_s: float = 5
    compensate_max_s: float = 300
    compensate_attempts: int = 20
    compensate_parked_s: float = 900
    compensate_parked_max_s: float = 86400
    compensate_parked_attempts: int = 40
    receipt_lease_s: float = 660
    cancel_window_s: float = 1800
    notify_failure: Literal["park", "refund"] = "park"
    declines_per_user_hour: int = 0


POLICY: Final = Policy()


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """What the table looks at; `amount` of a refund is all that went back so far, `code` becomes the history row's reason.

    `at` never lies before the saga's last change, `clock` is what the database's clock says (None: the same). `unsent`: the saga's last
    message is still in the outbox (`waiting`), or the relay has set it aside for a person (`parked`).
    """

    name: str
    at: datetime
    policy: Policy = POLICY
    amount: Decimal = Decimal(0)
    currency: str = money.CURRENCY
    payment_version: int = 0
    code: str | None = None
    template: str = events.RECEIPT
    permanent: bool = True
    clock: datetime | None = None
    unsent: Literal["waiting", "parked"] | None = None

    @property
    def now(self) -> datetime:
        """Return when waits begin: `at`, unless it is more than 5 s ahead of the clock, which was set back: then what the clock says."""
        is_back = self.clock is not None and self.at - self.clock > steps.LEAST
        return self.clock if self.clock is not None and is_back else self.at


def is_done(state: str, deadline_at: datetime | None) -> bool:
    """Tell whether nothing more happens by itself: the money is settled and the last mail was sent or given up."""
    return state in DONE and deadline_at is None
