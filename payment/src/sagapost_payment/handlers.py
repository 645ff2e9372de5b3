"""The use cases of payment: charge an order once, refund it on request; a provider call stands between two transactions."""

import contextvars
from collections.abc import Sequence
from typing import Final
from uuid import UUID

import msgspec

from sagapost_chassis import consuming, crashpoints, db, ids, inbox, outbox, telemetry
from sagapost_contracts import events, money
from sagapost_payment import answers, charging, domain, errors, provider, queries, refunding

_UNDER_WAY: Final = {domain.Status.PROCESSING, domain.Status.REFUNDING}


async def on_order_created(
    pool: db.Pool, psp: provider.Provider, delivery: consuming.Delivery, order: events.OrderCreated, terms: domain.Terms
) -> None:
    """Charge the order, once, and publish how it went; a payment that has ended is answered with how it stands.

    Raises:
        TransientError: the outcome is not known yet; the same message, and the same key, come again.
        ForeignSagaError: order and saga do not belong together; nothing was written.

    """
    payment, fresh = await _intend(pool, delivery, order, terms)
    await crashpoints.crashpoint("payment.after_intent")
    if payment.status is domain.Status.PROCESSING:
        # no row, although it was asked before: the row may have been lost in a restore, and the charge may be there
        ask_first = delivery.is_repeated or domain.was_asked_before(order.saga_id, delivery.time)
        result = await charging.capture(pool, psp, payment, terms, fresh=fresh, ask_first=ask_first)
        await crashpoints.crashpoint("payment.after_charge")
        payment = await conclude(pool, payment, result, delivery, terms)
        await crashpoints.crashpoint("payment.after_commit")
    if payment.status is domain.Status.REFUNDING:
        await refunding.give_back(pool, psp, payment, delivery, terms)


async def on_cancel_payment(
    pool: db.Pool, psp: provider.Provider, delivery: consuming.Delivery, command: events.CancelPayment, terms: domain.Terms
) -> None:
    """See to it that nothing stays captured for the order; the answer is a void, a refund or a failed refund.

    The inbox claims the command in the transaction that decides its effect: a repetition only finishes its refund.

    Raises:
        TransientError: the provider cannot be asked, or a refund's outcome is not known yet; the call is repeated.
        ForeignSagaError: order and saga do not belong together; nothing was written.

    """
    payment = await _take_in(pool, delivery, command, terms)
    if _is_unasked(payment):
        # a row that is missing says nothing about money: the provider is asked before anything is answered
        result = await charging.capture(pool, psp, payment, terms, fresh=False)
        if isinstance(result, domain.GivenUp):
            payment = await _take_in(pool, delivery, command, terms, nothing=result)
        else:
            payment = await conclude(pool, payment, result, delivery, terms)
    if payment.status is domain.Status.REFUNDING:
        await refunding.give_back(pool, psp, payment, delivery, terms)


async def _take_in(
    pool: db.Pool,
    delivery: consuming.Delivery,
    command: events.CancelPayment,
    terms: domain.Terms,
    nothing: domain.GivenUp | None = None,
) -> domain.Payment:
    """Store what a cancellation leads to, and return the payment.

    `nothing`: the provider has said that there is no charge. Before that a payment without an order is not answered for.
    """
    async with db.transaction(pool) as conn:
        await queries.add_placeholder(conn, command.order_id, command.saga_id, currency=money.CURRENCY, terms=terms)
        payment = await queries.lock(conn, command.saga_id)
        if payment.order_id != command.order_id:
            raise errors.ForeignSagaError(f"saga {payment.saga_id} is of order {payment.order_id}, not of {command.order_id}")
        if _is_unasked(payment):
            if nothing is None:
                return payment
            payment = await queries.move(conn, payment, domain.Status.VOIDED, code=nothing.code, reason=nothing.reason, terms=terms)
        claimed = await inbox.claim(conn, delivery.message_id, delivery.type)
        if claimed and payment.status is domain.Status.CAPTURED:
            payment = await queries.move(conn, payment, domain.Status.REFUNDING, terms=terms)
        elif claimed:
            await _answer(conn, delivery, payment, terms)
    return payment


def _is_unasked(payment: domain.Payment) -> bool:
    return payment.status is domain.Status.PROCESSING and domain.is_placeholder(payment)


async def _intend(
    pool: db.Pool, delivery: consuming.Delivery, order: events.OrderCreated, terms: domain.Terms
) -> tuple[domain.Payment, bool]:
    """Insert the payment's row before a charge, or find it; one that has ended is answered again and its message claimed in the inbox."""
    asked = answers.Asked(intent=queries.Intent(order=order, terms=terms), delivery=delivery, context=contextvars.copy_context())

    async def intend(conn: db.Connection) -> tuple[domain.Payment, bool]:
        (found,) = await _intend_all(conn, [asked])
        if found is None:
            raise errors.ForeignSagaError(f"saga {order.saga_id} is of another order than {order.order_id}")
        return found

    return await db.grouped(pool, order.saga_id, intend, bulk=db.Bulk(run=_intend_all, item=asked))


async def _intend_all(conn: db.Connection, asked: Sequence[answers.Asked]) -> list[tuple[domain.Payment, bool] | None]:
    """Make the rows of many orders, or find them; None: order and saga do not belong together."""
    payments = {saga_id: (payment, True) for saga_id, payment in (await queries.add(conn, [one.intent for one in asked])).items()}
    again = [one for one in asked if one.intent.order.saga_id not in payments]
    if again:
        known = await queries.of_sagas(conn, [one.intent.order.saga_id for one in again])
        payments |= {saga_id: (payment, False) for saga_id, payment in known.items()}
        await answers.answer_again(conn, [one for one in again if _is_answered(one, known[one.intent.order.saga_id])])
    found = [payments[one.intent.order.saga_id] for one in asked]
    return [pair if pair[0].order_id == one.intent.order.order_id else None for one, pair in zip(asked, found, strict=True)]


def _is_answered(one: answers.Asked, payment: domain.Payment) -> bool:
    return payment.status not in _UNDER_WAY and payment.order_id == one.intent.order.order_id


async def conclude(
    pool: db.Pool, known: domain.Payment, result: domain.Result, delivery: consuming.Delivery | None, terms: domain.Terms
) -> domain.Payment:
    """Store the result of a charge and publish it; of several callers only the first does. No delivery: the sweeper looked."""

    async def write(conn: db.Connection) -> domain.Payment:
        payment = await queries.lock(conn, known.saga_id)
        if isinstance(result, domain.Captured) and domain.must_go_back(payment):
            return await _note_capture(conn, payment, domain.Status.REFUNDING, result, terms)
        is_first = delivery is None or await inbox.claim(conn, delivery.message_id, delivery.type)
        if not is_first or payment.status is not domain.Status.PROCESSING:
            return payment
        told_id = ids.uuid7()
        if isinstance(result, domain.Captured):
            payment = await _note_capture(conn, payment, domain.Status.CAPTURED, result, terms, told_id=told_id)
            await answers.publish(conn, delivery, domain.processed(payment, result), told_id)
            return payment
        is_declined = isinstance(result, domain.Declined) and payment.cancel_requested_at is None
        status = domain.Status.FAILED if is_declined else domain.Status.VOIDED
        payment = await queries.move(conn, payment, status, code=result.code, reason=result.reason, told_id=told_id, terms=terms)
        await answers.publish(conn, delivery, domain.failed(payment) if is_declined else domain.voided(payment), told_id)
        return payment

    return await db.grouped(pool, known.saga_id, write, bulk=_capture_of(known, result, delivery, terms))


def _capture_of(
    known: domain.Payment, result: domain.Result, delivery: consuming.Delivery | None, terms: domain.Terms
) -> db.Bulk[domain.Payment] | None:
    """Say how a payment is noted together with others: one that was charged what was asked, for the message that asked."""
    if not isinstance(result, domain.Captured) or result.amount != known.amount or delivery is None:
        return None
    told = outbox.row(domain.processed(_captured(known, result), result), source=answers.SOURCE, causation_id=str(delivery.message_id))
    capture = queries.Capture(
        payment=known, captured=result, inbox_id=delivery.message_id, inbox_type=delivery.type, told=told, terms=terms
    )
    return db.Bulk(run=_capture_all, item=capture)


async def _capture_all(conn: db.Connection, captures: Sequence[queries.Capture]) -> list[domain.Payment | None]:
    noted = await queries.capture(conn, captures)
    return [_captured(one.payment, one.captured) if one.payment.id in noted else None for one in captures]


def _captured(known: domain.Payment, result: domain.Captured) -> domain.Payment:
    return msgspec.structs.replace(known, status=domain.Status.CAPTURED, version=known.version + 1, transaction_id=result.transaction_id)


async def _note_capture(
    conn: db.Connection,
    payment: domain.Payment,
    status: domain.Status,
    captured: domain.Captured,
    terms: domain.Terms,
    *,
    told_id: UUID | None = None,
) -> domain.Payment:
    amount = captured.amount if domain.is_placeholder(payment) else None  # the order's amount was not known
    if amount is None and captured.amount != payment.amount:
        telemetry.log.error("payment.other_amount", order_id=payment.order_id, asked=str(payment.amount), taken=str(captured.amount))
    moved = await queries.move(conn, payment, status, transaction_id=captured.transaction_id, amount=amount, told_id=told_id, terms=terms)
    await queries.enter(conn, moved, "capture", captured)
    return moved


async def _answer(conn: db.Connection, delivery: consuming.Delivery, payment: domain.Payment, terms: domain.Terms) -> None:
    """Answer a cancellation that needs no call: nothing was charged, or it went back already; a running call answers it later."""
    if payment.status is domain.Status.PROCESSING:
        await queries.note_cancel(conn, payment, terms=terms)
    elif payment.status is domain.Status.REFUNDING:
        return
    elif payment.status is domain.Status.REFUNDED:
        await answers.publish(conn, delivery, domain.refunded(payment, await queries.find_movement(conn, payment, "refund")))
    else:
        await answers.publish(conn, delivery, domain.voided(payment))
