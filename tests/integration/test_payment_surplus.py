"""A provider that forgets its idempotency keys and charges twice: the surplus goes back, once, with an alarm, and is written down."""

from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import Final

import prometheus_client
import pytest
from integration import pool_kit
from integration.payment_till import AMOUNT, Till, order_of
from structlog import testing

from sagapost_chassis import errors
from sagapost_contracts import events
from sagapost_payment import domain
from sagapost_payment import provider as providers
from sagapost_sandbox.testing import services

pytestmark = pytest.mark.anyio

CHARGED: Final = ("charge", str(AMOUNT))
RETURNED: Final = ("refund", str(AMOUNT))


@pytest.fixture
async def till(payment_db: str, provider: services.Service) -> AsyncGenerator[Till]:
    """Open the pool and the adapter; a call may take ten seconds."""
    async with pool_kit.opened(payment_db, "test-payment") as pool, providers.open_provider(provider.url, 10) as psp:
        opened = Till(pool, psp, payment_db, provider)
        yield opened
        opened.behave()


def alarms() -> float:
    """Read how many surplus charges this process has counted."""
    return prometheus_client.REGISTRY.get_sample_value("sagapost_payment_duplicate_charges_total") or 0


async def charged_twice(till: Till, order: events.OrderCreated) -> None:
    """Capture an order whose provider forgets its keys: two calls of one key have charged, the first of them is ours."""
    till.behave(ignore_idempotency_keys=True)
    await till.intend(order)
    await till.charge(order)
    await till.charge(order)
    await till.order(order)


async def return_surplus(till: Till, order: events.OrderCreated, charge_id: str) -> domain.Refunded:
    """Give a surplus charge back under its one key, as a look does; a key that was used before gets its first answer."""
    refunded = await till.psp.refund(key=f"dup:{charge_id}", reference=order.saga_id, charge_id=charge_id, amount=AMOUNT, currency="USD")
    assert isinstance(refunded, domain.Refunded)
    return refunded


async def test_a_surplus_charge_goes_back_once_with_an_alarm(till: Till) -> None:
    """A provider that charged twice although it was told one key gives one back, noted, counted and logged as an error, once."""
    order, before = order_of(), alarms()
    await charged_twice(till, order)
    ((ours, soon),) = till.rows("SELECT transaction_id, look_at - now() FROM payments")
    till.due()

    with testing.capture_logs() as lines:
        await till.look()
        till.due()
        await till.look()

    assert till.moved(order) == [CHARGED, CHARGED, RETURNED]
    ((surplus, amount, refund_id),) = till.rows("SELECT transaction_id, amount, refund_id FROM duplicate_charges")
    assert (surplus != ours, amount) == (True, AMOUNT)
    till.behave()
    again = await return_surplus(till, order, str(surplus))
    assert again.transaction_id == refund_id
    assert [line["surplus"] for line in lines if line["log_level"] == "error"] == [surplus]
    assert alarms() == before + 1
    assert isinstance(soon, timedelta)
    assert soon <= timedelta(minutes=1)
    assert till.status() == ("captured", 2, None)
    assert till.names() == ["PaymentProcessed"]


async def test_a_surplus_charge_that_went_back_unnoted_is_only_noted(till: Till) -> None:
    """Whoever was killed between the refund and its note has left both to the next look: no second refund, no lost note."""
    order = order_of()
    await charged_twice(till, order)
    ours, surplus = [charge.transaction_id for charge in await till.psp.find(order.saga_id)]
    await return_surplus(till, order, surplus)
    till.due()

    await till.look()

    assert till.rows("SELECT transaction_id FROM payments") == [(ours,)]
    assert till.rows("SELECT transaction_id FROM duplicate_charges") == [(surplus,)]
    assert till.moved(order) == [CHARGED, CHARGED, RETURNED]


async def test_a_surplus_charge_that_cannot_go_back_is_tried_again(till: Till) -> None:
    """A provider that refuses to give it back calls a person each time, and nothing is noted as returned until it is."""
    order = order_of()
    await charged_twice(till, order)
    till.behave(refund_declined="refunds_suspended")
    till.due()

    with testing.capture_logs() as lines, pytest.raises(errors.TransientError):
        await till.look()
    noted = till.rows("SELECT 1 FROM duplicate_charges")
    till.behave()
    till.due()
    await till.look()

    assert [line["event"] for line in lines if line["log_level"] == "error"] == ["payment.surplus_kept"]
    assert noted == []
    assert till.moved(order) == [CHARGED, CHARGED, RETURNED]
