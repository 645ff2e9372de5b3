"""Payment's use cases on a real database and the real provider process."""

import asyncio
import http.client
import json
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import msgspec
import psycopg
import pytest

from sagapost_chassis import consuming, db, errors, ids
from sagapost_contracts import events
from sagapost_payment import domain, handlers, queries
from sagapost_payment import provider as providers
from sagapost_sandbox.testing import services

pytestmark = pytest.mark.anyio

ITEMS = (
    events.Line(product_id=1, name="Gaming Laptop", quantity=1, price=Decimal("1299.99")),
    events.Line(product_id=2, name="Wireless Mouse", quantity=2, price=Decimal("49.99")),
)
AMOUNT = Decimal("1399.97")


class Till:
    """One payment service without its broker: hands messages to the handlers, looks at what came of them."""

    def __init__(self, pool: db.Pool, psp: providers.HttpProvider, dsn: str, provider: services.Service) -> None:
        self.pool = pool
        self.psp = psp
        self.dsn = dsn
        self.provider = provider

    async def order(self, message: events.OrderCreated, delivery: consuming.Delivery | None = None, *, max_unanswered: int = 3) -> None:
        """Deliver an OrderCreated."""
        await handlers.on_order_created(self.pool, self.psp, delivery or delivery_of(message), message, max_unanswered=max_unanswered)

    async def cancel(self, order: events.OrderCreated, delivery: consuming.Delivery | None = None) -> None:
        """Deliver a CancelPayment."""
        command = events.CancelPayment(order_id=order.order_id, saga_id=order.saga_id, reason="customer", saga_version=2)
        await handlers.on_cancel_payment(self.pool, self.psp, delivery or delivery_of(command), command)

    def rows(self, statement: str) -> list[tuple[object, ...]]:
        """Read from the payment database."""
        with psycopg.connect(self.dsn) as conn:
            return conn.execute(statement.encode()).fetchall()

    def expire(self) -> None:
        """Let the window to pay be over."""
        with psycopg.connect(self.dsn) as conn:
            conn.execute("UPDATE payments SET pay_before = now() - interval '1 minute'")

    def status(self) -> tuple[object, ...]:
        """Give status, version and code of the one payment there is."""
        (found,) = self.rows("SELECT status, version, code FROM payments")
        return found

    def told(self) -> list[tuple[str, events.Message]]:
        """Give the events in the outbox."""
        return [
            (str(name), msgspec.json.decode(bytes(body), type=getattr(events, str(name))))
            for name, body in self.rows("SELECT type, payload FROM outbox ORDER BY id")
            if isinstance(body, bytes)
        ]

    def moved(self, order: events.OrderCreated) -> list[tuple[str, str]]:
        """Give what really moved at the provider for this order."""
        connection = http.client.HTTPConnection("127.0.0.1", self.provider.port, timeout=5)
        try:
            connection.request("GET", f"/v1/ledger?reference={order.saga_id}")
            return [(entry["kind"], entry["amount"]) for entry in json.loads(connection.getresponse().read())]
        finally:
            connection.close()


def order_of(payment_method: str = "pm_card_ok", *, minutes_left: float = 15) -> events.OrderCreated:
    """Make an order of two lines that wants to be paid with this token."""
    return events.OrderCreated(
        order_id=int(ids.uuid7()) >> 80,
        saga_id=ids.uuid7(),
        user_id=1,
        user_email="test@example.com",
        amount=AMOUNT,
        items=ITEMS,
        payment_method=payment_method,
        pay_before=datetime.now(UTC) + timedelta(minutes=minutes_left),
    )


def delivery_of(message: events.Message, message_id: UUID | None = None) -> consuming.Delivery:
    """Wrap a message as the broker would bring it."""
    return consuming.Delivery(
        message_id=message_id or uuid4(), type=type(message).__name__, message=message, attempt=1, time=datetime.now(UTC)
    )


@pytest.fixture
async def till(payment_db: str, provider: services.Service) -> AsyncGenerator[Till]:
    """Open the pool and the adapter; a call may take one second."""
    async with db.open_pool(payment_db, "test-payment") as pool, providers.open_provider(provider.url, 1) as psp:
        yield Till(pool, psp, payment_db, provider)


async def test_a_good_card_is_charged_once_and_told(till: Till) -> None:
    """Row, ledger, provider and event agree on one capture, and the message is ticked off."""
    order = order_of()

    await till.order(order)

    assert till.status() == ("captured", 2, None)
    assert till.rows("SELECT kind, amount FROM ledger") == [("capture", AMOUNT)]
    assert till.moved(order) == [("charge", str(AMOUNT))]
    assert till.rows("SELECT type FROM inbox") == [("OrderCreated",)]
    ((_, event),) = till.told()
    assert isinstance(event, events.PaymentProcessed)
    assert (event.amount, event.payment_version, event.items, event.saga_id) == (AMOUNT, 2, ITEMS, order.saga_id)


@pytest.mark.parametrize(
    ("token", "code"),
    [
        ("pm_card_declined", "card_declined"),
        ("pm_card_insufficient_funds", "insufficient_funds"),
        ("pm_no_such_thing", "unknown_payment_method"),
    ],
)
async def test_a_refusal_is_final(till: Till, token: str, code: str) -> None:
    """A declined card or an unknown token fails the payment with the provider's code, moves nothing and is not retried."""
    order = order_of(token)

    await till.order(order)

    assert till.status() == ("failed", 2, code)
    assert till.moved(order) == []
    ((_, event),) = till.told()
    assert isinstance(event, events.PaymentFailed)
    assert event.code == code


@pytest.mark.parametrize("token", ["pm_error_after_charge", "pm_late"])
async def test_a_charge_behind_a_failed_answer_is_found(till: Till, token: str) -> None:
    """An error or a time-out after the money moved ends captured at the first delivery, by asking for our reference."""
    order = order_of(token)

    await till.order(order)

    assert till.status() == ("captured", 2, None)
    assert till.moved(order) == [("charge", str(AMOUNT))]
    assert [name for name, _ in till.told()] == ["PaymentProcessed"]


async def test_a_passing_fault_is_retried_with_the_same_key(till: Till) -> None:
    """Two faults leave the payment open; the third delivery charges, once."""
    order = order_of("pm_flaky")

    for _ in range(2):
        with pytest.raises(errors.TransientError):
            await till.order(order)
    await till.order(order)

    assert till.status() == ("captured", 2, None)
    assert till.moved(order) == [("charge", str(AMOUNT))]


@pytest.mark.parametrize("token", ["pm_hang", "pm_poison"])
async def test_a_provider_that_stays_silent_is_given_up_truthfully(till: Till, token: str) -> None:
    """After the allowed calls without a usable answer, a last look-up finds no charge and the payment is voided."""
    order = order_of(token)

    with pytest.raises(errors.TransientError):
        await till.order(order, max_unanswered=1)
    assert till.status() == ("processing", 1, None)
    await till.order(order, max_unanswered=1)

    assert till.status() == ("voided", 2, domain.PROVIDER_TIMEOUT)
    assert till.moved(order) == []
    assert [name for name, _ in till.told()] == ["PaymentVoided"]


async def test_passing_faults_do_not_count_as_silence(till: Till) -> None:
    """An answered fault is climbed over until pay_before; only unanswered calls are counted."""
    order = order_of("pm_flaky")

    for _ in range(2):
        with pytest.raises(errors.TransientError):
            await till.order(order, max_unanswered=1)

    assert till.rows("SELECT unanswered_calls FROM payments") == [(0,)]


async def test_nothing_is_charged_after_the_window(till: Till) -> None:
    """An order whose pay_before has passed is voided as expired without a charge."""
    order = order_of(minutes_left=-1)

    await till.order(order)

    assert till.status() == ("voided", 2, domain.EXPIRED)
    assert till.moved(order) == []


async def test_a_charge_made_before_the_window_closed_counts(till: Till) -> None:
    """Expired or not, money that is there is not denied: the look-up comes before the void."""
    order = order_of(minutes_left=-1)
    key = domain.charge_key(order.saga_id)
    await till.psp.charge(key=key, reference=order.saga_id, amount=order.amount, currency="USD", payment_method="pm_card_ok")

    await till.order(order)

    assert till.status() == ("captured", 2, None)
    assert till.moved(order) == [("charge", str(AMOUNT))]


async def test_a_redelivered_order_is_charged_and_told_once(till: Till) -> None:
    """The same message again, or the same order under another message id, changes nothing."""
    order = order_of()
    delivery = delivery_of(order)

    await till.order(order, delivery)
    await till.order(order, delivery)
    await till.order(order)

    assert till.moved(order) == [("charge", str(AMOUNT))]
    assert len(till.told()) == 1
    assert till.status() == ("captured", 2, None)


@pytest.mark.parametrize("copies", [True, False])
async def test_ten_deliveries_at_once_charge_once(till: Till, *, copies: bool) -> None:
    """Consumers that race for one message, or for ten about one order, end with one capture, one ledger row, one event."""
    order = order_of()
    message_id = uuid4()

    await asyncio.gather(*(till.order(order, delivery_of(order, message_id if copies else uuid4())) for _ in range(10)))

    assert till.moved(order) == [("charge", str(AMOUNT))]
    assert len(till.told()) == 1
    assert len(till.rows("SELECT 1 FROM ledger")) == 1


async def test_a_charge_whose_result_was_lost_is_found_again(till: Till) -> None:
    """When an earlier delivery charged and died, the next asks before it charges: safe even where the provider forgets keys."""
    order = order_of()
    async with db.transaction(till.pool) as conn:
        await queries.add(conn, order)
    other_key = f"lost:{order.saga_id}"
    await till.psp.charge(key=other_key, reference=order.saga_id, amount=order.amount, currency="USD", payment_method="pm_card_ok")

    await till.order(order)

    assert till.status() == ("captured", 2, None)
    assert till.moved(order) == [("charge", str(AMOUNT))]


async def test_another_amount_is_told_as_it_is(till: Till) -> None:
    """When the provider took another amount, ledger and event carry what it took."""
    order = order_of("pm_flaky")
    with pytest.raises(errors.TransientError):
        await till.order(order)
    key = domain.charge_key(order.saga_id)
    await till.psp.charge(key=key, reference=order.saga_id, amount=Decimal("1.00"), currency="USD", payment_method="pm_card_ok")

    await till.order(order)

    assert till.rows("SELECT amount FROM ledger") == [(Decimal("1.00"),)]
    ((_, event),) = till.told()
    assert isinstance(event, events.PaymentProcessed)
    assert event.amount == Decimal("1.00")


async def test_a_provider_that_is_down_costs_nothing(till: Till) -> None:
    """A refused connection leaves the payment open, counts nothing and tells nothing."""
    order = order_of()
    async with providers.open_provider("http://127.0.0.1:1", 1) as nowhere:
        till.psp = nowhere
        with pytest.raises(errors.TransientError):
            await till.order(order)

    assert till.status() == ("processing", 1, None)
    assert till.rows("SELECT unanswered_calls FROM payments") == [(0,)]
    assert till.told() == []


async def test_cancelling_first_leaves_a_tombstone(till: Till) -> None:
    """A cancellation that overtakes its order is answered with a void, and the order that comes later is not charged."""
    order = order_of()

    await till.cancel(order)
    await till.order(order)

    assert till.status() == ("voided", 1, domain.CANCELLED)
    assert till.moved(order) == []
    assert [name for name, _ in till.told()] == ["PaymentVoided"]


async def test_cancelling_a_capture_refunds_it_once(till: Till) -> None:
    """Captured money goes back once; a second command gets the same answer and moves nothing."""
    order = order_of()
    await till.order(order)

    await till.cancel(order)
    await till.cancel(order)

    assert till.moved(order) == [("charge", str(AMOUNT)), ("refund", str(AMOUNT))]
    assert till.rows("SELECT kind, amount FROM ledger ORDER BY id") == [("capture", AMOUNT), ("refund", AMOUNT)]
    told = till.told()
    assert [name for name, _ in told] == ["PaymentProcessed", "PaymentRefunded", "PaymentRefunded"]
    assert told[1][1] == told[2][1]


async def test_a_redelivered_cancellation_is_answered_once(till: Till) -> None:
    """The inbox recognises the command: one message, one answer."""
    order = order_of()
    command = events.CancelPayment(order_id=order.order_id, saga_id=order.saga_id, reason="customer", saga_version=2)
    delivery = delivery_of(command)

    await till.cancel(order, delivery)
    await till.cancel(order, delivery)

    assert [name for name, _ in till.told()] == ["PaymentVoided"]


async def test_cancelling_a_failed_payment_voids_it(till: Till) -> None:
    """Nothing was charged, and the answer says so."""
    order = order_of("pm_card_declined")
    await till.order(order)

    await till.cancel(order)

    assert [name for name, _ in till.told()] == ["PaymentFailed", "PaymentVoided"]


@pytest.mark.parametrize(
    ("token", "status", "told", "moved"),
    [
        ("pm_error_after_charge", "refunded", ["PaymentRefunded"], ["charge", "refund"]),
        ("pm_flaky", "voided", ["PaymentVoided"], []),
    ],
)
async def test_cancelling_while_the_outcome_is_open_is_honoured(
    till: Till, token: str, status: str, told: list[str], moved: list[str]
) -> None:
    """Whoever learns the outcome refunds or voids at once; the order is never told as paid."""
    order = order_of(token)
    async with db.transaction(till.pool) as conn:
        await queries.add(conn, order)
    if moved:
        key = domain.charge_key(order.saga_id)
        await till.psp.charge(key=key, reference=order.saga_id, amount=order.amount, currency="USD", payment_method=token)

    await till.cancel(order)
    await till.order(order)

    assert till.status()[0] == status
    assert [name for name, _ in till.told()] == told
    assert [kind for kind, _ in till.moved(order)] == moved


async def test_a_capture_that_shows_up_behind_a_tombstone_goes_back(till: Till, eventually: Callable[..., Any]) -> None:
    """A call that was still under way when another delivery voided the payment: its money is refunded, net nothing."""
    order = order_of("pm_slow")

    async def intended() -> bool:
        return till.rows("SELECT status FROM payments") != []

    async with providers.open_provider(till.provider.url, 10) as patient:
        till.psp = patient
        charging = asyncio.create_task(till.order(order))
        await eventually(intended)
        till.expire()
        await till.order(order)
        voided = till.status()
        await charging

    assert voided == ("voided", 2, domain.EXPIRED)
    assert till.status()[0] == "refunded"
    assert till.moved(order) == [("charge", str(AMOUNT)), ("refund", str(AMOUNT))]
    assert [name for name, _ in till.told()] == ["PaymentVoided", "PaymentRefunded"]
