"""Invariant 8: nothing is left in the broker, somebody listens to every queue, and no transaction was left open."""

from typing import Final

from sagapost_contracts import topology
from sagapost_ops import evidence
from sagapost_ops.invariants.outcome import Expectations, Outcome, outcome

# a transaction of one of our services takes milliseconds between its statements
_LEFT_OPEN: Final = """
SELECT format('%%s (pid %%s) left a transaction open for %%s', application_name, pid, date_trunc('second', now() - state_change))
  FROM pg_stat_activity
 WHERE datname = current_database() AND state LIKE 'idle in transaction%%' AND now() - state_change > interval '1 second' LIMIT 100
"""
_LEASES: Final = """
SELECT format('%%s holds shard %%s until %%s', owner, shard, lease_until) FROM outbox_cursor WHERE lease_until > now() + interval '1 minute'
"""


def queues_are_empty(found: evidence.Evidence, _: Expectations) -> Outcome | None:
    """Check that every queue is there and no work queue holds a message."""
    if found.queues is None:
        return None
    missing = [f"queue {queue.name} is not there" for queue in topology.queues() if queue.name not in found.queues]
    work = [found.queues[name] for name in topology.WORK_QUEUES if name in found.queues]
    return outcome(len(found.queues), missing + [f"{queue.ready} messages wait in {queue.name}" for queue in work if queue.ready])


def nothing_is_held(found: evidence.Evidence, _: Expectations) -> Outcome | None:
    """Check that no consumer holds a message that it has not acknowledged."""
    held = found.unacknowledged
    if held is None:
        return None
    return outcome(1, [f"{held} messages are delivered and not acknowledged"] if held else [])


def somebody_listens(found: evidence.Evidence, expected: Expectations) -> Outcome | None:
    """Check that each work queue has a consumer."""
    if found.queues is None or not expected.consumers:
        return None
    deaf = [name for name in topology.WORK_QUEUES if name not in found.queues or not found.queues[name].consumers]
    return outcome(len(topology.WORK_QUEUES), (f"nobody listens to {name}" for name in deaf))


def nothing_is_open(found: evidence.Evidence, _: Expectations) -> Outcome:
    """Check that no transaction stands open in either database and no lease lies in the future."""
    violations: list[str] = []
    for conn in (found.order, found.payment):
        violations += found.sentences(conn, _LEFT_OPEN) + found.sentences(conn, _LEASES)
    return outcome(2, violations)
