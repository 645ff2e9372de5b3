"""Invariant 6: a saga's history has no gap, takes legal edges only, applies each message once, and adds up to the saga's row."""

from typing import Final

from sagapost_ops import parts
from sagapost_ops.invariants.outcome import Expectations, Outcome, outcome

_ROWS: Final = "SELECT count(*) FROM saga_history WHERE saga_id = ANY(%(ids)s::uuid[])"
_GAPS: Final = """
SELECT format('saga %%s has version %%s and %%s history rows, from %%s to %%s', s.id, s.version, count(h.seq), min(h.seq), max(h.seq))
  FROM sagas AS s LEFT JOIN saga_history AS h ON h.saga_id = s.id
 WHERE s.id = ANY(%(ids)s::uuid[])
 GROUP BY s.id HAVING count(h.seq) <> s.version OR min(h.seq) IS DISTINCT FROM 1 OR max(h.seq) <> s.version
 ORDER BY s.id LIMIT 100
"""
_CHAIN: Final = """
SELECT format('saga %%s, row %%s: starts at %%s, the row before it ended at %%s', saga_id, seq, from_state, before)
  FROM (SELECT saga_id, seq, from_state, lag(to_state, 1, 'none') OVER (PARTITION BY saga_id ORDER BY seq) AS before
          FROM saga_history WHERE saga_id = ANY(%(ids)s::uuid[])) AS h
 WHERE from_state <> before ORDER BY saga_id, seq LIMIT 100
"""
_EDGES: Final = """
SELECT format('saga %%s, row %%s: %%s -%%s-> %%s is no legal edge', h.saga_id, h.seq, h.from_state, h.event, h.to_state)
  FROM saga_history AS h LEFT JOIN saga_transitions AS t USING (from_state, event, to_state)
 WHERE h.saga_id = ANY(%(ids)s::uuid[])
   AND (t.event IS NULL OR (h.outcome = 'ignored' AND h.from_state <> h.to_state)) ORDER BY h.saga_id, h.seq LIMIT 100
"""
_FOLD: Final = """
SELECT format('saga %%s is %%s (captured %%s, refunded %%s), its history ends at %%s (%%s, %%s)',
              s.id, s.state, s.captured, s.refunded, h.to_state, h.facts ->> 'captured', h.facts ->> 'refunded')
  FROM sagas AS s JOIN saga_history AS h ON h.saga_id = s.id AND h.seq = s.version
 WHERE s.id = ANY(%(ids)s::uuid[])
   AND (s.state <> h.to_state
    OR s.captured IS DISTINCT FROM (h.facts ->> 'captured')::numeric
    OR s.refunded IS DISTINCT FROM (h.facts ->> 'refunded')::numeric
    OR s.payment_version IS DISTINCT FROM (h.facts ->> 'payment_version')::integer
    OR s.notified_at IS DISTINCT FROM (h.facts ->> 'notified_at')::timestamptz)
 ORDER BY s.id LIMIT 100
"""
_SHRINKING: Final = """
SELECT format('saga %%s, row %%s takes back what an earlier row knew', saga_id, seq)
  FROM (SELECT saga_id, seq, (facts ->> 'captured')::numeric AS captured, (facts ->> 'refunded')::numeric AS refunded,
               lag((facts ->> 'captured')::numeric, 1, 0) OVER w AS captured_before,
               lag((facts ->> 'refunded')::numeric, 1, 0) OVER w AS refunded_before
          FROM saga_history WHERE saga_id = ANY(%(ids)s::uuid[]) WINDOW w AS (PARTITION BY saga_id ORDER BY seq)) AS h
 WHERE captured < captured_before OR refunded < refunded_before ORDER BY saga_id, seq LIMIT 100
"""
# one message may write two rows (a payment that finds its receipt reported already), but never two of one event
_TWICE: Final = """
SELECT format('saga %%s has applied %%s %%s %%s times', saga_id, event, message_id, count(*))
  FROM saga_history WHERE saga_id = ANY(%(ids)s::uuid[]) AND message_id IS NOT NULL AND source = 'event'
 GROUP BY saga_id, event, message_id HAVING count(*) > 1 ORDER BY saga_id LIMIT 100
"""
# the inbox forgets what is older than 30 days
_TRACE_WITHOUT_SEEN: Final = """
SELECT format('saga %%s shows %%s %%s, which was not taken in', h.saga_id, h.event, h.message_id)
  FROM saga_history AS h LEFT JOIN inbox AS i ON i.message_id = h.message_id
 WHERE h.saga_id = ANY(%(ids)s::uuid[]) AND h.source = 'event' AND h.message_id IS NOT NULL AND i.message_id IS NULL
   AND h.at > now() - interval '30 days'
 ORDER BY h.saga_id, h.seq LIMIT 100
"""


def contiguous(found: parts.Part, _: Expectations) -> Outcome:
    """Check that each history is whole and starts each row where the last one ended."""
    checked = found.count(found.order, _ROWS)
    return outcome(checked, found.sentences(found.order, _GAPS) + found.sentences(found.order, _CHAIN))


def legal(found: parts.Part, _: Expectations) -> Outcome:
    """Check that each row is an edge of the table, and that what was ignored changed nothing."""
    return outcome(found.count(found.order, _ROWS), found.sentences(found.order, _EDGES))


def adds_up(found: parts.Part, _: Expectations) -> Outcome:
    """Check that the last row says what the saga's row says, and that sums only grew."""
    return outcome(len(found.sagas), found.sentences(found.order, _FOLD) + found.sentences(found.order, _SHRINKING))


def applied_once(found: parts.Part, _: Expectations) -> Outcome:
    """Check that no message was applied to a saga twice: the inbox held."""
    return outcome(found.count(found.order, _ROWS), found.sentences(found.order, _TWICE))


def was_taken_in(found: parts.Part, _: Expectations) -> Outcome:
    """Check that the inbox knows each message that a history shows."""
    return outcome(found.count(found.order, _ROWS), found.sentences(found.order, _TRACE_WITHOUT_SEEN))
