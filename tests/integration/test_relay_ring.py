"""The ring of partitions: what was published long ago goes by TRUNCATE, never while it is needed, and no writer waits for it."""

import asyncio
import contextlib
import functools
import itertools
import os
import time
from collections.abc import AsyncGenerator
from typing import Final
from uuid import UUID

import psycopg
import pytest
from integration import clock_shim, relay_kit
from integration.relay_kit import Start
from psycopg import sql

from sagapost_chassis import db
from sagapost_relay import ring
from sagapost_sandbox.testing import services

pytestmark = pytest.mark.anyio

EVENTS: Final = int(os.environ.get("SAGAPOST_TEST_RING_EVENTS", "5000"))  # the campaign says 100000
DEADLINE_S: Final = 50 + EVENTS / 500
BATCH: Final = 50
PAUSE_S: Final = 0.01
TURNS: Final = 6  # every partition has been emptied and filled again
QUICK: Final = {"rotate_s": "0.3"}
_TURN: Final = "SELECT pg_sequence_last_value('outbox_ring')"
_DEAD: Final = "SELECT relname, n_dead_tup, n_tup_del FROM pg_stat_user_tables WHERE relname ~ '^outbox_[0-3]$' ORDER BY relname"
_CLEAN: Final = [(f"outbox_{number}", 0, 0) for number in range(ring.PARTITIONS)]
# a checkout would not wait longer for its insert
_IMPATIENT: Final = "SET lock_timeout = '50ms'; SET statement_timeout = '30s'"


@contextlib.asynccontextmanager
async def _session(dsn: str) -> AsyncGenerator[db.Connection]:
    async with await db.Connection.connect(dsn, autocommit=True) as conn:
        yield conn


async def _turn(dsn: str) -> int:
    return int((await relay_kit.rows(dsn, _TURN))[0][0])


async def _turned(dsn: str, at_least: int) -> bool:
    return await _turn(dsn) >= at_least


async def _write(dsn: str, sent: list[UUID], stop: asyncio.Event | None = None, *, events: int = 1 << 30, turns: int = 1 << 30) -> None:
    """Commit batch after batch, until there are so many events and turns, or somebody says stop."""
    numbers, over = itertools.count(), stop or asyncio.Event()
    async with _session(dsn) as conn:
        await conn.execute(_IMPATIENT)
        first = await _turn(dsn)
        while not over.is_set() and (len(sent) < events or await _turn(dsn) - first < turns):
            async with conn.pipeline(), conn.transaction():
                batch = [await relay_kit.put(conn, order, next(numbers)) for order in range(BATCH)]
            sent += batch
            await asyncio.sleep(PAUSE_S)  # a rate, not a wait: the relay shares this machine


@contextlib.asynccontextmanager
async def _writing(dsn: str) -> AsyncGenerator[list[UUID]]:
    """Write, in a session that waits for nobody, for as long as the block takes."""
    sent: list[UUID] = []
    stop = asyncio.Event()
    task = asyncio.ensure_future(_write(dsn, sent, stop))
    try:
        yield sent
    finally:
        stop.set()  # no cancellation: it may hit a commit, of which nobody would know whether it happened
        await task


@pytest.mark.timeout(3 * DEADLINE_S)
async def test_the_ring_turns_under_a_held_snapshot_and_leaves_nothing_dead(payment_db: str, vhost: str, start_service: Start) -> None:
    """Others hold a snapshot and an open write transaction; it turns and turns, all arrives in order, old rows go, no row is dead."""
    sent: list[UUID] = []
    await relay_kit.run(payment_db, "CREATE TABLE elsewhere (word text)")
    async with _session(payment_db) as reader, _session(payment_db) as writer:
        await reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        await reader.execute("SELECT count(*) FROM elsewhere")
        await writer.execute("BEGIN")
        await writer.execute("INSERT INTO elsewhere VALUES ('open')")
        start_service("relay", relay_kit.env(payment_db, vhost, **QUICK)).wait_ready()
        async with asyncio.timeout(DEADLINE_S):
            await _write(payment_db, sent, events=EVENTS, turns=TURNS)

        found = await relay_kit.collect_all(vhost, sent, deadline_s=DEADLINE_S)

        assert {each.message_id for each in found} == set(sent)
        assert len(found) == len(sent)
        assert relay_kit.in_order(found)
        assert await relay_kit.rows(payment_db, _DEAD) == _CLEAN
        first = {"ids": sent[:BATCH]}
        assert await relay_kit.rows(payment_db, "SELECT count(*) FROM outbox WHERE event_id = ANY(%(ids)s)", **first) == [(0,)]


async def test_a_late_commit_into_an_old_partition_is_not_lost(payment_db: str, vhost: str, start_service: Start) -> None:
    """A writer put its row where the ring comes round again, and has not committed: the ring stops before it, and nobody else notices."""
    relay = start_service("relay", relay_kit.env(payment_db, vhost, **relay_kit.measured(**QUICK))).wait_ready()
    async with await db.Connection.connect(payment_db) as late:
        slow = await relay_kit.put(late, 1, 1)
        async with _writing(payment_db) as others:
            await relay_kit.when(lambda: _stands_at(payment_db, relay, ring.PARTITIONS - 1))
            before = len(others)
            await relay_kit.when(lambda: _longer(others, before + 5 * BATCH))
            assert await _turn(payment_db) == ring.PARTITIONS - 1
            await late.commit()
            await relay_kit.when(lambda: _turned(payment_db, TURNS))
            await relay_kit.when(lambda: _is_blocked(relay, blocked=False))

        found = await relay_kit.collect_all(vhost, [slow, *others])

    assert len(found) == len(others) + 1
    assert "relay.ring_blocked" in relay.logs()


async def _stands_at(dsn: str, relay: services.Service, turn: int) -> bool:
    """Tell whether the ring is held up there; it may be held up for a moment elsewhere, by an ANALYZE for one."""
    return await _turn(dsn) == turn and await _is_blocked(relay, blocked=True)


async def _is_blocked(relay: services.Service, *, blocked: bool) -> bool:
    return await relay_kit.metric(relay, "sagapost_relay_rotation_blocked") == float(blocked)


async def _longer(sent: list[UUID], than: int) -> bool:
    return len(sent) > than


@pytest.mark.parametrize("mode", ["ACCESS SHARE", "ROW EXCLUSIVE"])
async def test_the_ring_waits_for_who_uses_the_next_partition_and_nobody_for_the_ring(payment_db: str, mode: str) -> None:
    """A reader or a writer there blocks the turn; meanwhile each attempt ends at once, and inserts with little patience go on."""
    async with _session(payment_db) as turning, _session(payment_db) as other:
        await _settle_all(payment_db)
        async with _writing(payment_db) as sent:
            async with other.transaction():
                await other.execute(sql.SQL("LOCK TABLE outbox_1 IN {} MODE").format(sql.SQL(mode)))
                for number in range(20):
                    async with asyncio.timeout(5):
                        turned = await ring.rotate(turning, _pace(0))
                    assert not turned.rotated
                    assert "could not obtain lock" in str(turned.blocked)
                    await relay_kit.when(functools.partial(_longer, sent, number * BATCH))

            assert (await ring.rotate(turning, _pace(0))).rotated
            assert await _turn(payment_db) == 1


async def test_the_ring_keeps_what_is_not_settled(payment_db: str) -> None:
    """Rows that a cursor has not passed are never thrown away, nor rows of a transaction that ran when it was stored."""
    async with _session(payment_db) as conn, await db.Connection.connect(payment_db) as late:
        await _put_into(late, 1)
        await conn.execute("SELECT pg_current_xact_id()")  # ends later, so that the one above lies below the snapshot's xmax
        await _settle_all(payment_db)  # while it is still running
        await late.commit()
        assert await ring.rotate(conn, _pace(0)) == ring.Turned(blocked="the next partition holds rows that are not settled yet")

        await _settle_all(payment_db)
        await _put_into(conn, 1)
        assert await ring.rotate(conn, _pace(0)) == ring.Turned(blocked="the next partition holds rows that are not settled yet")

        await _settle_all(payment_db)
        assert await ring.rotate(conn, _pace(0)) == ring.Turned(rotated=True)
        assert await relay_kit.rows(payment_db, "SELECT count(*) FROM outbox") == [(0,)]


@pytest.mark.parametrize("missing", [(0,), (0, 1, 2, 3)])
async def test_without_its_cursors_the_ring_throws_nothing_away(payment_db: str, missing: tuple[int, ...]) -> None:
    """No cursor says that rows are settled: that is not the same as all cursors saying so."""
    async with _session(payment_db) as conn:
        await _put_into(conn, 1)
        await _settle_all(payment_db)
        await conn.execute("DELETE FROM outbox_cursor WHERE shard = ANY(%(missing)s)", {"missing": list(missing)})

        turned = await ring.rotate(conn, _pace(0))

        assert (turned.rotated, turned.blocked is None) == (False, False)
        assert await relay_kit.rows(payment_db, "SELECT count(*) FROM outbox") == [(1,)]


async def test_a_turn_that_was_cut_short_is_finished_by_the_next(payment_db: str) -> None:
    """A relay that ends between emptying the next partition and moving on leaves nothing behind that is emptied twice."""
    async with _session(payment_db) as conn:
        await conn.execute("UPDATE outbox_bucket SET opened_at = now() + interval '1 second' WHERE bucket = 1")
        await _put_into(conn, 1)

        assert await ring.rotate(conn, _pace(3600)) == ring.Turned(rotated=True)
        assert await relay_kit.rows(payment_db, "SELECT count(*) FROM outbox") == [(1,)]


async def test_the_ring_turns_when_the_clock_was_set_back(payment_db: str) -> None:
    """A partition that was opened an hour from now is not filled for an hour longer."""
    async with _session(payment_db) as conn:
        await conn.execute("UPDATE outbox_bucket SET opened_at = now() + interval '1 hour' WHERE bucket = 0")

        assert await ring.rotate(conn, _pace(3600)) == ring.Turned(rotated=True)
        assert await ring.rotate(conn, _pace(3600)) == ring.Turned()


@pytest.mark.parametrize("steps", [("-3 days", "3 days", "0"), ("3 days", "0"), ("-1 hour", "0", "-1 hour")])
async def test_a_clock_that_is_set_empties_the_ring_no_faster(payment_db: str, steps: tuple[str, ...]) -> None:
    """Whatever the clock shows within one period, a relay turns the ring once at most, and not at first when its own clock differs."""
    clock_shim.install(payment_db)
    begun, used = _pace(3600), _pace(3600)
    async with _session(payment_db) as conn:
        await conn.execute("UPDATE outbox_bucket SET opened_at = now() - interval '2 hours' WHERE bucket = 0")
        turned = [(await ring.rotate(conn, used)).rotated]
        for step in steps:
            clock_shim.step(payment_db, step)
            turned += [(await ring.rotate(conn, used)).rotated]
            turned += [] if step == "0" else [(await ring.rotate(conn, begun)).rotated]

    assert turned == [True] + [False] * (len(turned) - 1)


def _pace(period_s: float) -> ring.Pace:
    return ring.Pace(period_s, time.monotonic())


async def _settle_all(dsn: str) -> None:
    await relay_kit.run(dsn, "UPDATE outbox_cursor SET lo = pg_current_snapshot(), hi = NULL, last_id = 0")


async def _put_into(conn: psycopg.AsyncConnection[tuple[object, ...]], bucket: int) -> None:
    await conn.execute(
        """
        INSERT INTO outbox (bucket, shard, event_id, aggregate, type, routing_key, correlation_id, headers, payload, created_at)
        VALUES (%(bucket)s, 0, gen_random_uuid(), 'a', 't', 'k', 'c', '{}', '', now())
        """,
        {"bucket": bucket},
    )
