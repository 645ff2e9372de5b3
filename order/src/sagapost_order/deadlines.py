"""Guards and effects of deadlines: which one has passed, and how long the next one waits; pure, it must not know the table."""

from datetime import timedelta
from typing import Final

import msgspec

from sagapost_order import domain, rules, states
from sagapost_order.states import Event

_SHORT_S: Final = 60


def _window_s(saga: domain.Saga) -> float:
    # both were written by one transaction: a clock that was set since then does not change the length
    return (saga.pay_before - saga.created_at).total_seconds()


# guards


def message_waits(_: domain.Saga, event: Event) -> bool:
    """Tell whether the saga's last message is still in the outbox."""
    return event.unsent == "waiting"


def message_parked(_: domain.Saga, event: Event) -> bool:
    """Tell whether the relay has set a message of the saga aside for a person."""
    return event.unsent == "parked"


def nudge_is_due(saga: domain.Saga, _: Event) -> bool:
    """Tell whether the deadline only asks for a second look at a slow payment."""
    return saga.deadline_kind == states.NUDGE


def last_question_is_due(saga: domain.Saga, _: Event) -> bool:
    """Tell whether the time to pay is over and payment has not been asked for its last answer."""
    return saga.deadline_kind != states.ANSWER


def receipt_begun(saga: domain.Saga, _: Event) -> bool:
    """Tell whether the email service has begun or sent the receipt, which it does only for a payment that was captured."""
    return saga.notified_at is not None or saga.receipt_until is not None


def notify_attempts_left(saga: domain.Saga, event: Event) -> bool:
    """Tell whether the mail may be asked for once more."""
    return saga.attempts < event.policy.notify_attempts


def compensate_attempts_left(saga: domain.Saga, event: Event) -> bool:
    """Tell whether the cancellation may be asked for once more before a person is called."""
    return saga.attempts < event.policy.compensate_attempts


def parked_attempts_left(saga: domain.Saga, event: Event) -> bool:
    """Tell whether the refund may be asked for once more while a person is waited for."""
    return saga.attempts < event.policy.compensate_parked_attempts


def in_cancel_window(saga: domain.Saga, event: Event) -> bool:
    """Tell whether a finished order may still be cancelled by its customer."""
    return event.at <= saga.created_at + timedelta(seconds=event.policy.cancel_window_s)


def refunds_unsent(_: domain.Saga, event: Event) -> bool:
    """Tell whether an order whose receipt cannot be delivered is given up."""
    return event.policy.notify_failure == "refund"


# effects


def wait_to_leave(saga: domain.Saga, event: Event) -> domain.Saga:
    """Look again later, without counting an attempt; the time to pay begins anew."""
    wait_s = {
        states.CREATED: _window_s(saga) / 3,
        states.COMPENSATING: min(_SHORT_S, event.policy.compensate_max_s),
        states.COMPENSATION_FAILED: event.policy.compensate_parked_s,
        states.NOTIFY_FAILED: event.policy.notify_parked_s,
    }.get(saga.state, min(_SHORT_S, event.policy.notify_max_s))
    kind = states.NUDGE if saga.state == states.CREATED else saga.deadline_kind
    return msgspec.structs.replace(saga, deadline_kind=kind, deadline_at=event.at + timedelta(seconds=wait_s))


def expect_payment(saga: domain.Saga, event: Event) -> domain.Saga:
    """Wait for the payment for the rest of the time to pay: two thirds, or all of it when it began anew."""
    window = timedelta(seconds=_window_s(saga))
    ends_at = event.at + window if event.at >= saga.pay_before else max(saga.pay_before, event.at + 2 * window / 3)
    return msgspec.structs.replace(saga, deadline_kind=states.PAY, deadline_at=ends_at)


def expect_answer(saga: domain.Saga, event: Event) -> domain.Saga:
    """Wait for payment's last answer: a third of the time to pay, a minute at most."""
    wait_s = min(_SHORT_S, _window_s(saga) / 3)
    return msgspec.structs.replace(saga, deadline_kind=states.ANSWER, deadline_at=event.at + timedelta(seconds=wait_s))


def ask_again(saga: domain.Saga, event: Event) -> domain.Saga:
    """Count a question, and wait longer for its answer: a third of the time to pay, doubling up to a day."""
    wait_s = min(_window_s(saga) / 3 * 2.0 ** min(saga.attempts, 30), event.policy.compensate_parked_max_s)
    return _again(msgspec.structs.replace(saga, deadline_kind=states.ANSWER), event, wait_s)


def notify_later(saga: domain.Saga, event: Event) -> domain.Saga:
    """Count an attempt at a mail, and wait longer for it."""
    policy = event.policy
    return _again(saga, event, min(policy.notify_s * 2.0 ** (saga.attempts + 1), policy.notify_max_s))


def compensate_later(saga: domain.Saga, event: Event) -> domain.Saga:
    """Count an attempt at the cancellation, and wait longer for it."""
    policy = event.policy
    return _again(saga, event, min(policy.compensate_s * 2.0 ** (saga.attempts + 1), policy.compensate_max_s))


def still_parked(saga: domain.Saga, event: Event) -> domain.Saga:
    """Count an attempt that is made while a person is waited for, and wait for the next one."""
    return _again(saga, event, rules.deadline_of(saga.state, event.policy)[1])


def parked_longer(saga: domain.Saga, event: Event) -> domain.Saga:
    """Count an attempt at the refund that is made while a person is waited for, and wait twice as long, a day at most."""
    policy = event.policy
    return _again(saga, event, min(policy.compensate_parked_s * 2.0 ** min(saga.attempts + 1, 30), policy.compensate_parked_max_s))


def rest(saga: domain.Saga, event: Event) -> domain.Saga:
    """Keep the deadline without a message: only a person can help."""
    return msgspec.structs.replace(saga, deadline_at=event.at + timedelta(seconds=event.policy.compensate_parked_max_s))


def _again(saga: domain.Saga, event: Event, wait_s: float) -> domain.Saga:
    return msgspec.structs.replace(saga, attempts=saga.attempts + 1, deadline_at=event.at + timedelta(seconds=wait_s))
