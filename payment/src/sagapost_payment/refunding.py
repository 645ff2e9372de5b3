"""Refunds at the provider, and how they are written down; it must not know why money goes back."""

from sagapost_chassis import consuming, crashpoints, db, ids, inbox, telemetry
from sagapost_payment import answers, domain, errors, provider, queries


async def give_back(
    pool: db.Pool,
    psp: provider.Provider,
    payment: domain.Payment,
    delivery: consuming.Delivery | None,
    terms: domain.Terms,
) -> None:
    """Refund a payment that is `refunding`, and publish the outcome; idempotent.

    Raises:
        TransientError: the outcome is not known yet; it is repeated with the same key.

    """
    async with db.connection(pool) as conn:
        captured = await queries.find_movement(conn, payment, "capture")
    outcome = await _refund(psp, payment, captured)
    if isinstance(outcome, domain.Unknown):
        await _give_up_kept_key(pool, payment, outcome)
        raise errors.OutcomeUnknownError(outcome.cause, counted=outcome.may_be_ours)
    await crashpoints.crashpoint("payment.after_refund")
    async with db.transaction(pool) as conn:
        payment = await queries.lock(conn, payment.saga_id)
        if delivery is not None:
            await inbox.claim(conn, delivery.message_id, delivery.type)
        if payment.status is not domain.Status.REFUNDING:
            return
        if isinstance(outcome, domain.Declined):
            # The money is still here: a later command may try again. Under the next key: the provider may keep its refusal under this one,
            # and the look-up that followed it said that nothing went back.
            await queries.next_refund_key(conn, payment)
            payment = await queries.move(conn, payment, domain.Status.CAPTURED, code=outcome.code, reason=outcome.reason, terms=terms)
            await answers.publish(conn, delivery, domain.refund_failed(payment, captured, outcome))
            return
        if outcome.amount != captured.amount:
            telemetry.log.error("payment.other_amount", order_id=payment.order_id, asked=str(captured.amount), given=str(outcome.amount))
        told_id = ids.uuid7()
        payment = await queries.move(conn, payment, domain.Status.REFUNDED, told_id=told_id, terms=terms)
        await queries.enter(conn, payment, "refund", outcome)
        await answers.publish(conn, delivery, domain.refunded(payment, outcome), told_id)


async def _give_up_kept_key(pool: db.Pool, payment: domain.Payment, outcome: domain.Unknown) -> None:
    """Count an answered error of a refund; a kept one, which a look-up has followed, makes the next call go under the next key."""
    if not outcome.is_error:
        return
    async with db.transaction(pool) as conn:
        if domain.is_kept(outcome, await queries.note_refund_error(conn, payment)):
            await queries.next_refund_key(conn, payment)
            telemetry.log.warning(
                "provider.key_given_up", order_id=payment.order_id, cause=outcome.cause, generation=payment.refund_generation + 1
            )


async def _refund(
    psp: provider.Provider, payment: domain.Payment, captured: domain.Movement
) -> domain.Refunded | domain.Declined | domain.Unknown:
    """Find the refund of an earlier call, or ask for one.

    The look-up comes first also when this database knows of no call: it may have been put back to before it, and a provider may have
    forgotten the key.
    """
    found = await _gone_back(psp, payment, captured)
    if found is not None:
        return found
    outcome = await psp.refund(
        key=domain.key_of(domain.refund_key(payment.saga_id), payment.refund_generation),
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
