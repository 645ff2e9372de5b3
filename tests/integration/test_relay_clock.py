"""A clock that steps, and a cursor that is ahead of its server: no lease is believed for ever, and no row is lost in silence."""

import asyncio
import os
import subprocess
import sys

import pytest
from integration import relay_kit
from integration.relay_kit import Start

from sagapost_chassis import db
from sagapost_sandbox.testing import services

pytestmark = pytest.mark.anyio

LEASE_S = 2
# the clock of this database alone: sessions that begin from now on find this function before PostgreSQL's
_CLOCK = """
CREATE SCHEMA shim;
CREATE TABLE shim.clock (step interval NOT NULL);
INSERT INTO shim.clock VALUES ('0');
CREATE FUNCTION shim.now() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT pg_catalog.now() + step FROM shim.clock';
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = shim, pg_catalog, public', current_database()); END $$
"""
_HOLDERS = "SELECT DISTINCT owner FROM outbox_cursor"
_AHEAD = """
UPDATE outbox_cursor SET lo = format('%s:%s:', x, x)::pg_snapshot
  FROM (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint + 300 AS x) AS s WHERE shard = 2
"""


async def _serves_all(dsn: str, relay: services.Service) -> bool:
    holders = await relay_kit.rows(dsn, _HOLDERS)
    return len(holders) == 1 and f"-{relay.pid}-" in str(holders[0][0])


async def _share(dsn: str) -> bool:
    return len(await relay_kit.rows(dsn, _HOLDERS)) == 2 and (None,) not in await relay_kit.rows(dsn, _HOLDERS)


@pytest.mark.parametrize("step", ["-1 hour", "1 hour"])
async def test_the_shards_of_a_dead_relay_are_served_after_a_step_of_the_clock(
    payment_db: str, vhost: str, start_service: Start, step: str
) -> None:
    """Two leases and five seconds later the survivor serves every shard: it believes no lease, and no relay, from the future."""
    await relay_kit.run(payment_db, _CLOCK)
    env = relay_kit.env(payment_db, vhost, lease_s=str(LEASE_S))
    doomed, survivor = (start_service("relay", env) for _ in range(2))
    await relay_kit.when(lambda: _share(payment_db))
    doomed.kill()
    await relay_kit.run(payment_db, "UPDATE shim.clock SET step = %(step)s::interval", step=step)
    sent = await relay_kit.add(payment_db, *(relay_kit.event(order, 1) for order in range(1, 41)))

    await relay_kit.when(lambda: _serves_all(payment_db, survivor), 2 * LEASE_S + 5)

    assert {each.message_id for each in await relay_kit.collect_all(vhost, sent)} == set(sent)


async def test_a_relay_alone_takes_what_a_ghost_from_the_future_holds(payment_db: str, vhost: str, start_service: Start) -> None:
    """Neither a lease of an hour nor a relay that says it lives for one keeps a shard from being served."""
    await relay_kit.run(payment_db, "UPDATE outbox_cursor SET owner = 'ghost', lease_until = now() + interval '1 hour' WHERE shard < 2")
    await relay_kit.run(payment_db, "INSERT INTO outbox_relay (owner, seen_until) VALUES ('ghost', now() + interval '1 hour')")

    relay = start_service("relay", relay_kit.env(payment_db, vhost, lease_s=str(LEASE_S)))

    await relay_kit.when(lambda: _serves_all(payment_db, relay), 2 * LEASE_S + 5)
    assert await relay_kit.rows(payment_db, "SELECT count(*) FROM outbox_relay") == [(1,)]


async def test_a_shard_that_nobody_serves_is_counted_and_named(payment_db: str, vhost: str, start_service: Start) -> None:
    """A session that keeps a cursor locked keeps its shard from every relay: the gauge and readiness say so until it is over."""
    async with await db.Connection.connect(payment_db) as holder:
        await holder.execute("SELECT FROM outbox_cursor WHERE shard = 3 FOR UPDATE")
        relay = start_service("relay", relay_kit.env(payment_db, vhost, **relay_kit.measured()))

        await relay_kit.when(lambda: _is_degraded(relay, ["shards"]))
        assert await relay_kit.metric(relay, "sagapost_relay_shards_unserved") == 1
        await holder.rollback()

    await relay_kit.when(lambda: _is_degraded(relay, []))
    assert await relay_kit.metric(relay, "sagapost_relay_shards_unserved") == 0


async def _is_degraded(relay: services.Service, names: list[str]) -> bool:
    return bool((await relay_kit.ready(relay))["degraded"] == names)


async def test_a_cursor_ahead_of_its_server_is_refused_until_it_is_repaired(payment_db: str, vhost: str, start_service: Start) -> None:
    """Also when the server's transactions have come to it: each start ends with 2 and names the command; repaired, every row arrives."""
    env = relay_kit.env(payment_db, vhost, lease_s=str(LEASE_S), rotate_s="0.2")
    sent = await relay_kit.add(payment_db, *(relay_kit.event(order, 1) for order in range(1, 41)))
    await relay_kit.run(payment_db, _AHEAD)
    first = start_service("relay", env)
    codes = [await asyncio.to_thread(first.wait)]
    left = await relay_kit.rows(payment_db, _HOLDERS)
    async with await db.Connection.connect(payment_db, autocommit=True) as conn:
        for _ in range(400):
            await conn.execute("SELECT pg_current_xact_id()")

    again = start_service("relay", env)
    codes.append(await asyncio.to_thread(again.wait))
    left += await relay_kit.rows(payment_db, _HOLDERS)
    told = first.logs() + again.logs()
    repaired = await asyncio.to_thread(_repair, payment_db)
    start_service("relay", env)

    assert codes == [2, 2]
    assert left == [(None,), (None,)]  # who refuses leaves no lease behind that the repair would have to wait for
    assert "./sagapost outbox repair" in first.logs()
    assert "./sagapost outbox repair" in again.logs()
    assert "Traceback" not in told
    assert repaired.returncode == 0, repaired.stderr
    assert {each.message_id for each in await relay_kit.collect_all(vhost, sent)} == set(sent)


def _repair(dsn: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "sagapost_ops", "outbox", "repair", "--database", "payment", "--yes"]
    return subprocess.run(
        line, env={**os.environ, "SAGAPOST_PAYMENT_DATABASE_URL": dsn}, check=False, timeout=60, capture_output=True, text=True
    )
