"""States, events, reasons and times in plain words; pure, and the only place of the command line that knows them."""

from datetime import datetime
from typing import Final

from sagapost_ops.outbox import times
from sagapost_ops.saga import resources

STATES: Final = {
    "created": "waiting for the payment",
    "paid": "paid, receipt on its way",
    "notified": "paid, receipt sent",
    "compensating": "being cancelled",
    "compensated": "cancelled, no money kept",
    "notify_failed": "paid, receipt not delivered",
    "compensation_failed": "cancelled, refund failed",
}
PARKED: Final = frozenset({"notify_failed", "compensation_failed"})
ATTENTION: Final = {
    "receipt_failed": "the receipt could not be delivered",
    "refund_failed": "the refund did not go through: the customer's money is still here",
    "payment_silent": "a receipt was sent or is being sent, and payment reports nothing",
    "cancellation_failed": "the customer could not be told that the order was cancelled",
    "amount_mismatch": "another amount was charged than the order costs",
    "late_capture": "the money arrived after the order had ended, and is sent back",
    "partial_refund": "only a part of the money went back",
    "payment_contradicts_capture": "payment reports a failure although it had captured the money",
    "unexpected_refund_failure": "a refund failed that nobody had asked for",
}
REASONS: Final = {
    "cancelled": "cancelled by the customer",
    "declined": "the payment was declined",
    "expired": "it was not paid in time",
    "timeout": "it was not paid in time",
    "amount_mismatch": "another amount was charged than the order costs",
    "provider_reversal": "the provider took the payment back",
    "refunded": "the money went back",
    "receipt_failed": "the receipt could not be delivered",
    "operator": "given up by an operator",
}
_EVENTS: Final = {
    "OrderCreated": "the order was placed",
    "PaymentProcessed": "the money was captured",
    "PaymentFailed": "the payment was declined",
    "PaymentVoided": "nothing was captured, and nothing will be",
    "PaymentRefunded": "the money went back",
    "RefundFailed": "the refund was refused",
    "EmailSent": "a mail was sent",
    "EmailFailed": "a mail could not be delivered",
    "CancelRequested": "asked to cancel the order",
    "ReceiptAsked": "the noted cancellation is applied: no receipt is sent",
    "OperatorRetry": "had it tried again",
    "OperatorCompensate": "gave the order up",
    "OperatorWaiveNotify": "did without the receipt",
    "OperatorMarkRefunded": "marked it as refunded by hand",
}
_DEADLINES: Final = {
    "created": "payment was asked again",
    "paid": "the receipt was asked for again",
    "notify_failed": "the receipt was asked for again",
    "compensating": "the cancellation was asked for again",
    "compensation_failed": "the refund was asked for again",
    "compensated": "the cancellation mail was asked for again",
}
_GIVEN_UP: Final = {
    "created": "the time to pay was over",
    "paid": "the last try for the receipt was over",
    "notify_failed": "the receipt's time was over, the noted cancellation is applied",
    "compensating": "the last try for the refund was over",
}
_WHO: Final = {"event": "event", "deadline": "clock", "http": "customer"}
_NEXT: Final = {
    "created": "payment is asked again, or the order is given up",
    "paid": "the receipt is asked for again",
    "notify_failed": "the receipt is asked for again",
    "compensating": "payment is asked again to give the money back",
    "compensation_failed": "payment is asked again to give the money back",
    "compensated": "the cancellation mail is asked for again",
}
_MAILS: Final = {"receipt": "the receipt", "cancellation": "the cancellation mail"}
_NOTED: Final = frozenset({"CancelRequested", "OperatorCompensate"})
_MINUTE_S: Final = 60
_HOUR_S: Final = 3600
_DAY_S: Final = 86400


def state(name: str) -> str:
    """Say a state."""
    return STATES.get(name, name)


def who(row: resources.History) -> str:
    """Say who moved a saga: a service's event, the clock, the customer, or which operator."""
    if row.source == "operator":
        return f"operator {plain(row.actor)}" if row.actor else "operator"
    return _WHO.get(row.source, row.source)


def happened(row: resources.History) -> str:
    """Say what a row of the history tells, with its reason."""
    if row.event == "Deadline":
        said = (_DEADLINES if row.to == row.before else _GIVEN_UP).get(row.before, row.event)
        if row.before == row.to == "compensated" and row.mail is None:
            said = "the last try for the cancellation mail was over"
        elif row.reason == "receipt" and row.to == "compensating":
            said = "the receipt's time was over, the noted cancellation is applied"
    elif row.event == "EmailSent":
        mail = "receipt" if row.to == "notified" else row.mail
        said = f"{_MAILS.get(mail or '', 'a mail')} was sent"
    elif row.event == "EmailFailed":
        said = f"{_MAILS.get(row.mail or '', 'a mail')} could not be delivered"
    elif row.event in _NOTED and row.to == row.before in {"created", "paid", "notify_failed"}:
        said = f"{_EVENTS[row.event]}: noted, the receipt is being sent"
    else:
        said = _EVENTS.get(row.event, row.event)
    if row.reason and row.event != "Deadline":  # of a deadline it is the kind, which the sentence says
        said = f"{said}: {plain(row.reason)}"
    return f"{said} (changed nothing)" if row.outcome == "ignored" else said


def plain(text: str) -> str:
    """Put what somebody wrote on one line, without anything that a terminal would obey."""
    return "".join(sign if sign.isprintable() else "?" for sign in " ".join(text.split()))


def money(found: resources.Saga | resources.Listed) -> str:
    """Say what was captured and what of it went back."""
    if not found.captured:
        return "nothing charged"
    if not found.refunded:
        return f"{found.captured} {found.currency}"
    back = "all" if found.refunded == found.captured else str(found.refunded)
    return f"{found.captured} {found.currency}, {back} back"


def attention(found: resources.Saga) -> str:
    """Return why a person is called; that money is kept is said only where some was charged."""
    if found.attention == "refund_failed" and not found.captured:
        return "refund_failed: payment does not confirm that nothing is charged"
    return explained(found.attention or "", ATTENTION)


def explained(code: str, known: dict[str, str]) -> str:
    """Give a code with its meaning, or alone when it is a new one."""
    return f"{code}: {known[code]}" if code in known else code


def due(at: datetime | None, now: datetime) -> str:
    """Say when a deadline passes, or since when it is overdue; one that just passed is about to be applied."""
    if at is None:
        return "-"
    left_s = (at - now).total_seconds()
    if left_s >= 0:
        return f"in {times.span(left_s)}"
    return "now" if left_s > -1 else f"{times.span(-left_s)} overdue"


def next_of(found: resources.Saga, now: datetime) -> str | None:
    """Say what happens next by the clock; None for a saga that is done."""
    if found.deadline_at is None:
        return None
    return f"{due(found.deadline_at, now)}: {_NEXT.get(found.state, 'the clock moves it on')}"


def since(seconds: float) -> str:
    """Write the time since a saga's start: hundredths first, then two units."""
    if seconds < _MINUTE_S:
        return f"{max(0.0, seconds):.2f} s"
    for unit_s, unit, part_s, part in ((_DAY_S, "d", _HOUR_S, "h"), (_HOUR_S, "h", _MINUTE_S, "min"), (_MINUTE_S, "min", 1, "s")):
        if seconds >= unit_s:
            return f"{seconds // unit_s:.0f} {unit} {seconds % unit_s // part_s:.0f} {part}"
    return f"{seconds:.0f} s"
