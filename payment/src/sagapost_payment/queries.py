"""Every SQL statement of payment; it must not know a provider, an event or what a status leads to."""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Final, Literal
from uuid import UUID

import msgspec

from sagapost_chassis import db, outbox
from sagapost_contracts import events
from sagapost_payment import domain, errors

_COLUMNS: Final = """
id, order_id, saga_id, status, version, amount, currency, payment_method, transaction_id, code, reason, user_email, items,
unanswered_calls, uncertain, cancel_requested_at, pay_before <= now() AS expired, charge_generation, refund_generation, told_id
"""
# The window to pay is a duration by this database's clock, and begins here; old messages bring a time of the order database's clock.
_INSERT: Final = (
    """
INSERT INTO payments (order_id, saga_id, status, amount, currency, payment_method, user_email, items, created_at, pay_before, look_at)
SELECT order_id, saga_id, 'processing', amount, currency, payment_method, user_email, items, now(),
       COALESCE(now() + pay_within_s * interval '1 second', pay_before), now() + GREATEST(look_s, call_s) * interval '1 second'
  FROM json_to_recordset(%(intents)s::json) AS i (order_id bigint, saga_id uuid, amount numeric, currency text, payment_method text,
       user_email text, items jsonb, pay_before timestamptz, pay_within_s float8, look_s float8, call_s float8)
ON CONFLICT (saga_id) DO NOTHING
RETURNING"""
    + _COLUMNS
)
# Version 0: nothing was said of it yet. Uncertain: that there is no row does not prove that there is no charge.
_INSERT_PLACEHOLDER: Final = """
INSERT INTO payments (order_id, saga_id, status, version, amount, currency, payment_method, user_email, items, pay_before,
                      uncertain, cancel_requested_at, look_at)
VALUES (%(order_id)s, %(saga_id)s, 'processing', 0, 0, %(currency)s, '', '', '[]', now(),
        true, now(), now() + %(call_s)s * interval '1 second')
ON CONFLICT (saga_id) DO NOTHING
"""
_OF_SAGAS: Final = "SELECT" + _COLUMNS + "FROM payments WHERE saga_id = ANY(%(saga_ids)s) ORDER BY saga_id"
_LOCK_SAGAS: Final = _OF_SAGAS + " FOR NO KEY UPDATE"  # in the order of groups, which do not lock crosswise
_LOCK: Final = "SELECT" + _COLUMNS + "FROM payments WHERE saga_id = %(saga_id)s LIMIT 1 FOR UPDATE"
_MOVE: Final = (
    """
UPDATE payments
SET status = %(status)s, version = version + 1, updated_at = now(), transaction_id = COALESCE(%(transaction_id)s, transaction_id),
    code = COALESCE(%(code)s, code), reason = COALESCE(%(reason)s, reason), looks = 0,
    amount = COALESCE(%(amount)s, amount), told_id = COALESCE(%(told_id)s, told_id),
    look_at = CASE WHEN uncertain OR %(status)s = 'refunding' THEN now() + GREATEST(%(look_s)s, %(call_s)s) * interval '1 second' END
WHERE id = %(id)s AND version = %(version)s
RETURNING"""
    + _COLUMNS
)
# What nearly every payment comes to, for many at once: the inbox, the payment, the ledger and the outbox in one statement. One that
# was moved, or is to be cancelled, since it was read is left alone. The ids of the outbox are drawn behind the rows' locks.
_CAPTURE: Final = f"""
WITH c AS MATERIALIZED (
    SELECT * FROM json_to_recordset(%(captures)s::json) AS c (id bigint, version integer, order_id bigint, saga_id uuid,
        transaction_id text, amount numeric, currency text, at timestamptz, look_s float8, call_s float8,
        inbox_id uuid, inbox_type text, {outbox.RECORD})
), moved AS (
    UPDATE payments AS p
       SET status = 'captured', version = p.version + 1, updated_at = now(), transaction_id = c.transaction_id, looks = 0,
           told_id = c.event_id, look_at = CASE WHEN p.uncertain THEN now() + GREATEST(c.look_s, c.call_s) * interval '1 second' END
      FROM c
     WHERE p.id = c.id AND p.version = c.version AND p.cancel_requested_at IS NULL
    RETURNING p.id
), claimed AS (
    INSERT INTO inbox (message_id, type) SELECT inbox_id, inbox_type FROM c JOIN moved USING (id)
), entered AS (
    INSERT INTO ledger (order_id, saga_id, kind, amount, currency, transaction_id, at)
    SELECT order_id, saga_id, 'capture', amount, currency, transaction_id, at FROM c JOIN moved USING (id)
), told AS (
    {outbox.INSERT_RECORDS} FROM c JOIN moved USING (id)
)
SELECT id FROM moved
"""  # noqa: S608 - two constants
_DOUBT: Final = """
UPDATE payments
   SET uncertain = true, unanswered_calls = unanswered_calls + %(unanswered)s, charge_errors = charge_errors + %(error)s, updated_at = now()
 WHERE id = %(id)s AND status = 'processing'
RETURNING charge_errors
"""
_NEXT_CHARGE_KEY: Final = (
    """
UPDATE payments
   SET charge_generation = charge_generation + 1, charge_errors = 0, updated_at = now(),
       look_at = GREATEST(look_at, now() + %(call_s)s * interval '1 second')
 WHERE id = %(id)s AND status = 'processing' AND charge_generation = %(generation)s
RETURNING"""
    + _COLUMNS
)
_NOTE_REFUND_ERROR: Final = """
UPDATE payments SET refund_errors = refund_errors + 1, updated_at = now() WHERE id = %(id)s RETURNING refund_errors
"""
_NEXT_REFUND_KEY: Final = """
UPDATE payments SET refund_generation = refund_generation + 1, refund_errors = 0, updated_at = now()
 WHERE id = %(id)s AND refund_generation = %(generation)s
"""
# whoever is about to call has the payment to himself until the call must be over
_REPEAT: Final = """
UPDATE payments SET uncertain = true, look_at = GREATEST(look_at, now() + %(call_s)s * interval '1 second'), updated_at = now()
 WHERE id = %(id)s AND status = 'processing'
"""
# Not at once: a call that is under way should have its answer first, and nobody begins another one for a cancelled order.
_NOTE_CANCEL: Final = """
UPDATE payments
   SET cancel_requested_at = now(), updated_at = now(), looks = 0,
       look_at = LEAST(look_at, now() + %(call_s)s * interval '1 second')
 WHERE id = %(id)s AND cancel_requested_at IS NULL
"""
# Claimed by moving the time of the next look on, past the end of this one: whoever dies over it leaves it to the next one.
# What is under way is looked at for ever. What has ended is looked at for about a day, because a provider that forgets its keys
# may show a charge late: for the first hour every fourth minute, then with pauses that double.
_LOOK: Final = """
WITH due AS MATERIALIZED (SELECT id FROM payments WHERE look_at <= now() ORDER BY look_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED)
UPDATE payments AS p
   SET looks = p.looks + 1,
       look_at = CASE
           WHEN p.status IN ('processing', 'refunding')
               THEN now() + GREATEST(LEAST(%(look_s)s * 2 ^ LEAST(p.looks, 20), %(look_max_s)s), %(call_s)s) * interval '1 second'
           WHEN p.looks < %(settled_looks)s
               THEN now() + GREATEST(%(look_s)s * 2 ^ (LEAST(p.looks, 2) + GREATEST(p.looks - 15, 0)), %(call_s)s) * interval '1 second'
           END
  FROM due WHERE p.id = due.id
RETURNING p.id, p.order_id, p.saga_id, p.status, p.version, p.amount, p.currency, p.payment_method, p.transaction_id, p.code, p.reason,
          p.user_email, p.items, p.unanswered_calls, p.uncertain, p.cancel_requested_at, p.pay_before <= now() AS expired,
          p.charge_generation, p.refund_generation, p.told_id
"""
_NOTED_DUPLICATES: Final = "SELECT transaction_id FROM duplicate_charges WHERE saga_id = %(saga_id)s LIMIT 1000"
_INSERT_DUPLICATE: Final = """
INSERT INTO duplicate_charges (transaction_id, order_id, saga_id, amount, currency, refund_id)
VALUES (%(transaction_id)s, %(order_id)s, %(saga_id)s, %(amount)s, %(currency)s, %(refund_id)s)
ON CONFLICT (transaction_id) DO NOTHING
"""
_OPEN: Final = """
SELECT status, count(*), extract(epoch FROM now() - min(created_at))::float8
  FROM payments WHERE status IN ('processing', 'refunding') GROUP BY status
"""
_INSERT_LEDGER: Final = """
INSERT INTO ledger (order_id, saga_id, kind, amount, currency, transaction_id, at)
VALUES (%(order_id)s, %(saga_id)s, %(kind)s, %(amount)s, %(currency)s, %(transaction_id)s, %(at)s)
"""
_SELECT_LEDGER: Final = """
SELECT amount, currency, transaction_id, at FROM ledger WHERE saga_id = %(saga_id)s AND kind = %(kind)s LIMIT 1
"""
_SELECT_MOVEMENTS: Final = """
SELECT saga_id, amount, currency, transaction_id, at
  FROM ledger JOIN unnest(%(saga_ids)s::uuid[], %(kinds)s::text[]) AS asked (saga_id, kind) USING (saga_id, kind)
"""
_INSERT_ANSWERS: Final = outbox.INSERT_RECORDS + " FROM json_to_recordset(%(answers)s::json) AS a (" + outbox.RECORD + ")"
# No look is scheduled this far ahead: the clock was set back. Look after call_s, for the process that claimed it may be calling.
_FOLLOW_CLOCK: Final = """
UPDATE payments SET look_at = now() + %(call_s)s * interval '1 second'
 WHERE look_at > now() + (60 + CASE WHEN status IN ('processing', 'refunding') THEN GREATEST(%(look_max_s)s, %(look_s)s, %(call_s)s)
                                    ELSE %(settled_max_s)s END) * interval '1 second'
"""
_OVERDUE: Final = """
SELECT clock_timestamp() AS clock, extract(epoch FROM clock_timestamp() - pay_before)::float8 AS overdue_s, created_at,
       extract(epoch FROM pay_before - created_at)::float8 AS window_s
  FROM payments WHERE id = %(id)s
"""
_CLOCK: Final = "SELECT extract(epoch FROM now())::float8"

Kind = Literal["capture", "refund"]

_LOOK_MAX_S: Final = 900.0
_SETTLED_LOOKS: Final = 23
_SETTLED_EXPONENT: Final = _SETTLED_LOOKS - 14  # of the last pause of _LOOK, the longest


class Intent(msgspec.Struct, frozen=True, kw_only=True):
    """An order that is about to be charged."""

    order: events.OrderCreated
    terms: domain.Terms


class Capture(msgspec.Struct, frozen=True, kw_only=True):
    """A payment as it was read, the money that moved for it, the message that asked for it and the one that tells of it."""

    payment: domain.Payment
    captured: domain.Captured
    inbox_id: UUID
    inbox_type: str
    told: outbox.Row
    terms: domain.Terms


class Overdue(msgspec.Struct, frozen=True, kw_only=True):
    """What the database's clock shows, for how many seconds the time to pay has been over, and when the payment was written.

    `window_s`: how long the time to pay was when the payment was written.
    """

    clock: datetime
    overdue_s: float
    created_at: datetime
    window_s: float


class _Moved(domain.Movement, frozen=True, kw_only=True):
    saga_id: UUID


async def add(conn: db.Connection, intents: Sequence[Intent]) -> dict[UUID, domain.Payment]:
    """Insert intents to charge, and return the new payments by saga; a saga that has a payment already is left out."""
    records = [msgspec.structs.asdict(intent.order) | {"look_s": intent.terms.look_s, "call_s": intent.terms.call_s} for intent in intents]
    async with conn.cursor(row_factory=db.struct_row(domain.Payment)) as cursor:
        await cursor.execute(_INSERT, {"intents": msgspec.json.encode(records).decode()})
        return {payment.saga_id: payment for payment in await cursor.fetchall()}


async def capture(conn: db.Connection, captures: Sequence[Capture]) -> set[int]:
    """Store charges and all that follows from them, and return the ids of the payments that were written."""
    records = [
        msgspec.structs.asdict(capture.told)
        | {
            "id": capture.payment.id,
            "version": capture.payment.version,
            "order_id": capture.payment.order_id,
            "saga_id": capture.payment.saga_id,
            "transaction_id": capture.captured.transaction_id,
            "amount": capture.captured.amount,
            "currency": capture.captured.currency,
            "at": capture.captured.at,
            "look_s": capture.terms.look_s,
            "call_s": capture.terms.call_s,
            "inbox_id": capture.inbox_id,
            "inbox_type": capture.inbox_type,
        }
        for capture in captures
    ]
    found = await conn.execute(_CAPTURE, {"captures": msgspec.json.encode(records).decode()})
    return {int(row[0]) for row in await found.fetchall()}


async def add_placeholder(conn: db.Connection, order_id: int, saga_id: UUID, *, currency: str, terms: domain.Terms) -> None:
    """Insert a payment that is cancelled before its order was known, unless the saga has a payment already; it is never charged."""
    values = {"order_id": order_id, "saga_id": saga_id, "currency": currency, "call_s": terms.call_s}
    await conn.execute(_INSERT_PLACEHOLDER, values)


async def of_sagas(conn: db.Connection, saga_ids: Sequence[UUID], *, locked: bool = False) -> dict[UUID, domain.Payment]:
    """Read, and lock when asked to, the payments of sagas, and return them by saga."""
    async with conn.cursor(row_factory=db.struct_row(domain.Payment)) as cursor:
        await cursor.execute(_LOCK_SAGAS if locked else _OF_SAGAS, {"saga_ids": list(saga_ids)})
        return {payment.saga_id: payment for payment in await cursor.fetchall()}


async def lock(conn: db.Connection, saga_id: UUID) -> domain.Payment:
    """Lock and read a saga's payment.

    Raises:
        errors.StalePaymentError: there is none.

    """
    async with conn.cursor(row_factory=db.struct_row(domain.Payment)) as cursor:
        found = await (await cursor.execute(_LOCK, {"saga_id": saga_id})).fetchone()
    if found is None:
        raise errors.StalePaymentError(f"saga {saga_id} has no payment")
    return found


async def move(
    conn: db.Connection,
    payment: domain.Payment,
    status: domain.Status,
    *,
    transaction_id: str | None = None,
    code: str | None = None,
    reason: str | None = None,
    amount: Decimal | None = None,
    told_id: UUID | None = None,
    terms: domain.Terms,
) -> domain.Payment:
    """Store a payment's next status and version, and return it; what is None stays.

    Raises:
        errors.StalePaymentError: it was moved since it was read.

    """
    values = {
        "id": payment.id,
        "version": payment.version,
        "status": status.value,
        "transaction_id": transaction_id,
        "code": code,
        "reason": reason,
        "amount": amount,
        "told_id": told_id,
        "look_s": terms.look_s,
        "call_s": terms.call_s,
    }
    async with conn.cursor(row_factory=db.struct_row(domain.Payment)) as cursor:
        await cursor.execute(_MOVE, values)
        found = await cursor.fetchone()
    if found is None:
        raise errors.StalePaymentError(f"the payment of order {payment.order_id} is past version {payment.version}")
    return found


async def doubt(conn: db.Connection, payment: domain.Payment, *, unanswered: bool, is_error: bool) -> int:
    """Store that a charge may appear later, count a call without an answer or with an error, and return the errors under this key.

    In the row, for deliveries start over at one.
    """
    values = {"id": payment.id, "unanswered": int(unanswered), "error": int(is_error)}
    found = await (await conn.execute(_DOUBT, values)).fetchone()
    return int(found[0]) if found else 0


async def next_charge_key(conn: db.Connection, payment: domain.Payment, *, terms: domain.Terms) -> domain.Payment:
    """Store the next generation of the charge's key, and return the payment; one more call follows, and the looks wait for it.

    Raises:
        errors.StalePaymentError: somebody else did, or the payment has ended.

    """
    values = {"id": payment.id, "generation": payment.charge_generation, "call_s": terms.call_s}
    async with conn.cursor(row_factory=db.struct_row(domain.Payment)) as cursor:
        found = await (await cursor.execute(_NEXT_CHARGE_KEY, values)).fetchone()
    if found is None:
        raise errors.StalePaymentError(f"the charge of order {payment.order_id} is past key {payment.charge_generation}")
    return found


async def note_refund_error(conn: db.Connection, payment: domain.Payment) -> int:
    """Count an answered error of a refund, and return the errors under this key."""
    found = await (await conn.execute(_NOTE_REFUND_ERROR, {"id": payment.id})).fetchone()
    return int(found[0]) if found else 0


async def next_refund_key(conn: db.Connection, payment: domain.Payment) -> None:
    """Store the next generation of the refund's key, unless somebody else did."""
    await conn.execute(_NEXT_REFUND_KEY, {"id": payment.id, "generation": payment.refund_generation})


async def repeat(conn: db.Connection, payment: domain.Payment, *, terms: domain.Terms) -> None:
    """Remember that one more call follows, so that two charges may appear, and keep the looks away meanwhile."""
    await conn.execute(_REPEAT, {"id": payment.id, "call_s": terms.call_s})


async def note_cancel(conn: db.Connection, payment: domain.Payment, *, terms: domain.Terms) -> None:
    """Leave word for whoever learns the outcome of the running call, and have somebody look when that call must be over."""
    await conn.execute(_NOTE_CANCEL, {"id": payment.id, "call_s": terms.call_s})


async def look(conn: db.Connection, limit: int, *, terms: domain.Terms) -> list[domain.Payment]:
    """Claim payments that somebody should look at, the longest waiting first; no other caller gets them for a while."""
    values = {
        "limit": limit,
        "look_s": terms.look_s,
        "look_max_s": _LOOK_MAX_S,
        "call_s": terms.call_s,
        "settled_looks": _SETTLED_LOOKS,
    }
    async with conn.cursor(row_factory=db.struct_row(domain.Payment)) as cursor:
        await cursor.execute(_LOOK, values)
        return await cursor.fetchall()


async def follow_clock(conn: db.Connection, *, terms: domain.Terms) -> None:
    """Bring looks nearer that lie further ahead than any look can: the clock was set back since they were written."""
    settled_max_s = max(terms.look_s * 2.0**_SETTLED_EXPONENT, terms.call_s)
    values = {"look_s": terms.look_s, "look_max_s": _LOOK_MAX_S, "call_s": terms.call_s, "settled_max_s": settled_max_s}
    await conn.execute(_FOLLOW_CLOCK, values)


async def overdue(conn: db.Connection, payment: domain.Payment) -> Overdue:
    """Return for how long the time to pay has been over, by the database's clock."""
    async with conn.cursor(row_factory=db.struct_row(Overdue)) as cursor:
        found = await (await cursor.execute(_OVERDUE, {"id": payment.id})).fetchone()
    if found is None:
        raise errors.StalePaymentError(f"there is no payment {payment.id}")
    return found


async def note_duplicate(conn: db.Connection, payment: domain.Payment, charge: domain.Movement, refund_id: str) -> bool:
    """Note a charge that nobody asked for, and its refund; False when it was noted before."""
    values = {
        "transaction_id": charge.transaction_id,
        "order_id": payment.order_id,
        "saga_id": payment.saga_id,
        "amount": charge.amount,
        "currency": charge.currency,
        "refund_id": refund_id,
    }
    return (await conn.execute(_INSERT_DUPLICATE, values)).rowcount == 1


async def noted_duplicates(conn: db.Connection, payment: domain.Payment) -> set[str]:
    """Return the charges of a saga that are noted as surplus and went back."""
    found = await conn.execute(_NOTED_DUPLICATES, {"saga_id": payment.saga_id})
    return {str(row[0]) for row in await found.fetchall()}


async def unfinished(conn: db.Connection) -> dict[str, tuple[int, float]]:
    """Count what is under way, by status, with the age of the oldest in seconds."""
    found = await conn.execute(_OPEN)
    return {status: (count, oldest_s) for status, count, oldest_s in await found.fetchall()}


async def enter(conn: db.Connection, payment: domain.Payment, kind: Kind, movement: domain.Movement) -> None:
    """Enter money that moved into the ledger; a second movement of one kind is refused by the table."""
    values = msgspec.structs.asdict(movement)
    await conn.execute(_INSERT_LEDGER, values | {"order_id": payment.order_id, "saga_id": payment.saga_id, "kind": kind})


async def find_movement(conn: db.Connection, payment: domain.Payment, kind: Kind) -> domain.Movement:
    """Read what moved.

    Raises:
        errors.StalePaymentError: nothing did.

    """
    async with conn.cursor(row_factory=db.struct_row(domain.Movement)) as cursor:
        found = await (await cursor.execute(_SELECT_LEDGER, {"saga_id": payment.saga_id, "kind": kind})).fetchone()
    if found is None:
        raise errors.StalePaymentError(f"the ledger has no {kind} of order {payment.order_id}")
    return found


async def movements(conn: db.Connection, payments: Sequence[tuple[domain.Payment, Kind]]) -> dict[UUID, domain.Movement]:
    """Read what moved for payments, of one kind for each, and return it by saga."""
    values = {"saga_ids": [payment.saga_id for payment, _ in payments], "kinds": [kind for _, kind in payments]}
    async with conn.cursor(row_factory=db.struct_row(_Moved)) as cursor:
        await cursor.execute(_SELECT_MOVEMENTS, values)
        return {moved.saga_id: moved for moved in await cursor.fetchall()}


async def add_answers(conn: db.Connection, answers: Sequence[outbox.Row]) -> None:
    """Add messages to the outbox; the caller holds the locks of their payments."""
    await conn.execute(_INSERT_ANSWERS, {"answers": msgspec.json.encode(answers).decode()})


async def clock(conn: db.Connection) -> float:
    """Read the database's clock, in seconds since 1970."""
    (now,) = await (await conn.execute(_CLOCK)).fetchone() or (0.0,)
    return float(now)
