"""Payment's answers to CancelPayment, on a real database and the real provider process: a void or a refund, once, whatever races."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

import msgspec
import pytest
from integration import pool_kit
from integration.payment_till import AMOUNT, Till, delivery_of, order_of

from sagapost_chassis import db, errors
from sagapost_contracts import events
from sagapost_payment import domain, handlers, queries
from sagapost_payment import provider as providers
from sagapost_sandbox.testing import services

pytestmark = pytest.mark.anyio


@pytest.fixture
async def till(payment_db: str, provider: services.Service) -> AsyncGenerator[Till]:
    """Open the pool and the adapter; a call may take ten seconds."""
    async with pool_kit.opened(payment_db, "test-payment") as pool, providers.open_provider(provider.url, 10) as psp:
        opened = Till(pool, psp, payment_db, provider)
        yield opened
        opened.behave()


async def test_cancelling_first_leaves_a_tombstone(till: Till) -> None:
    """A cancellation that overtakes its order is answered with a void; the order that comes later is not charged, and answered so too."""
    order = order_of()

    await till.cancel(order)
    await till.order(order)

    assert till.status() == ("voided", 1, domain.CANCELLED)
    assert till.moved(order) == []
    assert [name for name, _ in till.told()] == ["PaymentVoided", "PaymentVoided"]


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


@pytest.mark.parametrize("swapped", ["order_id", "saga_id"])
async def test_a_command_that_pairs_an_order_with_a_foreign_saga_changes_nothing(till: Till, swapped: str) -> None:
    """Nobody's payment is refunded because of a message about somebody else's: it is dead, and nothing was written."""
    order, other = order_of(), msgspec.structs.replace(order_of(), order_id=7)
    await till.order(order)
    await till.order(other)

    for message in (till.order, till.cancel):
        with pytest.raises(errors.PermanentError):
            await message(msgspec.structs.replace(order, **{swapped: getattr(other, swapped)}))

    assert till.rows("SELECT status FROM payments") == [("captured",), ("captured",)]
    assert till.names() == ["PaymentProcessed", "PaymentProcessed"]


async def test_a_redelivered_cancellation_is_answered_once(till: Till) -> None:
    """The inbox recognises the command: one message, one answer."""
    order = order_of()
    command = events.CancelPayment(order_id=order.order_id, saga_id=order.saga_id, reason="customer", saga_version=2)
    delivery = delivery_of(command)

    await till.cancel(order, delivery)
    await till.cancel(order, delivery)

    assert [name for name, _ in till.told()] == ["PaymentVoided"]


async def test_a_refund_that_fails_three_times_goes_through(till: Till) -> None:
    """Passing faults leave the payment refunding; the same command, and the same key, come again until the money is back."""
    order = order_of()
    await till.order(order)
    till.behave(refund_failures=3)
    command = events.CancelPayment(order_id=order.order_id, saga_id=order.saga_id, reason="customer", saga_version=2)
    delivery = delivery_of(command)

    for _ in range(3):
        with pytest.raises(errors.TransientError):
            await till.cancel(order, delivery)
        assert till.status()[0] == "refunding"
    await till.cancel(order, delivery)

    assert till.status()[0] == "refunded"
    assert till.moved(order) == [("charge", str(AMOUNT)), ("refund", str(AMOUNT))]
    assert till.names() == ["PaymentProcessed", "PaymentRefunded"]


async def test_a_refund_that_is_declined_is_told_and_a_new_command_tries_again(till: Till) -> None:
    """A refusal is one RefundFailed and the money stays captured; a copy of that command changes nothing, the next command refunds."""
    order = order_of()
    await till.order(order)
    till.behave(refund_declined="refunds_suspended")
    first = delivery_of(events.CancelPayment(order_id=order.order_id, saga_id=order.saga_id, reason="customer", saga_version=2))

    await till.cancel(order, first)
    declined = till.status()
    await till.cancel(order, first)
    till.behave()
    await till.cancel(order, first)
    again = till.status()
    await till.cancel(order)

    assert declined[0::2] == ("captured", "refunds_suspended")
    assert again == declined
    assert till.status()[0] == "refunded"
    assert till.moved(order) == [("charge", str(AMOUNT)), ("refund", str(AMOUNT))]
    assert till.names() == ["PaymentProcessed", "RefundFailed", "PaymentRefunded"]


@pytest.mark.parametrize("forgetful", [False, True])
async def test_a_refund_whose_result_was_lost_is_found_again(till: Till, *, forgetful: bool) -> None:
    """Who died after the refund asks before the next try: even where the provider forgets keys, it is told as refunded, once."""
    order = order_of()
    await till.order(order)
    till.behave(refund_failures=1)
    command = delivery_of(events.CancelPayment(order_id=order.order_id, saga_id=order.saga_id, reason="customer", saga_version=2))
    with pytest.raises(errors.TransientError):
        await till.cancel(order, command)
    till.behave(ignore_idempotency_keys=forgetful)
    ((charge_id,),) = till.rows("SELECT transaction_id FROM payments")
    lost = await till.psp.refund(
        key=domain.refund_key(order.saga_id), reference=order.saga_id, charge_id=str(charge_id), amount=AMOUNT, currency="USD"
    )

    await till.cancel(order, command)

    assert isinstance(lost, domain.Refunded)
    assert till.rows("SELECT transaction_id FROM ledger WHERE kind = 'refund'") == [(lost.transaction_id,)]
    assert till.moved(order) == [("charge", str(AMOUNT)), ("refund", str(AMOUNT))]
    assert till.names() == ["PaymentProcessed", "PaymentRefunded"]


async def test_ten_cancellations_at_once_refund_once(till: Till) -> None:
    """Ten commands that race for one capture move the money back once, and one event answers those that came meanwhile."""
    order = order_of()
    await till.order(order)

    await asyncio.gather(*(till.cancel(order) for _ in range(10)))

    assert till.moved(order) == [("charge", str(AMOUNT)), ("refund", str(AMOUNT))]
    assert set(till.names()[1:]) == {"PaymentRefunded"}
    assert till.rows("SELECT kind FROM ledger ORDER BY id") == [("capture",), ("refund",)]


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
    await till.intend(order)
    if moved:
        await till.charge(order)

    await till.cancel(order)
    await till.order(order)

    assert till.status()[0] == status
    assert [name for name, _ in till.told()] == told
    assert [kind for kind, _ in till.moved(order)] == moved


async def charged_together(till: Till) -> list[Callable[[], Coroutine[None, None, domain.Payment]]]:
    """Charge ten orders, and give what notes each of them; said at once, all but the first are noted by one statement."""
    orders = [msgspec.structs.replace(order_of(), order_id=number) for number in range(1, 11)]
    async with db.transaction(till.pool) as conn:
        payments = await queries.add(conn, [queries.Intent(order=order, terms=domain.TERMS) for order in orders])
    charges = {order.saga_id: await till.find(order) for order in orders if await till.charge(order)}

    def concluding(order: events.OrderCreated) -> Callable[[], Coroutine[None, None, domain.Payment]]:
        payment, charge = payments[order.saga_id], charges[order.saga_id]
        return lambda: handlers.conclude(till.pool, payment, charge, delivery_of(order), domain.TERMS)

    return [concluding(order) for order in orders]


async def test_one_that_is_cancelled_among_charges_that_come_together_goes_back(till: Till) -> None:
    """The cancellation comes while all of them are being charged: its money is refunded, the others are told as paid."""
    concludes = await charged_together(till)
    ((saga_id,),) = till.rows("SELECT saga_id FROM payments WHERE order_id = 10")
    await till.cancel(msgspec.structs.replace(order_of(), order_id=10, saga_id=saga_id))

    ended = await asyncio.gather(*(conclude() for conclude in concludes))

    assert [payment.status for payment in ended] == ["captured"] * 9 + ["refunding"]
    assert till.rows("SELECT status FROM payments ORDER BY order_id") == [("captured",)] * 9 + [("refunding",)]
    assert sorted(event.order_id for _, event in till.told()) == list(range(1, 10))


async def test_one_that_is_noted_already_is_not_noted_again(till: Till) -> None:
    """Another delivery of its order was quicker: alone or among others its charge is in the ledger once, and told once."""
    *others, last = await charged_together(till)
    ended = [await last(), await last()]

    ended += await asyncio.gather(*(conclude() for conclude in (*others, last)))

    assert [payment.status for payment in ended] == ["captured"] * 12
    assert till.rows("SELECT version, count(*) FROM payments GROUP BY version") == [(2, 10)]
    assert till.rows("SELECT count(*), count(DISTINCT order_id) FROM ledger") == [(10, 10)]
    assert sorted(event.order_id for _, event in till.told()) == list(range(1, 11))


async def test_a_capture_that_shows_up_behind_a_tombstone_goes_back(till: Till, eventually: Callable[..., Any]) -> None:
    """A call that was still under way when another delivery voided the payment: its money is refunded, net nothing."""
    order = order_of("pm_slow")

    async def intended() -> bool:
        return till.rows("SELECT status FROM payments") != []

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
