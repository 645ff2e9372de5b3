"""Guards and effects of a receipt that is being sent and of a cancellation that waits for it; pure, it must not know the table."""

from datetime import timedelta

import msgspec

from sagapost_chassis import steps
from sagapost_order import domain, states
from sagapost_order.rules import Effect
from sagapost_order.states import Event

# guards


def sending(saga: domain.Saga, event: Event) -> bool:
    """Return whether the email service may be sending the receipt. A lease that ends later than any can is not believed.

    A step of the clock below `steps.LEAST` moves no lease, so a lease may end by as much later.
    """
    clock = event.clock or event.at
    longest = timedelta(seconds=event.policy.receipt_lease_s) + steps.LEAST
    return saga.receipt_until is not None and clock < saga.receipt_until <= clock + longest


def leased(saga: domain.Saga, _: Event) -> bool:
    """Return whether a lease for the receipt was granted and no outcome was reported."""
    return saga.receipt_until is not None


def cancel_noted(saga: domain.Saga, _: Event) -> bool:
    """Return whether a cancellation waits for the receipt's outcome."""
    return saga.cancel_noted is not None


def receipt_known(saga: domain.Saga, _: Event) -> bool:
    """Return whether a receipt was reported as sent."""
    return saga.notified_at is not None


# effects


def lease_receipt(saga: domain.Saga, event: Event) -> domain.Saga:
    """Grant the email service a lease of `receipt_lease_s` to send the receipt."""
    until = event.now + timedelta(seconds=event.policy.receipt_lease_s)
    return msgspec.structs.replace(saga, receipt_until=until)


def lease_over(saga: domain.Saga, event: Event) -> domain.Saga:
    """Clear the lease, for no receipt is being sent; a deadline that was put off until its end is due after the usual wait."""
    due = saga.deadline_at
    if due is not None and saga.deadline_kind == states.NOTIFY:
        wait_s = min(event.policy.notify_s * 2.0 ** min(saga.attempts, 30), event.policy.notify_max_s)
        due = min(due, event.now + timedelta(seconds=wait_s))
    return msgspec.structs.replace(saga, receipt_until=None, deadline_at=due)


def wait_for_receipt(saga: domain.Saga, _: Event) -> domain.Saga:
    """Set the deadline to the end of the receipt's lease."""
    return msgspec.structs.replace(saga, deadline_at=saga.receipt_until)


def note_cancel(code: str) -> Effect:
    """Return the effect that notes a cancellation. It is applied when the receipt's outcome is known or its lease ends."""

    def effect(saga: domain.Saga, _: Event) -> domain.Saga:
        noted = saga.cancel_noted or code
        return msgspec.structs.replace(saga, cancel_noted=noted, deadline_kind=states.RECEIPT, deadline_at=saga.receipt_until)

    return effect


def noted_reason(saga: domain.Saga, _: Event) -> domain.Saga:
    """Set the saga's reason to that of the noted cancellation, unless it has one."""
    return msgspec.structs.replace(saga, reason=saga.reason or saga.cancel_noted)
