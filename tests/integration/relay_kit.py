"""What the tests of whole relays share: rows to publish, a reader of what arrives, and what the relay's tables and its health say."""

import asyncio
import contextlib
import functools
import http.client
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import Any, Final, LiteralString, NamedTuple, cast
from uuid import UUID

import aio_pika
import msgspec
from aio_pika import abc

from sagapost_chassis import db, ids, outbox
from sagapost_contracts import events, topology
from sagapost_sandbox import ports
from sagapost_sandbox.testing import polling, services

Start = Callable[[str, dict[str, str]], services.Service]
Eventually = Callable[..., Awaitable[Any]]
BODY_KEY: Final = "email.email.*"  # the binding that brings `event`s to the order queue

_PUT: Final = """
INSERT INTO outbox (shard, event_id, aggregate, type, routing_key, correlation_id, headers, payload, created_at)
VALUES (%(shard)s, %(event_id)s, %(aggregate)s, 'EmailSent', %(key)s, 'c', %(headers)s::jsonb, %(payload)s, now())
"""
_UNSTORED: Final = """
SELECT count(*) FROM outbox AS o JOIN outbox_cursor AS c USING (shard)
 WHERE NOT pg_visible_in_snapshot(o.xid, c.lo) AND NOT (c.hi IS NOT NULL AND pg_visible_in_snapshot(o.xid, c.hi) AND o.id <= c.last_id)
"""
_END_LEASES: Final = "UPDATE outbox_cursor SET lease_until = now() - interval '1 second' WHERE owner IS NOT NULL"


class Found(NamedTuple):
    """A message as it arrived."""

    message_id: UUID
    order_id: int
    number: int


def env(dsn: str, url: str, **more: str) -> dict[str, str]:
    """Give a relay's variables; `more` are settings by name, a short `lease_s` where one must run out."""
    fixed = {"SAGAPOST_DATABASE_URL": dsn, "SAGAPOST_AMQP_URL": url}
    return fixed | {f"SAGAPOST_{name.upper()}": value for name, value in more.items()}


def measured(**more: str) -> dict[str, str]:
    """Give one more variable: a free port for the metrics."""
    return more | {"metrics_port": str(ports.trial(1)[0])}


def order_of(shard: int) -> int:
    """Give the smallest order of a shard."""
    return next(order for order in range(1, 1000) if outbox.shard_of(f"order-{order}") == shard)


def event(order_id: int, number: int) -> events.EmailSent:
    """Make an event of an order."""
    return events.EmailSent(order_id=order_id, saga_id=ids.uuid7(), template="receipt", smtp_message_id=str(number))


async def add(dsn: str, *messages: events.Message) -> list[UUID]:
    """Add messages in one transaction, as services do."""
    async with await db.Connection.connect(dsn) as conn:
        return [await outbox.add(conn, message, source="test") for message in messages]


async def put(
    conn: db.Connection, order_id: int, number: int, *, key: str = events.EmailSent.key, headers: str = "{}", payload: bytes | None = None
) -> UUID:
    """Insert a row by hand, with whatever key, headers and payload."""
    event_id = ids.uuid7()
    aggregate = f"order-{order_id}"
    values = {"event_id": event_id, "aggregate": aggregate, "shard": outbox.shard_of(aggregate), "key": key, "headers": headers}
    await conn.execute(_PUT, values | {"payload": msgspec.json.encode(event(order_id, number)) if payload is None else payload})
    return event_id


async def rows(dsn: str, query: LiteralString, **values: object) -> list[tuple[Any, ...]]:
    """Ask the database."""
    async with await db.Connection.connect(dsn, autocommit=True) as conn:
        return await (await conn.execute(query, values)).fetchall()


async def run(dsn: str, statement: LiteralString, **values: object) -> None:
    """Tell the database."""
    async with await db.Connection.connect(dsn, autocommit=True) as conn:
        await conn.execute(statement, values or None)


async def stored(dsn: str) -> bool:
    """Tell whether the stored cursors have passed every row."""
    return await rows(dsn, _UNSTORED) == [(0,)]


async def end_leases(dsn: str) -> None:
    """End what a relay that is known to be dead still holds, for tests that are not about leases: nobody waits for their time."""
    async with await db.Connection.connect(dsn) as conn:
        await conn.execute(_END_LEASES)
        await conn.execute("DELETE FROM outbox_relay")


async def killed(relay: services.Service, dsn: str) -> None:
    """Wait until a crash point has killed a relay, and end its leases."""
    assert await asyncio.to_thread(relay.wait) == -9
    await end_leases(dsn)


@contextlib.asynccontextmanager
async def channel(url: str) -> AsyncGenerator[abc.AbstractChannel]:
    """Open a channel of the test's own."""
    connection = await aio_pika.connect(url)
    async with connection:
        yield await connection.channel()


async def collect(url: str, until: Callable[[list[Found]], bool], deadline_s: float = 60, queue: str = topology.ORDER_QUEUE) -> list[Found]:
    """Take messages off a queue until `until` says enough."""
    found: list[Found] = []
    async with channel(url) as opened, asyncio.timeout(deadline_s), (await opened.get_queue(queue)).iterator() as messages:
        async for message in messages:
            await message.ack()
            decoded = msgspec.json.decode(message.body, type=events.EmailSent)
            found.append(Found(UUID(str(message.message_id)), decoded.order_id, int(decoded.smtp_message_id)))
            if until(found):
                break
    return found


async def collect_all(url: str, sent: Iterable[UUID], deadline_s: float = 60) -> list[Found]:
    """Take messages off the order queue until all of these were among them."""
    missing = set(sent)

    def complete(found: list[Found]) -> bool:
        missing.discard(found[-1].message_id)
        return not missing

    return await collect(url, complete, deadline_s) if missing else []


def firsts(found: Iterable[Found]) -> list[Found]:
    """Keep the first delivery of each message."""
    return list({each.message_id: each for each in reversed(list(found))}.values())[::-1]


def in_order(found: Iterable[Found]) -> bool:
    """Tell whether the first deliveries of each order come by number."""
    numbers: dict[int, list[int]] = {}
    for each in firsts(found):
        numbers.setdefault(each.order_id, []).append(each.number)
    return all(some == sorted(some) for some in numbers.values())


async def ready(relay: services.Service) -> dict[str, Any]:
    """Ask /health/ready."""
    return cast("dict[str, Any]", msgspec.json.decode(await asyncio.to_thread(_get, relay.port, "/health/ready")))


async def metric(relay: services.Service, name: str) -> float:
    """Read a metric, labels included in its name; 0 when it is not there."""
    text = await asyncio.to_thread(_get, int(relay.env["SAGAPOST_METRICS_PORT"]), "/metrics")
    found = re.search(rf"^{re.escape(name)} (\S+)$", text.decode(), re.MULTILINE)
    return float(found[1]) if found else 0.0


async def when(condition: Callable[[], Awaitable[bool]], deadline_s: float = 30) -> None:
    """Wait until an async condition holds; one that asks a relay which does not answer does not hold yet."""

    @functools.wraps(condition)
    async def holds() -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return await condition()
        return False

    await polling.eventually(holds, deadline_s)


def _get(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection(services.HOST, port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()
