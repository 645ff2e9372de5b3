"""The use cases that move a saga: a message, a customer, an operator, the clock; one transaction each, database work only."""

import asyncio
import contextvars
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final
from uuid import UUID

import msgspec
import prometheus_client

from sagapost_chassis import consuming, crashpoints, db, outbox
from sagapost_contracts import events
from sagapost_order import clock, domain, errors, queries, saga, saga_queries, states
from sagapost_order.saga_queries import Cause, LockedSaga

SOURCE: Final = "sagapost-order"

TRANSITIONS: Final = prometheus_client.Counter(
    "sagapost_saga_transitions", "Saga transitions by edge and outcome", ["from_state", "event", "to_state", "outcome"]
)
LATENESS: Final = prometheus_client.Histogram(
    "sagapost_saga_deadline_lateness_seconds",
    "How long after its deadline a saga was moved",
    buckets=(0.1, 0.25, 0.5, 1, 1.5, 2.5, 5, 15, 60, 300),
)


class _Heard(msgspec.Struct, frozen=True, kw_only=True):
    """A message for a saga, and the context of whoever waits for it: its trace goes with what the saga emits."""

    delivery: consuming.Delivery
    policy: states.Policy
    context: contextvars.Context


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator wants: `event` is one of states.OPERATOR, `version` the one that was looked at; None: whatever it is."""

    event: str
    reason: str
    actor: str
    version: int | None
    reference: str | None = None


class Permission(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the email service may send a receipt, for how many seconds, and the saga's state."""

    send: bool
    lease_s: float
    state: str


class Swept(msgspec.Struct, kw_only=True):
    """Which saga a sweep has taken up, also when it failed."""

    saga_id: UUID | None = None


async def on_event(pool: db.Pool, policy: states.Policy, delivery: consuming.Delivery) -> None:
    """Move the saga that a message is about: inbox, row lock, saga, history, order and outbox in one transaction.

    Raises:
        SagaMissingError, SagaMovedError, UnavailableError: nothing was written, the message may come again.
        IllegalEventError, ForeignOrderError: nothing was written, and nothing will be.

    """
    message = delivery.message

    heard = _Heard(delivery=delivery, policy=policy, context=contextvars.copy_context())

    async def hear(conn: db.Connection) -> tuple[saga.Step, ...]:
        (steps,) = await _hear_all(conn, [heard])
        return steps

    steps = await db.grouped(pool, message.saga_id, hear, bulk=db.Bulk(run=_hear_all, item=heard))
    await crashpoints.crashpoint("saga.after_commit")
    _count(steps)


async def _hear_all(conn: db.Connection, heard: Sequence[_Heard]) -> list[tuple[saga.Step, ...]]:
    """Apply messages of different sagas: those that only move a saga are written by one statement, the others one by one."""
    deliveries = [one.delivery for one in heard]
    taken = await saga_queries.take(
        conn,
        [
            saga_queries.Taken(message_id=delivery.message_id, type=delivery.type, saga_id=delivery.message.saga_id)
            for delivery in deliveries
        ],
    )
    decided: list[tuple[saga.Step, ...]] = []
    plain: list[saga_queries.Move] = []
    late: list[UUID] = []
    for one in heard:
        row, cause = _row_of(taken, one.delivery), Cause(source="event", message_id=one.delivery.message_id)
        steps = _heard(row, one) if row.is_new else ()
        decided.append(steps)
        match steps:
            case [saga.Step(outcome="applied" | "ignored", emits=())]:
                plain.append(move_of(steps[0], cause))
            case []:
                late += [row.id] if row.is_new else []
            case _:
                await asyncio.create_task(_write_all(conn, steps, cause), context=one.context)
    if late:
        await saga_queries.count_late(conn, late)
    if plain and not await saga_queries.move(conn, plain):
        raise errors.SagaMovedError(f"one of {len(plain)} sagas has moved since it was locked")
    return decided


def _heard(row: LockedSaga, one: _Heard) -> tuple[saga.Step, ...]:
    """Look a message up; one that changes nothing leaves no row when the saga is done: the version that a client saw last is the last."""
    event = saga.event_of(one.delivery.message, row.locked_at, one.policy)
    steps = saga.decide(row, msgspec.structs.replace(event, clock=row.clock_at))
    if steps[0].outcome == "ignored" and states.is_done(row.state, row.deadline_at):
        return ()
    return steps


def _row_of(taken: Mapping[UUID, saga_queries.TakenSaga], delivery: consuming.Delivery) -> saga_queries.TakenSaga:
    message = delivery.message
    row = taken.get(delivery.message_id)
    if row is None:
        raise errors.SagaMissingError(f"there is no saga {message.saga_id}")
    if row.is_new and row.order_id != message.order_id:
        raise errors.ForeignOrderError(f"saga {row.id} is of order {row.order_id}, not of {message.order_id}")
    return row


async def cancel(pool: db.Pool, policy: states.Policy, order_id: int, client: str) -> domain.Order:
    """Cancel an order for the client whose it is, and give it as it is then; one that is being cancelled, or was, stays as it is.

    Raises:
        NotFoundError: this client has no such order.
        NotCancellableError: it is finished, and its window is over.

    """
    async with db.transaction(pool) as conn:
        row = await saga_queries.lock_of_order(conn, order_id, client)
        if row is None:
            raise errors.NotFoundError("There is no such order.")
        event = states.Event(name=states.CANCEL_REQUESTED, at=row.locked_at, clock=row.clock_at, policy=policy)
        try:
            steps = await _move(conn, row, event, Cause(source="http", actor=client))
        except errors.IllegalEventError as exc:
            raise errors.NotCancellableError("The order is finished, and the time in which it could be cancelled is over.") from exc
        order = await queries.order(conn, order_id, client)
    _count(steps)
    if order is None:
        raise errors.NotFoundError("There is no such order.")
    return order


async def ask_receipt(pool: db.Pool, policy: states.Policy, saga_id: UUID) -> Permission:
    """Grant a lease for a receipt, if the order stands and none was reported; apply a cancellation that was noted.

    Raises:
        NotFoundError: there is no such saga.

    """
    async with db.transaction(pool) as conn:
        row = await saga_queries.lock(conn, saga_id)
        if row is None:
            raise errors.NotFoundError("There is no such saga.")
        event = states.Event(name=states.RECEIPT_ASKED, at=row.locked_at, clock=row.clock_at, policy=policy)
        steps = await _move(conn, row, event, Cause(source="http", actor="email"))
    _count(steps)
    after = steps[-1].after
    return Permission(send=after.receipt_until is not None, lease_s=policy.receipt_lease_s, state=after.state)


async def act(pool: db.Pool, policy: states.Policy, saga_id: UUID, action: Action) -> domain.Saga:
    """Do what an operator wants, and give the saga as it is then; what has no effect is in the history all the same.

    Raises:
        NotFoundError: there is no such saga.
        VersionMismatchError: somebody or something has moved it since the operator looked; nothing was written.
        NoSuchActionError: the saga's state has no use for the action; the history says who tried.

    """
    async with db.transaction(pool) as conn:
        row = await saga_queries.lock(conn, saga_id)
        if row is None:
            raise errors.NotFoundError("There is no such saga.")
        if action.version is not None and row.version != action.version:
            raise errors.VersionMismatchError(f"The saga has version {row.version}, not {action.version}: look again before you act.")
        reason = f"{action.reason} (reference {action.reference})" if action.reference else action.reason
        event = states.Event(name=action.event, at=row.locked_at, clock=row.clock_at, policy=policy, code=reason)
        steps = await _move(conn, row, event, Cause(source="operator", actor=action.actor))
    _count(steps)
    if steps[0].outcome == "ignored":
        raise errors.NoSuchActionError(f"A saga that is {row.state} has no use for this action; the history says that it was tried.")
    return steps[-1].after


async def sweep(pool: db.Pool, policy: states.Policy, skipped: Collection[UUID], swept: Swept, stepped: clock.Clock | None = None) -> bool:
    """Apply the deadline that passed first, by the database's clock; return False when none is due that another replica does not have.

    Any number of replicas may do so at once. `swept` names the saga, also when this fails. Steps of the clock in `stepped` are followed
    first. The clock is read after now() was fixed, so a clock that is set later makes nothing due here.
    """
    async with db.transaction(pool) as conn:
        if stepped is not None and await stepped.look(conn):
            return True
        row = await saga_queries.lock_due(conn, skipped)
        if row is None or row.deadline_at is None:
            return False
        swept.saga_id = row.id
        unsent = await saga_queries.unsent(conn, row)
        event = states.Event(
            name=states.DEADLINE, at=row.locked_at, clock=row.clock_at, policy=policy, code=row.deadline_kind, unsent=unsent
        )
        steps = await _move(conn, row, event, Cause(source="deadline"))
    await crashpoints.crashpoint("sweeper.after_commit")
    LATENESS.observe((row.locked_at - row.deadline_at).total_seconds())
    _count(steps)
    return True


async def _move(conn: db.Connection, row: LockedSaga, event: states.Event, cause: Cause) -> tuple[saga.Step, ...]:
    steps = saga.decide(row, event)
    await _write_all(conn, steps, cause)
    return steps


async def _write_all(conn: db.Connection, steps: Sequence[saga.Step], cause: Cause) -> None:
    for step in steps:
        if step.outcome != "unheard":
            await _write(conn, step, cause)
        elif _waits(step.after) != _waits(step.before) and not await saga_queries.touch(conn, step.before, step.after):
            raise errors.SagaMovedError(f"saga {step.before.id} is no longer of version {step.before.version}")


def _waits(row: domain.Saga) -> tuple[object, ...]:
    return row.deadline_at, row.deadline_kind, row.receipt_until


def move_of(step: saga.Step, cause: Cause) -> saga_queries.Move:
    """Return what is written of a step."""
    return saga_queries.Move(
        before=step.before,
        after=step.after,
        facts=saga.facts_of(step.after),
        cause=cause,
        event=step.event,
        outcome=step.outcome,
        reason=step.reason,
        order_status=saga.order_status(step.after),
        mail=step.mail,
        is_told=bool(step.emits),
    )


async def _write(conn: db.Connection, step: saga.Step, cause: Cause) -> None:
    if not await saga_queries.move(conn, [move_of(step, cause)]):
        raise errors.SagaMovedError(f"saga {step.before.id} is no longer of version {step.before.version}")
    for name in step.emits:
        message, message_id = await _message(conn, name, step)
        causation_id = str(cause.message_id) if cause.message_id else None
        await outbox.add(conn, message, source=SOURCE, causation_id=causation_id, message_id=message_id)


async def _message(conn: db.Connection, name: str, step: saga.Step) -> tuple[events.Message, UUID | None]:
    """Fill in what a step emits; the id is given only for a message that is repeated, and None for a new one."""
    after = step.after
    if name == states.CANCEL_PAYMENT:
        reason = after.reason or after.attention or ""
        return events.CancelPayment(order_id=after.order_id, saga_id=after.id, reason=reason, saga_version=after.version), None
    announced = await saga_queries.announced(conn, after.id)
    if announced is None:
        raise errors.SagaMissingError(f"saga {after.id} has no order")
    make: Callable[[saga.Step, saga_queries.Announced], events.Message]
    make = {states.ORDER_CREATED: _created, states.REQUEST_NOTIFICATION: _request, states.ORDER_CANCELLED: _cancelled}[name]
    return make(step, announced), announced.message_id if name == states.ORDER_CREATED else None


def _created(step: saga.Step, announced: saga_queries.Announced) -> events.Message:
    at, window = step.after.updated_at, announced.pay_before - step.after.created_at
    return events.OrderCreated(
        order_id=step.after.order_id,
        saga_id=step.after.id,
        user_id=announced.user_id,
        user_email=announced.user_email,
        amount=announced.amount,
        currency=announced.currency,
        items=announced.items,
        payment_method=announced.payment_method,
        pay_before=announced.pay_before if at < announced.pay_before else at + window,
        pay_within_s=window.total_seconds(),
    )


def _request(step: saga.Step, announced: saga_queries.Announced) -> events.Message:
    is_cancelled = step.after.state == states.COMPENSATED
    return events.RequestNotification(
        order_id=step.after.order_id,
        saga_id=step.after.id,
        template=events.CANCELLATION if is_cancelled else events.RECEIPT,
        reason=step.after.reason if is_cancelled else None,
        user_email=announced.user_email,
        attempt=step.after.attempts,
        amount=announced.amount,
        currency=announced.currency,
        items=announced.items,
    )


def _cancelled(step: saga.Step, announced: saga_queries.Announced) -> events.Message:
    """Tell of the order's end; its reason is the saga's own, or the code of the event that ends it."""
    after = step.after
    return events.OrderCancelled(
        order_id=after.order_id,
        saga_id=after.id,
        user_email=announced.user_email,
        reason=step.before.reason or step.reason or after.reason or "",
        refunded=after.refunded,
        amount=announced.amount,
        currency=announced.currency,
        items=announced.items,
    )


def _count(steps: tuple[saga.Step, ...]) -> None:
    for step in steps:
        TRANSITIONS.labels(step.before.state, step.event, step.after.state, step.outcome).inc()
