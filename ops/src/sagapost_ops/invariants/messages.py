"""Invariant 7: everything in an outbox was published, and everything published was processed once by whoever listens."""

from collections import defaultdict
from typing import Final

from psycopg import sql

from sagapost_contracts import topology
from sagapost_ops import database, evidence
from sagapost_ops.invariants.outcome import Expectations, Outcome, Tally, outcome, total
from sagapost_ops.outbox import queries

_OUTBOX: Final = "SELECT count(*) FROM outbox"
_INBOX: Final = "SELECT count(*) FROM inbox WHERE received_at >= %(since)s::timestamptz"
_UNPUBLISHED: Final = sql.SQL("""
SELECT format('%%s %%s of saga %%s has not been published', o.type, o.event_id, o.correlation_id)
  FROM outbox AS o LEFT JOIN outbox_cursor AS c ON c.shard = o.shard
 WHERE NOT {confirmed} ORDER BY o.id LIMIT 100
""").format(confirmed=queries.CONFIRMED)
_STRANGE: Final = sql.SQL("""
SELECT format('the cursor of shard %%s was written in another PostgreSQL cluster; see: ./sagapost outbox repair', c.shard)
  FROM outbox_cursor AS c CROSS JOIN pg_control_system() AS s WHERE NOT {ours} ORDER BY c.shard
""").format(ours=queries.OURS)
_WAITING: Final = """
SELECT format('%%s %%s of saga %%s was not taken by the broker (%%s) and is tried again', type, event_id, correlation_id, reason)
  FROM outbox_parked WHERE state = 'waiting' ORDER BY id LIMIT 100
"""
_PARKED: Final = """
SELECT format('%%s %%s of saga %%s is parked (%%s)', type, event_id, correlation_id, reason)
  FROM outbox_parked WHERE state = 'parked' ORDER BY id
"""
# what stands aside has not been published
_SENT: Final = """
SELECT DISTINCT o.event_id, o.routing_key FROM outbox AS o
 WHERE o.created_at >= %(since)s::timestamptz AND NOT EXISTS (SELECT FROM outbox_parked AS p WHERE p.event_id = o.event_id)
 ORDER BY o.event_id
"""
_MISSING: Final = """
SELECT w.id::text FROM unnest(%(ids)s::uuid[]) AS w (id)
 WHERE NOT EXISTS (SELECT FROM inbox AS i WHERE i.message_id = w.id) ORDER BY w.id
"""
# one message, one answer of a kind: two mean that it was processed twice
_ANSWERED_TWICE: Final = """
SELECT format('message %%s was answered %%s times with %%s', headers ->> 'causation-id', count(DISTINCT event_id), type)
  FROM outbox WHERE headers ? 'causation-id'
 GROUP BY headers ->> 'causation-id', type HAVING count(DISTINCT event_id) > 1 LIMIT 100
"""
# What came after the end of a saga and changed nothing is only counted there. Those of before `since` are not among the rows of after it.
_SEEN_WITHOUT_TRACE: Final = """
SELECT format('%%s %%s was taken in, and no saga shows it', i.type, i.message_id)
  FROM inbox AS i LEFT JOIN saga_history AS h ON h.message_id = i.message_id
 WHERE h.message_id IS NULL AND i.received_at >= %(since)s::timestamptz
 ORDER BY i.received_at LIMIT 100 OFFSET greatest(0, (SELECT sum(late_messages) FROM sagas) - (
       SELECT count(*) FROM inbox AS e LEFT JOIN saga_history AS t ON t.message_id = e.message_id
        WHERE t.message_id IS NULL AND e.received_at < %(since)s::timestamptz))
"""


def published(found: evidence.Evidence, _: Expectations) -> Outcome:
    """Check that both relays have passed every row."""
    checked = found.count(found.order, _OUTBOX) + found.count(found.payment, _OUTBOX)
    return outcome(checked, found.sentences(found.order, _UNPUBLISHED) + found.sentences(found.payment, _UNPUBLISHED))


def cursors_mean_something(found: evidence.Evidence, _: Expectations) -> Outcome:
    """Check that no cursor came from another cluster: its verdict on a row would mean nothing."""
    return outcome(2, found.sentences(found.order, _STRANGE) + found.sentences(found.payment, _STRANGE))


def set_aside(found: evidence.Evidence, expected: Expectations) -> Outcome:
    """Check that the broker took everything but what was meant to be parked."""
    conns: tuple[database.Connection, ...] = (found.order, found.payment)
    waiting = [sentence for conn in conns for sentence in found.sentences(conn, _WAITING)]
    parked = [sentence for conn in conns for sentence in found.sentences(conn, _PARKED)]
    if len(parked) == expected.parked_rows:
        return outcome(len(waiting) + len(parked), waiting)
    return outcome(len(waiting) + len(parked), [*waiting, f"{len(parked)} messages are parked, expected {expected.parked_rows}", *parked])


def processed(found: evidence.Evidence, _: Expectations) -> Outcome:
    """Check that what each service published is in the inbox of the other, or among its dead letters.

    Dead letters are counted, not read: reading them would put them back, and each time counts as a delivery.
    """
    ways = (
        (found.order, found.payment, topology.PAYMENT_QUEUE),
        (found.payment, found.order, topology.ORDER_QUEUE),
    )
    return total(_lost(found, *way) for way in ways)


def _lost(found: evidence.Evidence, sender: database.Connection, receiver: database.Connection, queue: str) -> Outcome:
    """Look for what was sent to a queue in the inbox of its service, a page at a time."""
    tally = Tally()
    with sender.cursor("sent", withhold=True) as cursor:
        cursor.execute(_SENT, found.values())
        while page := cursor.fetchmany(evidence.PAGE):
            ids = {row[0] for row in page if any(_matches(key, str(row[1])) for key in topology.BINDINGS[queue])}
            missing = found.sentences(receiver, _MISSING, ids=list(ids))
            tally.add(outcome(len(ids), (f"message {event_id} was published and {queue} never processed it" for event_id in missing)))
    found_missing = len(tally.violations) + tally.more
    return tally.outcome() if found_missing > _dead_letters(found, queue) else outcome(tally.checked, ())


def _matches(pattern: str, routing_key: str) -> bool:
    words, given = pattern.split("."), routing_key.split(".")
    return len(words) == len(given) and all(word in {"*", part} for word, part in zip(words, given, strict=True))


def _dead_letters(found: evidence.Evidence, queue: str) -> int:
    counted = (found.queues or {}).get(topology.dead_letter_queue(queue))
    return counted.ready if counted else 0


def answered_once(found: evidence.Evidence, _: Expectations) -> Outcome:
    """Check that no message led to two messages of one kind."""
    checked = found.count(found.order, _OUTBOX) + found.count(found.payment, _OUTBOX)
    return outcome(checked, found.sentences(found.order, _ANSWERED_TWICE) + found.sentences(found.payment, _ANSWERED_TWICE))


def inbox_matches_history(found: evidence.Evidence, _: Expectations) -> Outcome:
    """Check that a history shows each message of the order service's inbox."""
    return outcome(found.count(found.order, _INBOX), found.sentences(found.order, _SEEN_WITHOUT_TRACE))


def dead_letters(found: evidence.Evidence, expected: Expectations) -> Outcome | None:
    """Check that the dead-letter queues hold what was put there on purpose, and nothing waits for another try."""
    if found.queues is None:
        return None
    depth: dict[str, int] = defaultdict(int)
    for queue in found.queues.values():
        depth["dead" if queue.name.endswith(".dlq") else "retry" if ".retry." in queue.name else "work"] += queue.ready
    violations = [f"{depth['dead']} dead letters, expected {expected.dead}"] if depth["dead"] != expected.dead else []
    if depth["retry"]:
        violations.append(f"{depth['retry']} messages wait for another try")
    return outcome(len(found.queues), violations)
