"""Tails the outbox: reads what ended since the cursor, publishes it in order, moves the cursor after the confirms."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import msgspec
import prometheus_client
import psycopg

from sagapost_chassis import amqp, crashpoints, db, telemetry
from sagapost_chassis import errors as failures
from sagapost_contracts import topology
from sagapost_relay import errors, queries, snapshot

IDLE_MIN_S: Final = 0.002
IDLE_MAX_S: Final = 0.05
STANDBY_S: Final = 1.0
STALE_S: Final = 5.0

PUBLISHED: Final = prometheus_client.Counter("sagapost_relay_published_total", "Messages confirmed by the broker")
FAILED: Final = prometheus_client.Counter("sagapost_relay_failed_total", "Batches that were not confirmed and will be published again")
LATENCY: Final = prometheus_client.Histogram(
    "sagapost_relay_confirm_seconds", "From the row's creation to the broker's confirm, in seconds"
)
_HEADERS: Final = msgspec.json.Decoder(dict[str, str | int])


class Relay:
    """One database's relay; a second process on the same database stands by until the first is gone."""

    def __init__(self, url: str, publisher: amqp.Publisher, *, owner: str, batch: int) -> None:
        self._url = url
        self._publisher = publisher
        self._owner = owner
        self._batch = batch
        self._beat = 0.0

    async def check(self) -> bool:
        """Tell whether the loop turns: it polled, or stood by, within the last seconds."""
        return time.monotonic() - self._beat < STALE_S

    async def run(self, stop: asyncio.Event) -> None:
        """Relay until `stop` is set, across outages of the database and the broker.

        Raises:
            errors.RefusedError: this server's snapshots do not belong to these cursors.

        """
        lost = 0
        while not stop.is_set():
            try:
                await self._session(stop)
                lost = 0
            except errors.RefusedError as exc:
                telemetry.log.error("relay.refused", reason=str(exc))
                raise
            except (failures.TransientError, psycopg.OperationalError, psycopg.InterfaceError, OSError, TimeoutError) as exc:
                lost += 1
                telemetry.log.warning("relay.interrupted", reason=f"{type(exc).__name__}: {exc}"[:300])
                await _wait(stop, amqp.backoff_s(lost))

    async def _session(self, stop: asyncio.Event) -> None:
        async with await db.Connection.connect(db.dsn_of(self._url, self._owner), autocommit=True, prepare_threshold=0) as conn:
            await _trust(conn)
            while not await queries.lock(conn):
                self._beat = time.monotonic()
                if await _wait(stop, STANDBY_S):
                    return
            await queries.pin(conn)
            cursors = await self._take(conn)
            idle_s = IDLE_MIN_S
            while not stop.is_set():
                cursors, moved = await self._turn(conn, cursors)
                self._beat = time.monotonic()
                idle_s = IDLE_MIN_S if moved else min(idle_s * 1.5, IDLE_MAX_S)
                if moved < self._batch:
                    await _wait(stop, idle_s)

    async def _take(self, conn: db.Connection) -> list[queries.Cursor]:
        cursors = await queries.take(conn, self._owner)
        server = await queries.server(conn)
        if any(cursor.system_identifier != server.system_identifier for cursor in cursors):
            raise errors.RefusedError(
                "the outbox cursors were written in another PostgreSQL cluster (a restore or a copy): "
                "their transaction ids mean nothing here, and going on could lose messages"
            )
        telemetry.log.info("relay.started", owner=self._owner, shards=[cursor.shard for cursor in cursors])
        return cursors

    async def _turn(self, conn: db.Connection, cursors: Sequence[queries.Cursor]) -> tuple[list[queries.Cursor], int]:
        """Read, publish and checkpoint one page per shard; give the new cursors and how many messages moved."""
        hi = await queries.current_snapshot(conn)
        pages = [await self._read(conn, cursor, hi) for cursor in cursors]
        rows = sum(len(page) for page in pages)
        if rows == 0:
            # nothing to confirm: these cursors live in memory only, and a restart reads the same empty windows again
            return [msgspec.structs.replace(cursor, lo=cursor.hi or hi, hi=None, last_id=0) for cursor in cursors], 0
        await crashpoints.crashpoint("relay.after_read")
        await self._publish([row for page in pages for row in page])
        await crashpoints.crashpoint("relay.after_confirm")
        moved = [_advance(cursor, hi, page, self._batch) for cursor, page in zip(cursors, pages, strict=True)]
        for before, after, page in zip(cursors, moved, pages, strict=True):
            if (page or before.hi) and not await queries.checkpoint(conn, after):
                raise errors.FencedError(f"shard {after.shard} belongs to another relay")
        return moved, rows

    async def _read(self, conn: db.Connection, cursor: queries.Cursor, hi: str) -> list[queries.Row]:
        try:
            ranges = snapshot.ended_between(snapshot.parse(cursor.lo), snapshot.parse(cursor.hi or hi))
        except ValueError as exc:
            raise errors.RefusedError(str(exc)) from exc
        if not ranges:
            return []
        return await queries.window(conn, cursor.shard, ranges, cursor.last_id, self._batch, paged=cursor.hi is not None)

    async def _publish(self, rows: Sequence[queries.Row]) -> None:
        """Publish in order and wait for every confirm; a failure leaves the cursors where they are."""
        half = len(rows) // 2
        tasks = [asyncio.ensure_future(self._publish_row(row)) for row in rows[:half]]
        if half:
            await asyncio.sleep(0)
            await crashpoints.crashpoint("relay.mid_batch")
        tasks += [asyncio.ensure_future(self._publish_row(row)) for row in rows[half:]]
        await asyncio.sleep(0)
        await crashpoints.crashpoint("relay.before_confirm")
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        failed = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if failed:
            FAILED.inc()
            raise failed[0]
        now = time.time()
        for row in rows:
            LATENCY.observe(max(0.0, now - row.created_at.timestamp()))
        PUBLISHED.inc(len(rows))

    async def _publish_row(self, row: queries.Row) -> None:
        message = amqp.make_message(
            row.payload,
            message_id=str(row.event_id),
            type_name=row.type,
            correlation_id=row.correlation_id,
            time=row.created_at,
            headers=_HEADERS.decode(row.headers),
        )
        await self._publisher.publish(message, exchange=topology.EXCHANGE, routing_key=row.routing_key)


async def _trust(conn: db.Connection) -> None:
    server = await queries.server(conn)
    if server.in_recovery:
        # a hot standby's snapshot lists no running transactions: their rows would be taken for finished, and lost
        raise failures.TransientError("the database is a standby; a relay needs the primary")
    if server.synchronous_commit == "off":
        raise errors.RefusedError("synchronous_commit is off on this server: a confirmed message could tell of a lost transaction")


def _advance(cursor: queries.Cursor, hi: str, page: Sequence[queries.Row], limit: int) -> queries.Cursor:
    if len(page) < limit:
        return msgspec.structs.replace(cursor, lo=cursor.hi or hi, hi=None, last_id=0)
    return msgspec.structs.replace(cursor, hi=cursor.hi or hi, last_id=page[-1].id)


async def _wait(stop: asyncio.Event, seconds: float) -> bool:
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
    return stop.is_set()
