"""Invariants 3 and 4: what moved is what was ordered, once, and all books say the same."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from decimal import Decimal
from typing import Final, TypeVar

from psycopg import sql

from sagapost_ops import evidence, parts
from sagapost_ops.invariants.outcome import Expectations, Outcome, outcome
from sagapost_ops.outbox import queries

K = TypeVar("K")

LIVE: Final = frozenset({"paid", "notified", "notify_failed"})
NEUTRAL: Final = frozenset({"compensated"})
_NOTHING: Final = Decimal(0)
_BOOKED: Final[dict[str, tuple[int, int]]] = {  # captures and refunds that go with a payment's status
    "captured": (1, 0),
    "refunded": (1, 1),
    "failed": (0, 0),
    "voided": (0, 0),
}
# Whatever came after a final "no" must not have been a capture. Of a message that was sent again the first row counts; where that
# may have left the ring, only a younger copy is left, and its place tells nothing.
_CAPTURE_AFTER_END: Final = sql.SQL("""
WITH {ring}, said AS (
    SELECT DISTINCT ON (event_id) id, correlation_id, type, created_at FROM outbox
     WHERE type IN ('PaymentVoided', 'PaymentFailed', 'PaymentRefunded', 'PaymentProcessed') ORDER BY event_id, id
)
SELECT format('saga %%s was charged after %%s had said that it would not be', late.correlation_id, min(ended.type))
  FROM said AS ended JOIN said AS late ON late.correlation_id = ended.correlation_id AND late.id > ended.id CROSS JOIN ring
 WHERE ended.type <> 'PaymentProcessed' AND late.type = 'PaymentProcessed' AND late.created_at >= ring.whole_since
 GROUP BY late.correlation_id ORDER BY late.correlation_id LIMIT 100
""").format(ring=queries.RING)
_TOO_OLD: Final = sql.SQL("""
WITH {ring} SELECT count(*) FROM payments AS p CROSS JOIN ring WHERE p.created_at < ring.whole_since AND {paid_since}
""").format(ring=queries.RING, paid_since=evidence.PAID_SINCE)
_TWO_RESULTS: Final = """
SELECT format('saga %%s has %%s results of its payment', correlation_id, count(DISTINCT event_id))
  FROM outbox WHERE type IN ('PaymentProcessed', 'PaymentFailed')
 GROUP BY correlation_id HAVING count(DISTINCT event_id) > 1 ORDER BY correlation_id LIMIT 100
"""


def payments_match_orders(found: parts.Part, _: Expectations) -> Outcome:
    """Check that each payment belongs to an order, asks for its amount, and is there when the saga says so."""
    payments = {payment.saga_id: payment for payment in found.payments}
    violations: list[str] = []
    for payment in found.payments:
        saga = found.sagas.get(payment.saga_id)
        if saga is None or saga.order_id != payment.order_id:
            violations.append(f"payment of order {payment.order_id} has no such order (saga {payment.saga_id})")
        elif (payment.amount, payment.currency) != (saga.total, saga.currency) and not (payment.status == "voided" and not payment.amount):
            violations.append(f"order {saga.order_id} costs {saga.total} {saga.currency}, its payment {payment.amount} {payment.currency}")
    unpaid = (saga for saga in found.sagas.values() if saga.state != "created" and saga.id not in payments)
    violations.extend(f"saga {saga.id} is {saga.state} and payment has never heard of it" for saga in unpaid)
    return outcome(len(found.payments), violations)


def ledger_matches_status(found: parts.Part, _: Expectations) -> Outcome:
    """Check that our ledger holds exactly what each payment's status stands for, at most one line of a kind."""
    lines = Counter((entry.saga_id, entry.kind) for entry in found.ledger)
    violations: list[str] = []
    for payment in found.payments:
        booked = lines[payment.saga_id, "capture"], lines[payment.saga_id, "refund"]
        if booked != _BOOKED.get(payment.status):
            violations.append(f"payment of order {payment.order_id} is {payment.status} with {booked[0]} captures and {booked[1]} refunds")
    charges = {payment.saga_id: payment.transaction_id for payment in found.payments}
    violations.extend(
        f"payment of order {entry.order_id} is charge {charges[entry.saga_id]}, its ledger says {entry.transaction_id}"
        for entry in found.ledger
        if entry.kind == "capture" and entry.transaction_id != charges[entry.saga_id]
    )
    return outcome(len(found.payments), violations)


def ledger_matches_sagas(found: parts.Part, _: Expectations) -> Outcome:
    """Check that each saga knows of the money that moved, and that a live order is paid and any other is not.

    What an operator gave back by hand no ledger has; the saga counts it, and so do we.
    """
    sums = _sums((entry.saga_id, entry.kind, entry.amount) for entry in found.ledger)
    violations: list[str] = []
    for saga in found.sagas.values():
        captured, refunded = sums[saga.id, "capture"], sums[saga.id, "refund"]
        by_hand = found.by_hand.get(saga.id, _NOTHING)
        refunded += by_hand
        if (captured, refunded) != (saga.captured, saga.refunded):
            hand = f", {by_hand} of it by hand" if by_hand else ""
            violations.append(
                f"saga {saga.id} knows of {saga.captured} captured, {saga.refunded} refunded; the ledger has {captured}, {refunded}{hand}"
            )
        if saga.state in LIVE and captured - refunded != saga.total:
            violations.append(f"order {saga.order_id} is {saga.state} and costs {saga.total}, taken is {captured - refunded}")
        if saga.state in NEUTRAL and captured != refunded:
            violations.append(f"order {saga.order_id} is {saga.state}, and {captured - refunded} of it was kept")
    return outcome(len(found.sagas), violations)


def provider_matches_ledger(found: parts.Part, expected: Expectations) -> Outcome | None:
    """Check against the provider's own ledger: the same money, each movement once, for nobody else."""
    if found.movements is None:
        return None
    known = {str(saga_id) for saga_id in found.sagas}
    mine = known | {str(payment.saga_id) for payment in found.payments}
    surplus = {duplicate.transaction_id for duplicate in found.duplicates}
    ours = {(str(entry.saga_id), {"capture": "charge"}.get(entry.kind, entry.kind)): entry for entry in found.ledger}
    theirs: dict[tuple[str, str], list[evidence.Movement]] = defaultdict(list)
    for movement in found.movements:
        if movement.charge_id not in surplus and (movement.reference in mine or not expected.strangers):
            theirs[movement.reference, movement.kind].append(movement)
    violations: list[str] = []
    for key in sorted(ours.keys() | theirs.keys()):
        capture = ours.get((key[0], "charge"))
        charge_id = capture.transaction_id if capture else None
        violations.extend(_compare(key, ours.get(key), theirs.get(key, []), charge_id, is_known=key[0] in known))
    return outcome(len(ours.keys() | theirs.keys()), violations)


def _compare(
    key: tuple[str, str], ours: parts.Entry | None, theirs: list[evidence.Movement], charge_id: str | None, *, is_known: bool
) -> Iterator[str]:
    reference, kind = key
    if not is_known:
        yield f"the provider has a {kind} for {reference}, which is no saga"
    if len(theirs) > 1:
        yield f"saga {reference} has {len(theirs)} {kind}s at the provider"
    total = sum((movement.amount for movement in theirs), _NOTHING)
    if ours is None:
        yield f"saga {reference} has a {kind} of {total} at the provider, and our ledger has none"
    elif not theirs:
        yield f"saga {reference} has a {kind} of {ours.amount} in our ledger, and the provider has none"
    elif total != ours.amount or theirs[0].currency != ours.currency:
        yield f"saga {reference}: a {kind} of {ours.amount} in our ledger, of {total} at the provider"
    elif theirs[0].charge_id != charge_id:
        what = "charge" if kind == "charge" else f"a {kind} of charge"
        yield f"saga {reference}: {what} {charge_id} in our ledger, {theirs[0].charge_id} at the provider"


def duplicates_went_back(found: parts.Part, _: Expectations) -> Outcome | None:
    """Check that each charge that payment noted as surplus is one at the provider, was not asked for, and went back in full."""
    if found.movements is None:
        return None
    sums = _sums((movement.charge_id, movement.kind, movement.amount) for movement in found.movements)
    violations: list[str] = []
    for noted in found.duplicates:
        taken, given = sums[noted.transaction_id, "charge"], sums[noted.transaction_id, "refund"]
        if noted.is_standing:
            violations.append(f"charge {noted.transaction_id} of saga {noted.saga_id} is noted as surplus, and its payment stands on it")
        if not taken == given == noted.amount:
            violations.append(
                f"surplus charge {noted.transaction_id} of saga {noted.saga_id} is noted with {noted.amount}; "
                f"the provider took {taken} and gave back {given}"
            )
    return outcome(len(found.duplicates), violations)


def cancellations_took_effect(found: parts.Part, _: Expectations) -> Outcome:
    """Check that no payment that somebody asked to cancel is still captured, unless the provider refused to give it back."""
    asked = found.announced(parts.CANCEL_PAYMENT)
    wrong = (
        f"payment of order {payment.order_id} was to be cancelled and is captured"
        for payment in found.payments
        if payment.status == "captured" and payment.code is None and (payment.is_cancelled or str(payment.saga_id) in asked)
    )
    return outcome(len(found.payments), wrong)


def no_capture_after_the_end(found: evidence.Evidence, _: Expectations) -> Outcome:
    """Check that payment never took money after it had said that it would not, as far as the outbox still tells."""
    wrong = found.sentences(found.payment, _CAPTURE_AFTER_END)
    unjudged = found.count(found.payment, _TOO_OLD)
    return outcome(found.payments - unjudged, wrong, unjudged)


def one_result(found: evidence.Evidence, _: Expectations) -> Outcome:
    """Check that each charge was answered for once."""
    return outcome(found.payments, found.sentences(found.payment, _TWO_RESULTS))


def mails_name_the_amount(found: parts.Part, _: Expectations) -> Outcome | None:
    """Check that each receipt names the order's total."""
    if found.mails is None:
        return None
    sagas = {str(saga_id): saga for saga_id, saga in found.sagas.items()}
    receipts = [mail for mail in found.mails if mail.template == "receipt" and mail.saga_id in sagas]
    wrong = (
        f"the receipt {mail.message_id} does not name {sagas[mail.saga_id].total}"
        for mail, text in found.texts(receipts)
        if str(sagas[mail.saga_id].total) not in text.replace(",", "")
    )
    return outcome(len(receipts), wrong)


def _sums(entries: Iterator[tuple[K, str, Decimal]]) -> dict[tuple[K, str], Decimal]:
    sums: dict[tuple[K, str], Decimal] = defaultdict(lambda: _NOTHING)
    for whose, kind, amount in entries:
        sums[whose, kind] += amount
    return sums
