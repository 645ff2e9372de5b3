"""The use cases of the order service, one transaction each; they must not know HTTP or the broker."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final, Generic, TypeVar
from uuid import UUID

import msgspec
import prometheus_client

from sagapost_chassis import consuming, crashpoints, db, ids, inbox, outbox, telemetry
from sagapost_contracts import events, money
from sagapost_order import domain, errors, queries, saga, transitions

T = TypeVar("T")

SOURCE: Final = "sagapost-order"
FORGET_BATCH: Final = 500
_SETTLE_S: Final = 3
_SETTLE_POLL_S: Final = 0.05

TRANSITIONS: Final = prometheus_client.Counter(
    "sagapost_saga_transitions", "Saga transitions by edge and outcome", ["from_state", "event", "to_state", "outcome"]
)


class _Written(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """What a checkout's transaction came to; `xid` is None when it wrote nothing."""

    outcome: T
    xid: int | None


async def checkout(pool: db.Pool, request: domain.CheckoutRequest, *, pay_window_s: int, started_s: float) -> domain.Order:
    """Place an order: order, lines, saga, history and OrderCreated in one transaction, all at the transaction's one instant.

    `started_s` is the perf counter at the start of the request: what passed until the INSERT is the order's
    processing_duration_ms, because the row has to be written before its commit can be timed.

    Raises:
        UnknownProductError, PriceChangedError, RequestInvalidError: nothing was written.
        UnavailableError, NotStoredError: nothing was written.

    """
    saga_id = ids.uuid7()

    async def place(conn: db.Connection) -> _Written[domain.Order]:
        return await _place(conn, request, saga_id, pay_window_s, started_s)

    return await _store(pool, saga_id, place)


async def checkout_once(
    pool: db.Pool,
    request: domain.CheckoutRequest,
    key: domain.IdempotencyKey,
    *,
    answer: Callable[[domain.Order], domain.Answer],
    pay_window_s: int,
    started_s: float,
) -> domain.Answer:
    """Place an order and keep its answer under the key, in one transaction; give the kept answer to whoever repeats the key.

    `answer` makes the answer from the order. The kept one is looked up before anything is judged, so that a price that
    has changed since does not refuse a repetition.

    Raises:
        KeyInProgressError: the first request with this key has not ended; nobody waits for it, nothing was written.
        KeyReusedError: the key belongs to another body; nothing was written.
        UnknownProductError, PriceChangedError, RequestInvalidError: nothing was written, the key is free.
        UnavailableError, NotStoredError: nothing was written, the key is free.

    """
    saga_id = ids.uuid7()

    async def place_once(conn: db.Connection) -> _Written[domain.Answer]:
        alone, kept = await queries.claim_key(conn, key)
        if kept:
            if kept.fingerprint != key.fingerprint:
                raise errors.KeyReusedError("Take a new key for a new cart; the same key repeats the same body.")
            return _Written(outcome=kept.answer, xid=None)
        if not alone:
            raise errors.KeyInProgressError
        placed = await _place(conn, request, saga_id, pay_window_s, started_s)
        first = answer(placed.outcome)
        if not await queries.keep_answer(conn, key, first, placed.outcome.id):
            raise errors.KeyInProgressError
        return _Written(outcome=first, xid=placed.xid)

    return await _store(pool, saga_id, place_once)


async def forget_answers(pool: db.Pool) -> int:
    """Delete at most FORGET_BATCH answers whose time is over, and give their number; several processes may do so at once."""
    async with db.transaction(pool) as conn:
        return await queries.forget_answers(conn, domain.KEYS_KEPT, FORGET_BATCH)


async def on_event(pool: db.Pool, delivery: consuming.Delivery) -> None:
    """Move the saga that a message is about: inbox, row lock, saga, history, order and outbox in one transaction.

    Raises:
        SagaMissingError, SagaMovedError, UnavailableError: nothing was written, the message may come again.
        IllegalEventError, ForeignOrderError: nothing was written, and nothing will be.

    """
    message = delivery.message
    async with db.transaction(pool) as conn:
        if not await inbox.claim(conn, delivery.message_id, delivery.type):
            return
        row = await queries.lock_saga(conn, message.saga_id)
        if row is None:
            raise errors.SagaMissingError(f"there is no saga {message.saga_id}")
        if row.order_id != message.order_id:
            raise errors.ForeignOrderError(f"saga {row.id} is of order {row.order_id}, not of {message.order_id}")
        steps = saga.decide(row, saga.event_of(message, row.locked_at))
        for step in steps:
            await _write(conn, step, delivery.message_id)
    await crashpoints.crashpoint("saga.after_commit")
    for step in steps:
        TRANSITIONS.labels(step.before.state, step.event, step.after.state, step.outcome).inc()


async def get_order(pool: db.Pool, order_id: int) -> domain.Order:
    """Read an order.

    Raises:
        NotFoundError: there is none of this id.

    """
    async with db.connection(pool) as conn:
        found = await queries.order(conn, order_id)
    if found is None:
        raise errors.NotFoundError("There is no such order.")
    return found


async def get_saga(pool: db.Pool, saga_id: UUID) -> tuple[domain.Saga, domain.Order, list[domain.HistoryRow]]:
    """Read a saga with its order and its history.

    Raises:
        NotFoundError: there is none of this id.

    """
    async with db.connection(pool) as conn:
        found = await queries.saga(conn, saga_id)
        order = await queries.order(conn, found.order_id) if found else None
        if found is None or order is None:
            raise errors.NotFoundError("There is no such saga.")
        return found, order, await queries.history(conn, found)


async def get_products(pool: db.Pool) -> list[domain.Product]:
    """Read the catalogue."""
    async with db.connection(pool) as conn:
        return await queries.products(conn)


async def get_product(pool: db.Pool, product_id: int) -> domain.Product:
    """Read one product.

    Raises:
        NotFoundError: there is none of this id.

    """
    async with db.connection(pool) as conn:
        found = await queries.product(conn, product_id)
    if found is None:
        raise errors.NotFoundError("There is no such product.")
    return found


async def _store(pool: db.Pool, saga_id: UUID, write: Callable[[db.Connection], Awaitable[_Written[T]]]) -> T:
    """Run a checkout's one transaction; a COMMIT that gets no answer is settled."""
    written: _Written[T] | None = None
    try:
        async with db.transaction(pool) as conn:
            written = await write(conn)
            await crashpoints.crashpoint("order.before_commit")
    except db.CommitUnknownError as exc:
        if written is None:
            raise
        if written.xid is not None:
            await _settle(pool, saga_id, written.xid, exc)
    if written.xid is not None:
        await crashpoints.crashpoint("order.after_commit")
        TRANSITIONS.labels(transitions.NONE, transitions.ORDER_CREATED, transitions.CREATED, "applied").inc()
    return written.outcome


async def _place(
    conn: db.Connection, request: domain.CheckoutRequest, saga_id: UUID, pay_window_s: int, started_s: float
) -> _Written[domain.Order]:
    catalogue = {product.id: product for product in await queries.prices(conn, [item.product_id for item in request.items])}
    lines, total = domain.price_order(request.items, catalogue)
    at = next(iter(catalogue.values())).at
    facts, message_id = saga.first_facts(at, pay_window_s), ids.uuid7()
    order = domain.Order(
        id=0,
        user_id=request.user_id,
        user_email=request.user_email,
        status=transitions.ORDER_STATUS[transitions.CREATED],
        currency=money.CURRENCY,
        total_amount=total,
        processing_duration_ms=round((time.perf_counter() - started_s) * 1000),
        created_at=at,
        updated_at=at,
        saga_id=saga_id,
        saga_state=transitions.CREATED,
        items=lines,
    )
    inserted = await queries.insert_order(
        conn, order, facts, payment_method=request.payment_method, message_id=message_id, trace_id=telemetry.current_trace_id()
    )
    created = events.OrderCreated(
        order_id=inserted.id,
        saga_id=saga_id,
        user_id=request.user_id,
        user_email=request.user_email,
        amount=total,
        items=lines,
        payment_method=request.payment_method,
        pay_before=at + timedelta(seconds=pay_window_s),
    )
    await outbox.add(conn, created, source=SOURCE, message_id=message_id)
    return _Written(outcome=msgspec.structs.replace(order, id=inserted.id), xid=inserted.xid)


async def _write(conn: db.Connection, step: saga.Step, message_id: UUID) -> None:
    written = await queries.move_saga(
        conn,
        step.before,
        step.after,
        saga.facts_of(step.after),
        event=step.event,
        outcome=step.outcome,
        reason=step.reason,
        order_status=saga.order_status(step.after),
        message_id=message_id,
    )
    if not written:
        raise errors.SagaMovedError(f"saga {step.before.id} is no longer of version {step.before.version}")
    for name in step.emits:
        await outbox.add(conn, await _message(conn, name, step), source=SOURCE, causation_id=str(message_id))


async def _message(conn: db.Connection, name: str, step: saga.Step) -> events.Message:
    """Fill in what a step emits; a cancellation's reason is the saga's own, or the code of the event that ends it."""
    after = step.after
    if name == transitions.CANCEL_PAYMENT:
        reason = after.reason or after.attention or ""
        return events.CancelPayment(order_id=after.order_id, saga_id=after.id, reason=reason, saga_version=after.version)
    order = await queries.order(conn, after.order_id)
    if order is None:
        raise errors.SagaMissingError(f"saga {after.id} has no order")
    return events.OrderCancelled(
        order_id=after.order_id,
        saga_id=after.id,
        user_email=order.user_email,
        reason=step.before.reason or step.reason or after.reason or "",
        refunded=after.refunded,
        amount=order.total_amount,
        currency=order.currency,
        items=order.items,
    )


async def _settle(pool: db.Pool, saga_id: UUID, xid: int, cause: db.CommitUnknownError) -> None:
    """Learn on a new connection whether the transaction committed; return if it did.

    Raises:
        NotStoredError: it did not.
        UnavailableError: nobody can tell now.

    """
    deadline_s = time.monotonic() + _SETTLE_S
    while True:
        async with db.connection(pool) as conn:
            outcome = await queries.commit_outcome(conn, saga_id, xid)
        if outcome.found:
            return
        if not outcome.running or time.monotonic() > deadline_s:
            raise errors.NotStoredError("the order was not stored") from cause
        await asyncio.sleep(_SETTLE_POLL_S)
