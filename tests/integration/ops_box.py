"""The outboxes of two databases, written by hand, and the command line called on them."""

import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, Protocol

import aio_pika
import psycopg
import pytest

from sagapost_contracts import topology
from sagapost_ops import cli
from sagapost_sandbox.testing import services

Eventually = Callable[..., Awaitable[Any]]
StartService = Callable[[str, dict[str, str]], services.Service]

ADD = """
INSERT INTO outbox (shard, event_id, aggregate, type, routing_key, correlation_id, headers, payload, created_at)
SELECT %(shard)s, gen_random_uuid(), 'order-' || %(order)s, %(type)s, 'payment.payment.processed', 'saga', '{"source": "test"}',
       '{"user_email": "somebody@example.com"}', now() - %(minutes_ago)s * interval '1 minute'
  FROM generate_series(1, %(times)s) RETURNING id
"""
ASIDE = """
INSERT INTO outbox_parked (id, shard, event_id, aggregate, type, routing_key, correlation_id, headers, payload, created_at,
                           state, reason, detail, attempts, retry_at)
SELECT id, shard, event_id, aggregate, type, routing_key, correlation_id, headers, payload, created_at,
       %(state)s, %(reason)s, 'NO_ROUTE', 7, now() + interval '1 hour'
  FROM outbox WHERE id = %(id)s
"""
# the numbers of the rows that were copied behind this one
SENT = """
SELECT o.n FROM outbox AS c JOIN (SELECT row_number() OVER (ORDER BY id) AS n, id, event_id FROM outbox) AS o USING (event_id)
 WHERE c.id > %s AND o.id < c.id ORDER BY c.id
"""
# what the relay's checkpoint does; what is in the outbox by then counts as published
PASS = "UPDATE outbox_cursor SET lo = pg_current_snapshot(), hi = NULL, last_id = 0, updated_at = now()"
HOLD = """
UPDATE outbox_cursor SET owner = 'relay-1', epoch = epoch + 1, lease_until = now() + interval '1 hour';
INSERT INTO outbox_relay VALUES ('relay-1', now() + interval '1 hour') ON CONFLICT DO NOTHING
"""
CONTENT = """
SELECT event_id, shard, aggregate, type, routing_key, correlation_id, headers, payload, created_at
  FROM outbox WHERE id BETWEEN %s AND %s ORDER BY id
"""


class Box:
    """One database's outbox, written by hand."""

    def __init__(self, dsn: str) -> None:
        self._conn = psycopg.connect(dsn, autocommit=True)

    def close(self) -> None:
        """End the session."""
        self._conn.close()

    def do(self, statement: str, *values: object) -> None:
        """Change something."""
        self._conn.execute(statement.encode(), values or None)

    def ask(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Read something."""
        return self._conn.execute(query.encode(), values or None).fetchall()

    def add(self, shard: int = 0, order: int = 1, kind: str = "PaymentProcessed", minutes_ago: int = 0, times: int = 1) -> int:
        """Add rows in a transaction of their own and give the id of the last."""
        values = {"shard": shard, "order": order, "type": kind, "minutes_ago": minutes_ago, "times": times}
        return int(self._conn.execute(ADD, values).fetchall()[-1][0])

    def set_aside(self, row_id: int, state: str = "parked", reason: str = "unroutable") -> None:
        """Do what the relay does with a row that the broker did not take."""
        self._conn.execute(ASIDE, {"id": row_id, "state": state, "reason": reason})

    def published(self) -> set[int]:
        """Give the rows that the cursors have passed."""
        query = """
        SELECT o.id FROM outbox AS o JOIN outbox_cursor AS c USING (shard)
         WHERE pg_visible_in_snapshot(o.xid, c.lo) OR (c.hi IS NOT NULL AND pg_visible_in_snapshot(o.xid, c.hi) AND o.id <= c.last_id)
        """
        return {row[0] for row in self.ask(query)}


class Run(NamedTuple):
    """How a call of the command line ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The document on standard output."""
        return dict(json.loads(self.out))


class Call(Protocol):
    """Calls `./sagapost outbox …`."""

    def __call__(self, *arguments: str) -> Run:
        """Call it and see how it ends."""
        ...


def caller(order_db: str, payment_db: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Make what calls the command line on these databases, in this process."""
    monkeypatch.setenv("SAGAPOST_ORDER_DATABASE_URL", order_db)
    monkeypatch.setenv("SAGAPOST_PAYMENT_DATABASE_URL", payment_db)

    def called(*arguments: str) -> Run:
        monkeypatch.setattr(sys, "argv", ["./sagapost", "outbox", *arguments])
        capsys.readouterr()
        code = cli.run()
        return Run(code, *capsys.readouterr())

    return called


async def take(url: str, number: int) -> list[str]:
    """Take this many messages off the order queue, and see that no further one is there."""
    found: list[str] = []
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel()
        queue = await channel.get_queue(topology.ORDER_QUEUE)
        async with queue.iterator(timeout=30) as messages:
            async for message in messages:
                await message.ack()
                found.append(str(message.message_id))
                if len(found) == number:
                    break
        assert await queue.get(fail=False) is None
    return found


def holds(condition: Callable[[], bool]) -> Callable[[], Awaitable[bool]]:
    """Make an awaitable question of a plain one."""

    async def asked() -> bool:
        return condition()

    return asked
