"""Payments that stand too long, or may have been charged once more: ask the provider, never guess; it must not know when to look."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Final

import prometheus_client

from sagapost_chassis import db, telemetry
from sagapost_payment import charging, domain, errors, handlers, provider, queries, refunding

BATCH: Final = 8

LOOKS: Final = prometheus_client.Counter("sagapost_payment_looks", "Payments that somebody had a second look at, by status", ["status"])
DUPLICATES: Final = prometheus_client.Counter("sagapost_payment_duplicate_charges", "Charges beside our own that were given back")


async def claim(pool: db.Pool, terms: domain.Terms) -> list[domain.Payment]:
    """Claim the payments that somebody should look at now, up to `BATCH`; nobody else gets them for `terms.call_s` seconds."""
    async with db.transaction(pool) as conn:
        await queries.follow_clock(conn, terms=terms)
        return await queries.look(conn, BATCH, terms=terms)


async def look(pool: db.Pool, psp: provider.Provider, payment: domain.Payment, terms: domain.Terms) -> None:
    """Bring a claimed payment on from where it stands; what has ended is compared with the provider's charges.

    Raises:
        TransientError: nothing could be learnt, or not in time; a later look will.

    """
    LOOKS.labels(payment.status.value).inc()
    async with _claimed(terms):
        if payment.status is domain.Status.PROCESSING:
            result = await charging.capture(pool, psp, payment, terms, fresh=False)
            payment = await handlers.conclude(pool, payment, result, None, terms)
        elif payment.status is not domain.Status.REFUNDING:
            payment = await _reconcile(pool, psp, payment, terms)
    if payment.status is domain.Status.REFUNDING:
        async with _claimed(terms):  # again: becoming `refunding` has moved the next look on
            await refunding.give_back(pool, psp, payment, None, terms)


@contextlib.asynccontextmanager
async def _claimed(terms: domain.Terms) -> AsyncGenerator[None]:
    """End what takes longer than its claim, as kill -9 would: the next look may have begun."""
    try:
        async with asyncio.timeout(terms.call_s):
            yield
    except TimeoutError as exc:
        raise errors.OutcomeUnknownError(f"not done within {terms.call_s:g} s", counted=False) from exc


async def _reconcile(pool: db.Pool, psp: provider.Provider, payment: domain.Payment, terms: domain.Terms) -> domain.Payment:
    """Take up what the provider took after we had given up, and give back what it took although it had been told the same key."""
    charges = await psp.find(payment.saga_id)
    if charges and payment.transaction_id is None:
        telemetry.log.warning("payment.late_charge", order_id=payment.order_id, status=payment.status.value)
        return await handlers.conclude(pool, payment, charges[0], None, terms)
    async with db.connection(pool) as conn:
        noted = await queries.noted_duplicates(conn, payment)
    for charge in domain.surplus(charges, payment.transaction_id or "", noted):
        await _return_surplus(pool, psp, payment, charge)
    return payment


async def _return_surplus(pool: db.Pool, psp: provider.Provider, payment: domain.Payment, charge: domain.Captured) -> None:
    """Give a charge that nobody asked for back, once, and note it; one that an earlier look gave back and did not note is only noted."""
    outcome = domain.gone_back(charge) or await psp.refund(
        key=domain.key_of(domain.duplicate_key(charge.transaction_id), payment.refund_generation),
        reference=payment.saga_id,
        charge_id=charge.transaction_id,
        amount=domain.left_of(charge),
        currency=charge.currency,
    )
    if not isinstance(outcome, domain.Refunded):
        cause = outcome.cause if isinstance(outcome, domain.Unknown) else outcome.code
        if isinstance(outcome, domain.Declined):
            telemetry.log.error("payment.surplus_kept", order_id=payment.order_id, surplus=charge.transaction_id, code=cause)
        await _note_refusal(pool, payment, outcome)
        raise errors.OutcomeUnknownError(f"the surplus charge {charge.transaction_id} is not given back: {cause}")
    async with db.transaction(pool) as conn:
        is_new = await queries.note_duplicate(conn, payment, charge, outcome.transaction_id)
    if is_new:
        DUPLICATES.inc()
        telemetry.log.error(
            "payment.charged_twice", order_id=payment.order_id, surplus=charge.transaction_id, refund=outcome.transaction_id
        )


async def _note_refusal(pool: db.Pool, payment: domain.Payment, outcome: domain.Declined | domain.Unknown) -> None:
    """Let the next look use the next key when the provider may keep this answer under it: each look begins with a look-up."""
    async with db.transaction(pool) as conn:
        if isinstance(outcome, domain.Declined) or (
            outcome.is_error and domain.is_kept(outcome, await queries.note_refund_error(conn, payment))
        ):
            await queries.next_refund_key(conn, payment)
