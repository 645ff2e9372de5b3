"""A payment, what can become of a call to the provider, and the events that tell of it; pure, no I/O and no clock."""

import enum
import math
from collections.abc import Collection, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Final
from uuid import UUID

import msgspec

from sagapost_chassis import steps
from sagapost_contracts import events

EXPIRED: Final = "expired"
PROVIDER_TIMEOUT: Final = "provider_timeout"
CANCELLED: Final = "cancelled"
_TIMED_UUID: Final = 7
_SAME_TRANSACTION_MS: Final = 2000  # AMQP's timestamps are whole seconds, and a checkout may take one
KEPT_AFTER: Final = 3  # answered errors under one key; a passing fault is over sooner, and a wrong guess costs one look-up


class Status(enum.StrEnum):
    """Where a payment stands; `voided` is a tombstone: nothing is charged for this order any more."""

    PROCESSING = "processing"
    CAPTURED = "captured"
    FAILED = "failed"
    VOIDED = "voided"
    REFUNDING = "refunding"
    REFUNDED = "refunded"


_NOTHING_MOVED: Final = {Status.FAILED, Status.VOIDED}


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of payment: calls that may stay unanswered, and seconds until the sweeper looks at a payment that has not moved.

    `call_s`: seconds after which a call that somebody makes for a payment is over, look-ups and all; no look begins earlier.
    `seen`: what this process has seen of the database's clock; None: it is not watched.
    """

    max_unanswered: int = 3
    look_s: float = 60.0
    call_s: float = 25.0
    seen: steps.Steps | None = None


TERMS: Final = Terms()


class Payment(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `payments`; `expired` says whether pay_before had passed when it was read, by the database's clock.

    `uncertain`: more than one call may have reached the provider, or one has no answer, so that a charge may appear later.
    `charge_generation`, `refund_generation`: the number in the idempotency key, see `key_of`.
    `told_id`: the id of the event that said how the payment ended; who asks again is answered under the same id.
    """

    id: int
    order_id: int
    saga_id: UUID
    status: Status
    version: int
    amount: Decimal
    currency: str
    payment_method: str
    transaction_id: str | None
    code: str | None
    reason: str | None
    user_email: str
    items: tuple[events.Line, ...]
    unanswered_calls: int
    uncertain: bool
    cancel_requested_at: datetime | None
    expired: bool
    charge_generation: int = 1
    refund_generation: int = 1
    told_id: UUID | None = None


class Movement(msgspec.Struct, frozen=True, kw_only=True):
    """Money that really moved, as the provider tells it; `transaction_id` is its name for the charge or the refund."""

    amount: Decimal
    currency: str
    transaction_id: str
    at: datetime


class Refunded(Movement, frozen=True, kw_only=True):
    """The provider gave the money back."""


class Captured(Movement, frozen=True, kw_only=True):
    """The provider holds a charge; the amount is what it says it took, `refunds` what went back of it, as far as it was asked."""

    refunds: tuple[Refunded, ...] = ()


class Declined(msgspec.Struct, frozen=True, kw_only=True):
    """The provider refused for good; nothing moved."""

    code: str
    reason: str


class Unknown(msgspec.Struct, frozen=True, kw_only=True):
    """The provider may have acted; `unanswered` when it let the time pass or said nothing that can be read.

    `is_error`: it answered with an error of its own. `is_kept`: it said that this answer is the one it keeps under the key.
    `may_be_ours`: the request itself may be the cause, for instance of a 500 for this order only.
    """

    cause: str
    unanswered: bool
    is_error: bool = False
    is_kept: bool = False
    may_be_ours: bool = False


class GivenUp(msgspec.Struct, frozen=True, kw_only=True):
    """The provider says that there is no charge, and we will not ask for one again."""

    code: str
    reason: str


Result = Captured | Declined | GivenUp


def charge_key(saga_id: UUID) -> str:
    """Return the idempotency key under which an order is charged; see `key_of` for its generations."""
    return f"cap:{saga_id}"


def refund_key(saga_id: UUID) -> str:
    """Return the idempotency key under which an order is refunded; see `key_of` for its generations."""
    return f"ref:{saga_id}"


def duplicate_key(charge_id: str) -> str:
    """Return the idempotency key under which a surplus charge is refunded; see `key_of` for its generations."""
    return f"dup:{charge_id}"


def key_of(key: str, generation: int) -> str:
    """Return a generation of a key.

    There is one, until the provider keeps an error under it. The next one then follows, but only after the provider has said that
    nothing was done: see `is_kept` and provider.Provider.
    """
    return key if generation == 1 else f"{key}:{generation}"


def is_kept(outcome: Unknown, errors_count: int) -> bool:
    """Return whether a key is answered with a kept error: the provider says so, or it has answered `KEPT_AFTER` calls with an error."""
    return outcome.is_error and (outcome.is_kept or errors_count >= KEPT_AFTER)


def is_placeholder(payment: Payment) -> bool:
    """Return whether the row was made by a cancellation, and its order was not known: what the provider has must be asked."""
    return not payment.payment_method


def reason_to_give_up(payment: Payment, terms: Terms) -> GivenUp | None:
    """Decide, once the provider has said that there is no charge, whether to stop asking for one."""
    if payment.cancel_requested_at is not None:
        return GivenUp(code=CANCELLED, reason="The order was cancelled before anything was charged.")
    if payment.expired:
        return GivenUp(code=EXPIRED, reason="The time to pay ran out; nothing was charged.")
    if payment.unanswered_calls >= terms.max_unanswered:
        return GivenUp(code=PROVIDER_TIMEOUT, reason=f"The provider left {payment.unanswered_calls} calls unanswered; nothing was charged.")
    return None


def must_go_back(payment: Payment) -> bool:
    """Tell whether a capture that just became known has to be refunded at once: nobody waits for it any more."""
    ended = payment.status in {Status.VOIDED, Status.FAILED}
    return ended or (payment.status is Status.PROCESSING and payment.cancel_requested_at is not None)


def was_asked_before(saga_id: UUID, asked_at: datetime) -> bool:
    """Return whether an OrderCreated is a repetition: its envelope is younger than its saga, whose UUIDv7 holds when it was made.

    Both times are of the order service's clock, so that a queue or another clock changes nothing.
    """
    made_ms = saga_id.int >> 80
    return saga_id.version != _TIMED_UUID or abs(asked_at.timestamp() * 1000 - made_ms) > _SAME_TRANSACTION_MS


def age_s(saga_id: UUID, now_s: float) -> float:
    """Return how old a saga is at the time `now_s` since 1970, by its UUIDv7; infinite for an id without a time."""
    return now_s - (saga_id.int >> 80) / 1000 if saga_id.version == _TIMED_UUID else math.inf


def is_as_asked(payment: Payment, captured: Captured) -> bool:
    """Return whether the provider says that it took what it was asked for."""
    return (captured.amount, captured.currency) == (payment.amount, payment.currency)


def surplus(charges: Sequence[Captured], ours: str, noted: Collection[str]) -> list[Captured]:
    """Pick the charges beside ours that are not noted yet: a provider that forgets its keys has made them."""
    return [charge for charge in charges if charge.transaction_id != ours and charge.transaction_id not in noted]


def left_of(charge: Captured) -> Decimal:
    """Return what is left of a charge after its refunds."""
    return charge.amount - sum((refund.amount for refund in charge.refunds), Decimal(0))


def gone_back(charge: Captured) -> Refunded | None:
    """Give the refunds of a charge as one, named like the last of them, when nothing is left of it."""
    if not charge.refunds or left_of(charge) > 0:
        return None
    return msgspec.structs.replace(charge.refunds[-1], amount=charge.amount)


def processed(payment: Payment, captured: Movement) -> events.PaymentProcessed:
    """Return the event for a capture, with the amount that was really taken."""
    return events.PaymentProcessed(
        order_id=payment.order_id,
        saga_id=payment.saga_id,
        payment_id=payment.id,
        payment_version=payment.version,
        amount=captured.amount,
        currency=captured.currency,
        transaction_id=captured.transaction_id,
        captured_at=captured.at,
        user_email=payment.user_email,
        items=payment.items,
    )


def failed(payment: Payment) -> events.PaymentFailed:
    """Return the event for a charge that the provider refused for good."""
    return events.PaymentFailed(
        order_id=payment.order_id,
        saga_id=payment.saga_id,
        payment_version=payment.version,
        code=payment.code or "declined",
        reason=payment.reason or "",
    )


def voided(payment: Payment) -> events.PaymentVoided:
    """Return the event for a payment of which nothing is captured and nothing will be."""
    return events.PaymentVoided(
        order_id=payment.order_id,
        saga_id=payment.saga_id,
        payment_version=payment.version,
        code=payment.code or CANCELLED,
        reason=payment.reason or "",
    )


def refunded(payment: Payment, movement: Movement) -> events.PaymentRefunded:
    """Return the event for a refund of what was captured."""
    return events.PaymentRefunded(
        order_id=payment.order_id,
        saga_id=payment.saga_id,
        payment_version=payment.version,
        amount=movement.amount,
        currency=movement.currency,
        refund_id=movement.transaction_id,
    )


def present(payment: Payment, movement: Movement | None) -> events.Message | None:
    """Return the event that says how an ended payment stands, None while it is under way; `movement`: the charge, or the refund."""
    if payment.status is Status.CAPTURED and movement is not None:
        return processed(payment, movement)
    if payment.status is Status.REFUNDED and movement is not None:
        return refunded(payment, movement)
    return {Status.FAILED: failed, Status.VOIDED: voided}[payment.status](payment) if payment.status in _NOTHING_MOVED else None


def refund_failed(payment: Payment, captured: Movement, declined: Declined) -> events.RefundFailed:
    """Return the event for a refund that the provider refused."""
    return events.RefundFailed(
        order_id=payment.order_id,
        saga_id=payment.saga_id,
        payment_version=payment.version,
        amount=captured.amount,
        currency=captured.currency,
        code=declined.code,
        permanent=True,
    )
