"""The use cases of payment: charge an order once, take it back on request; a provider call stands between two transactions."""

from collections.abc import Sequence
from typing import Final

import msgspec

from sagapost_chassis import consuming, crashpoints, db, inbox, outbox, telemetry
from sagapost_contracts import events, money
from sagapost_payment import domain, errors, provider, queries

SOURCE = "payment"
_UNDER_WAY: Final = {domain.Status.PROCESSING, domain.Status.REFUNDING}


class _Asked(msgspec.Struct, frozen=True, kw_only=True):
    """An order that is to be charged, and the message that asks for it."""

    intent: queries.Intent
    delivery: consuming.Delivery


async def on_order_created(
    pool: db.Pool, psp: provider.Provider, delivery: consuming.Delivery, order: events.OrderCreated, terms: domain.Terms
) -> None:
    """Charge the order, once, and tell how it went.

    Raises:
        TransientError: the outcome is not known yet; the same message, and the same key, come again.
        ForeignSagaError: order and saga do not belong together; nothing was written.

    """
    payment, fresh = await _intend(pool, delivery, order, terms)
    await crashpoints.crashpoint("payment.after_intent")
    if payment.status is domain.Status.PROCESSING:
        result = await capture(pool, psp, payment, terms, fresh=fresh)
        await crashpoints.crashpoint("payment.after_charge")
        payment = await conclude(pool, payment, result, delivery, terms)
        await crashpoints.crashpoint("payment.after_commit")
    if payment.status is domain.Status.REFUNDING:
        await give_back(pool, psp, payment, delivery, terms, fresh=False)


async def on_cancel_payment(
    pool: db.Pool, psp: provider.Provider, delivery: consuming.Delivery, command: events.CancelPayment, terms: domain.Terms
) -> None:
    """See to it that nothing stays captured for the order; the answer is a void, a refund or a failed refund.

    The command counts as taken in when it is decided what it leads to: what comes again later only finishes its refund.

    Raises:
        TransientError: a refund whose outcome is not known yet; it is repeated with the same key.
        ForeignSagaError: order and saga do not belong together; nothing was written.

    """
    moved = False
    async with db.transaction(pool) as conn:
        reason = "The order was cancelled before anything was charged."
        await queries.add_tombstone(conn, command.order_id, command.saga_id, currency=money.CURRENCY, code=domain.CANCELLED, reason=reason)
        payment = _of_saga(await queries.lock(conn, command.order_id), command)
        if await inbox.claim(conn, delivery.message_id, delivery.type):
            moved = payment.status is domain.Status.CAPTURED
            if moved:
                payment = await queries.move(conn, payment, domain.Status.REFUNDING, terms=terms)
            else:
                await _answer(conn, delivery, payment, terms)
    if payment.status is domain.Status.REFUNDING:
        await give_back(pool, psp, payment, delivery, terms, fresh=moved)


async def _intend(
    pool: db.Pool, delivery: consuming.Delivery, order: events.OrderCreated, terms: domain.Terms
) -> tuple[domain.Payment, bool]:
    """Make the row that says "we are about to charge", or find it; a finished one only needs its message ticked off."""
    asked = _Asked(intent=queries.Intent(order=order, terms=terms), delivery=delivery)

    async def intend(conn: db.Connection) -> tuple[domain.Payment, bool]:
        (found,) = await _intend_all(conn, [asked])
        if found is None:
            raise errors.ForeignSagaError(f"order {order.order_id} is not of saga {order.saga_id}")
        return found

    return await db.grouped(pool, order.saga_id, intend, bulk=db.Bulk(run=_intend_all, item=asked))


async def _intend_all(conn: db.Connection, asked: Sequence[_Asked]) -> list[tuple[domain.Payment, bool] | None]:
    """Make the rows of many orders, or find them; None: order and saga do not belong together."""
    payments = {saga_id: (payment, True) for saga_id, payment in (await queries.add(conn, [one.intent for one in asked])).items()}
    again = [one for one in asked if one.intent.order.saga_id not in payments]
    if again:
        known = await queries.of_orders(conn, [(one.intent.order.order_id, one.intent.order.saga_id) for one in again])
        payments |= {saga_id: (payment, False) for saga_id, payment in known.items()}
        ended = {saga_id for saga_id, payment in known.items() if payment.status not in _UNDER_WAY}
        ticked_off = [(one.delivery.message_id, one.delivery.type) for one in again if one.intent.order.saga_id in ended]
        await inbox.claim_all(conn, ticked_off)
    return [payments.get(one.intent.order.saga_id) for one in asked]


def _of_saga(payment: domain.Payment, message: events.Message) -> domain.Payment:
    if payment.saga_id != message.saga_id:
        raise errors.ForeignSagaError(f"order {payment.order_id} is of saga {payment.saga_id}, not of {message.saga_id}")
    return payment


async def capture(pool: db.Pool, psp: provider.Provider, payment: domain.Payment, terms: domain.Terms, *, fresh: bool) -> domain.Result:
    """Find out what became of an earlier call, or make one; outside any transaction.

    Raises:
        TransientError: the outcome is not known yet.

    """
    if not fresh:
        async with db.transaction(pool) as conn:
            await queries.repeat(conn, payment, terms=terms)
    if not fresh or payment.expired:
        found = await _find(psp, payment) or domain.reason_to_give_up(payment, terms)
        if found is not None:
            return found
    outcome = await psp.charge(
        key=domain.charge_key(payment.saga_id),
        reference=payment.saga_id,
        amount=payment.amount,
        currency=payment.currency,
        payment_method=payment.payment_method,
    )
    if isinstance(outcome, domain.Captured) and not domain.is_as_asked(payment, outcome):
        # an answer is no money: what was really taken, the look-up tells
        outcome = domain.Unknown(cause=f"answered that it took {outcome.amount} {outcome.currency}", unanswered=False)
    if not isinstance(outcome, domain.Unknown):
        return outcome
    async with db.transaction(pool) as conn:
        await queries.doubt(conn, payment, unanswered=outcome.unanswered)
    charge = await _find(psp, payment)
    if charge is not None:
        telemetry.log.warning("provider.found", order_id=payment.order_id, cause=outcome.cause)
        return charge
    # no charge now does not mean none ever: the next delivery asks again before it repeats the call or gives up
    raise errors.OutcomeUnknownError(outcome.cause)


async def _find(psp: provider.Provider, payment: domain.Payment) -> domain.Captured | None:
    found = await psp.find(payment.saga_id)
    return found[0] if found else None


async def conclude(
    pool: db.Pool, known: domain.Payment, result: domain.Result, delivery: consuming.Delivery | None, terms: domain.Terms
) -> domain.Payment:
    """Write down the result and tell of it; of several that come here, the first one does. No delivery: somebody had a look."""

    async def write(conn: db.Connection) -> domain.Payment:
        payment = await queries.lock(conn, known.order_id)
        if isinstance(result, domain.Captured) and domain.must_go_back(payment):
            return await _note_capture(conn, payment, domain.Status.REFUNDING, result, terms)
        is_first = delivery is None or await inbox.claim(conn, delivery.message_id, delivery.type)
        if not is_first or payment.status is not domain.Status.PROCESSING:
            return payment
        if isinstance(result, domain.Captured):
            payment = await _note_capture(conn, payment, domain.Status.CAPTURED, result, terms)
            await _tell(conn, delivery, domain.processed(payment, result))
        elif isinstance(result, domain.Declined) and payment.cancel_requested_at is None:
            payment = await queries.move(conn, payment, domain.Status.FAILED, code=result.code, reason=result.reason, terms=terms)
            await _tell(conn, delivery, domain.failed(payment))
        else:
            payment = await queries.move(conn, payment, domain.Status.VOIDED, code=result.code, reason=result.reason, terms=terms)
            await _tell(conn, delivery, domain.voided(payment))
        return payment

    return await db.grouped(pool, known.saga_id, write, bulk=_capture_of(known, result, delivery, terms))


def _capture_of(
    known: domain.Payment, result: domain.Result, delivery: consuming.Delivery | None, terms: domain.Terms
) -> db.Bulk[domain.Payment] | None:
    """Say how a payment is noted together with others: one that was charged what was asked, for the message that asked."""
    if not isinstance(result, domain.Captured) or result.amount != known.amount or delivery is None:
        return None
    told = outbox.row(domain.processed(_captured(known, result), result), source=SOURCE, causation_id=str(delivery.message_id))
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
    conn: db.Connection, payment: domain.Payment, status: domain.Status, captured: domain.Captured, terms: domain.Terms
) -> domain.Payment:
    if captured.amount != payment.amount:
        telemetry.log.error("payment.other_amount", order_id=payment.order_id, asked=str(payment.amount), taken=str(captured.amount))
    moved = await queries.move(conn, payment, status, transaction_id=captured.transaction_id, terms=terms)
    await queries.enter(conn, moved, "capture", captured)
    return moved


async def give_back(
    pool: db.Pool,
    psp: provider.Provider,
    payment: domain.Payment,
    delivery: consuming.Delivery | None,
    terms: domain.Terms,
    *,
    fresh: bool,
) -> None:
    """Refund a payment that is `refunding`, and tell of it; safe to repeat. `fresh`: nobody has tried before.

    Raises:
        TransientError: the outcome is not known yet; it is repeated with the same key.

    """
    async with db.connection(pool) as conn:
        captured = await queries.find_movement(conn, payment, "capture")
    outcome = await _refund(psp, payment, captured, fresh=fresh)
    if isinstance(outcome, domain.Unknown):
        raise errors.OutcomeUnknownError(outcome.cause)
    await crashpoints.crashpoint("payment.after_refund")
    async with db.transaction(pool) as conn:
        payment = await queries.lock(conn, payment.order_id)
        if delivery is not None:
            await inbox.claim(conn, delivery.message_id, delivery.type)
        if payment.status is not domain.Status.REFUNDING:
            return
        if isinstance(outcome, domain.Declined):
            # the money is still here: a later command may try again
            payment = await queries.move(conn, payment, domain.Status.CAPTURED, code=outcome.code, reason=outcome.reason, terms=terms)
            await _tell(conn, delivery, domain.refund_failed(payment, captured, outcome))
            return
        if outcome.amount != captured.amount:
            telemetry.log.error("payment.other_amount", order_id=payment.order_id, asked=str(captured.amount), given=str(outcome.amount))
        payment = await queries.move(conn, payment, domain.Status.REFUNDED, terms=terms)
        await queries.enter(conn, payment, "refund", outcome)
        await _tell(conn, delivery, domain.refunded(payment, outcome))


async def _refund(
    psp: provider.Provider, payment: domain.Payment, captured: domain.Movement, *, fresh: bool
) -> domain.Refunded | domain.Declined | domain.Unknown:
    """Find the refund of an earlier call, or ask for one; a provider that forgets its keys refuses what it has done already."""
    found = None if fresh else await _gone_back(psp, payment, captured)
    if found is not None:
        return found
    outcome = await psp.refund(
        key=domain.refund_key(payment.saga_id),
        reference=payment.saga_id,
        charge_id=captured.transaction_id,
        amount=captured.amount,
        currency=captured.currency,
    )
    if isinstance(outcome, domain.Refunded):
        return outcome
    return await _gone_back(psp, payment, captured) or outcome


async def _gone_back(psp: provider.Provider, payment: domain.Payment, captured: domain.Movement) -> domain.Refunded | None:
    charges = [charge for charge in await psp.find(payment.saga_id) if charge.transaction_id == captured.transaction_id]
    return domain.gone_back(charges[0]) if charges else None


async def _answer(conn: db.Connection, delivery: consuming.Delivery, payment: domain.Payment, terms: domain.Terms) -> None:
    """Answer a cancellation that needs no call: nothing was charged, or it went back already; a running call answers it later."""
    if payment.status is domain.Status.PROCESSING:
        await queries.note_cancel(conn, payment, terms=terms)
    elif payment.status is domain.Status.REFUNDING:
        return
    elif payment.status is domain.Status.REFUNDED:
        await _tell(conn, delivery, domain.refunded(payment, await queries.find_movement(conn, payment, "refund")))
    else:
        await _tell(conn, delivery, domain.voided(payment))


async def _tell(conn: db.Connection, delivery: consuming.Delivery | None, message: events.Message) -> None:
    await outbox.add(conn, message, source=SOURCE, causation_id=str(delivery.message_id) if delivery else None)
