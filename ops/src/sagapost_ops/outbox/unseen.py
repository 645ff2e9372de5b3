"""Finds messages that one service published and the other's inbox does not know; it changes nothing."""

from collections.abc import Iterator
from typing import Final

import msgspec
from psycopg import sql

from sagapost_contracts import topology
from sagapost_ops import database
from sagapost_ops.outbox import queries

PAGE: Final = 5000
# the first row of each event that the cursors have passed; what stands aside was not published
_SENT: Final = sql.SQL("""
SELECT min(o.id) AS id, o.event_id, o.type, o.correlation_id, o.aggregate
  FROM outbox AS o JOIN outbox_cursor AS c ON c.shard = o.shard
 WHERE o.routing_key ~ ANY(%(patterns)s) AND {confirmed}
   AND NOT EXISTS (SELECT FROM outbox_parked AS p WHERE p.event_id = o.event_id)
 GROUP BY o.event_id, o.type, o.correlation_id, o.aggregate ORDER BY min(o.id)
""").format(confirmed=queries.CONFIRMED)
_SEEN: Final = "SELECT message_id::text FROM inbox WHERE message_id = ANY(%(ids)s::uuid[])"


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """A published message: the outbox row of its first copy, and its saga."""

    id: int
    event_id: str
    type: str
    correlation_id: str
    aggregate: str


def find(sender: database.Connection, receiver: database.Connection, queue: str) -> Iterator[Sent]:
    """Return what the sender has published to a work queue and its consumer has not taken in, in order, a page at a time."""
    patterns = [_pattern(key) for key in topology.BINDINGS[queue]]
    with sender.cursor("unseen", withhold=True) as cursor:
        cursor.execute(_SENT, {"patterns": patterns})
        while rows := cursor.fetchmany(PAGE):
            sent = [Sent(id=row[0], event_id=str(row[1]), type=row[2], correlation_id=row[3], aggregate=row[4]) for row in rows]
            known = {str(row[0]) for row in receiver.execute(_SEEN, {"ids": [one.event_id for one in sent]})}
            yield from (one for one in sent if one.event_id not in known)


def _pattern(binding: str) -> str:
    """Return the regular expression of a topic binding, whose `*` is one word."""
    return "^" + r"\.".join("[^.]+" if word == "*" else word for word in binding.split(".")) + "$"
