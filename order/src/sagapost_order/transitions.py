"""The saga's transition table as data, with the guards and effects that its rules name; it must not know who asks."""

from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Final

import msgspec

from sagapost_contracts import events, money
from sagapost_order import domain

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

ORDER_CANCELLED: Final = "OrderCancelled"
CANCEL_PAYMENT: Final = "CancelPayment"

# deadline kinds
PAY: Final = "pay"
NOTIFY: Final = "notify"
COMPENSATE: Final = "compensate"

# what `attention` says of a parked saga; it goes when the saga leaves that state
PARKED: Final = {NOTIFY_FAILED: "receipt_failed", COMPENSATION_FAILED: "refund_failed"}

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
    """The waits of the deadlines, in seconds."""

    notify_s: int = 60
    notify_parked_s: int = 3600
    compensate_s: int = 5
    compensate_parked_s: int = 900


POLICY: Final = Policy()


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """What the table looks at; `amount` of a refund is all that went back so far."""

    name: str
    at: datetime
    amount: Decimal = Decimal(0)
    currency: str = money.CURRENCY
    payment_version: int = 0
    code: str | None = None
    template: str = events.RECEIPT
    permanent: bool = True


Guard = Callable[[domain.Saga, Event], bool]
Effect = Callable[[domain.Saga, Event], domain.Saga]


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a cell; `to` None keeps the state, `ignored` changes nothing but the history."""

    to: str | None = None
    when: tuple[Guard, ...] = ()
    does: tuple[Effect, ...] = ()
    emits: tuple[str, ...] = ()
    ignored: bool = False


def deadline_of(state: str, policy: Policy) -> tuple[str | None, int]:
    """Give kind and wait in seconds of the deadline that a state is entered with; a saga that is done has none."""
    return {
        PAID: (NOTIFY, policy.notify_s),
        NOTIFY_FAILED: (NOTIFY, policy.notify_parked_s),
        COMPENSATING: (COMPENSATE, policy.compensate_s),
        COMPENSATION_FAILED: (COMPENSATE, policy.compensate_parked_s),
    }.get(state, (None, 0))


# guards


def amount_equal(saga: domain.Saga, event: Event) -> bool:
    """Tell whether the payment took exactly what the order costs."""
    return event.amount == saga.amount and event.currency == saga.currency


def leaves_capture(saga: domain.Saga, event: Event) -> bool:
    """Tell whether more is captured than refunded, with this payment."""
    return max(saga.captured, event.amount) > saga.refunded


def version_seen(saga: domain.Saga, event: Event) -> bool:
    """Tell whether the payment told of this version, or of a later one, before."""
    return event.payment_version <= saga.payment_version


def older(saga: domain.Saga, event: Event) -> bool:
    """Tell whether the payment told of a later version before."""
    return event.payment_version < saga.payment_version


def neutral(saga: domain.Saga, _: Event) -> bool:
    """Tell whether everything captured has been refunded."""
    return saga.captured == saga.refunded


def refunds_all(saga: domain.Saga, event: Event) -> bool:
    """Tell whether this refund leaves nothing captured; a refund that comes before its capture tells of both."""
    return max(saga.refunded, event.amount) >= saga.captured


def permanent(_: domain.Saga, event: Event) -> bool:
    """Tell whether whoever failed will not try again."""
    return event.permanent


def receipt(_: domain.Saga, event: Event) -> bool:
    """Tell whether the mail is the receipt; no other mail moves a saga."""
    return event.template == events.RECEIPT


def cancellation(_: domain.Saga, event: Event) -> bool:
    """Tell whether the mail is about the cancellation."""
    return event.template == events.CANCELLATION


# effects


def seen(saga: domain.Saga, event: Event) -> domain.Saga:
    """Note the payment's version."""
    return msgspec.structs.replace(saga, payment_version=max(saga.payment_version, event.payment_version))


def capture(saga: domain.Saga, event: Event) -> domain.Saga:
    """Note what was captured."""
    return msgspec.structs.replace(seen(saga, event), captured=max(saga.captured, event.amount))


def refund(saga: domain.Saga, event: Event) -> domain.Saga:
    """Note what was refunded; what went back had been captured, heard of or not."""
    captured, refunded = max(saga.captured, event.amount), max(saga.refunded, event.amount)
    return msgspec.structs.replace(seen(saga, event), captured=captured, refunded=refunded)


def receipt_sent(saga: domain.Saga, event: Event) -> domain.Saga:
    """Note when the receipt was first reported."""
    return msgspec.structs.replace(saga, notified_at=saga.notified_at or event.at)


def cancellation_sent(saga: domain.Saga, event: Event) -> domain.Saga:
    """Note when the cancellation mail was first reported."""
    return msgspec.structs.replace(saga, cancellation_sent_at=saga.cancellation_sent_at or event.at)


def attention(code: str) -> Effect:
    """Make the effect that calls an operator; the first call stands."""

    def effect(saga: domain.Saga, _: Event) -> domain.Saga:
        return msgspec.structs.replace(saga, attention=saga.attention or code)

    return effect


def reason(code: str) -> Effect:
    """Make the effect that says why the order ends; the first reason stands."""

    def effect(saga: domain.Saga, _: Event) -> domain.Saga:
        return msgspec.structs.replace(saga, reason=saga.reason or code)

    return effect


# the cells

_IGN: Final = (Rule(ignored=True),)
_CANCELLED: Final = (ORDER_CANCELLED,)
_MISMATCH: Final = attention("amount_mismatch")

_CONTRADICTED: Final = (Rule(does=(seen, attention("payment_contradicts_capture"))),)
_LATE_CAPTURE: Final = (
    Rule(
        to=COMPENSATING,
        when=(leaves_capture,),
        does=(capture, attention("late_capture")),
        emits=(CANCEL_PAYMENT,),
    ),
    Rule(ignored=True),
)
_OTHER_AMOUNT: Final = Rule(does=(seen, _MISMATCH))
_RECORD_CAPTURE: Final = (Rule(does=(capture,)),)
_STILL_PAID: Final = (Rule(when=(amount_equal,), ignored=True), _OTHER_AMOUNT)

_NOTHING_TAKEN: Final = (
    Rule(to=COMPENSATED, when=(neutral,), does=(seen, reason("cancelled")), emits=_CANCELLED),
    Rule(does=(seen,)),
)
_REVERSED: Final = (
    Rule(to=COMPENSATED, when=(refunds_all,), does=(refund, reason("provider_reversal")), emits=_CANCELLED),
    Rule(does=(refund, attention("partial_refund"))),
)
_REFUNDED: Final = (
    Rule(to=COMPENSATED, when=(refunds_all,), does=(refund, reason("refunded")), emits=_CANCELLED),
    Rule(does=(refund,)),
)
_UNASKED_REFUND: Final = (Rule(when=(permanent,), does=(seen, attention("unexpected_refund_failure"))), Rule(ignored=True))


def _mail(*rules: Rule) -> tuple[Rule, ...]:
    """Complete the rules of a receipt: the cancellation mail is a fact in every state, other mails are nothing."""
    told = Rule(when=(cancellation,), does=(cancellation_sent,))
    return (*(msgspec.structs.replace(rule, when=(receipt, *rule.when)) for rule in rules), told, Rule(ignored=True))


def _no_mail(*rules: Rule) -> tuple[Rule, ...]:
    """Complete the rules of a receipt that failed: a cancellation nobody got wants an operator, a transient failure nothing."""
    untold = Rule(when=(permanent, cancellation), does=(attention("cancellation_failed"),))
    return (*(msgspec.structs.replace(rule, when=(permanent, receipt, *rule.when)) for rule in rules), untold, Rule(ignored=True))


_KEEPS_RECEIPT: Final = _mail(Rule(does=(receipt_sent,)))

TABLE: Final[dict[tuple[str, str], tuple[Rule, ...]]] = {
    (CREATED, PAYMENT_PROCESSED): (
        Rule(to=PAID, when=(amount_equal,), does=(capture,)),
        Rule(to=COMPENSATING, does=(capture, reason("amount_mismatch"), _MISMATCH), emits=(CANCEL_PAYMENT,)),
    ),
    (PAID, PAYMENT_PROCESSED): _STILL_PAID,
    (NOTIFIED, PAYMENT_PROCESSED): _STILL_PAID,
    (COMPENSATING, PAYMENT_PROCESSED): _RECORD_CAPTURE,
    (COMPENSATED, PAYMENT_PROCESSED): (Rule(when=(version_seen,), ignored=True), *_LATE_CAPTURE),
    (NOTIFY_FAILED, PAYMENT_PROCESSED): _STILL_PAID,
    (COMPENSATION_FAILED, PAYMENT_PROCESSED): _RECORD_CAPTURE,
    (CREATED, PAYMENT_FAILED): (Rule(to=COMPENSATED, does=(seen, reason("declined")), emits=_CANCELLED),),
    (PAID, PAYMENT_FAILED): (Rule(when=(older,), ignored=True), *_CONTRADICTED),
    (NOTIFIED, PAYMENT_FAILED): _CONTRADICTED,
    (COMPENSATING, PAYMENT_FAILED): _NOTHING_TAKEN,
    (COMPENSATED, PAYMENT_FAILED): _IGN,
    (NOTIFY_FAILED, PAYMENT_FAILED): _CONTRADICTED,
    (COMPENSATION_FAILED, PAYMENT_FAILED): _NOTHING_TAKEN,
    (CREATED, PAYMENT_VOIDED): (Rule(to=COMPENSATED, does=(seen, reason("expired")), emits=_CANCELLED),),
    (PAID, PAYMENT_VOIDED): _CONTRADICTED,
    (NOTIFIED, PAYMENT_VOIDED): _CONTRADICTED,
    (COMPENSATING, PAYMENT_VOIDED): _NOTHING_TAKEN,
    (COMPENSATED, PAYMENT_VOIDED): _IGN,
    (NOTIFY_FAILED, PAYMENT_VOIDED): _CONTRADICTED,
    (COMPENSATION_FAILED, PAYMENT_VOIDED): _NOTHING_TAKEN,
    (CREATED, PAYMENT_REFUNDED): (Rule(to=COMPENSATED, does=(refund, reason("provider_reversal")), emits=_CANCELLED),),
    (PAID, PAYMENT_REFUNDED): _REVERSED,
    (NOTIFIED, PAYMENT_REFUNDED): _REVERSED,
    (COMPENSATING, PAYMENT_REFUNDED): _REFUNDED,
    (COMPENSATED, PAYMENT_REFUNDED): (Rule(does=(refund,)),),
    (NOTIFY_FAILED, PAYMENT_REFUNDED): _REVERSED,
    (COMPENSATION_FAILED, PAYMENT_REFUNDED): _REFUNDED,
    (CREATED, REFUND_FAILED): _UNASKED_REFUND,
    (PAID, REFUND_FAILED): _UNASKED_REFUND,
    (NOTIFIED, REFUND_FAILED): _UNASKED_REFUND,
    (COMPENSATING, REFUND_FAILED): (
        Rule(to=COMPENSATION_FAILED, when=(permanent,), does=(seen, attention(PARKED[COMPENSATION_FAILED]))),
        Rule(ignored=True),
    ),
    (COMPENSATED, REFUND_FAILED): _IGN,
    (NOTIFY_FAILED, REFUND_FAILED): _UNASKED_REFUND,
    (COMPENSATION_FAILED, REFUND_FAILED): (Rule(does=(seen,)),),
    (CREATED, EMAIL_SENT): _KEEPS_RECEIPT,
    (PAID, EMAIL_SENT): _mail(Rule(to=NOTIFIED, does=(receipt_sent,))),
    (NOTIFIED, EMAIL_SENT): _mail(Rule(ignored=True)),
    (COMPENSATING, EMAIL_SENT): _KEEPS_RECEIPT,
    (COMPENSATED, EMAIL_SENT): _KEEPS_RECEIPT,
    (NOTIFY_FAILED, EMAIL_SENT): _mail(Rule(to=NOTIFIED, does=(receipt_sent,))),
    (COMPENSATION_FAILED, EMAIL_SENT): _KEEPS_RECEIPT,
    (CREATED, EMAIL_FAILED): _no_mail(Rule()),
    (PAID, EMAIL_FAILED): _no_mail(Rule(to=NOTIFY_FAILED, does=(attention(PARKED[NOTIFY_FAILED]),))),
    (NOTIFIED, EMAIL_FAILED): _no_mail(Rule(ignored=True)),
    (COMPENSATING, EMAIL_FAILED): _no_mail(Rule(ignored=True)),
    (COMPENSATED, EMAIL_FAILED): _no_mail(Rule(ignored=True)),
    (NOTIFY_FAILED, EMAIL_FAILED): _no_mail(Rule()),
    (COMPENSATION_FAILED, EMAIL_FAILED): _no_mail(Rule(ignored=True)),
}
