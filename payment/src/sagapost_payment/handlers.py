"""The use cases of payment: charge an order once, take it back on request; a provider call stands between two transactions."""

from sagapost_chassis import consuming, crashpoints, db, inbox, outbox, telemetry
from sagapost_contracts import events, money
from sagapost_payment import domain, errors, provider, queries

SOURCE = "payment"


async def on_order_created(
    pool: db.Pool, psp: provider.Provider, delivery: consuming.Delivery, order: events.OrderCreated, *, max_unanswered: int
) -> None:
    """Charge the order, once, and tell how it went.

    Raises:
        TransientError: the outcome is not known yet; the same message, and the same key, come again.

    """
    payment, fresh = await _intend(pool, delivery, order)
    await crashpoints.crashpoint("payment.after_intent")
    if payment.status is domain.Status.PROCESSING:
        result = await _capture(pool, psp, payment, fresh=fresh, max_unanswered=max_unanswered)
        await crashpoints.crashpoint("payment.after_charge")
        payment = await _conclude(pool, delivery, payment.order_id, result)
        await crashpoints.crashpoint("payment.after_commit")
    if payment.status is domain.Status.REFUNDING:
        await _give_back(pool, psp, delivery, payment)


async def on_cancel_payment(pool: db.Pool, psp: provider.Provider, delivery: consuming.Delivery, command: events.CancelPayment) -> None:
    """See to it that nothing stays captured for the order; the answer is a void, a refund or a failed refund.

    Raises:
        TransientError: a refund whose outcome is not known yet; it is repeated with the same key.

    """
    async with db.transaction(pool) as conn:
        reason = "The order was cancelled before anything was charged."
        await queries.add_tombstone(conn, command.order_id, command.saga_id, currency=money.CURRENCY, code=domain.CANCELLED, reason=reason)
        payment = await queries.lock(conn, command.order_id)
        if payment.status is domain.Status.CAPTURED:
            payment = await queries.move(conn, payment, domain.Status.REFUNDING)
        elif payment.status is not domain.Status.REFUNDING and await inbox.claim(conn, delivery.message_id, delivery.type):
            await _answer(conn, delivery, payment)
    if payment.status is domain.Status.REFUNDING:
        await _give_back(pool, psp, delivery, payment)


async def _intend(pool: db.Pool, delivery: consuming.Delivery, order: events.OrderCreated) -> tuple[domain.Payment, bool]:
    """Make the row that says "we are about to charge", or find it; a finished one only needs its message ticked off."""
    async with db.transaction(pool) as conn:
        fresh = await queries.add(conn, order)
        payment = await queries.get(conn, order.order_id)
        if payment is None:
            raise errors.ForeignSagaError(f"order {order.order_id} has no payment, but its saga has")
        if payment.status not in {domain.Status.PROCESSING, domain.Status.REFUNDING}:
            await inbox.claim(conn, delivery.message_id, delivery.type)
        return payment, fresh


async def _capture(pool: db.Pool, psp: provider.Provider, payment: domain.Payment, *, fresh: bool, max_unanswered: int) -> domain.Result:
    """Find out what became of an earlier call, or make one; outside any transaction."""
    if not fresh or payment.expired:
        found = await psp.find(payment.saga_id) or domain.reason_to_give_up(payment, max_unanswered)
        if found is not None:
            return found
    outcome = await psp.charge(
        key=domain.charge_key(payment.saga_id),
        reference=payment.saga_id,
        amount=payment.amount,
        currency=payment.currency,
        payment_method=payment.payment_method,
    )
    if not isinstance(outcome, domain.Unknown):
        return outcome
    found = await psp.find(payment.saga_id)
    if found is not None:
        telemetry.log.warning("provider.found", order_id=payment.order_id, cause=outcome.cause)
        return found
    if outcome.unanswered:
        async with db.transaction(pool) as conn:
            await queries.count_unanswered(conn, payment)
    # no charge now does not mean none ever: the next delivery asks again before it repeats the call or gives up
    raise errors.OutcomeUnknownError(outcome.cause)


async def _conclude(pool: db.Pool, delivery: consuming.Delivery, order_id: int, result: domain.Result) -> domain.Payment:
    """Write down the result and tell of it; of several deliveries that come here, the first one does."""
    async with db.transaction(pool) as conn:
        payment = await queries.lock(conn, order_id)
        if isinstance(result, domain.Captured) and domain.must_go_back(payment):
            return await _note_capture(conn, payment, domain.Status.REFUNDING, result)
        if not await inbox.claim(conn, delivery.message_id, delivery.type) or payment.status is not domain.Status.PROCESSING:
            return payment
        if isinstance(result, domain.Captured):
            payment = await _note_capture(conn, payment, domain.Status.CAPTURED, result)
            await _tell(conn, delivery, domain.processed(payment, result))
        elif isinstance(result, domain.Declined) and payment.cancel_requested_at is None:
            payment = await queries.move(conn, payment, domain.Status.FAILED, code=result.code, reason=result.reason)
            await _tell(conn, delivery, domain.failed(payment))
        else:
            payment = await queries.move(conn, payment, domain.Status.VOIDED, code=result.code, reason=result.reason)
            await _tell(conn, delivery, domain.voided(payment))
        return payment


async def _note_capture(conn: db.Connection, payment: domain.Payment, status: domain.Status, captured: domain.Captured) -> domain.Payment:
    if captured.amount != payment.amount:
        telemetry.log.error("payment.other_amount", order_id=payment.order_id, asked=str(payment.amount), taken=str(captured.amount))
    moved = await queries.move(conn, payment, status, transaction_id=captured.transaction_id)
    await queries.enter(conn, moved, "capture", captured)
    return moved


async def _give_back(pool: db.Pool, psp: provider.Provider, delivery: consuming.Delivery, payment: domain.Payment) -> None:
    """Refund a payment that is `refunding`, and tell of it; safe to repeat."""
    async with db.connection(pool) as conn:
        captured = await queries.find_movement(conn, payment, "capture")
    outcome = await psp.refund(
        key=domain.refund_key(payment.saga_id),
        reference=payment.saga_id,
        charge_id=captured.transaction_id,
        amount=captured.amount,
        currency=captured.currency,
    )
    if isinstance(outcome, domain.Unknown):
        raise errors.OutcomeUnknownError(outcome.cause)
    async with db.transaction(pool) as conn:
        payment = await queries.lock(conn, payment.order_id)
        await inbox.claim(conn, delivery.message_id, delivery.type)
        if payment.status is not domain.Status.REFUNDING:
            return
        if isinstance(outcome, domain.Declined):
            # the money is still here: a later command may try again
            payment = await queries.move(conn, payment, domain.Status.CAPTURED, code=outcome.code, reason=outcome.reason)
            await _tell(conn, delivery, domain.refund_failed(payment, captured, outcome))
            return
        payment = await queries.move(conn, payment, domain.Status.REFUNDED)
        await queries.enter(conn, payment, "refund", outcome)
        await _tell(conn, delivery, domain.refunded(payment, outcome))


async def _answer(conn: db.Connection, delivery: consuming.Delivery, payment: domain.Payment) -> None:
    """Answer a cancellation that needs no call: nothing was charged, or it went back already."""
    if payment.status is domain.Status.PROCESSING:
        await queries.note_cancel(conn, payment)
    elif payment.status is domain.Status.REFUNDED:
        await _tell(conn, delivery, domain.refunded(payment, await queries.find_movement(conn, payment, "refund")))
    else:
        await _tell(conn, delivery, domain.voided(payment))


async def _tell(conn: db.Connection, delivery: consuming.Delivery, message: events.Message) -> None:
    await outbox.add(conn, message, source=SOURCE, causation_id=str(delivery.message_id))
