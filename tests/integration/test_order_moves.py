"""Customer, clock and operators move sagas on a real PostgreSQL: once each, under the row's lock, with all that goes with it."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Generator
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
from psycopg import sql as composing

from sagapost_chassis import consuming, db, ids
from sagapost_contracts import events
from sagapost_order import domain, errors, handlers, moves, saga_queries, states

pytestmark = pytest.mark.anyio

Sql = psycopg.Connection[dict[str, Any]]
REQUEST = domain.CheckoutRequest(
    user_id=1,
    user_email="test@example.com",
    items=(domain.CheckoutItem(product_id=2, quantity=1, price=Decimal("49.99")),),
    payment_method="pm_card_ok",
)
WAITING = "SELECT count(*) AS sessions FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
# what a relay stores when everything has left the outbox
LEFT = "UPDATE outbox_cursor SET lo = pg_current_snapshot()"
DUE = (
    "UPDATE outbox_cursor SET lo = pg_current_snapshot(); "
    "UPDATE sagas SET deadline_at = now() - interval '1 second' WHERE deadline_at IS NOT NULL"
)


@pytest.fixture
async def pool(order_db: str) -> AsyncGenerator[db.Pool]:
    """Open a pool on this test's database."""
    async with pool_kit.opened(order_db) as opened:
        yield opened


@pytest.fixture
def sql(order_db: str) -> Generator[Sql]:
    """Connect past the service, to see what it wrote and to let time pass."""
    with psycopg.connect(order_db, autocommit=True, row_factory=rows.dict_row) as connection:
        yield connection


@pytest.fixture
async def order(pool: db.Pool) -> domain.Order:
    """Place an order."""
    return await place(pool)


async def place(pool: db.Pool) -> domain.Order:
    """Place an order for 49.99."""
    return await handlers.checkout(pool, REQUEST, pay_window_s=900, started_s=time.perf_counter())


def paid(order: domain.Order) -> events.PaymentProcessed:
    """Say that payment was taken."""
    return events.PaymentProcessed(
        order_id=order.id,
        saga_id=order.saga_id,
        amount=Decimal("49.99"),
        payment_id=1,
        payment_version=2,
        transaction_id="tx",
        captured_at=datetime.now(UTC),
        user_email=order.user_email,
        items=order.items,
    )


def refunded(order: domain.Order) -> events.PaymentRefunded:
    """Say that payment went back."""
    amount = Decimal("49.99")
    return events.PaymentRefunded(order_id=order.id, saga_id=order.saga_id, payment_version=4, amount=amount, refund_id="re")


def sent(order: domain.Order) -> events.EmailSent:
    """Say that the receipt was taken."""
    return events.EmailSent(order_id=order.id, saga_id=order.saga_id, template=events.RECEIPT, smtp_message_id="<m>")


async def hear(pool: db.Pool, *messages: events.Message) -> None:
    """Deliver messages one after another."""
    for message in messages:
        delivery = consuming.Delivery(
            message_id=ids.uuid7(), type=type(message).__name__, message=message, attempt=1, time=datetime.now(UTC)
        )
        await moves.on_event(pool, states.POLICY, delivery)


async def sweep(pool: db.Pool, policy: states.Policy = states.POLICY) -> bool:
    """Apply one deadline that has passed."""
    return await moves.sweep(pool, policy, (), moves.Swept())


def action(event: str, version: int | None, reference: str | None = None) -> moves.Action:
    """Make what an operator wants."""
    return moves.Action(event=event, reason="asked by phone", actor="ada", version=version, reference=reference)


def saga_row(sql: Sql, order: domain.Order) -> dict[str, Any]:
    """Read a saga as it stands."""
    (found,) = sql.execute("SELECT * FROM sagas WHERE id = %s", (order.saga_id,)).fetchall()
    return found


def newest(sql: Sql) -> tuple[object, ...]:
    """Read the newest history row: event, from, to, source, actor, reason."""
    (found,) = sql.execute("SELECT event, from_state, to_state, source, actor, reason FROM saga_history ORDER BY at DESC, seq DESC LIMIT 1")
    return tuple(found.values())


def emitted(sql: Sql) -> list[str]:
    """List what the outbox holds, in order."""
    return [row["type"] for row in sql.execute("SELECT type FROM outbox ORDER BY id")]


async def test_a_cancellation_asks_for_the_money_back_and_ends_when_it_is_back(pool: db.Pool, order: domain.Order, sql: Sql) -> None:
    """Paid, cancelled, refunded: the customer is told once, and the money is neutral."""
    await hear(pool, paid(order))
    cancelling = await moves.cancel(pool, states.POLICY, order.id, "demo")
    assert (cancelling.status, newest(sql)) == ("cancelling", ("CancelRequested", "paid", "compensating", "http", "demo", None))

    await hear(pool, refunded(order))

    row = saga_row(sql, order)
    assert (row["state"], row["captured"], row["refunded"], row["reason"]) == (
        "compensated",
        Decimal("49.99"),
        Decimal("49.99"),
        "cancelled",
    )
    assert emitted(sql) == ["OrderCreated", "CancelPayment", "OrderCancelled"]
    assert (await moves.cancel(pool, states.POLICY, order.id, "demo")).saga_state == "compensated"


async def test_cancelling_again_writes_nothing(pool: db.Pool, order: domain.Order, sql: Sql) -> None:
    """A customer who presses twice, or a thousand times, leaves one row in the history and one message."""
    for _ in range(3):
        await moves.cancel(pool, states.POLICY, order.id, "demo")

    assert saga_row(sql, order)["version"] == 2
    assert emitted(sql) == ["OrderCreated", "CancelPayment"]


async def test_a_finished_order_is_cancelled_only_inside_its_window(pool: db.Pool, order: domain.Order, sql: Sql) -> None:
    """After the window the answer is a refusal and nothing changes; before, the money goes back."""
    await hear(pool, paid(order), sent(order))

    with pytest.raises(errors.NotCancellableError):
        await moves.cancel(pool, states.Policy(cancel_window_s=0), order.id, "demo")
    assert saga_row(sql, order)["version"] == 3

    assert (await moves.cancel(pool, states.POLICY, order.id, "demo")).status == "cancelling"


async def test_what_is_not_there_cannot_be_moved(pool: db.Pool) -> None:
    """Unknown orders and sagas are named as such."""
    with pytest.raises(errors.NotFoundError):
        await moves.cancel(pool, states.POLICY, 4711, "demo")
    with pytest.raises(errors.NotFoundError):
        await moves.act(pool, states.POLICY, UUID(int=4711), action(states.OPERATOR_RETRY, 1))


async def test_a_slow_payment_is_announced_again_under_its_first_id(pool: db.Pool, order: domain.Order, sql: Sql) -> None:
    """A third of the way to pay_before OrderCreated is repeated, word for word, and the real deadline follows."""
    first = saga_row(sql, order)
    assert (first["deadline_kind"], (first["deadline_at"] - first["created_at"]).total_seconds()) == ("nudge", 300)
    sql.execute(DUE)

    assert await sweep(pool)

    row = saga_row(sql, order)
    assert (row["state"], row["deadline_kind"], row["deadline_at"]) == ("created", "pay", row["pay_before"])
    told = sql.execute("SELECT event_id, payload, routing_key FROM outbox ORDER BY id").fetchall()
    assert len(told) == 2
    assert {tuple(message.values()) for message in told} == {tuple(told[0].values())}
    assert newest(sql) == ("Deadline", "created", "created", "deadline", None, "nudge")


async def test_an_unpaid_order_is_given_up_at_its_deadline(pool: db.Pool, order: domain.Order, sql: Sql) -> None:
    """At pay_before payment is asked once more; when it has had time to answer the saga begins to compensate."""
    sql.execute(LEFT)
    sql.execute("UPDATE sagas SET deadline_kind = 'pay', deadline_at = now()")
    assert await sweep(pool)
    asked = saga_row(sql, order)
    assert (asked["state"], asked["deadline_kind"]) == ("created", "answer")
    assert (asked["deadline_at"] - asked["updated_at"]).total_seconds() == 60
    sql.execute(DUE)

    assert await sweep(pool)
    assert not await sweep(pool)

    row = saga_row(sql, order)
    assert (row["state"], row["reason"], row["deadline_kind"]) == ("compensating", "timeout", "compensate")
    assert emitted(sql) == ["OrderCreated", "OrderCreated", "CancelPayment"]


async def test_a_receipt_is_asked_for_again_and_parked_at_last(pool: db.Pool, order: domain.Order, sql: Sql) -> None:
    """RequestNotification carries what a receipt needs; out of attempts the order waits for a person, keeps its money, and is retried."""
    await hear(pool, paid(order))
    policy = states.Policy(notify_attempts=2)
    for _ in range(4):
        sql.execute(DUE)
        assert await sweep(pool, policy)

    row = saga_row(sql, order)
    assert (row["state"], row["attention"], row["captured"], row["refunded"]) == ("notify_failed", "receipt_failed", Decimal("49.99"), 0)
    assert emitted(sql) == ["OrderCreated", *["RequestNotification"] * 3]
    (message,) = sql.execute("SELECT payload FROM outbox ORDER BY id DESC LIMIT 1").fetchall()
    asked = msgspec.json.decode(message["payload"], type=events.RequestNotification)
    assert (asked.template, asked.user_email, asked.amount, asked.items) == ("receipt", "test@example.com", Decimal("49.99"), order.items)


async def test_a_cancellation_nobody_answers_is_parked_and_still_asked_for(pool: db.Pool, order: domain.Order, sql: Sql) -> None:
    """CancelPayment is repeated, then an operator is called, and then it is repeated for ever."""
    policy = states.Policy(compensate_attempts=2)
    await moves.cancel(pool, policy, order.id, "demo")
    for _ in range(5):
        sql.execute(DUE)
        assert await sweep(pool, policy)

    row = saga_row(sql, order)
    assert (row["state"], row["attention"], row["attempts"]) == ("compensation_failed", "refund_failed", 2)
    assert emitted(sql).count("CancelPayment") == 1 + 2 + 2


async def test_what_has_not_ended_is_counted(pool: db.Pool, order: domain.Order, sql: Sql) -> None:
    """The gauges' figures: live sagas by state, how many are overdue, how old the oldest is, and who calls for help."""
    ended = await place(pool)
    await hear(pool, paid(ended), sent(ended))
    sql.execute("UPDATE sagas SET deadline_at = now() - interval '1 minute', attention = 'x' WHERE id = %s", (order.saga_id,))

    live, calling = await handlers.unfinished(pool)

    assert set(live) == {"created"}
    assert (live["created"].sagas, live["created"].overdue, calling) == (1, 1, 1)
    assert 0 <= live["created"].oldest_s < 60
    (listed,) = await handlers.get_sagas(pool, state=None, stuck=True, attention=True, before_order=None, limit=10)
    assert (listed.order_id, listed.stuck) == (order.id, True)


@pytest.mark.parametrize("replicas", [2, 8])
async def test_replicas_never_both_apply_a_deadline(replicas: int, pool: db.Pool, sql: Sql) -> None:
    """Sweeping at once from several connections, every deadline is applied exactly once."""
    orders = [await place(pool) for _ in range(40)]
    sql.execute(DUE)

    async def replica() -> int:
        applied = 0
        while await sweep(pool):
            applied += 1
        return applied

    applied = await asyncio.gather(*(replica() for _ in range(replicas)))

    assert sum(applied) == len(orders)
    (found,) = sql.execute("SELECT count(*) AS rows, count(DISTINCT saga_id) AS sagas FROM saga_history WHERE source = 'deadline'")
    assert (found["rows"], found["sagas"]) == (40, 40)


async def test_a_deadline_that_was_overwritten_is_not_applied(pool: db.Pool, order: domain.Order, sql: Sql) -> None:
    """A payment that is heard of while the sweep waits for the row takes its deadline away."""
    sql.execute(DUE)
    async with db.transaction(pool) as conn:
        await saga_queries.lock(conn, order.saga_id)
        assert not await sweep(pool)  # held by somebody who is about to move it
    await hear(pool, paid(order))

    assert not await sweep(pool)
    assert saga_row(sql, order)["state"] == "paid"


async def test_a_saga_that_cannot_be_moved_keeps_no_other_waiting(pool: db.Pool, sql: Sql) -> None:
    """A deadline whose application fails names its saga, and the next sweep leaves it out."""
    broken, sound = await place(pool), await place(pool)
    sql.execute(LEFT)
    sql.execute("UPDATE sagas SET deadline_at = now() - interval '1 hour', amount = 1 WHERE id = %s", (broken.saga_id,))
    sql.execute("UPDATE sagas SET deadline_at = now() - interval '1 second' WHERE id = %s", (sound.saga_id,))
    refuse = composing.SQL("ALTER TABLE saga_history ADD CHECK (saga_id <> {}) NOT VALID")
    sql.execute(refuse.format(composing.Literal(str(broken.saga_id))))
    swept = moves.Swept()

    with pytest.raises(pg_errors.CheckViolation):
        await moves.sweep(pool, states.POLICY, (), swept)
    assert swept.saga_id == broken.saga_id
    assert await moves.sweep(pool, states.POLICY, {broken.saga_id}, moves.Swept())

    assert saga_row(sql, sound)["deadline_kind"] == "pay"


async def test_an_operator_s_action_says_who_and_why(pool: db.Pool, order: domain.Order, sql: Sql) -> None:
    """The history row carries actor and reason; the version that was looked at must be the one there is."""
    with pytest.raises(errors.VersionMismatchError):
        await moves.act(pool, states.POLICY, order.saga_id, action(states.OPERATOR_COMPENSATE, 7))
    assert saga_row(sql, order)["version"] == 1

    row = await moves.act(pool, states.POLICY, order.saga_id, action(states.OPERATOR_COMPENSATE, 1))

    assert (row.state, row.reason) == ("compensating", "operator")
    assert newest(sql) == ("OperatorCompensate", "created", "compensating", "operator", "ada", "asked by phone")
    assert emitted(sql) == ["OrderCreated", "CancelPayment"]


async def test_an_action_without_use_is_refused_and_remembered(pool: db.Pool, order: domain.Order, sql: Sql) -> None:
    """Nothing moves, and the history says who tried."""
    with pytest.raises(errors.NoSuchActionError):
        await moves.act(pool, states.POLICY, order.saga_id, action(states.OPERATOR_WAIVE_NOTIFY, None))

    assert saga_row(sql, order)["state"] == "created"
    assert newest(sql) == ("OperatorWaiveNotify", "created", "created", "operator", "ada", "asked by phone")


async def test_money_given_back_by_hand_ends_the_order(pool: db.Pool, order: domain.Order, sql: Sql) -> None:
    """A refund that the provider refuses can be made elsewhere: the reference stands in the history."""
    await hear(pool, paid(order))
    await moves.cancel(pool, states.POLICY, order.id, "demo")
    refusal = events.RefundFailed(
        order_id=order.id, saga_id=order.saga_id, payment_version=4, amount=Decimal("49.99"), code="closed", permanent=True
    )
    await hear(pool, refusal)
    assert saga_row(sql, order)["state"] == "compensation_failed"

    row = await moves.act(pool, states.POLICY, order.saga_id, action(states.OPERATOR_MARK_REFUNDED, None, "bank 7"))

    assert (row.state, row.refunded, row.attention) == ("compensated", Decimal("49.99"), None)
    assert newest(sql)[-1] == "asked by phone (reference bank 7)"
    assert emitted(sql)[-1] == "OrderCancelled"


@pytest.mark.parametrize("first", [paid, refunded], ids=["paid first", "refunded first"])
async def test_a_refund_and_its_payment_count_in_any_order(
    first: Callable[[domain.Order], events.Message], pool: db.Pool, order: domain.Order, sql: Sql
) -> None:
    """PaymentRefunded before PaymentProcessed, and the other way round, end neutral and cancelled."""
    both = [paid(order), refunded(order)]
    await hear(pool, *(both if first is paid else reversed(both)))

    row = saga_row(sql, order)
    assert (row["state"], row["captured"], row["refunded"]) == ("compensated", Decimal("49.99"), Decimal("49.99"))


@pytest.mark.parametrize("locked", [True, False])
async def test_the_row_lock_lets_everybody_through(
    *, order_db: str, order: domain.Order, sql: Sql, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., Any], locked: bool
) -> None:
    """Ten messages about one saga at five replicas at once are all applied; without FOR UPDATE, the version's fence throws some back."""
    if not locked:
        monkeypatch.setattr("sagapost_order.saga_queries._TAKE", vars(saga_queries)["_TAKE"].replace(b"FOR UPDATE OF sagas", b""))

    async def all_wait() -> bool:
        return sql.execute(WAITING).fetchall() == [{"sessions": 10}]

    patient = pool_kit.patient(order_db)
    async with contextlib.AsyncExitStack() as opened:
        replicas = [await opened.enter_async_context(pool_kit.opened(patient, f"replica-{number}")) for number in range(5)]
        with psycopg.connect(order_db) as holder:  # until each message is at the saga in a transaction of its own
            holder.execute("SELECT 1 FROM sagas WHERE id = %s FOR UPDATE", (order.saga_id,))
            hearing = asyncio.gather(*(hear(replica, paid(order)) for replica in replicas * 2), return_exceptions=True)
            await eventually(all_wait, 30)
        heard = await hearing

    assert any(isinstance(outcome, errors.SagaMovedError) for outcome in heard) is not locked
    if locked:
        assert (heard, saga_row(sql, order)["version"]) == ([None] * 10, 11)
