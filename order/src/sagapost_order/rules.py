"""What the cells of the transition table are made of: rules, guards and effects, all pure; it must not know the table."""

from collections.abc import Callable

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
    """Return kind and wait in seconds of the deadline that a state is entered with; `notified` has none.

    `waited_s`: how long it has waited for its payment. One that was paid late is one of many: its receipt may take as long, and
    asking for it before would only lengthen the queue that it waits in.
    """
    return {
        states.COMPENSATED: (states.CANCELLATION, policy.notify_s),
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
    """Return whether more is captured than refunded, with this payment counted."""
    return max(saga.captured, event.amount) > saga.refunded


def version_seen(saga: domain.Saga, event: Event) -> bool:
    """Return whether an event of this version of the payment, or of a later one, was processed before."""
    return event.payment_version <= saga.payment_version


def newer(saga: domain.Saga, event: Event) -> bool:
    """Return whether the event's version of the payment is newer than the last one that was processed."""
    return event.payment_version > saga.payment_version


def neutral(saga: domain.Saga, _: Event) -> bool:
    """Return whether everything captured has been refunded."""
    return saga.captured == saga.refunded


def refunds_all(saga: domain.Saga, event: Event) -> bool:
    """Return whether this refund leaves nothing captured; one that comes before its capture counts for both."""
    return max(saga.refunded, event.amount) >= saga.captured


def permanent(_: domain.Saga, event: Event) -> bool:
    """Return whether the failure is permanent."""
    return event.permanent


def receipt(_: domain.Saga, event: Event) -> bool:
    """Return whether the mail is the receipt; no other mail moves a saga."""
    return event.template == events.RECEIPT


def cancellation(_: domain.Saga, event: Event) -> bool:
    """Return whether the mail is the cancellation mail."""
    return event.template == events.CANCELLATION


def untold(saga: domain.Saga, _: Event) -> bool:
    """Return whether no cancellation mail was reported so far."""
    return saga.cancellation_sent_at is None


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
    """Note when the receipt was first reported; its sending is over."""
    return msgspec.structs.replace(saga, notified_at=saga.notified_at or event.at, receipt_until=None)


def cancellation_sent(saga: domain.Saga, event: Event) -> domain.Saga:
    """Note when the cancellation mail was first reported."""
    return msgspec.structs.replace(saga, cancellation_sent_at=saga.cancellation_sent_at or event.at)


def no_deadline(saga: domain.Saga, _: Event) -> domain.Saga:
    """Clear the deadline: nothing more happens by itself."""
    return msgspec.structs.replace(saga, deadline_kind=None, deadline_at=None)


def attention(code: str) -> Effect:
    """Return the effect that sets `attention`; one that is set already stays."""

    def effect(saga: domain.Saga, _: Event) -> domain.Saga:
        return msgspec.structs.replace(saga, attention=saga.attention or code)

    return effect


def reason(code: str) -> Effect:
    """Return the effect that sets the reason why the order ends; one that is set already stays."""

    def effect(saga: domain.Saga, _: Event) -> domain.Saga:
        return msgspec.structs.replace(saga, reason=saga.reason or code)

    return effect


def refunded_by_hand(saga: domain.Saga, _: Event) -> domain.Saga:
    """Note that an operator gave back, outside the provider, all that was left."""
    return msgspec.structs.replace(saga, refunded=saga.captured)
