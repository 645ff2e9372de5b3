"""The order database's clock is set while orders wait: each wait stays as long as it was, and no client loses its calls."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import psycopg
import pytest
from integration import clock_shim, order_walk, pool_kit

from sagapost_chassis import db, retention
from sagapost_order import client_queries, clock, clock_queries, handlers, moves, states

pytestmark = pytest.mark.anyio

STEPS = ("-1 hour", "1 hour", "-10 seconds")
AGES = ("0", "7 minutes", "2 hours")
POLICY = states.POLICY
WAITS = """
SELECT id, version, state, deadline_kind, deadline_at - clock_timestamp(), receipt_until - clock_timestamp() FROM sagas ORDER BY id
"""


@pytest.fixture
async def pool(order_db: str) -> AsyncGenerator[db.Pool]:
    """Open a pool on a database whose clock can be set."""
    clock_shim.install(order_db)
    async with pool_kit.opened(order_db) as opened:
        yield opened


def waits(dsn: str) -> list[tuple[Any, ...]]:
    """Read how long each saga still waits, by the database's clock."""
    with psycopg.connect(dsn, autocommit=True) as sql:
        return sql.execute(WAITS).fetchall()


async def swept(pool: db.Pool, stepped: clock.Clock) -> None:
    """Do what the sweeper does until it has nothing to do."""
    more = True
    while more:
        if stepped.steps:
            await clock.follow(pool, stepped)
        else:
            more = await moves.sweep(pool, POLICY, (), moves.Swept(), stepped)


async def place_all(pool: db.Pool) -> None:
    """Place an order in every state that waits, one with a receipt under way, and one whose cancellation waits for it."""
    waiting = (states.CREATED, states.PAID, states.NOTIFY_FAILED, states.COMPENSATING, states.COMPENSATION_FAILED)
    for state in waiting:
        await order_walk.place(pool, state)
    for is_cancelled in (False, True):
        order = await order_walk.place(pool, states.PAID)
        assert (await moves.ask_receipt(pool, POLICY, order.saga_id)).send
        if is_cancelled:
            await moves.cancel(pool, POLICY, order.id, "demo")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("age", AGES)
async def test_every_wait_stays_as_long_as_it_was(order_db: str, pool: db.Pool, step: str, replicas: int, age: str) -> None:
    """Deadlines and a receipt's lease, in every state, forward and back, however many sweepers see the step, however old the wait is."""
    sweepers = [clock.Clock() for _ in range(replicas)]
    for sweeper in sweepers:
        await swept(pool, sweeper)
    await place_all(pool)
    with psycopg.connect(order_db, autocommit=True) as sql:
        sql.execute("UPDATE sagas SET clock_at = clock_at - %s::interval", [age])
    before = waits(order_db)

    clock_shim.step(order_db, step)
    for sweeper in sweepers:
        await swept(pool, sweeper)

    after = waits(order_db)
    assert [row[:4] for row in after] == [row[:4] for row in before]
    for old, new in zip(before, after, strict=True):
        for was, is_now in zip(old[4:], new[4:], strict=True):
            assert (was is None) == (is_now is None)
            assert was is None or abs((was - is_now).total_seconds()) < 5, (old, new)


async def test_a_sweeper_that_begins_after_the_clock_was_set_back_believes_no_wait_from_the_future(order_db: str, pool: db.Pool) -> None:
    """All order services were away during the step, as in a promotion: what stands in the rows is enough."""
    await place_all(pool)
    before = waits(order_db)
    clock_shim.step(order_db, "-1 hour")

    await swept(pool, clock.Clock())

    for old, new in zip(before, waits(order_db), strict=True):
        assert abs((old[4] - new[4]).total_seconds()) < 5, (old, new)


@pytest.mark.parametrize("state", [states.CREATED, states.PAID, states.COMPENSATING])
async def test_what_moves_after_the_clock_was_set_back_waits_by_the_present_clock(order_db: str, pool: db.Pool, state: str) -> None:
    """Its history goes on from the time that was shown before; its next deadline does not."""
    order = await order_walk.place(pool, state)
    clock_shim.step(order_db, "-1 hour")
    await swept(pool, clock.Clock())
    with psycopg.connect(order_db, autocommit=True) as sql:
        sql.execute("UPDATE outbox_cursor SET lo = pg_current_snapshot()")
        sql.execute("UPDATE sagas SET deadline_at = now() WHERE id = %s", [order.saga_id])

    assert await moves.sweep(pool, POLICY, (), moves.Swept())

    ((*_, wait, _),) = waits(order_db)
    assert 0 < wait.total_seconds() <= 900


@pytest.mark.parametrize("step", ["-2 seconds", "-4 seconds", "-1 hour"])
async def test_a_lease_holds_a_cancellation_that_comes_right_after_the_clock_was_set_back(order_db: str, pool: db.Pool, step: str) -> None:
    """Before the sweeper has looked: the receipt may be on its way, so the cancellation is noted, for no longer than the lease."""
    order = await order_walk.place(pool, states.PAID)
    assert (await moves.ask_receipt(pool, POLICY, order.saga_id)).send
    clock_shim.step(order_db, step)

    await moves.cancel(pool, POLICY, order.id, "demo")

    ((_, _, state, kind, wait, _),) = waits(order_db)
    assert (state, kind) == (states.PAID, states.RECEIPT)
    assert 0 < wait.total_seconds() <= POLICY.receipt_lease_s + 5


async def test_many_sagas_follow_in_parts(order_db: str, pool: db.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than one statement moves at once: each is moved once."""
    monkeypatch.setattr(clock_queries, "FOLLOWED", 2)
    stepped = clock.Clock()
    await swept(pool, stepped)
    for _ in range(5):
        await order_walk.place(pool)
    before = waits(order_db)
    clock_shim.step(order_db, "1 hour")

    await swept(pool, stepped)

    for old, new in zip(before, waits(order_db), strict=True):
        assert abs((old[4] - new[4]).total_seconds()) < 5


async def test_nothing_is_forgotten_while_the_clock_is_days_ahead(order_db: str, pool: db.Pool) -> None:
    """A key is one order for seven days and an inbox row stays for thirty, also when the clock was forty days ahead for a moment."""
    order = await order_walk.place(pool)
    with psycopg.connect(order_db, autocommit=True) as sql:
        sql.execute("DELETE FROM inbox")
        sql.execute("INSERT INTO inbox SELECT gen_random_uuid(), 'EmailSent' FROM generate_series(1, 3)")
        sql.execute(
            "INSERT INTO idempotency_keys (client, key, fingerprint, order_id, status, location, body)"
            " VALUES ('demo', 'k', decode(repeat('00', 32), 'hex'), %s, 202, '', '')",
            [order.id],
        )
    clock_shim.step(order_db, "40 days")

    await retention.once(pool, retention.Terms(customer_days=1), asyncio.Event())
    assert await handlers.forget_answers(pool) == 0

    with psycopg.connect(order_db, autocommit=True) as sql:
        assert sql.execute("SELECT (SELECT count(*) FROM inbox), (SELECT count(*) FROM idempotency_keys)").fetchone() == (3, 1)
    clock_shim.step(order_db, "0")
    assert await handlers.forget_answers(pool) == 0


async def test_a_client_keeps_its_calls_when_the_clock_is_set_back(order_db: str, pool: db.Pool) -> None:
    """A bucket that was emptied at a later time is filled from now on, not in an hour."""
    with psycopg.connect(order_db, autocommit=True) as sql:
        sql.execute("UPDATE clients SET rate_per_s = 100, burst = 10 WHERE name = 'demo'")

    async def drawn() -> int:
        async with db.transaction(pool) as conn:
            return (await client_queries.draw(conn, None, 10)).granted

    assert await drawn() == 10
    clock_shim.step(order_db, "-1 hour")

    granted: list[int] = []
    async with asyncio.timeout(30):
        while sum(granted) < 10:
            granted.append(await drawn())

    assert max(granted) <= 10
