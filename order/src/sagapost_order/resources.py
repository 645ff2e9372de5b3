"""What the order service answers, in the shapes that clients know; it must not know where the data come from."""

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final
from uuid import UUID

import msgspec

from sagapost_order import domain, transitions

_API: Final = "/api"


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One line of an order."""

    product_id: int
    quantity: int
    price: Decimal


class Links(msgspec.Struct, frozen=True, kw_only=True):
    """Where a client goes from an order, as paths of the gateway."""

    saga: str
    events: str
    order: str
    cancel: str


class Checkout(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a checkout."""

    id: int
    user_id: int
    user_email: str
    status: str
    currency: str
    total_amount: Decimal
    items: tuple[Item, ...]
    processing_duration_ms: int
    created_at: str
    saga_id: UUID
    links: Links


class Order(Checkout, frozen=True, kw_only=True):
    """An order as it is now."""

    updated_at: str


class OrderStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Where an order stands."""

    id: int
    status: str
    saga_id: UUID
    saga_state: str


class Step(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One step of a saga: pending, running, done, failed, refunded or skipped; `ms` is the time it took."""

    name: str
    state: str
    at: str | None = None
    ms: int | None = None
    attempts: int | None = None


class History(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One row of a saga's history."""

    seq: int
    from_state: str = msgspec.field(name="from")
    to_state: str = msgspec.field(name="to")
    event: str
    at: str
    outcome: str = "applied"
    reason: str | None = None


class Saga(msgspec.Struct, frozen=True, kw_only=True):
    """A saga as it is now."""

    saga_id: UUID
    order_id: int
    state: str
    version: int
    done: bool
    attention: str | None
    reason: str | None
    captured: Decimal
    refunded: Decimal
    currency: str
    deadline_at: str | None
    created_at: str
    updated_at: str
    steps: tuple[Step, ...]
    history: tuple[History, ...]
    trace_id: str | None


def checkout(order: domain.Order) -> Checkout:
    """Answer a checkout."""
    return msgspec.convert(_order_fields(order), Checkout)


def accepted(order: domain.Order) -> domain.Answer:
    """Make the whole answer to a checkout, as it can be kept."""
    return domain.Answer(status=202, location=saga_path(order.saga_id), body=msgspec.json.encode(checkout(order)))


def order(order: domain.Order) -> Order:
    """Show an order."""
    return msgspec.convert({**_order_fields(order), "updated_at": instant(order.updated_at)}, Order)


def order_status(order: domain.Order) -> OrderStatus:
    """Show where an order stands."""
    return OrderStatus(id=order.id, status=order.status, saga_id=order.saga_id, saga_state=order.saga_state)


def saga(row: domain.Saga, order: domain.Order, history: Sequence[domain.HistoryRow]) -> Saga:
    """Show a saga."""
    return Saga(
        saga_id=row.id,
        order_id=row.order_id,
        state=row.state,
        version=row.version,
        done=row.state in transitions.DONE,
        attention=row.attention,
        reason=row.reason,
        captured=row.captured,
        refunded=row.refunded,
        currency=row.currency,
        deadline_at=instant(row.deadline_at) if row.deadline_at else None,
        created_at=instant(row.created_at),
        updated_at=instant(row.updated_at),
        steps=_steps(row, order, history),
        history=tuple(
            History(
                seq=entry.seq,
                from_state=entry.from_state,
                to_state=entry.to_state,
                event=entry.event,
                at=instant(entry.at),
                outcome=entry.outcome,
                reason=entry.reason,
            )
            for entry in history
        ),
        trace_id=row.trace_id,
    )


def saga_path(saga_id: UUID) -> str:
    """Give the gateway's path of a saga."""
    return f"{_API}/sagas/{saga_id}"


def instant(at: datetime) -> str:
    """Write an instant as RFC 3339 in UTC with milliseconds."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def _order_fields(order: domain.Order) -> dict[str, object]:
    path = f"{_API}/orders/{order.id}"
    saga = saga_path(order.saga_id)
    return {
        "id": order.id,
        "user_id": order.user_id,
        "user_email": order.user_email,
        "status": order.status,
        "currency": order.currency,
        "total_amount": order.total_amount,
        "items": [{"product_id": line.product_id, "quantity": line.quantity, "price": line.price} for line in order.items],
        "processing_duration_ms": order.processing_duration_ms,
        "created_at": instant(order.created_at),
        "saga_id": order.saga_id,
        "links": {"saga": saga, "events": f"{saga}/events", "order": path, "cancel": f"{path}/cancel"},
    }


def _steps(row: domain.Saga, order: domain.Order, history: Sequence[domain.HistoryRow]) -> tuple[Step, ...]:
    placed = Step(name="order", state="done", at=instant(order.created_at), ms=order.processing_duration_ms)
    return placed, _payment(row, history), _email(row, history)


def _payment(row: domain.Saga, history: Sequence[domain.HistoryRow]) -> Step:
    heard = next((entry for entry in history if entry.event.startswith(("Payment", "Refund"))), None)
    if heard is None:
        return Step(name="payment", state="running", attempts=1)
    if row.captured == 0:
        state = "failed"
    elif row.captured == row.refunded:
        state = "refunded"
    else:
        state = "done"
    return Step(name="payment", state=state, at=instant(heard.at), ms=_ms(row.created_at, heard.at), attempts=1)


def _email(row: domain.Saga, history: Sequence[domain.HistoryRow]) -> Step:
    attempts = row.attempts + 1
    if row.notified_at is not None:
        paid = next((entry.at for entry in history if entry.event == transitions.PAYMENT_PROCESSED), row.created_at)
        return Step(name="email", state="done", at=instant(row.notified_at), ms=_ms(paid, row.notified_at), attempts=attempts)
    if row.state in {transitions.COMPENSATING, transitions.COMPENSATED, transitions.COMPENSATION_FAILED}:
        return Step(name="email", state="skipped")
    if row.state == transitions.NOTIFY_FAILED:
        return Step(name="email", state="failed", attempts=attempts)
    return Step(name="email", state="running", attempts=attempts) if row.state == transitions.PAID else Step(name="email", state="pending")


def _ms(start: datetime, end: datetime) -> int:
    return max(0, round((end - start).total_seconds() * 1000))
