"""Placing an order on a real PostgreSQL: one transaction writes everything or nothing, and the answer tells which."""

import asyncio
import time
from collections.abc import AsyncGenerator, Generator
from decimal import Decimal
from typing import Any

import msgspec
import psycopg
import pytest
from integration import order_cutter, pool_kit
from psycopg import rows

from sagapost_chassis import crashpoints, db
from sagapost_contracts import envelope, events
from sagapost_order import domain, errors, handlers, queries, resources, saga

pytestmark = pytest.mark.anyio

TABLES = ("orders", "order_items", "sagas", "saga_history", "outbox")


@pytest.fixture
async def pool(order_db: str) -> AsyncGenerator[db.Pool]:
    """Open a pool on this test's database."""
    async with pool_kit.opened(order_db) as opened:
        yield opened


@pytest.fixture
def sql(order_db: str) -> Generator[psycopg.Connection[dict[str, Any]]]:
    """Connect past the service, to see what it wrote."""
    with psycopg.connect(order_db, autocommit=True, row_factory=rows.dict_row) as connection:
        yield connection


def cart(price: str = "1299.99", product_id: int = 1) -> domain.CheckoutRequest:
    """Make a request for two lines."""
    return domain.CheckoutRequest(
        user_id=7,
        user_email="test@example.com",
        items=(
            domain.CheckoutItem(product_id=2, quantity=3, price=Decimal("49.99")),
            domain.CheckoutItem(product_id=product_id, quantity=1, price=Decimal(price)),
        ),
        payment_method="pm_card_ok",
    )


async def place(pool: db.Pool, request: domain.CheckoutRequest | None = None) -> domain.Order:
    """Place an order."""
    return await handlers.checkout(pool, request or cart(), pay_window_s=900, started_s=time.perf_counter())


def counts(sql: psycopg.Connection[dict[str, Any]]) -> dict[str, int]:
    """Count the rows of every table that a checkout writes."""
    found = sql.execute(
        "SELECT (SELECT count(*) FROM orders) AS orders, (SELECT count(*) FROM order_items) AS order_items,"
        " (SELECT count(*) FROM sagas) AS sagas, (SELECT count(*) FROM saga_history) AS saga_history,"
        " (SELECT count(*) FROM outbox) AS outbox"
    ).fetchone()
    return dict(found or {})


async def test_checkout_writes_order_lines_saga_history_and_event(pool: db.Pool, sql: psycopg.Connection[dict[str, Any]]) -> None:
    """One checkout is one order with its lines, one saga, one history row and one outbox row, all of one instant."""
    order = await place(pool)

    assert counts(sql) == {"orders": 1, "order_items": 2, "sagas": 1, "saga_history": 1, "outbox": 1}
    stored = sql.execute("SELECT * FROM orders").fetchone() or {}
    assert (stored["id"], stored["status"], stored["total_amount"], stored["user_email"]) == (
        order.id,
        "pending",
        Decimal("1449.96"),
        "test@example.com",
    )
    lines = sql.execute("SELECT line, product_id, name, quantity, price FROM order_items ORDER BY line").fetchall()
    assert [tuple(line.values()) for line in lines] == [
        (1, 2, "Wireless Mouse", 3, Decimal("49.99")),
        (2, 1, "Gaming Laptop", 1, Decimal("1299.99")),
    ]
    begun = sql.execute("SELECT *, deadline_at - created_at AS nudge, pay_before - created_at AS window FROM sagas").fetchone() or {}
    assert (begun["order_id"], begun["state"], begun["version"], begun["deadline_kind"]) == (order.id, "created", 1, "nudge")
    assert (begun["nudge"].total_seconds(), begun["window"].total_seconds()) == (300, 900)
    assert begun["created_at"] == stored["created_at"] == order.created_at


@pytest.mark.parametrize(("behind_s", "wait_s"), [(30, 300), (30.1, 600)])
async def test_who_comes_while_payments_are_late_is_asked_for_later(
    behind_s: float, wait_s: int, pool: db.Pool, sql: psycopg.Connection[dict[str, Any]]
) -> None:
    """With a key or without: payment is asked again after a third of the time to pay, or after two; that time stays the same."""
    key = domain.IdempotencyKey(client="demo", key="k", fingerprint=bytes(32))
    await handlers.checkout(pool, cart(), pay_window_s=900, started_s=0, behind_s=behind_s)
    await handlers.checkout_once(pool, cart(), key, answer=resources.accepted, pay_window_s=900, started_s=0, behind_s=behind_s)

    found = sql.execute("SELECT deadline_kind, deadline_at - created_at AS nudge, pay_before - created_at AS window FROM sagas").fetchall()

    assert [(row["deadline_kind"], row["nudge"].total_seconds(), row["window"].total_seconds()) for row in found] == [
        ("nudge", wait_s, 900),
        ("nudge", wait_s, 900),
    ]


async def test_event_in_the_outbox_is_the_order(pool: db.Pool, sql: psycopg.Connection[dict[str, Any]]) -> None:
    """What payment will read names the order's saga, exact amount, lines and deadline; the history knows its message id."""
    order = await place(pool)

    row = sql.execute("SELECT * FROM outbox").fetchone() or {}
    created = envelope.decode(row["type"], row["headers"]["schema-version"], row["payload"])
    assert isinstance(created, events.OrderCreated)
    assert (row["routing_key"], row["correlation_id"]) == ("order.order.created", str(order.saga_id))
    assert (created.order_id, created.saga_id, created.amount, created.items) == (order.id, order.saga_id, order.total_amount, order.items)
    assert (created.pay_before - order.created_at).total_seconds() == 900
    told = sql.execute("SELECT seq, from_state, to_state, event, source, message_id FROM saga_history").fetchone() or {}
    assert tuple(told.values()) == (1, "none", "created", "OrderCreated", "http", row["event_id"])


async def test_history_of_a_new_saga_folds_to_its_row(pool: db.Pool) -> None:
    """From the first row on, the history alone tells state, version and facts."""
    order = await place(pool)

    row, _, history = await handlers.get_saga(pool, order.saga_id, owner=None)

    assert saga.fold(history) == ("created", 1, saga.facts_of(row))


@pytest.mark.parametrize(
    ("request_", "refusal"),
    [(cart(price="0.01"), errors.PriceChangedError), (cart(product_id=999), errors.UnknownProductError)],
)
async def test_refused_checkout_writes_nothing(
    pool: db.Pool, sql: psycopg.Connection[dict[str, Any]], request_: domain.CheckoutRequest, refusal: type[Exception]
) -> None:
    """Another price or an unknown product leaves no row behind."""
    with pytest.raises(refusal):
        await place(pool, request_)

    assert set(counts(sql).values()) == {0}


async def test_rolled_back_checkout_leaves_no_event(
    pool: db.Pool, sql: psycopg.Connection[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure after the outbox insert and before the commit takes order and event back together."""
    monkeypatch.setattr(crashpoints, "_NAME", "order.before_commit")
    monkeypatch.setattr(crashpoints, "_ACTION", "raise")

    with pytest.raises(crashpoints.CrashPointError):
        await place(pool)

    assert set(counts(sql).values()) == {0}


async def test_failure_after_the_commit_keeps_order_and_event(
    pool: db.Pool, sql: psycopg.Connection[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once committed, an order and its event stay, whatever becomes of the answer."""
    monkeypatch.setattr(crashpoints, "_NAME", "order.after_commit")
    monkeypatch.setattr(crashpoints, "_ACTION", "raise")

    with pytest.raises(crashpoints.CrashPointError):
        await place(pool)

    assert counts(sql) == {"orders": 1, "order_items": 2, "sagas": 1, "saga_history": 1, "outbox": 1}


async def test_concurrent_checkouts_are_independent(pool: db.Pool, sql: psycopg.Connection[dict[str, Any]]) -> None:
    """Checkouts at the same time, more than the pool has connections, all get orders of their own."""
    placed = await asyncio.gather(*(place(pool) for _ in range(30)))

    assert len({order.id for order in placed}) == len({order.saga_id for order in placed}) == 30
    assert counts(sql)["outbox"] == 30


async def test_exhausted_pool_is_unavailable(order_db: str) -> None:
    """A checkout that gets no connection in time is refused as transient instead of waiting for ever."""
    async with db.open_pool(order_db, "test", max_size=1) as small, db.connection(small):
        with pytest.raises(db.UnavailableError):
            await place(small)


async def test_commit_without_an_answer_that_happened_is_answered(order_db: str, sql: psycopg.Connection[dict[str, Any]]) -> None:
    """The connection breaks after COMMIT was sent, and the order is there: the customer gets it."""
    async with order_cutter.Cutter(order_db, deliver=True).running() as cutter, pool_kit.opened(cutter.dsn) as pool:
        order = await place(pool)

    assert cutter.cuts == 1
    assert counts(sql)["orders"] == 1
    assert (sql.execute("SELECT id FROM sagas").fetchone() or {})["id"] == order.saga_id


async def test_commit_that_never_arrived_is_unavailable(order_db: str, sql: psycopg.Connection[dict[str, Any]]) -> None:
    """The connection breaks before COMMIT arrives: the customer is told that there is no order, and there is none."""
    async with order_cutter.Cutter(order_db, deliver=False).running() as cutter, pool_kit.opened(cutter.dsn) as pool:
        with pytest.raises(errors.NotStoredError):
            await place(pool)

    assert cutter.cuts == 1
    assert set(counts(sql).values()) == {0}


async def test_commit_still_under_way_is_not_taken_for_lost(pool: db.Pool, order_db: str) -> None:
    """While another backend may still commit, "not there" is no answer; an id this server never gave is no error."""
    async with await db.Connection.connect(order_db) as slow:
        order = await place(pool)
        cursor = await slow.execute("SELECT pg_current_xact_id()::text::bigint")
        xid = (await cursor.fetchone() or (0,))[0]

        async with db.connection(pool) as conn:
            unknown_id = msgspec.structs.replace(order, saga_id=msgspec.convert("0" * 32, type(order.saga_id))).saga_id
            under_way = await queries.commit_outcome(conn, unknown_id, xid)
            await slow.rollback()
            over = await queries.commit_outcome(conn, unknown_id, xid)
            stored = await queries.commit_outcome(conn, order.saga_id, xid)
            ahead_of_us = await queries.commit_outcome(conn, unknown_id, 2**62)

    assert (under_way.found, under_way.running) == (False, True)
    assert (over.found, over.running) == (False, False)
    assert stored.found
    assert ahead_of_us.running
