"""The saga's transition table as data: for each state and each thing heard, the rules in their order; it must not know who asks."""

from typing import Final

import msgspec

from sagapost_order.rules import (
    Rule,
    amount_equal,
    attention,
    cancellation,
    cancellation_sent,
    capture,
    compensate_attempts_left,
    compensate_later,
    expect_payment,
    in_cancel_window,
    leaves_capture,
    neutral,
    newer,
    notify_attempts_left,
    notify_later,
    nudge_is_due,
    older,
    permanent,
    reason,
    receipt,
    receipt_sent,
    refund,
    refunded_by_hand,
    refunds_all,
    refunds_unsent,
    seen,
    still_parked,
    version_seen,
)
from sagapost_order.states import (
    CANCEL_PAYMENT,
    CANCEL_REQUESTED,
    COMPENSATED,
    COMPENSATING,
    COMPENSATION_FAILED,
    CREATED,
    DEADLINE,
    EMAIL_FAILED,
    EMAIL_SENT,
    NOTIFIED,
    NOTIFY_FAILED,
    OPERATOR_COMPENSATE,
    OPERATOR_MARK_REFUNDED,
    OPERATOR_RETRY,
    OPERATOR_WAIVE_NOTIFY,
    ORDER_CANCELLED,
    ORDER_CREATED,
    PAID,
    PARKED,
    PAYMENT_FAILED,
    PAYMENT_PROCESSED,
    PAYMENT_REFUNDED,
    PAYMENT_VOIDED,
    REFUND_FAILED,
    REQUEST_NOTIFICATION,
)

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


_UNDO: Final = (CANCEL_PAYMENT,)
_AGAIN: Final = (REQUEST_NOTIFICATION,)
_UNSENT: Final = (
    Rule(to=COMPENSATING, when=(refunds_unsent,), does=(reason("receipt_failed"),), emits=_UNDO),
    Rule(to=NOTIFY_FAILED, does=(attention(PARKED[NOTIFY_FAILED]),)),
)
_CANCEL: Final = Rule(to=COMPENSATING, does=(reason("cancelled"),), emits=_UNDO)
_UNHEARD: Final = (Rule(unheard=True),)
_GIVEN_UP: Final = (Rule(to=COMPENSATING, does=(reason("operator"),), emits=_UNDO),)
_KEPT: Final = (Rule(),)
_WAIVED: Final = (Rule(to=NOTIFIED),)
_MARKED: Final = (Rule(to=COMPENSATED, does=(refunded_by_hand, reason("refunded")), emits=_CANCELLED),)
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
        Rule(to=COMPENSATION_FAILED, when=(permanent,), does=(capture, attention(PARKED[COMPENSATION_FAILED]))),
        Rule(ignored=True),
    ),
    (COMPENSATED, REFUND_FAILED): (
        Rule(to=COMPENSATION_FAILED, when=(permanent, newer, leaves_capture), does=(capture, attention(PARKED[COMPENSATION_FAILED]))),
        Rule(ignored=True),
    ),
    (NOTIFY_FAILED, REFUND_FAILED): _UNASKED_REFUND,
    (COMPENSATION_FAILED, REFUND_FAILED): _RECORD_CAPTURE,
    (CREATED, EMAIL_SENT): _KEEPS_RECEIPT,
    (PAID, EMAIL_SENT): _mail(Rule(to=NOTIFIED, does=(receipt_sent,))),
    (NOTIFIED, EMAIL_SENT): _mail(Rule(ignored=True)),
    (COMPENSATING, EMAIL_SENT): _KEEPS_RECEIPT,
    (COMPENSATED, EMAIL_SENT): _KEEPS_RECEIPT,
    (NOTIFY_FAILED, EMAIL_SENT): _mail(Rule(to=NOTIFIED, does=(receipt_sent,))),
    (COMPENSATION_FAILED, EMAIL_SENT): _KEEPS_RECEIPT,
    (CREATED, EMAIL_FAILED): _no_mail(Rule()),
    (PAID, EMAIL_FAILED): _no_mail(*_UNSENT),
    (NOTIFIED, EMAIL_FAILED): _no_mail(Rule(ignored=True)),
    (COMPENSATING, EMAIL_FAILED): _no_mail(Rule(ignored=True)),
    (COMPENSATED, EMAIL_FAILED): _no_mail(Rule(ignored=True)),
    (NOTIFY_FAILED, EMAIL_FAILED): _no_mail(Rule()),
    (COMPENSATION_FAILED, EMAIL_FAILED): _no_mail(Rule(ignored=True)),
    (CREATED, CANCEL_REQUESTED): (_CANCEL,),
    (PAID, CANCEL_REQUESTED): (_CANCEL,),
    (NOTIFIED, CANCEL_REQUESTED): (msgspec.structs.replace(_CANCEL, when=(in_cancel_window,)),),
    (COMPENSATING, CANCEL_REQUESTED): _UNHEARD,
    (COMPENSATED, CANCEL_REQUESTED): _UNHEARD,
    (NOTIFY_FAILED, CANCEL_REQUESTED): (_CANCEL,),
    (COMPENSATION_FAILED, CANCEL_REQUESTED): _UNHEARD,
    (CREATED, DEADLINE): (
        Rule(when=(nudge_is_due,), does=(expect_payment,), emits=(ORDER_CREATED,)),
        Rule(to=COMPENSATING, does=(reason("timeout"),), emits=_UNDO),
    ),
    (PAID, DEADLINE): (Rule(when=(notify_attempts_left,), does=(notify_later,), emits=_AGAIN), *_UNSENT),
    (COMPENSATING, DEADLINE): (
        Rule(when=(compensate_attempts_left,), does=(compensate_later,), emits=_UNDO),
        Rule(to=COMPENSATION_FAILED, does=(attention(PARKED[COMPENSATION_FAILED]),)),
    ),
    (NOTIFY_FAILED, DEADLINE): (Rule(does=(still_parked,), emits=_AGAIN),),
    (COMPENSATION_FAILED, DEADLINE): (Rule(does=(still_parked,), emits=_UNDO),),
    (CREATED, OPERATOR_RETRY): (Rule(emits=(ORDER_CREATED,)),),
    (PAID, OPERATOR_RETRY): (Rule(emits=_AGAIN),),
    (NOTIFIED, OPERATOR_RETRY): _IGN,
    (COMPENSATING, OPERATOR_RETRY): (Rule(emits=_UNDO),),
    (COMPENSATED, OPERATOR_RETRY): _IGN,
    (NOTIFY_FAILED, OPERATOR_RETRY): (Rule(to=PAID, emits=_AGAIN),),
    (COMPENSATION_FAILED, OPERATOR_RETRY): (Rule(to=COMPENSATING, emits=_UNDO),),
    (CREATED, OPERATOR_COMPENSATE): _GIVEN_UP,
    (PAID, OPERATOR_COMPENSATE): _GIVEN_UP,
    (NOTIFIED, OPERATOR_COMPENSATE): _GIVEN_UP,
    (COMPENSATING, OPERATOR_COMPENSATE): _KEPT,
    (COMPENSATED, OPERATOR_COMPENSATE): _IGN,
    (NOTIFY_FAILED, OPERATOR_COMPENSATE): _GIVEN_UP,
    (COMPENSATION_FAILED, OPERATOR_COMPENSATE): _KEPT,
    (CREATED, OPERATOR_WAIVE_NOTIFY): _IGN,
    (PAID, OPERATOR_WAIVE_NOTIFY): _WAIVED,
    (NOTIFIED, OPERATOR_WAIVE_NOTIFY): _IGN,
    (COMPENSATING, OPERATOR_WAIVE_NOTIFY): _IGN,
    (COMPENSATED, OPERATOR_WAIVE_NOTIFY): _IGN,
    (NOTIFY_FAILED, OPERATOR_WAIVE_NOTIFY): _WAIVED,
    (COMPENSATION_FAILED, OPERATOR_WAIVE_NOTIFY): _IGN,
    (CREATED, OPERATOR_MARK_REFUNDED): _IGN,
    (PAID, OPERATOR_MARK_REFUNDED): _IGN,
    (NOTIFIED, OPERATOR_MARK_REFUNDED): _IGN,
    (COMPENSATING, OPERATOR_MARK_REFUNDED): _MARKED,
    (COMPENSATED, OPERATOR_MARK_REFUNDED): _IGN,
    (NOTIFY_FAILED, OPERATOR_MARK_REFUNDED): _IGN,
    (COMPENSATION_FAILED, OPERATOR_MARK_REFUNDED): _MARKED,
}
