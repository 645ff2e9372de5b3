"""Payment's use cases on a real database and the real provider process."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from decimal import Decimal
from uuid import uuid4

import msgspec
import pytest
from integration import pool_kit
from integration.payment_till import AMOUNT, ITEMS, Till, delivery_of, order_of

from sagapost_chassis import errors
from sagapost_contracts import events
from sagapost_payment import domain
from sagapost_payment import errors as payment_errors
from sagapost_payment import provider as providers
from sagapost_sandbox.testing import services

pytestmark = pytest.mark.anyio

IMPATIENT = domain.Terms(max_unanswered=1)


@pytest.fixture
def timeout_s() -> float:
    """Give the seconds that a call may take; a test whose subject is a time-out names its own."""
    return 10


@pytest.fixture
async def till(payment_db: str, provider: services.Service, timeout_s: float) -> AsyncGenerator[Till]:
    """Open the pool and the adapter."""
    async with pool_kit.opened(payment_db, "test-payment") as pool, providers.open_provider(provider.url, timeout_s) as psp:
        opened = Till(pool, psp, payment_db, provider)
        yield opened
        opened.behave()


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


@pytest.mark.parametrize(("token", "timeout_s"), [("pm_error_after_charge", 10), ("pm_late", 3)])
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


@pytest.mark.parametrize(("token", "timeout_s"), [("pm_hang", 1), ("pm_poison", 10)])
async def test_a_provider_that_stays_silent_is_given_up_truthfully(till: Till, token: str) -> None:
    """After the allowed calls without a usable answer, a last look-up finds no charge and the payment is voided."""
    order = order_of(token)

    with pytest.raises(errors.TransientError):
        await till.order(order, terms=IMPATIENT)
    assert till.status() == ("processing", 1, None)
    await till.order(order, terms=IMPATIENT)

    assert till.status() == ("voided", 2, domain.PROVIDER_TIMEOUT)
    assert till.moved(order) == []
    assert [name for name, _ in till.told()] == ["PaymentVoided"]


async def test_passing_faults_do_not_count_as_silence(till: Till) -> None:
    """An answered fault is climbed over until pay_before; only unanswered calls are counted."""
    order = order_of("pm_flaky")

    for _ in range(2):
        with pytest.raises(errors.TransientError):
            await till.order(order, terms=IMPATIENT)

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
    await till.charge(order)

    await till.order(order)

    assert till.status() == ("captured", 2, None)
    assert till.moved(order) == [("charge", str(AMOUNT))]


async def test_a_redelivered_order_is_charged_and_told_once(till: Till) -> None:
    """The same message again, or the same order under another message id, moves nothing; it is answered again, under the same id."""
    order = order_of()
    delivery = delivery_of(order)

    await till.order(order, delivery)
    await till.order(order, delivery)
    await till.order(order)

    assert till.moved(order) == [("charge", str(AMOUNT))]
    told = till.told()
    assert [name for name, _ in told] == ["PaymentProcessed"] * 3
    assert told[0] == told[1] == told[2]
    assert till.rows("SELECT count(DISTINCT event_id) FROM outbox") == [(1,)]
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


async def test_charges_that_come_together_are_noted_together(till: Till) -> None:
    """Twenty orders at once, two of them twice: every one is charged, entered, told and ticked off once, in fewer transactions."""
    orders = [msgspec.structs.replace(order_of(), order_id=number) for number in range(1, 21)]

    await asyncio.gather(*(till.order(order) for order in (*orders, *orders[:2])))

    assert till.rows("SELECT status, version, count(*) FROM payments GROUP BY 1, 2") == [("captured", 2, 20)]
    assert till.rows("SELECT count(*), count(DISTINCT order_id), sum(amount) FROM ledger") == [(20, 20, 20 * AMOUNT)]
    assert till.rows("SELECT count(*) FROM inbox") == [(22,)]
    told = [event for _, event in till.told()]
    assert sorted(event.order_id for event in told) == list(range(1, 21))
    assert {event.saga_id for event in told} == {order.saga_id for order in orders}
    assert till.rows("SELECT count(DISTINCT xmin::text) < 20 FROM ledger") == [(True,)]


async def test_orders_that_come_again_together_change_nothing(till: Till) -> None:
    """Repeated, under the same ids and under new ones, beside a new order and one of a foreign saga: each gets its own answer."""
    *orders, new = [msgspec.structs.replace(order_of(), order_id=number) for number in range(1, 22)]
    deliveries = [delivery_of(order) for order in orders]
    await asyncio.gather(*(till.order(order, delivery) for order, delivery in zip(orders, deliveries, strict=True)))
    before = till.rows("SELECT id, status, version, updated_at FROM payments ORDER BY id")
    foreign = msgspec.structs.replace(orders[0], saga_id=orders[1].saga_id)

    repeated = [till.order(order, delivery) for order, delivery in zip(orders, deliveries, strict=True)]
    answers = await asyncio.gather(
        *repeated, *(till.order(order) for order in orders), till.order(new), till.order(foreign), return_exceptions=True
    )

    assert [type(answer) for answer in answers if answer is not None] == [payment_errors.ForeignSagaError]
    assert isinstance(answers[-1], payment_errors.ForeignSagaError)
    assert till.rows("SELECT id, status, version, updated_at FROM payments WHERE order_id < 21 ORDER BY id") == before
    assert till.rows("SELECT count(*), count(DISTINCT order_id) FROM ledger") == [(21, 21)]
    assert till.rows("SELECT count(*) FROM inbox") == [(41,)]
    assert len(till.told()) == 61
    assert till.rows("SELECT count(DISTINCT event_id), count(DISTINCT payload) FROM outbox") == [(21, 21)]


async def test_a_charge_whose_result_was_lost_is_found_again(till: Till) -> None:
    """When an earlier delivery charged and died, the next asks before it charges: safe even where the provider forgets keys."""
    order = order_of()
    await till.intend(order)
    await till.charge(order, f"lost:{order.saga_id}")

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


async def test_an_answer_that_names_another_amount_is_checked(till: Till) -> None:
    """What a charge took, the look-up tells: an answer that is wrong about it changes no book of ours."""
    order = order_of()
    till.behave(answered_amount="1.00")

    await till.order(order)

    assert till.rows("SELECT amount FROM ledger") == [(AMOUNT,)]
    ((_, event),) = till.told()
    assert isinstance(event, events.PaymentProcessed)
    assert event.amount == AMOUNT


async def test_another_amount_that_was_really_taken_goes_back_as_taken(till: Till) -> None:
    """A provider that takes another sum than asked for is told of with that sum, and that sum is refunded."""
    order = order_of()
    till.behave(charged_amount="1.00")

    await till.order(order)
    await till.cancel(order)

    assert till.moved(order) == [("charge", "1.00"), ("refund", "1.00")]
    assert [getattr(event, "amount", None) for _, event in till.told()] == [Decimal("1.00"), Decimal("1.00")]


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


async def test_a_look_up_follows_no_redirect(till: Till, provider: services.Service) -> None:
    """Who sends us elsewhere is not believed about money: neither the charge nor the look-up goes there."""
    order = order_of()
    await till.charge(order)
    elsewhere = f"HTTP/1.1 307 Elsewhere\r\nLocation: {provider.url}/v1/charges?reference={order.saga_id}\r\n"
    async with _answering(elsewhere) as url, providers.open_provider(url, 3) as psp:
        with pytest.raises(payment_errors.ProviderUnavailableError, match="307"):
            await psp.find(order.saga_id)


async def test_a_refusal_whose_words_no_column_takes_is_final_all_the_same(till: Till) -> None:
    """A provider's text may hold anything; the payment fails as it says, and the message is not tried again and again."""
    order = order_of()
    refusal = '{"error": {"code": "no\\u0000pe", "message": "\\u0000' + 5_000 * "x" + '"}}'
    async with _answering("HTTP/1.1 402 No\r\n", refusal) as url, providers.open_provider(url, 3) as till.psp:
        await till.order(order)

    assert till.status() == ("failed", 2, "nope")
    assert till.names() == ["PaymentFailed"]


@contextlib.asynccontextmanager
async def _answering(head: str, body: str = "") -> AsyncGenerator[str]:
    """Serve HTTP that answers every request like this."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (await reader.readuntil(b"\r\n\r\n")).startswith(b"POST"):
            await reader.readuntil(b"}")
        writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        yield f"http://{host}:{port}"
