"""Rows that the broker did not take: set aside with the checkpoint that passes them, tried again, parked; it must not publish."""

import re
from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from sagapost_chassis import db
from sagapost_relay.blocks import Block, Outcome, Row

Reason = Literal["unroutable", "nacked", "behind", "too-large", "foreign-key", "refused", "crash-suspect"]
# The broker's state and not the row's fault: tried again without end, and later rows of the same aggregate wait behind such a row.
ENDLESS: Final[tuple[Reason, ...]] = ("unroutable", "nacked", "behind")
GENTLE: Final[tuple[Reason, ...]] = (*ENDLESS, "too-large", "foreign-key")
DANGEROUS: Final[tuple[Reason, ...]] = ("refused", "crash-suspect")  # tried alone: what they take down has no other rows in it
_REASONS: Final[dict[int, Reason]] = {Outcome.RETURNED: "unroutable", Outcome.NACKED: "nacked", Outcome.REFUSED: "refused"}
_NACKED: Final = "a queue rejected it: it is full, or has no leader"

# the copy is made in the database: a payload that was too large to read does not travel here either
_SET_ASIDE: Final = """
INSERT INTO outbox_parked (id, shard, event_id, aggregate, type, routing_key, correlation_id, headers, payload, created_at,
                           state, reason, detail, attempts, retry_at)
SELECT o.id, o.shard, o.event_id, o.aggregate, o.type, o.routing_key, o.correlation_id, o.headers, o.payload, o.created_at,
       n.state, n.reason, n.detail, 1, now() + random() * %(base_s)s * interval '1 second'
  FROM unnest(%(shards)s::smallint[], %(ids)s::bigint[], %(states)s::text[], %(reasons)s::text[], %(details)s::text[])
       AS n (shard, id, state, reason, detail)
  JOIN outbox AS o ON o.shard::integer = n.shard::integer AND o.id = n.id
    ON CONFLICT (id) DO NOTHING
"""
# Counted before it is tried, so that what ends the relay is tried a limited number of times too; full jitter. Of the rows that wait
# for the broker only the first of each aggregate is due: that keeps their order. A wait longer than the longest: the clock was set back.
_DUE: Final = """
WITH due AS MATERIALIZED (
    SELECT p.id FROM outbox_parked AS p
     WHERE p.shard = ANY(%(shards)s::smallint[]) AND p.state = 'waiting' AND p.reason = ANY(%(reasons)s::text[])
       AND (p.retry_at <= now() OR p.retry_at > now() + (60 + greatest(%(cap_s)s, %(base_s)s)) * interval '1 second')
       AND NOT (p.reason = ANY(%(endless)s::text[]) AND EXISTS (
           SELECT FROM outbox_parked AS q
            WHERE q.shard = p.shard AND q.aggregate = p.aggregate AND q.id < p.id
              AND q.state = 'waiting' AND q.reason = ANY(%(endless)s::text[])
       ))
     ORDER BY p.id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
)
UPDATE outbox_parked AS p
   SET attempts = p.attempts + 1,
       retry_at = now() + (0.1 + random() * least(%(cap_s)s, %(base_s)s * 2 ^ least(p.attempts, 20))) * interval '1 second'
  FROM due
 WHERE p.id = due.id
RETURNING p.id, p.shard, p.event_id::text, p.type, p.routing_key, p.correlation_id, p.headers::text,
          CASE WHEN octet_length(p.payload) <= %(max_bytes)s THEN p.payload END, octet_length(p.payload),
          extract(epoch FROM p.created_at)::float8, p.aggregate
"""
# the next of the same aggregate is due at once
_TAKEN: Final = """
WITH gone AS (DELETE FROM outbox_parked WHERE id = ANY(%(ids)s::bigint[]) RETURNING shard, aggregate)
UPDATE outbox_parked AS p SET retry_at = now()
  FROM (SELECT DISTINCT shard, aggregate FROM gone) AS g
 WHERE p.shard = g.shard AND p.aggregate = g.aggregate AND p.state = 'waiting' AND p.reason = ANY(%(endless)s::text[])
   AND NOT p.id = ANY(%(ids)s::bigint[])
"""
_WAITING: Final = """
SELECT DISTINCT shard, aggregate FROM outbox_parked
 WHERE shard = ANY(%(shards)s::smallint[]) AND state = 'waiting' AND reason = ANY(%(endless)s::text[])
"""
# what a relay of the version before has parked
_REOPEN: Final = "UPDATE outbox_parked SET state = 'waiting' WHERE state = 'parked' AND reason = ANY(%(endless)s::text[])"
_REFUSED: Final = """
UPDATE outbox_parked AS p
   SET reason = n.reason, detail = n.detail,
       state = CASE WHEN n.hopeless OR (p.attempts >= %(attempts)s AND NOT n.reason = ANY(%(endless)s::text[]))
                    THEN 'parked' ELSE p.state END
  FROM unnest(%(ids)s::bigint[], %(reasons)s::text[], %(details)s::text[], %(hopeless)s::boolean[]) AS n (id, reason, detail, hopeless)
 WHERE p.id = n.id
"""
_WORN_OUT: Final = """
UPDATE outbox_parked SET state = 'parked'
 WHERE id = ANY(%(ids)s::bigint[]) AND attempts >= %(attempts)s AND NOT reason = ANY(%(endless)s::text[])
"""
_COUNT: Final = "SELECT state, reason, count(*) FROM outbox_parked GROUP BY state, reason LIMIT 100"


class Aside(msgspec.Struct, frozen=True, kw_only=True):
    """One row that is set aside, and why; `hopeless`: another attempt cannot succeed while the row is as it is."""

    row: Row
    reason: Reason
    detail: str
    hopeless: bool = False


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """How long a row waits: up to `base_s`, doubled each time up to `cap_s`; `attempts`: how often one is tried that may be at fault."""

    attempts: int
    base_s: float
    cap_s: float
    max_bytes: int


def too_large(row: Row) -> Aside:
    """Set aside a row whose payload was not read."""
    return Aside(row=row, reason="too-large", detail=f"its payload has {row.size_bytes} bytes", hopeless=True)


def unfit(row: Row, keys: re.Pattern[str] | None) -> Aside | None:
    """Return the reason why a row must not be published as it is; None when it may be.

    `keys`: the routing keys that the relay's user may publish. The broker would close the channel over any other.
    """
    if row.payload is None:
        return too_large(row)
    if keys is not None and keys.match(row.routing_key) is None:
        return Aside(
            row=row, reason="foreign-key", detail=f"this relay may not publish with the routing key {row.routing_key}", hopeless=True
        )
    return None


def refusals(block: Block) -> list[Aside]:
    """Return the rows of a block that the broker did not take, and why."""
    if block.outcomes.count(Outcome.CONFIRMED) == len(block.rows):
        return []
    return [
        Aside(row=row, reason=_REASONS[outcome], detail=block.details.get(index, _NACKED), hopeless=outcome == Outcome.REFUSED)
        for index, (row, outcome) in enumerate(zip(block.rows, block.outcomes, strict=True))
        if outcome in _REASONS
    ]


def _ends_at_once(aside: Aside, policy: Policy) -> bool:
    return aside.hopeless or (policy.attempts <= 1 and aside.reason not in ENDLESS)


async def set_aside(conn: db.Connection, asides: Sequence[Aside], policy: Policy) -> None:
    """Copy rows out of the outbox, in the transaction of the checkpoint that passes them."""
    await conn.execute(
        _SET_ASIDE,
        {
            "shards": [aside.row.shard for aside in asides],
            "ids": [aside.row.id for aside in asides],
            "states": ["parked" if _ends_at_once(aside, policy) else "waiting" for aside in asides],
            "reasons": [aside.reason for aside in asides],
            "details": [aside.detail[:500] for aside in asides],
            "base_s": policy.base_s,
        },
    )


async def due(conn: db.Connection, shards: Sequence[int], reasons: Sequence[Reason], limit: int, policy: Policy) -> list[Row]:
    """Take up to `limit` rows whose time has come, in id order, counting the attempt."""
    async with conn.cursor(binary=True) as cursor:
        await cursor.execute(
            _DUE,
            {
                "shards": list(shards),
                "reasons": list(reasons),
                "endless": list(ENDLESS),
                "limit": limit,
                "base_s": policy.base_s,
                "cap_s": policy.cap_s,
                "max_bytes": policy.max_bytes,
            },
        )
        return sorted(Row._make(values) for values in await cursor.fetchall())


async def taken(conn: db.Connection, ids: Sequence[int]) -> None:
    """Forget rows that the broker has confirmed."""
    if ids:
        await conn.execute(_TAKEN, {"ids": list(ids), "endless": list(ENDLESS)})


async def refused(conn: db.Connection, asides: Sequence[Aside], policy: Policy) -> None:
    """Note why rows were refused again, and park those that are out of attempts."""
    await conn.execute(
        _REFUSED,
        {
            "ids": [aside.row.id for aside in asides],
            "reasons": [aside.reason for aside in asides],
            "details": [aside.detail[:500] for aside in asides],
            "hopeless": [aside.hopeless for aside in asides],
            "attempts": policy.attempts,
            "endless": list(ENDLESS),
        },
    )


async def worn_out(conn: db.Connection, ids: Sequence[int], policy: Policy) -> None:
    """Park those that are out of attempts when the last one had no answer; what waits for the broker goes on waiting."""
    await conn.execute(_WORN_OUT, {"ids": list(ids), "attempts": policy.attempts, "endless": list(ENDLESS)})


async def waiting(conn: db.Connection, shards: Sequence[int]) -> dict[int, frozenset[str]]:
    """Return the aggregates of each shard that have a row waiting for the broker; what was parked for that before waits again."""
    await conn.execute(_REOPEN, {"endless": list(ENDLESS)})
    found: dict[int, set[str]] = {}
    for shard, aggregate in await (await conn.execute(_WAITING, {"shards": list(shards), "endless": list(ENDLESS)})).fetchall():
        found.setdefault(shard, set()).add(aggregate)
    return {shard: frozenset(aggregates) for shard, aggregates in found.items()}


async def count(conn: db.Connection) -> dict[tuple[str, str], int]:
    """Count rows by state and reason."""
    return {(state, reason): number for state, reason, number in await (await conn.execute(_COUNT)).fetchall()}
