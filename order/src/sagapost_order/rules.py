"""What the cells of the transition table are made of: rules, guards and effects, all pure; it must not know the table."""

from collections.abc import Callable
from datetime import timedelta

import msgspec

from sagapost_contracts import events
from sagapost_order import domain, states
from sagapost_order.states import Event, Policy

Guard = Callable[[domain.Saga, Event], bool]
Effect = Callable[[domain.Saga, Event], domain.Saga]


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a cell; `to` None keeps the state, `ignored` changes nothing but the history, `unheard` not even that."""

    to: str | None = None
    when: tuple[Guard, ...] = ()
    does: tuple[Effect, ...] = ()
    emits: tuple[str, ...] = ()
    ignored: bool = False
    unheard: bool = False


def deadline_of(state: str, policy: Policy, waited_s: float = 0) -> tuple[str | None, float]:
    """Give kind and wait in seconds of the deadline that a state is entered with; a saga that is done has none.

    `waited_s`: how long it has waited for its payment. One that was paid late is one of many: its receipt may take as long, and
    asking for it before would only lengthen the queue that it waits in.
    """
    return {
        states.PAID: (states.NOTIFY, max(policy.notify_s, min(waited_s, policy.notify_max_s))),
        states.NOTIFY_FAILED: (states.NOTIFY, policy.notify_parked_s),
        states.COMPENSATING: (states.COMPENSATE, policy.compensate_s),
        states.COMPENSATION_FAILED: (states.COMPENSATE, policy.compensate_parked_s),
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


def newer(saga: domain.Saga, event: Event) -> bool:
    """Tell whether the payment has moved on since it last told of itself."""
    return event.payment_version > saga.payment_version


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
    """Note what was captured; a refund that failed tells of it too, maybe for the first time."""
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


# the clock's


def nudge_is_due(saga: domain.Saga, _: Event) -> bool:
    """Tell whether the deadline only asks for a second look at a slow payment."""
    return saga.deadline_kind == states.NUDGE


def notify_attempts_left(saga: domain.Saga, event: Event) -> bool:
    """Tell whether the receipt may be asked for once more."""
    return saga.attempts < event.policy.notify_attempts


def compensate_attempts_left(saga: domain.Saga, event: Event) -> bool:
    """Tell whether the cancellation may be asked for once more before a person is called."""
    return saga.attempts < event.policy.compensate_attempts


def in_cancel_window(saga: domain.Saga, event: Event) -> bool:
    """Tell whether a finished order may still be cancelled by its customer."""
    return event.at <= saga.created_at + timedelta(seconds=event.policy.cancel_window_s)


def refunds_unsent(_: domain.Saga, event: Event) -> bool:
    """Tell whether an order whose receipt cannot be delivered is given up."""
    return event.policy.notify_failure == "refund"


def expect_payment(saga: domain.Saga, _: Event) -> domain.Saga:
    """Wait for the payment until the order's time is over."""
    return msgspec.structs.replace(saga, deadline_kind=states.PAY, deadline_at=saga.pay_before)


def notify_later(saga: domain.Saga, event: Event) -> domain.Saga:
    """Count an attempt at the receipt, and wait longer for it."""
    policy = event.policy
    return _again(saga, event, min(policy.notify_s * 2.0 ** (saga.attempts + 1), policy.notify_max_s))


def compensate_later(saga: domain.Saga, event: Event) -> domain.Saga:
    """Count an attempt at the cancellation, and wait longer for it."""
    policy = event.policy
    return _again(saga, event, min(policy.compensate_s * 2.0 ** (saga.attempts + 1), policy.compensate_max_s))


def still_parked(saga: domain.Saga, event: Event) -> domain.Saga:
    """Count an attempt that is made while a person is waited for, and wait for the next one."""
    return _again(saga, event, deadline_of(saga.state, event.policy)[1])


def refunded_by_hand(saga: domain.Saga, _: Event) -> domain.Saga:
    """Note that an operator gave back, outside the provider, all that was left."""
    return msgspec.structs.replace(saga, refunded=saga.captured)


def _again(saga: domain.Saga, event: Event, wait_s: float) -> domain.Saga:
    return msgspec.structs.replace(saga, attempts=saga.attempts + 1, deadline_at=event.at + timedelta(seconds=wait_s))
