"""What the order service answers, in the shapes that clients know; it must not know where the data come from."""

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final
from uuid import UUID

import msgspec

from sagapost_order import domain, moves, saga_queries, states

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


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """A page of a client's orders; `next_cursor` is None when no page follows, and a page that follows may be empty."""

    items: tuple[Order, ...]
    next_cursor: str | None


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
    outcome: str
    source: str
    actor: str | None = None
    reason: str | None = None
    mail: str | None = None


class Permission(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer to the email service's question before a receipt."""

    send: bool
    lease_s: float | None = None
    state: str | None = None


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """One saga in an operator's list; `stuck`: nothing will move it in time."""

    saga_id: UUID
    order_id: int
    state: str
    version: int
    done: bool
    stuck: bool
    attention: str | None
    reason: str | None
    attempts: int
    amount: Decimal
    captured: Decimal
    refunded: Decimal
    currency: str
    deadline_at: str | None
    created_at: str
    updated_at: str


class Sagas(msgspec.Struct, frozen=True, kw_only=True):
    """A page of sagas; `next_cursor` is None when no page follows, and a page that follows may be empty."""

    sagas: tuple[Listed, ...]
    next_cursor: str | None


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


def orders(found: Sequence[domain.Order], *, more: bool) -> Orders:
    """Make a page of orders; its cursor is the id of its last one."""
    return Orders(items=tuple(order(one) for one in found), next_cursor=str(found[-1].id) if more and found else None)


def order_status(order: domain.Order) -> OrderStatus:
    """Show where an order stands."""
    return OrderStatus(id=order.id, status=order.status, saga_id=order.saga_id, saga_state=order.saga_state)


def saga(row: domain.Saga, order: domain.Order, history: Sequence[domain.HistoryRow], *, for_operator: bool = False) -> Saga:
    """Show a saga; who the operators were and what they wrote is shown to operators only."""
    rows = tuple(history_row(entry, for_operator=for_operator) for entry in history)
    rest = {"steps": _steps(row, order, history), "history": rows, "trace_id": row.trace_id}
    return msgspec.convert({**_saga_fields(row), **rest}, Saga)


def permission(given: moves.Permission) -> Permission:
    """Answer whether a receipt may be sent."""
    return Permission(send=True, lease_s=given.lease_s) if given.send else Permission(send=False, state=given.state)


def history_row(entry: domain.HistoryRow, *, for_operator: bool = False) -> History:
    """Show one row of a saga's history; an operator's name and words are shown to operators only."""
    is_shown = for_operator or entry.source != "operator"
    return History(
        seq=entry.seq,
        from_state=entry.from_state,
        to_state=entry.to_state,
        event=entry.event,
        at=instant(entry.at),
        outcome=entry.outcome,
        source=entry.source,
        actor=entry.actor if is_shown else None,
        reason=entry.reason if is_shown else None,
        mail=entry.mail,
    )


def sagas(found: Sequence[saga_queries.Listed], *, more: bool) -> Sagas:
    """Show a page of sagas; `more`: another page may follow."""
    shown = tuple(
        msgspec.convert({**_saga_fields(row), "stuck": row.stuck, "attempts": row.attempts, "amount": row.amount}, Listed) for row in found
    )
    return Sagas(sagas=shown, next_cursor=str(found[-1].order_id) if more and found else None)


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


def _saga_fields(row: domain.Saga | saga_queries.Listed) -> dict[str, object]:
    return {
        "saga_id": row.id,
        "order_id": row.order_id,
        "state": row.state,
        "version": row.version,
        "done": states.is_done(row.state, row.deadline_at),
        "attention": row.attention,
        "reason": row.reason,
        "captured": row.captured,
        "refunded": row.refunded,
        "currency": row.currency,
        "deadline_at": instant(row.deadline_at) if row.deadline_at else None,
        "created_at": instant(row.created_at),
        "updated_at": instant(row.updated_at),
    }


def _steps(row: domain.Saga, order: domain.Order, history: Sequence[domain.HistoryRow]) -> tuple[Step, ...]:
    placed = Step(name="order", state="done", at=instant(order.created_at), ms=order.processing_duration_ms)
    steps = placed, _payment(row, history), _email(row, history)
    return (*steps, _cancellation(row, history)) if row.state in states.CANCELLED else steps


def _payment(row: domain.Saga, history: Sequence[domain.HistoryRow]) -> Step:
    asked = 1 + sum(
        entry.reason == states.NUDGE or entry.event == states.OPERATOR_RETRY for entry in history if entry.from_state == states.CREATED
    )
    heard = next((entry for entry in history if entry.event.startswith(("Payment", "Refund"))), None)
    if heard is None:  # an operator may end a saga of which payment said nothing
        return Step(name="payment", state="skipped") if row.state in states.DONE else Step(name="payment", state="running", attempts=asked)
    if row.captured == 0:
        state = "failed"
    elif row.captured == row.refunded:
        state = "refunded"
    else:
        state = "done"
    return Step(name="payment", state=state, at=instant(heard.at), ms=_ms(row.created_at, heard.at), attempts=asked)


def _email(row: domain.Saga, history: Sequence[domain.HistoryRow]) -> Step:
    asked = (states.DEADLINE, states.OPERATOR_RETRY)
    attempts = 1 + sum(entry.event in asked and entry.from_state in {states.PAID, states.NOTIFY_FAILED} for entry in history)
    if row.notified_at is not None:
        paid = next((entry.at for entry in history if entry.event == states.PAYMENT_PROCESSED), row.created_at)
        return Step(name="email", state="done", at=instant(row.notified_at), ms=_ms(paid, row.notified_at), attempts=attempts)
    if row.state in {states.NOTIFIED, states.COMPENSATING, states.COMPENSATED, states.COMPENSATION_FAILED}:
        return Step(name="email", state="skipped")
    if row.state == states.NOTIFY_FAILED:
        return Step(name="email", state="failed", attempts=attempts)
    return Step(name="email", state="running", attempts=attempts) if row.state == states.PAID else Step(name="email", state="pending")


def _cancellation(row: domain.Saga, history: Sequence[domain.HistoryRow]) -> Step:
    """Show the mail that says that the order was cancelled; it is asked for when the money is settled."""
    asked = 1 + sum(entry.event == states.DEADLINE and entry.from_state == entry.to_state == states.COMPENSATED for entry in history)
    if row.cancellation_sent_at is not None:
        ended = next((entry.at for entry in history if entry.to_state == states.COMPENSATED), row.cancellation_sent_at)
        ms = _ms(ended, row.cancellation_sent_at)
        return Step(name="cancellation", state="done", at=instant(row.cancellation_sent_at), ms=ms, attempts=asked)
    if row.state != states.COMPENSATED:
        return Step(name="cancellation", state="pending")
    state = "failed" if states.is_done(row.state, row.deadline_at) else "running"
    return Step(name="cancellation", state=state, attempts=asked)


def _ms(start: datetime, end: datetime) -> int:
    return max(0, round((end - start).total_seconds() * 1000))
