"""A mail before it is written: to whom, about what, under which ids; pure, it knows no wording and no server."""

from decimal import Decimal
from typing import Final
from uuid import UUID, uuid5

import msgspec

from sagapost_contracts import addresses, events
from sagapost_email import errors

_NAMESPACE: Final = UUID("5b0f6a7e-3c1d-5e8a-9a64-7d2f0c9be411")  # ours, drawn once; changing it breaks recognition of repeats


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One mail to send; `refunded` is None when the asker does not know what went back."""

    template: str
    order_id: int
    saga_id: UUID
    recipient: str
    items: tuple[events.Line, ...]
    amount: Decimal
    currency: str
    reason: str = ""
    refunded: Decimal | None = None
    transaction_id: str | None = None


class Claim(msgspec.Struct, kw_only=True):
    """One try to send a mail; `fresh`: send it, otherwise it was accepted before. `in_doubt`: the server has it and has not answered."""

    fresh: bool
    in_doubt: bool = False


class Content(msgspec.Struct, frozen=True, kw_only=True):
    """The words of one mail, in both forms."""

    subject: str
    text: str
    html: str


def is_address(text: str) -> bool:
    """Return whether this is one plain ASCII address `local@domain.tld` without quotes, brackets or control characters."""
    return addresses.is_email_address(text)


def require_address(text: str) -> str:
    """Give the address back.

    Raises:
        errors.MailRefusedError: it is none, and no server shall see it.

    """
    if not is_address(text):
        raise errors.MailRefusedError("bad_address", "the recipient is not one plain address")
    return text


def smtp_message_id(template: str, saga_id: UUID, mail_from: str) -> str:
    """Give the Message-ID, the same for every copy of one mail, so that a reader's program and our checks can tell a copy."""
    return f"<{template}-{saga_id}@{mail_from.rpartition('@')[2]}>"


def event_id(kind: str, template: str, saga_id: UUID, asked_by: UUID | None) -> UUID:
    """Give the id of the event that tells of a mail; a repeat after a crash gets the same one and is recognised.

    `asked_by` is the command that asked for the mail again: its outcome is news.
    """
    return uuid5(_NAMESPACE, f"{kind}:{template}:{saga_id}:{asked_by or ''}")


def of_receipt(event: events.PaymentProcessed) -> Request:
    """Ask for the receipt of a captured payment."""
    return Request(
        template=events.RECEIPT,
        order_id=event.order_id,
        saga_id=event.saga_id,
        recipient=event.user_email,
        items=event.items,
        amount=event.amount,
        currency=event.currency,
        transaction_id=event.transaction_id,
    )


def of_cancellation(event: events.OrderCancelled) -> Request:
    """Ask for the mail that tells of a cancelled order."""
    return Request(
        template=events.CANCELLATION,
        order_id=event.order_id,
        saga_id=event.saga_id,
        recipient=event.user_email,
        items=event.items,
        amount=event.amount,
        currency=event.currency,
        reason=event.reason,
        refunded=event.refunded,
    )


def of_command(command: events.RequestNotification) -> Request:
    """Ask for the mail that a command names."""
    return Request(
        template=command.template,
        order_id=command.order_id,
        saga_id=command.saga_id,
        recipient=command.user_email,
        items=command.items,
        amount=command.amount,
        currency=command.currency,
        reason=command.reason or "",
        transaction_id=command.transaction_id,
    )


def sent(request: Request, smtp_id: str) -> events.EmailSent:
    """Tell that the server took the mail."""
    return events.EmailSent(order_id=request.order_id, saga_id=request.saga_id, template=request.template, smtp_message_id=smtp_id)


def failed(request: Request, code: str, *, permanent: bool) -> events.EmailFailed:
    """Return the event for a mail that was not taken; `permanent`: it will not be, however often it is tried."""
    return events.EmailFailed(order_id=request.order_id, saga_id=request.saga_id, template=request.template, code=code, permanent=permanent)


def outcome(event: events.EmailSent | events.EmailFailed) -> str:
    """Return the name of an outcome in event ids: a refusal that follows a deferral is news, and not a repeat of it."""
    deferred = isinstance(event, events.EmailFailed) and not event.permanent
    return "EmailDeferred" if deferred else type(event).__name__
