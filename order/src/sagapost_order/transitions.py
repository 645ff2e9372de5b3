"""The saga's transition table as data: for each state and each event, the rules in their order; it must not know who sends an event."""

from typing import Final

import msgspec

from sagapost_order.deadlines import (
    ask_again,
    compensate_attempts_left,
    compensate_later,
    expect_answer,
    expect_payment,
    in_cancel_window,
    last_question_is_due,
    message_parked,
    message_waits,
    notify_attempts_left,
    notify_later,
    nudge_is_due,
    parked_attempts_left,
    parked_longer,
    receipt_begun,
    refunds_unsent,
    rest,
    still_parked,
    wait_to_leave,
)
from sagapost_order.receipts import (
    cancel_noted,
    lease_over,
    lease_receipt,
    leased,
    note_cancel,
    noted_reason,
    receipt_known,
    sending,
    wait_for_receipt,
)
from sagapost_order.rules import (
    Effect,
    Rule,
    amount_equal,
    attention,
    cancellation,
    cancellation_sent,
    capture,
    leaves_capture,
    neutral,
    newer,
    no_deadline,
    permanent,
    reason,
    receipt,
    receipt_sent,
    refund,
    refunded_by_hand,
    refunds_all,
    seen,
    untold,
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
    PASSING,
    PAYMENT_FAILED,
    PAYMENT_PROCESSED,
    PAYMENT_REFUNDED,
    PAYMENT_VOIDED,
    RECEIPT_ASKED,
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


def _unpaid(code: str) -> tuple[Rule, ...]:
    """Return the rules for payment's word that an order is not charged: it ends, unless something was captured."""
    return (
        Rule(when=(sending,), does=(seen, attention("payment_contradicts_capture"), note_cancel(code))),
        Rule(to=COMPENSATED, when=(neutral,), does=(seen, reason(code)), emits=_CANCELLED),
        Rule(to=COMPENSATING, does=(seen, reason(code), attention("payment_contradicts_capture")), emits=(CANCEL_PAYMENT,)),
    )


def _mail(*rules: Rule, does: tuple[Effect, ...] = ()) -> tuple[Rule, ...]:
    """Return the rules of EmailSent: `rules` for a receipt; the first cancellation mail is recorded, then `does`; others are ignored."""
    told = Rule(when=(cancellation, untold), does=(cancellation_sent, *does))
    return (*(msgspec.structs.replace(rule, when=(receipt, *rule.when)) for rule in rules), told, Rule(ignored=True))


def _no_mail(*rules: Rule, does: tuple[Effect, ...] = ()) -> tuple[Rule, ...]:
    """Return the rules of EmailFailed, if permanent: `rules` for a receipt; a cancellation mail sets `attention`. Others are ignored."""
    lost = Rule(when=(permanent, cancellation), does=(attention("cancellation_failed"), *does))
    return (*(msgspec.structs.replace(rule, when=(permanent, receipt, *rule.when)) for rule in rules), lost, Rule(ignored=True))


def _undelivered(*rules: Rule) -> tuple[Rule, ...]:
    """Return the rules of EmailFailed while the order stands: a noted cancellation is applied first, and the receipt's lease ends."""
    known = Rule(to=COMPENSATING, when=(receipt, cancel_noted), does=(noted_reason,), emits=_UNDO)
    failed = _no_mail(*(msgspec.structs.replace(rule, does=(lease_over, *rule.does)) for rule in rules))
    return (known, *failed[:-1], Rule(when=(receipt, leased), does=(lease_over,)), failed[-1])


_UNDO: Final = (CANCEL_PAYMENT,)
_AGAIN: Final = (REQUEST_NOTIFICATION,)
_ASK: Final = (ORDER_CREATED,)
_UNSENT: Final = (
    Rule(to=COMPENSATING, when=(refunds_unsent,), does=(reason("receipt_failed"),), emits=_UNDO),
    Rule(to=NOTIFY_FAILED, does=(attention(PARKED[NOTIFY_FAILED]),)),
)
_CANCEL: Final = Rule(to=COMPENSATING, does=(reason("cancelled"),), emits=_UNDO)
_UNHEARD: Final = (Rule(unheard=True),)
# a receipt that is being sent comes first: whoever decides a refund meanwhile notes it
_NOTED: Final = Rule(to=COMPENSATING, when=(cancel_noted,), does=(noted_reason,), emits=_UNDO)
_CANCEL_OPEN: Final = (
    Rule(when=(cancel_noted,), unheard=True),
    Rule(when=(sending,), does=(note_cancel("cancelled"),)),
    _CANCEL,
)
_GIVEN_UP: Final = (Rule(to=COMPENSATING, does=(reason("operator"),), emits=_UNDO),)
_GIVEN_UP_OPEN: Final = (
    Rule(when=(sending,), does=(note_cancel("operator"),)),
    Rule(to=COMPENSATING, does=(noted_reason, reason("operator")), emits=_UNDO),
)
_RECEIPT_MAY_GO: Final = (
    _NOTED,
    Rule(when=(receipt_known,), unheard=True),
    Rule(does=(lease_receipt,), unheard=True),
)
_WAIT_TO_LEAVE: Final = Rule(when=(message_waits,), does=(wait_to_leave,), unheard=True)
_WAIT_FOR_RECEIPT: Final = Rule(when=(sending,), does=(wait_for_receipt,), unheard=True)
_KEPT: Final = (Rule(),)
_WAIVED: Final = (Rule(when=(cancel_noted,)), Rule(to=NOTIFIED))
_MARKED: Final = (Rule(to=COMPENSATED, does=(refunded_by_hand, reason("refunded")), emits=_CANCELLED),)
_RECEIPT: Final = Rule(does=(receipt_sent,))
_KEEPS_RECEIPT: Final = _mail(_RECEIPT)
_SENT_BEFORE_CANCEL: Final = Rule(to=COMPENSATING, when=(cancel_noted,), does=(receipt_sent, noted_reason), emits=_UNDO)
_SENT: Final = _mail(_SENT_BEFORE_CANCEL, Rule(to=NOTIFIED, does=(receipt_sent,)))

TABLE: Final[dict[tuple[str, str], tuple[Rule, ...]]] = {
    (CREATED, PAYMENT_PROCESSED): (
        Rule(to=PAID, when=(amount_equal,), does=(capture,)),
        Rule(when=(sending,), does=(capture, _MISMATCH, note_cancel("amount_mismatch"))),
        Rule(to=COMPENSATING, does=(capture, reason("amount_mismatch"), _MISMATCH), emits=(CANCEL_PAYMENT,)),
    ),
    (PAID, PAYMENT_PROCESSED): _STILL_PAID,
    (NOTIFIED, PAYMENT_PROCESSED): _STILL_PAID,
    (COMPENSATING, PAYMENT_PROCESSED): _RECORD_CAPTURE,
    (COMPENSATED, PAYMENT_PROCESSED): (Rule(when=(version_seen,), ignored=True), *_LATE_CAPTURE),
    (NOTIFY_FAILED, PAYMENT_PROCESSED): _STILL_PAID,
    (COMPENSATION_FAILED, PAYMENT_PROCESSED): _RECORD_CAPTURE,
    (CREATED, PAYMENT_FAILED): _unpaid("declined"),
    (PAID, PAYMENT_FAILED): _CONTRADICTED,
    (NOTIFIED, PAYMENT_FAILED): _CONTRADICTED,
    (COMPENSATING, PAYMENT_FAILED): _NOTHING_TAKEN,
    (COMPENSATED, PAYMENT_FAILED): _IGN,
    (NOTIFY_FAILED, PAYMENT_FAILED): _CONTRADICTED,
    (COMPENSATION_FAILED, PAYMENT_FAILED): _NOTHING_TAKEN,
    (CREATED, PAYMENT_VOIDED): _unpaid("expired"),
    (PAID, PAYMENT_VOIDED): _CONTRADICTED,
    (NOTIFIED, PAYMENT_VOIDED): _CONTRADICTED,
    (COMPENSATING, PAYMENT_VOIDED): _NOTHING_TAKEN,
    (COMPENSATED, PAYMENT_VOIDED): _IGN,
    (NOTIFY_FAILED, PAYMENT_VOIDED): _CONTRADICTED,
    (COMPENSATION_FAILED, PAYMENT_VOIDED): _NOTHING_TAKEN,
    (CREATED, PAYMENT_REFUNDED): _REVERSED,
    (PAID, PAYMENT_REFUNDED): _REVERSED,
    (NOTIFIED, PAYMENT_REFUNDED): _REVERSED,
    (COMPENSATING, PAYMENT_REFUNDED): _REFUNDED,
    (COMPENSATED, PAYMENT_REFUNDED): (Rule(does=(refund,)),),
    (NOTIFY_FAILED, PAYMENT_REFUNDED): _REVERSED,
    (COMPENSATION_FAILED, PAYMENT_REFUNDED): _REFUNDED,
    (CREATED, REFUND_FAILED): (Rule(when=(permanent,), does=(capture, attention("unexpected_refund_failure"))), Rule(ignored=True)),
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
    (CREATED, EMAIL_SENT): _mail(_SENT_BEFORE_CANCEL, _RECEIPT),
    (PAID, EMAIL_SENT): _SENT,
    (NOTIFIED, EMAIL_SENT): _mail(Rule(ignored=True)),
    (COMPENSATING, EMAIL_SENT): _KEEPS_RECEIPT,
    (COMPENSATED, EMAIL_SENT): _mail(_RECEIPT, does=(no_deadline,)),
    (NOTIFY_FAILED, EMAIL_SENT): _SENT,
    (COMPENSATION_FAILED, EMAIL_SENT): _KEEPS_RECEIPT,
    (CREATED, EMAIL_FAILED): _undelivered(Rule()),
    (PAID, EMAIL_FAILED): _undelivered(*_UNSENT),
    (NOTIFIED, EMAIL_FAILED): _no_mail(Rule(ignored=True)),
    (COMPENSATING, EMAIL_FAILED): _no_mail(Rule(ignored=True)),
    (COMPENSATED, EMAIL_FAILED): _no_mail(Rule(ignored=True), does=(no_deadline,)),
    (NOTIFY_FAILED, EMAIL_FAILED): _undelivered(Rule()),
    (COMPENSATION_FAILED, EMAIL_FAILED): _no_mail(Rule(ignored=True)),
    (CREATED, CANCEL_REQUESTED): _CANCEL_OPEN,
    (PAID, CANCEL_REQUESTED): _CANCEL_OPEN,
    (NOTIFIED, CANCEL_REQUESTED): (msgspec.structs.replace(_CANCEL, when=(in_cancel_window,)),),
    (COMPENSATING, CANCEL_REQUESTED): _UNHEARD,
    (COMPENSATED, CANCEL_REQUESTED): _UNHEARD,
    (NOTIFY_FAILED, CANCEL_REQUESTED): _CANCEL_OPEN,
    (COMPENSATION_FAILED, CANCEL_REQUESTED): _UNHEARD,
    (CREATED, RECEIPT_ASKED): _RECEIPT_MAY_GO,
    (PAID, RECEIPT_ASKED): _RECEIPT_MAY_GO,
    (NOTIFIED, RECEIPT_ASKED): _UNHEARD,
    (COMPENSATING, RECEIPT_ASKED): _UNHEARD,
    (COMPENSATED, RECEIPT_ASKED): _UNHEARD,
    (NOTIFY_FAILED, RECEIPT_ASKED): _RECEIPT_MAY_GO,
    (COMPENSATION_FAILED, RECEIPT_ASKED): _UNHEARD,
    (CREATED, DEADLINE): (
        _NOTED,
        _WAIT_TO_LEAVE,
        Rule(when=(message_parked,), does=(wait_to_leave,), emits=_ASK),
        Rule(when=(nudge_is_due,), does=(expect_payment,), emits=_ASK),
        Rule(when=(last_question_is_due,), does=(expect_answer,), emits=_ASK),
        Rule(when=(receipt_begun,), does=(ask_again, attention(PASSING[CREATED])), emits=_ASK),
        Rule(to=COMPENSATING, does=(reason("timeout"),), emits=_UNDO),
    ),
    (PAID, DEADLINE): (
        _NOTED,
        _WAIT_TO_LEAVE,
        _WAIT_FOR_RECEIPT,
        Rule(when=(notify_attempts_left,), does=(notify_later,), emits=_AGAIN),
        *_UNSENT,
    ),
    (COMPENSATING, DEADLINE): (
        _WAIT_TO_LEAVE,
        Rule(when=(compensate_attempts_left,), does=(compensate_later,), emits=_UNDO),
        Rule(to=COMPENSATION_FAILED, does=(attention(PARKED[COMPENSATION_FAILED]),)),
    ),
    (COMPENSATED, DEADLINE): (
        _WAIT_TO_LEAVE,
        Rule(when=(notify_attempts_left,), does=(notify_later,), emits=_AGAIN),
        Rule(does=(attention("cancellation_failed"), no_deadline)),
    ),
    (NOTIFY_FAILED, DEADLINE): (
        _NOTED,
        _WAIT_TO_LEAVE,
        _WAIT_FOR_RECEIPT,
        Rule(does=(still_parked,), emits=_AGAIN),
    ),
    (COMPENSATION_FAILED, DEADLINE): (
        _WAIT_TO_LEAVE,
        Rule(when=(parked_attempts_left,), does=(parked_longer,), emits=_UNDO),
        Rule(does=(rest,), unheard=True),
    ),
    (CREATED, OPERATOR_RETRY): (Rule(emits=(ORDER_CREATED,)),),
    (PAID, OPERATOR_RETRY): (Rule(emits=_AGAIN),),
    (NOTIFIED, OPERATOR_RETRY): _IGN,
    (COMPENSATING, OPERATOR_RETRY): (Rule(emits=_UNDO),),
    (COMPENSATED, OPERATOR_RETRY): _IGN,
    (NOTIFY_FAILED, OPERATOR_RETRY): (Rule(to=PAID, emits=_AGAIN),),
    (COMPENSATION_FAILED, OPERATOR_RETRY): (Rule(to=COMPENSATING, emits=_UNDO),),
    (CREATED, OPERATOR_COMPENSATE): _GIVEN_UP_OPEN,
    (PAID, OPERATOR_COMPENSATE): _GIVEN_UP_OPEN,
    (NOTIFIED, OPERATOR_COMPENSATE): _GIVEN_UP,
    (COMPENSATING, OPERATOR_COMPENSATE): _KEPT,
    (COMPENSATED, OPERATOR_COMPENSATE): _IGN,
    (NOTIFY_FAILED, OPERATOR_COMPENSATE): _GIVEN_UP_OPEN,
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
