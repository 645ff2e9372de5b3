"""Charges at the provider: one call, or what an earlier one has done; it must not know a message, and what a result leads to."""

import time

import msgspec

from sagapost_chassis import db, telemetry
from sagapost_payment import domain, errors, provider, queries


async def capture(
    pool: db.Pool,
    psp: provider.Provider,
    payment: domain.Payment,
    terms: domain.Terms,
    *,
    fresh: bool,
    ask_first: bool = False,
) -> domain.Result:
    """Find out what became of an earlier call, or make one; outside any transaction. `ask_first`: the order was asked for before.

    Raises:
        TransientError: the outcome is not known yet.

    """
    if payment.expired and not await _is_over(pool, payment, terms):
        payment = msgspec.structs.replace(payment, expired=False)
    if not fresh:
        async with db.transaction(pool) as conn:
            await queries.repeat(conn, payment, terms=terms)
    if not fresh or ask_first or payment.expired:
        found = await _find(psp, payment) or domain.reason_to_give_up(payment, terms)
        if found is not None:
            return found
    outcome, errors_count = await _charge(pool, psp, payment)
    if isinstance(outcome, domain.Unknown) and domain.is_kept(outcome, errors_count):
        # the look-up that followed it said that there is no charge: another call under this key would only repeat the error
        async with db.transaction(pool) as conn:
            payment = await queries.next_charge_key(conn, payment, terms=terms)
        telemetry.log.warning("provider.key_given_up", order_id=payment.order_id, cause=outcome.cause, generation=payment.charge_generation)
        outcome, _ = await _charge(pool, psp, payment)
    if isinstance(outcome, domain.Unknown):
        # no charge now does not mean none ever: the next delivery asks again before it repeats the call or gives up
        raise errors.OutcomeUnknownError(outcome.cause, counted=outcome.may_be_ours)
    return outcome


async def _is_over(pool: db.Pool, payment: domain.Payment, terms: domain.Terms) -> bool:
    """Return whether the time to pay is over by two clocks: this machine's, and the database's.

    Of the database's is not counted by how much this process saw it being set forward. A step that it did not see, because it did not
    run or because the clock was set back before, leaves the other clock.
    """
    if terms.seen is None:
        return True
    began_s = time.monotonic()
    async with db.connection(pool) as conn:
        found = await queries.overdue(conn, payment)
    ended_s = time.monotonic()
    terms.seen.observe(found.clock, began_s, ended_s)
    is_over_here = domain.age_s(payment.saga_id, time.time()) >= found.window_s
    return is_over_here and found.overdue_s >= terms.seen.ahead_s(ended_s, found.created_at)


async def _charge(
    pool: db.Pool, psp: provider.Provider, payment: domain.Payment
) -> tuple[domain.Captured | domain.Declined | domain.Unknown, int]:
    """Charge, and look up what became of a call whose outcome is not known; return it with the answered errors under this key."""
    outcome = await psp.charge(
        key=domain.key_of(domain.charge_key(payment.saga_id), payment.charge_generation),
        reference=payment.saga_id,
        amount=payment.amount,
        currency=payment.currency,
        payment_method=payment.payment_method,
    )
    if isinstance(outcome, domain.Captured) and not domain.is_as_asked(payment, outcome):
        # an answer is no money: what was really taken, the look-up tells
        outcome = domain.Unknown(cause=f"answered that it took {outcome.amount} {outcome.currency}", unanswered=False)
    if not isinstance(outcome, domain.Unknown):
        return outcome, 0
    async with db.transaction(pool) as conn:
        errors_count = await queries.doubt(conn, payment, unanswered=outcome.unanswered, is_error=outcome.is_error)
    charge = await _find(psp, payment)
    if charge is not None:
        telemetry.log.warning("provider.found", order_id=payment.order_id, cause=outcome.cause)
    return charge or outcome, errors_count


async def _find(psp: provider.Provider, payment: domain.Payment) -> domain.Captured | None:
    found = await psp.find(payment.saga_id)
    return found[0] if found else None
