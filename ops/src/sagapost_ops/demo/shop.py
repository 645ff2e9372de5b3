"""What a demo's customer does through the gateway, and what can be seen of it meanwhile; it must not know any story."""

import time
from collections.abc import Callable, Iterator
from datetime import datetime
from decimal import Decimal
from typing import Final

import msgspec

from sagapost_ops import client, database, errors, evidence, targets
from sagapost_ops.saga import calls, resources

POLL_S: Final = 0.1
_TAKEN_UP_S: Final = 20.0
_CUSTOMER: Final = {"user_id": 1, "user_email": "demo@example.com"}
_USUAL: Final = [{"product_id": 1, "quantity": 1, "price": "1299.99"}, {"product_id": 2, "quantity": 2, "price": "49.99"}]
_LARGE: Final = [{"product_id": 1, "quantity": 4, "price": "1299.99"}]
_CHARGING: Final = "SELECT 1 FROM payments WHERE saga_id = %s AND status = 'processing'"


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What the demo reads of the answer to the checkout."""

    id: int
    saga_id: str
    total_amount: Decimal
    currency: str
    created_at: datetime


class Movement(msgspec.Struct, frozen=True, kw_only=True):
    """Money that really moved, as the provider's own ledger has it."""

    kind: str
    amount: Decimal
    currency: str
    at: datetime


class MailSeen(msgspec.Struct, frozen=True, kw_only=True):
    """A mail that the customer got."""

    template: str
    message_id: str
    text: str


def check_out(gateway: client.Client, payment_method: str, *, large: bool = False) -> tuple[Order, float]:
    """Buy a laptop and two mice, or four laptops, and give the order and how many milliseconds the answer took.

    Raises:
        FailedError: it was not accepted.

    """
    began = time.perf_counter()
    body = _CUSTOMER | {"items": _LARGE if large else _USUAL, "payment_method": payment_method}
    answer = gateway.call("POST", "/api/checkout", body)
    answer_ms = round((time.perf_counter() - began) * 1000, 1)
    if answer.status != 202:
        raise errors.FailedError(f"the checkout was answered with {answer.status}: {calls.said(answer)}")
    return calls.decoded(answer.body, Order), answer_ms


def cancel(gateway: client.Client, order: Order) -> None:
    """Cancel the order.

    Raises:
        FailedError: it was not accepted.

    """
    answer = gateway.call("POST", f"/api/orders/{order.id}/cancel")
    if answer.status not in {200, 202}:
        raise errors.FailedError(f"the cancellation was answered with {answer.status}: {calls.said(answer)}")


def saga(gateway: client.Client, order: Order) -> resources.Saga:
    """Read the order's saga."""
    return calls.decoded(calls.read(gateway, order.saga_id), resources.Saga)


def wait_for_charge(where: targets.Targets, order: Order) -> None:
    """Wait until payment has taken the order up: from then on the card is being charged, and nobody can stop it.

    Raises:
        FailedError: it does not.

    """
    with database.opened(targets.need(where, "payment_database_url"), "sagapost-demo") as conn:
        if not until(lambda: conn.execute(_CHARGING, (order.saga_id,)).fetchone(), _TAKEN_UP_S):
            raise errors.FailedError(f"payment did not take order {order.id} up within {_TAKEN_UP_S:.0f} s; see ./sagapost status")


def movements(where: targets.Targets, order: Order) -> tuple[Movement, ...] | None:
    """Read what the provider moved for the order, the oldest first; None when the provider has no ledger to read."""
    if where.provider_url is None:
        return None
    with client.Client(where.provider_url) as provider:
        return tuple(provider.get(f"/v1/ledger?reference={order.saga_id}", list[Movement]))


def mails(where: targets.Targets, order: Order) -> tuple[MailSeen, ...]:
    """Read the order's mails, the oldest first."""
    return tuple(reversed(tuple(_mails(where, order))))


def until(found: Callable[[], object], patience_s: float) -> bool:
    """Ask until the answer is true, or False when the time is over."""
    deadline = time.monotonic() + patience_s
    while not found():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def _mails(where: targets.Targets, order: Order) -> Iterator[MailSeen]:
    with client.Client(targets.need(where, "mailbox_url")) as mailbox:
        page = mailbox.get("/api/v1/messages?limit=200", evidence.Mails)
        for mail in page.messages:
            if mail.saga_id == order.saga_id:
                text = mailbox.get(f"/api/v1/message/{mail.id}", evidence.MailText).text
                yield MailSeen(template=mail.template, message_id=mail.message_id, text=text)
