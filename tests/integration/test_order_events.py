"""The saga on a real PostgreSQL: each message once, in any order, under a lock and a fence, along legal edges only."""

import asyncio
import time
from collections.abc import AsyncGenerator, Generator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import psycopg
import pytest
from integration import pool_kit
from psycopg import errors as pg_errors
from psycopg import rows

from sagapost_chassis import consuming, db, ids
from sagapost_contracts import envelope, events
from sagapost_order import consumer, domain, errors, handlers, moves, saga, saga_queries, states
from sagapost_sandbox.testing import servers

pytestmark = pytest.mark.anyio

Sql = psycopg.Connection[dict[str, Any]]


@pytest.fixture
async def pool(order_db: str) -> AsyncGenerator[db.Pool]:
    """Open a pool on this test's database."""
    async with pool_kit.opened(order_db) as opened:
        yield opened


@pytest.fixture
def sql(order_db: str) -> Generator[Sql]:
    """Connect past the service, to see what it wrote."""
    with psycopg.connect(order_db, autocommit=True, row_factory=rows.dict_row) as connection:
        yield connection


@pytest.fixture
async def order(pool: db.Pool) -> domain.Order:
    """Place an order for 49.99."""
    request = domain.CheckoutRequest(
        user_id=1,
        user_email="test@example.com",
        items=(domain.CheckoutItem(product_id=2, quantity=1, price=Decimal("49.99")),),
        payment_method="pm_card_ok",
    )
    return await handlers.checkout(pool, request, pay_window_s=900, started_s=time.perf_counter())


def processed(order: domain.Order, amount: str = "49.99", version: int = 1) -> events.PaymentProcessed:
    """Say that payment was taken."""
    return events.PaymentProcessed(
        order_id=order.id,
        saga_id=order.saga_id,
        amount=Decimal(amount),
        payment_id=1,
        payment_version=version,
        transaction_id="tx",
        captured_at=datetime.now(UTC),
        user_email=order.user_email,
        items=order.items,
    )


def failed(order: domain.Order) -> events.PaymentFailed:
    """Say that payment was declined."""
    return events.PaymentFailed(order_id=order.id, saga_id=order.saga_id, payment_version=1, code="card_declined", reason="declined")


def sent(order: domain.Order, template: str = events.RECEIPT) -> events.EmailSent:
    """Say that a mail was taken."""
    return events.EmailSent(order_id=order.id, saga_id=order.saga_id, template=template, smtp_message_id="<m>")


def delivery(message: events.Message, message_id: UUID | None = None) -> consuming.Delivery:
    """Deliver a message, new or with the id of another."""
    return consuming.Delivery(
        message_id=message_id or ids.uuid7(), type=type(message).__name__, message=message, attempt=1, time=datetime.now(UTC)
    )


async def hear(pool: db.Pool, *messages: events.Message) -> None:
    """Deliver messages one after another."""
    for message in messages:
        await moves.on_event(pool, states.POLICY, delivery(message))


async def state(pool: db.Pool, order: domain.Order) -> tuple[str, str, int]:
    """Read the saga's state, the order's status and the saga's version."""
    row, found, _ = await handlers.get_saga(pool, order.saga_id, owner=None)
    return row.state, found.status, row.version


def edges(sql: Sql) -> list[str]:
    """Read the history in short."""
    found = sql.execute("SELECT seq, from_state, event, to_state, outcome FROM saga_history ORDER BY seq").fetchall()
    return [f"{row['seq']} {row['from_state']}-{row['event']}-{row['to_state']} {row['outcome']}" for row in found]


async def test_payment_and_receipt_complete_the_order(pool: db.Pool, order: domain.Order, sql: Sql) -> None:
    """Paid, then notified: order completed, deadline gone, amounts exact, nothing emitted beside OrderCreated."""
    await hear(pool, processed(order))
    assert await state(pool, order) == ("paid", "paid", 2)

    await hear(pool, sent(order))

    assert await state(pool, order) == ("notified", "completed", 3)
    row, _, history = await handlers.get_saga(pool, order.saga_id, owner=None)
    assert (row.captured, row.refunded, row.deadline_at) == (Decimal("49.99"), Decimal(0), None)
    assert saga.fold(history) == ("notified", 3, saga.facts_of(row))
    assert [found["type"] for found in sql.execute("SELECT type FROM outbox").fetchall()] == ["OrderCreated"]


async def test_redelivered_payment_is_ignored(pool: db.Pool, order: domain.Order, sql: Sql) -> None:
    """The same message id again changes nothing and writes no history: the inbox knows it."""
    again = delivery(processed(order))

    await moves.on_event(pool, states.POLICY, again)
    await moves.on_event(pool, states.POLICY, again)

    assert edges(sql) == ["1 none-OrderCreated-created applied", "2 created-PaymentProcessed-paid applied"]
    assert await state(pool, order) == ("paid", "paid", 2)


async def test_repeated_payment_under_a_new_id_is_a_legal_cell(pool: db.Pool, order: domain.Order, sql: Sql) -> None:
    """The same fact under another id, as after the inbox was pruned, is noted as ignored and moves nothing."""
    await hear(pool, processed(order), processed(order))

    assert edges(sql)[-1] == "3 paid-PaymentProcessed-paid ignored"
    assert (await state(pool, order))[0] == "paid"


async def test_receipt_before_payment_ends_notified(pool: db.Pool, order: domain.Order, sql: Sql) -> None:
    """Out of order, the receipt is kept as a fact and counts when the payment is heard: one message, two rows."""
    await hear(pool, sent(order))
    assert await state(pool, order) == ("created", "pending", 2)

    await hear(pool, processed(order))

    assert await state(pool, order) == ("notified", "completed", 4)
    assert edges(sql)[1:] == [
        "2 created-EmailSent-created applied",
        "3 created-PaymentProcessed-paid applied",
        "4 paid-EmailSent-notified applied",
    ]


async def test_declined_payment_cancels_the_order_and_tells_the_customer(pool: db.Pool, order: domain.Order, sql: Sql) -> None:
    """A final refusal ends compensated, with one OrderCancelled that carries address, lines, amount and the code as reason."""
    refusal = delivery(failed(order))
    await moves.on_event(pool, states.POLICY, refusal)
    await moves.on_event(pool, states.POLICY, refusal)

    assert await state(pool, order) == ("compensated", "cancelled", 2)
    found = sql.execute("SELECT * FROM outbox WHERE type = 'OrderCancelled'").fetchall()
    assert len(found) == 1
    message = envelope.decode(found[0]["type"], found[0]["headers"]["schema-version"], found[0]["payload"])
    assert isinstance(message, events.OrderCancelled)
    assert (message.user_email, message.reason, message.refunded) == ("test@example.com", "card_declined", Decimal(0))
    assert (message.amount, message.items) == (order.total_amount, order.items)
    assert found[0]["headers"]["causation-id"] == str(refusal.message_id)


async def test_other_amount_is_compensated_by_command(pool: db.Pool, order: domain.Order, sql: Sql) -> None:
    """A capture of another amount is never accepted as payment: the payment is told to give it back."""
    await hear(pool, processed(order, amount="0.01"))

    row, found, _ = await handlers.get_saga(pool, order.saga_id, owner=None)
    assert (row.state, found.status, row.attention, row.captured) == ("compensating", "cancelling", "amount_mismatch", Decimal("0.01"))
    commands = sql.execute("SELECT routing_key, payload FROM outbox WHERE type = 'CancelPayment'").fetchall()
    assert [command["routing_key"] for command in commands] == ["order.payment.cancel_requested"]
    assert msgspec.json.decode(commands[0]["payload"])["saga_version"] == row.version


async def test_cancellation_mail_is_a_fact_and_moves_nothing(pool: db.Pool, order: domain.Order) -> None:
    """The cancellation mail is noted on the saga that ended."""
    await hear(pool, failed(order), sent(order, events.CANCELLATION))

    row, _, _ = await handlers.get_saga(pool, order.saga_id, owner=None)
    assert row.state == "compensated"
    assert row.cancellation_sent_at is not None
    assert row.notified_at is None


async def test_every_bound_message_type_has_a_handler() -> None:
    """Whatever payment and email may say on the queue's bindings reaches the table."""
    bound = {cls for cls in envelope.TYPES.values() if cls.key.startswith(("payment.", "email."))}

    async with db.open_pool("postgresql://nobody@127.0.0.1:1/none", "test") as pool:
        assert set(consumer.routes(pool, states.POLICY)) == bound
    assert {cls.__name__ for cls in bound} == set(states.EVENTS)


async def test_event_without_its_saga_is_retried(pool: db.Pool, order: domain.Order, sql: Sql) -> None:
    """An event for a saga that cannot be seen is transient, and its claim on the inbox goes with it."""
    stray = delivery(msgspec.structs.replace(processed(order), saga_id=ids.uuid7()))

    with pytest.raises(errors.SagaMissingError):
        await moves.on_event(pool, states.POLICY, stray)

    assert sql.execute("SELECT count(*) AS n FROM inbox").fetchone() == {"n": 0}


async def test_event_of_another_order_is_dead(pool: db.Pool, order: domain.Order) -> None:
    """A message whose order is not its saga's is nothing that a retry would mend."""
    with pytest.raises(errors.ForeignOrderError):
        await hear(pool, msgspec.structs.replace(processed(order), order_id=order.id + 1))


async def test_concurrent_duplicates_take_effect_once(pool: db.Pool, order: domain.Order, sql: Sql) -> None:
    """The same message on many consumers at once: one of them moves the saga."""
    again = delivery(processed(order))

    await asyncio.gather(*(moves.on_event(pool, states.POLICY, again) for _ in range(20)))

    assert edges(sql) == ["1 none-OrderCreated-created applied", "2 created-PaymentProcessed-paid applied"]


async def test_concurrent_different_events_are_serialised(pool: db.Pool, order: domain.Order) -> None:
    """Different messages of one saga at once are heard one after another: no version is lost, the history folds."""
    messages = [processed(order), sent(order), *(sent(order, events.CANCELLATION) for _ in range(10))]

    await asyncio.gather(*(moves.on_event(pool, states.POLICY, delivery(message)) for message in messages))

    row, _, history = await handlers.get_saga(pool, order.saga_id, owner=None)
    assert row.state == "notified"
    assert saga.fold(history) == ("notified", row.version, saga.facts_of(row))
    assert [entry.at for entry in history] == sorted(entry.at for entry in history)


async def test_second_handler_waits_for_the_row_lock(pool: db.Pool, order: domain.Order) -> None:
    """While one transaction holds the saga, another event of it waits, and then sees what the first one wrote."""
    async with db.transaction(pool) as holder:
        locked = await saga_queries.lock(holder, order.saga_id)
        assert locked is not None
        waiting = asyncio.create_task(hear(pool, sent(order)))
        await _blocked(holder)
        step = saga.decide(locked, saga.event_of(processed(order), locked.locked_at))[0]
        assert await move(holder, step)

    await waiting
    assert (await state(pool, order))[0] == "notified"


async def _blocked(conn: db.Connection) -> None:
    async with asyncio.timeout(5):
        while True:
            cursor = await conn.execute("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)")
            if (await cursor.fetchone() or (False,))[0]:
                return


async def move(conn: db.Connection, step: saga.Step) -> bool:
    """Write a step as the handler does."""
    cause = saga_queries.Cause(source="event", message_id=ids.uuid7())
    return await saga_queries.move(conn, [moves.move_of(step, cause)])


async def test_write_against_an_older_version_is_fenced(pool: db.Pool, order: domain.Order, sql: Sql) -> None:
    """A write that was decided on an older row writes nothing: neither saga nor history nor order."""
    async with db.connection(pool) as conn:
        stale = await saga_queries.saga(conn, order.saga_id, None)
    assert stale is not None
    await hear(pool, processed(order))

    async with db.transaction(pool) as conn:
        written = await move(conn, saga.decide(stale, saga.event_of(failed(order), stale.updated_at))[0])

    assert not written
    assert await state(pool, order) == ("paid", "paid", 2)
    assert len(edges(sql)) == 2


async def test_illegal_edge_cannot_be_stored(pool: db.Pool, order: domain.Order, sql: Sql) -> None:
    """A transition that is not in the table is refused by the database itself, with all that came with it."""
    async with db.connection(pool) as conn:
        row = await saga_queries.saga(conn, order.saga_id, None)
    assert row is not None
    legal = saga.decide(row, saga.event_of(processed(order), row.updated_at))[0]

    with pytest.raises(pg_errors.ForeignKeyViolation):
        async with db.transaction(pool) as conn:
            await move(conn, msgspec.structs.replace(legal, event="EmailSent"))

    assert await state(pool, order) == ("created", "pending", 1)
    assert len(edges(sql)) == 1


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE sagas SET refunded = 1",
        "UPDATE sagas SET state = 'paid'",
        "UPDATE sagas SET captured = 1, state = 'compensated', deadline_at = NULL, deadline_kind = NULL",
        "UPDATE sagas SET captured = 1, state = 'notified'",
        "UPDATE sagas SET deadline_at = NULL, deadline_kind = NULL",
        "UPDATE sagas SET deadline_kind = NULL",
    ],
)
async def test_row_that_contradicts_itself_cannot_be_stored(order: domain.Order, sql: Sql, change: str) -> None:
    """Refunded over captured, paid without a capture, ended with a deadline: the database refuses each."""
    assert order.saga_state == "created"
    with pytest.raises(pg_errors.CheckViolation):
        sql.execute(change.encode())


@pytest.mark.parametrize("change", ["UPDATE saga_history SET event = event", "DELETE FROM saga_history", "TRUNCATE saga_history"])
async def test_history_is_append_only(
    order: domain.Order, sql: Sql, change: str, order_db: str, database_server: servers.Databases
) -> None:
    """Nobody rewrites what a saga went through: the service has no right to, and whoever has one is stopped by the trigger."""
    assert order.saga_state == "created"
    with pytest.raises(pg_errors.InsufficientPrivilege):
        sql.execute(change.encode())
    admin = f"{database_server.admin_dsn.rpartition('/')[0]}/{order_db.rpartition('/')[2]}"
    with psycopg.connect(admin, autocommit=True) as everything, pytest.raises(pg_errors.RaiseException):
        everything.execute(change.encode())
