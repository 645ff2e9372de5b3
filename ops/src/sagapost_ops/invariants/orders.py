"""Invariants 1 and 2: every order has exactly one saga, every saga has ended or waits for a person."""

from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from typing import Final
from uuid import UUID

import msgspec
from psycopg import sql

from sagapost_ops import evidence
from sagapost_ops.invariants.outcome import Expectations, Outcome, outcome
from sagapost_ops.outbox import queries

PARKED: Final = frozenset({"notify_failed", "compensation_failed"})
ENDED: Final = frozenset({"notified", "compensated"})
STATUS: Final = {
    "created": "pending",
    "paid": "paid",
    "notified": "completed",
    "compensating": "cancelling",
    "compensated": "cancelled",
    "notify_failed": "attention",
    "compensation_failed": "attention",
}
_LAST_NUMBER: Final = "SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence('orders', 'id')::regclass), 0)"
_HIGHEST_NUMBER: Final = "SELECT coalesce(max(order_id), 0) FROM payments"
_ORDERS: Final = "SELECT count(*) FROM orders"
_WITHOUT_SAGA: Final = """
SELECT format('order %s has %s sagas', o.id, count(s.id))
  FROM orders AS o LEFT JOIN sagas AS s ON s.order_id = o.id
 GROUP BY o.id HAVING count(s.id) <> 1 ORDER BY o.id LIMIT 100
"""
# The nudge of a slow payment repeats the event under its first id. An order that `restored` built again was announced before: its first
# row is an operator's.
_CREATED_ONCE: Final = sql.SQL("""
WITH {ring}
SELECT format('saga %s has told of its order under %s ids', s.id, count(DISTINCT o.event_id))
  FROM sagas AS s LEFT JOIN outbox AS o ON o.correlation_id = s.id::text AND o.type = 'OrderCreated'
 WHERE NOT EXISTS (SELECT FROM saga_history AS h WHERE h.saga_id = s.id AND h.seq = 1 AND h.source = 'operator')
 GROUP BY s.id HAVING count(DISTINCT o.event_id) > 1 OR (count(o.event_id) = 0 AND s.created_at >= (SELECT whole_since FROM ring))
 ORDER BY s.id LIMIT 100
""").format(ring=queries.RING)
# the sweepers look several times a second; the databases' clock decides, as for them
_OVERDUE: Final = """
SELECT format('saga %s is %s, and its deadline (%s) passed %s ago', id, state, deadline_kind, date_trunc('second', now() - deadline_at))
  FROM sagas WHERE deadline_at < now() - interval '30 seconds' ORDER BY deadline_at LIMIT 100
"""
# their messages may have left the ring
_TOO_OLD: Final = sql.SQL("""
WITH {ring}
SELECT count(*) FROM sagas AS s CROSS JOIN ring
 WHERE s.created_at < ring.whole_since
   AND NOT EXISTS (SELECT FROM outbox AS o WHERE o.correlation_id = s.id::text AND o.type = 'OrderCreated')
""").format(ring=queries.RING)


class _Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What matters of an answer that is kept under an idempotency key."""

    id: int
    saga_id: UUID
    total_amount: Decimal


_REPLY: Final = msgspec.json.Decoder(_Reply)
_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def one_saga_each(found: evidence.Evidence, _: Expectations) -> Outcome:
    """Check that orders and sagas are pairs."""
    return outcome(evidence.count(found.order, _ORDERS), evidence.sentences(found.order, _WITHOUT_SAGA))


def told_once(found: evidence.Evidence, _: Expectations) -> Outcome:
    """Check that each order was announced, under one id, as far as the outbox still tells."""
    wrong = evidence.sentences(found.order, _CREATED_ONCE)
    unjudged = evidence.count(found.order, _TOO_OLD)
    return outcome(len(found.sagas) - unjudged, wrong, unjudged)


def numbers_are_new(found: evidence.Evidence, _: Expectations) -> Outcome:
    """Check that no number that payment knows would be given to the next order: it would, after the order database went back."""
    last, highest = evidence.count(found.order, _LAST_NUMBER), evidence.count(found.payment, _HIGHEST_NUMBER)
    wrong = [f"order number {last} was given out last, and payment knows {highest}; see: ./sagapost restored --order"]
    return outcome(1, wrong if last < highest else [])


def one_order_each_key(found: evidence.Evidence, _: Expectations) -> Outcome:
    """Check that no two keys stand for one order, and that what is answered to a key tells of the key's own order."""
    orders = {saga.order_id: saga for saga in found.sagas.values()}
    uses = Counter(key.order_id for key in found.keys)
    violations = [f"order {order_id} has {number} idempotency keys" for order_id, number in uses.items() if number > 1]
    for key in found.keys:
        violations.extend(f"idempotency key {key.key} of {key.client} {fault}" for fault in _faults(key, orders.get(key.order_id)))
    return outcome(len(found.keys), violations)


def _faults(key: evidence.Key, saga: evidence.Saga | None) -> Iterator[str]:
    if saga is None:
        yield f"stands for order {key.order_id}, which has no saga"
        return
    if not key.location.endswith(f"/sagas/{saga.id}"):
        yield f"of order {key.order_id} sends its client to {key.location}"
    try:
        reply = _REPLY.decode(key.body)
    except _UNREADABLE:
        yield f"of order {key.order_id} has an answer that cannot be read"
        return
    if (reply.id, reply.saga_id, reply.total_amount) != (saga.order_id, saga.id, saga.total):
        yield f"of order {key.order_id} answers with order {reply.id} of saga {reply.saga_id} for {reply.total_amount}"


def accepted_are_there(found: evidence.Evidence, expected: Expectations) -> Outcome:
    """Check that what a client was promised was kept."""
    lost = (f"saga {saga_id} was answered with 202 and is not there" for saga_id in expected.accepted if saga_id not in found.sagas)
    return outcome(len(expected.accepted), lost)


def status_follows_saga(found: evidence.Evidence, _: Expectations) -> Outcome:
    """Check that each order's status says the same as its saga."""
    wrong = (
        f"order {saga.order_id} is {saga.status}, its saga {saga.state}"
        for saga in found.sagas.values()
        if STATUS.get(saga.state) != saga.status
    )
    return outcome(len(found.sagas), wrong)


def all_have_ended(found: evidence.Evidence, expected: Expectations) -> Outcome:
    """Check that no saga is under way, that as many wait for a person as a test has made wait, and that no deadline was forgotten."""
    under_way = [f"saga {saga.id} is {saga.state}" for saga in found.sagas.values() if saga.state not in ENDED | PARKED]
    parked = sorted(str(saga.id) for saga in found.sagas.values() if saga.state in PARKED)
    if expected.parked is not None and len(parked) != expected.parked:
        under_way.append(f"{len(parked)} sagas are parked, expected {expected.parked}: {', '.join(parked[:5])}")
    if expected.consumers:  # the services run, so somebody sweeps
        under_way += evidence.sentences(found.order, _OVERDUE)
    return outcome(len(found.sagas), under_way)
