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
    """Return whether the relay has parked a message of the saga for a person."""
    return event.unsent == "parked"


def nudge_is_due(saga: domain.Saga, _: Event) -> bool:
    """Return whether this is an unpaid order's first deadline, at which OrderCreated is only sent again."""
    return saga.deadline_kind == states.NUDGE


def last_question_is_due(saga: domain.Saga, _: Event) -> bool:
    """Return whether the time to pay is over and the last question to payment was not sent yet."""
    return saga.deadline_kind != states.ANSWER


def receipt_begun(saga: domain.Saga, _: Event) -> bool:
    """Return whether a receipt was granted a lease or reported; email asks for one only after a payment was captured."""
    return saga.notified_at is not None or saga.receipt_until is not None


def notify_attempts_left(saga: domain.Saga, event: Event) -> bool:
    """Return whether the mail may be requested once more."""
    return saga.attempts < event.policy.notify_attempts


def compensate_attempts_left(saga: domain.Saga, event: Event) -> bool:
    """Return whether CancelPayment may be sent once more before the saga is parked for a person."""
    return saga.attempts < event.policy.compensate_attempts


def parked_attempts_left(saga: domain.Saga, event: Event) -> bool:
    """Tell whether the refund may be asked for once more while a person is waited for."""
    return saga.attempts < event.policy.compensate_parked_attempts


def in_cancel_window(saga: domain.Saga, event: Event) -> bool:
    """Return whether a finished order may still be cancelled by its customer."""
    return event.at <= saga.created_at + timedelta(seconds=event.policy.cancel_window_s)


def refunds_unsent(_: domain.Saga, event: Event) -> bool:
    """Return whether the policy refunds an order whose receipt cannot be delivered."""
    return event.policy.notify_failure == "refund"


# effects


def wait_to_leave(saga: domain.Saga, event: Event) -> domain.Saga:
    """Set a later deadline and count no attempt; the time to pay of an unpaid order begins anew."""
    wait_s = {
        states.CREATED: _window_s(saga) / 3,
        states.COMPENSATING: min(_SHORT_S, event.policy.compensate_max_s),
        states.COMPENSATION_FAILED: event.policy.compensate_parked_s,
        states.NOTIFY_FAILED: event.policy.notify_parked_s,
    }.get(saga.state, min(_SHORT_S, event.policy.notify_max_s))
    kind = states.NUDGE if saga.state == states.CREATED else saga.deadline_kind
    return msgspec.structs.replace(saga, deadline_kind=kind, deadline_at=event.now + timedelta(seconds=wait_s))


def expect_payment(saga: domain.Saga, event: Event) -> domain.Saga:
    """Set the deadline to `pay_before`, but at least two thirds of the time to pay from now.

    When `pay_before` has passed, or lies further ahead than the time to pay (the clock was set), it is the whole time to pay from now.
    """
    window = timedelta(seconds=_window_s(saga))
    is_near = event.now < saga.pay_before <= event.now + window
    ends_at = max(saga.pay_before, event.now + 2 * window / 3) if is_near else event.now + window
    return msgspec.structs.replace(saga, deadline_kind=states.PAY, deadline_at=ends_at)


def expect_answer(saga: domain.Saga, event: Event) -> domain.Saga:
    """Set the deadline for the answer to the last question: a third of the time to pay from now, a minute at most."""
    wait_s = min(_SHORT_S, _window_s(saga) / 3)
    return msgspec.structs.replace(saga, deadline_kind=states.ANSWER, deadline_at=event.now + timedelta(seconds=wait_s))


def ask_again(saga: domain.Saga, event: Event) -> domain.Saga:
    """Count a question to payment. Its wait begins at a third of the time to pay and doubles up to `compensate_parked_max_s`."""
    wait_s = min(_window_s(saga) / 3 * 2.0 ** min(saga.attempts, 30), event.policy.compensate_parked_max_s)
    return _again(msgspec.structs.replace(saga, deadline_kind=states.ANSWER), event, wait_s)


def notify_later(saga: domain.Saga, event: Event) -> domain.Saga:
    """Count an attempt at a mail; the wait doubles up to `notify_max_s`."""
    policy = event.policy
    return _again(saga, event, min(policy.notify_s * 2.0 ** (saga.attempts + 1), policy.notify_max_s))


def compensate_later(saga: domain.Saga, event: Event) -> domain.Saga:
    """Count an attempt at the cancellation; the wait doubles up to `compensate_max_s`."""
    policy = event.policy
    return _again(saga, event, min(policy.compensate_s * 2.0 ** (saga.attempts + 1), policy.compensate_max_s))


def still_parked(saga: domain.Saga, event: Event) -> domain.Saga:
    """Count an attempt of a parked saga; the wait stays the same."""
    return _again(saga, event, rules.deadline_of(saga.state, event.policy)[1])


def parked_longer(saga: domain.Saga, event: Event) -> domain.Saga:
    """Count an attempt at the refund of a parked saga; the wait doubles up to `compensate_parked_max_s`."""
    policy = event.policy
    return _again(saga, event, min(policy.compensate_parked_s * 2.0 ** min(saga.attempts + 1, 30), policy.compensate_parked_max_s))


def rest(saga: domain.Saga, event: Event) -> domain.Saga:
    """Set a later deadline and send nothing: no attempts are left, a person has to act."""
    return msgspec.structs.replace(saga, deadline_at=event.now + timedelta(seconds=event.policy.compensate_parked_max_s))


def _again(saga: domain.Saga, event: Event, wait_s: float) -> domain.Saga:
    return msgspec.structs.replace(saga, attempts=saga.attempts + 1, deadline_at=event.now + timedelta(seconds=wait_s))
