"""Invariants 1 and 2: every order has exactly one saga, every saga has ended or waits for a person."""

import itertools
from collections.abc import Iterator
from decimal import Decimal
from typing import Final
from uuid import UUID

import msgspec
from psycopg import sql

from sagapost_ops import database, evidence, parts
from sagapost_ops.invariants.outcome import Expectations, Outcome, outcome, total
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
# orders have numbers in the order of their age: a page of them is a range, whose end is read first
_ORDERS: Final = """
SELECT coalesce(max(id), 0) FROM (SELECT id FROM orders WHERE id > %(after)s ORDER BY id LIMIT %(limit)s) AS page
"""
_PAGE: Final = sql.SQL("""
SELECT o.id, o.total_amount, o.currency FROM orders AS o LEFT JOIN sagas AS s ON s.order_id = o.id
 WHERE o.id > %(after)s AND o.id <= %(upto)s AND (s.id IS NULL OR {looked_at})
""").format(looked_at=evidence.LOOKED_AT)
_COUNT: Final = sql.SQL("WITH p AS ({page}) SELECT count(DISTINCT id) FROM p").format(page=_PAGE)
_WITHOUT_SAGA: Final = sql.SQL("""
WITH p AS ({page})
SELECT format('order %%s has %%s sagas', p.id, count(s.id)) FROM p LEFT JOIN sagas AS s ON s.order_id = p.id
 GROUP BY p.id HAVING count(s.id) <> 1 ORDER BY p.id LIMIT 100
""").format(page=_PAGE)
_ITEMS: Final = sql.SQL("""
WITH p AS ({page})
SELECT format('order %%s costs %%s, its lines add up to %%s', p.id, p.total_amount, sum(i.quantity * i.price))
  FROM p LEFT JOIN order_items AS i ON i.order_id = p.id
 GROUP BY p.id, p.total_amount HAVING p.total_amount IS DISTINCT FROM sum(i.quantity * i.price) ORDER BY p.id LIMIT 100
""").format(page=_PAGE)
_SAGA_AMOUNT: Final = sql.SQL("""
WITH p AS ({page})
SELECT format('order %%s costs %%s %%s, its saga says %%s %%s', p.id, p.total_amount, p.currency, s.amount, s.currency)
  FROM p JOIN sagas AS s ON s.order_id = p.id
 WHERE (p.total_amount, p.currency) <> (s.amount, s.currency) ORDER BY p.id LIMIT 100
""").format(page=_PAGE)
# The nudge of a slow payment repeats the event under its first id. An order that `restored` built again was announced before: its first
# row is an operator's.
_CREATED_ONCE: Final = sql.SQL("""
WITH {ring}, many AS (
    SELECT correlation_id, count(DISTINCT event_id) AS ids FROM outbox WHERE type = 'OrderCreated'
     GROUP BY correlation_id HAVING count(DISTINCT event_id) > 1
), wrong AS (
    SELECT s.id, many.ids FROM many JOIN sagas AS s ON s.id::text = many.correlation_id WHERE {looked_at}
     UNION ALL
    SELECT s.id, 0 FROM sagas AS s
     WHERE s.created_at >= (SELECT whole_since FROM ring) AND {looked_at}
       AND NOT EXISTS (SELECT FROM outbox AS o WHERE o.correlation_id = s.id::text AND o.type = 'OrderCreated')
)
SELECT format('saga %%s has told of its order under %%s ids', w.id, w.ids) FROM wrong AS w
 WHERE NOT EXISTS (SELECT FROM saga_history AS h WHERE h.saga_id = w.id AND h.seq = 1 AND h.source = 'operator')
 ORDER BY w.id LIMIT 100
""").format(ring=queries.RING, looked_at=evidence.LOOKED_AT)
_UNDER_WAY: Final = """
SELECT format('saga %%s is %%s', id, state) FROM sagas WHERE state <> ALL(%(states)s) ORDER BY id LIMIT 100
"""
_PARKED: Final = "SELECT id FROM sagas WHERE state = ANY(%(states)s) ORDER BY id LIMIT 5"
_PARKED_COUNT: Final = "SELECT count(*) FROM sagas WHERE state = ANY(%(states)s)"
_KEYS: Final = """
SELECT k.client, k.key, k.order_id, k.location, k.body, s.id AS saga_id, o.total_amount AS total
  FROM (SELECT client, key, order_id, location, body FROM idempotency_keys
         WHERE (client, key) > (%(client)s::text, %(key)s::text) AND created_at >= %(since)s::timestamptz
         ORDER BY client, key LIMIT %(limit)s) AS k
  LEFT JOIN sagas AS s ON s.order_id = k.order_id LEFT JOIN orders AS o ON o.id = s.order_id ORDER BY k.client, k.key
"""
_MANY_KEYS: Final = """
SELECT format('order %%s has %%s idempotency keys', order_id, count(*)) FROM idempotency_keys
 GROUP BY order_id HAVING count(*) > 1 AND max(created_at) >= %(since)s::timestamptz ORDER BY order_id LIMIT 100
"""
# the sweepers look several times a second; the databases' clock decides, as for them
_OVERDUE: Final = """
SELECT format('saga %%s is %%s, and its deadline (%%s) passed %%s ago', id, state, deadline_kind, date_trunc('second', now() - deadline_at))
  FROM sagas WHERE deadline_at < now() - interval '30 seconds' ORDER BY deadline_at LIMIT 100
"""
# their messages may have left the ring
_TOO_OLD: Final = sql.SQL("""
WITH {ring}
SELECT count(*) FROM sagas AS s CROSS JOIN ring
 WHERE s.created_at < ring.whole_since AND {looked_at}
   AND NOT EXISTS (SELECT FROM outbox AS o WHERE o.correlation_id = s.id::text AND o.type = 'OrderCreated')
""").format(ring=queries.RING, looked_at=evidence.LOOKED_AT)


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """An idempotency key with the answer that is kept for it, and what its order's saga is and costs."""

    client: str
    key: str
    order_id: int
    location: str
    body: bytes
    saga_id: UUID | None
    total: Decimal | None


class _Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What matters of an answer that is kept under an idempotency key."""

    id: int
    saga_id: UUID
    total_amount: Decimal


_REPLY: Final = msgspec.json.Decoder(_Reply)
_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def one_saga_each(found: evidence.Evidence, _: Expectations) -> Outcome:
    """Check that orders and sagas are pairs."""
    return total(
        outcome(found.count(found.order, _COUNT, **page), found.sentences(found.order, _WITHOUT_SAGA, **page)) for page in _pages(found)
    )


def lines_add_up(found: evidence.Evidence, _: Expectations) -> Outcome:
    """Check that lines, order and saga name one amount."""
    return total(
        outcome(
            found.count(found.order, _COUNT, **page),
            found.sentences(found.order, _ITEMS, **page) + found.sentences(found.order, _SAGA_AMOUNT, **page),
        )
        for page in _pages(found)
    )


def _pages(found: evidence.Evidence) -> Iterator[dict[str, int]]:
    after = 0
    while upto := found.count(found.order, _ORDERS, after=after, limit=evidence.PAGE):
        yield {"after": after, "upto": upto}
        after = upto


def told_once(found: evidence.Evidence, _: Expectations) -> Outcome:
    """Check that each order was announced, under one id, as far as the outbox still tells."""
    wrong = found.sentences(found.order, _CREATED_ONCE)
    unjudged = found.count(found.order, _TOO_OLD)
    return outcome(found.sagas - unjudged, wrong, unjudged)


def numbers_are_new(found: evidence.Evidence, _: Expectations) -> Outcome:
    """Check that no number that payment knows would be given to the next order: it would, after the order database went back."""
    last, highest = found.count(found.order, _LAST_NUMBER), found.count(found.payment, _HIGHEST_NUMBER)
    wrong = [f"order number {last} was given out last, and payment knows {highest}; see: ./sagapost restored --order"]
    return outcome(1, wrong if last < highest else [])


def one_order_each_key(found: evidence.Evidence, _: Expectations) -> Outcome:
    """Check that no two keys stand for one order, and that what is answered to a key tells of the key's own order."""
    read = (outcome(1, (f"idempotency key {key.key} of {key.client} {fault}" for fault in _faults(key))) for key in keys(found))
    return total(itertools.chain([outcome(0, found.sentences(found.order, _MANY_KEYS))], read))


def keys(found: evidence.Evidence) -> Iterator[Key]:
    """Read the idempotency keys, a page at a time."""
    last = {"client": "", "key": ""}
    while page := database.rows(found.order, _KEYS, Key, found.values(**last, limit=evidence.PAGE)):
        yield from page
        last = {"client": page[-1].client, "key": page[-1].key}


def _faults(key: Key) -> Iterator[str]:
    if key.saga_id is None:
        yield f"stands for order {key.order_id}, which has no saga"
        return
    if not key.location.endswith(f"/sagas/{key.saga_id}"):
        yield f"of order {key.order_id} sends its client to {key.location}"
    try:
        reply = _REPLY.decode(key.body)
    except _UNREADABLE:
        yield f"of order {key.order_id} has an answer that cannot be read"
        return
    if (reply.id, reply.saga_id, reply.total_amount) != (key.order_id, key.saga_id, key.total):
        yield f"of order {key.order_id} answers with order {reply.id} of saga {reply.saga_id} for {reply.total_amount}"


def accepted_are_there(found: evidence.Evidence, expected: Expectations) -> Outcome:
    """Check that what a client was promised was kept."""
    there = found.existing(expected.accepted)
    lost = (f"saga {saga_id} was answered with 202 and is not there" for saga_id in expected.accepted if saga_id not in there)
    return outcome(len(expected.accepted), lost)


def status_follows_saga(found: parts.Part, _: Expectations) -> Outcome:
    """Check that each order's status says the same as its saga."""
    wrong = (
        f"order {saga.order_id} is {saga.status}, its saga {saga.state}"
        for saga in found.sagas.values()
        if STATUS.get(saga.state) != saga.status
    )
    return outcome(len(found.sagas), wrong)


def all_have_ended(found: evidence.Evidence, expected: Expectations) -> Outcome:
    """Check that no saga is under way, that as many wait for a person as a test has made wait, and that no deadline was forgotten."""
    under_way = found.sentences(found.order, _UNDER_WAY, states=sorted(ENDED | PARKED))
    parked = found.count(found.order, _PARKED_COUNT, states=sorted(PARKED))
    if expected.parked is not None and parked != expected.parked:
        first = ", ".join(found.sentences(found.order, _PARKED, states=sorted(PARKED)))
        under_way.append(f"{parked} sagas are parked, expected {expected.parked}: {first}")
    if expected.consumers:  # the services run, so somebody sweeps
        under_way += found.sentences(found.order, _OVERDUE)
    return outcome(found.sagas, under_way)
