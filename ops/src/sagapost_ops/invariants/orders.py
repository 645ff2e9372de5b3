"""Invariants 1 and 2: every order has exactly one saga, every saga has ended or waits for a person."""

from typing import Final

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
_ORDERS: Final = "SELECT count(*) FROM orders"
_WITHOUT_SAGA: Final = """
SELECT format('order %s has %s sagas', o.id, count(s.id))
  FROM orders AS o LEFT JOIN sagas AS s ON s.order_id = o.id
 GROUP BY o.id HAVING count(s.id) <> 1 ORDER BY o.id LIMIT 100
"""
# the nudge of a slow payment repeats the event under its first id
_CREATED_ONCE: Final = sql.SQL("""
WITH {ring}
SELECT format('saga %s has told of its order under %s ids', s.id, count(DISTINCT o.event_id))
  FROM sagas AS s LEFT JOIN outbox AS o ON o.correlation_id = s.id::text AND o.type = 'OrderCreated'
 GROUP BY s.id HAVING count(DISTINCT o.event_id) > 1 OR (count(o.event_id) = 0 AND s.created_at >= (SELECT whole_since FROM ring))
 ORDER BY s.id LIMIT 100
""").format(ring=queries.RING)
# their messages may have left the ring
_TOO_OLD: Final = sql.SQL("""
WITH {ring}
SELECT count(*) FROM sagas AS s CROSS JOIN ring
 WHERE s.created_at < ring.whole_since
   AND NOT EXISTS (SELECT FROM outbox AS o WHERE o.correlation_id = s.id::text AND o.type = 'OrderCreated')
""").format(ring=queries.RING)


def one_saga_each(found: evidence.Evidence, _: Expectations) -> Outcome:
    """Check that orders and sagas are pairs."""
    return outcome(evidence.count(found.order, _ORDERS), evidence.sentences(found.order, _WITHOUT_SAGA))


def told_once(found: evidence.Evidence, _: Expectations) -> Outcome:
    """Check that each order was announced, under one id, as far as the outbox still tells."""
    wrong = evidence.sentences(found.order, _CREATED_ONCE)
    unjudged = evidence.count(found.order, _TOO_OLD)
    return outcome(len(found.sagas) - unjudged, wrong, unjudged)


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
    """Check that no saga is under way, and that as many wait for a person as a test has made wait."""
    under_way = [f"saga {saga.id} is {saga.state}" for saga in found.sagas.values() if saga.state not in ENDED | PARKED]
    parked = sorted(str(saga.id) for saga in found.sagas.values() if saga.state in PARKED)
    if expected.parked is not None and len(parked) != expected.parked:
        under_way.append(f"{len(parked)} sagas are parked, expected {expected.parked}: {', '.join(parked[:5])}")
    return outcome(len(found.sagas), under_way)
