"""A provider that keeps its first answer under a key, errors included: neither the order nor the refund hangs on a kept error."""

from collections.abc import AsyncGenerator
from typing import Final
from uuid import UUID

import pytest
from integration import pool_kit
from integration.payment_till import AMOUNT, Till, order_of

from sagapost_chassis import errors
from sagapost_contracts import events
from sagapost_payment import domain
from sagapost_payment import errors as payment_errors
from sagapost_payment import provider as providers
from sagapost_sandbox.testing import services

pytestmark = pytest.mark.anyio

CHARGED: Final = ("charge", str(AMOUNT))
RETURNED: Final = ("refund", str(AMOUNT))
GENERATIONS: Final = "SELECT charge_generation, refund_generation FROM payments"


@pytest.fixture
async def till(payment_db: str, provider: services.Service) -> AsyncGenerator[Till]:
    """Open the pool and the adapter; a call may take ten seconds."""
    async with pool_kit.opened(payment_db, "test-payment") as pool, providers.open_provider(provider.url, 10) as psp:
        opened = Till(pool, psp, payment_db, provider)
        yield opened
        opened.behave()


async def refused(till: Till, order: events.OrderCreated, times: int) -> None:
    """Deliver an order that fails for a while."""
    for _ in range(times):
        with pytest.raises(errors.TransientError):
            await till.order(order)


async def test_a_kept_error_does_not_cost_the_order(till: Till) -> None:
    """Two faults, each kept under its key: when it is repeated and no charge is found, the next key is used, and the order is charged."""
    till.behave(keep_errors=True)
    order = order_of("pm_flaky")

    await refused(till, order, 2)
    await till.order(order)

    assert till.rows(GENERATIONS) == [(3, 1)]
    assert till.names() == ["PaymentProcessed"]
    assert till.moved(order) == [CHARGED]


async def test_a_kept_error_that_nothing_marks_is_recognised_by_its_number(till: Till, monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider that sends no `Idempotent-Replayed` is believed after three errors under one key, and not before."""
    monkeypatch.setattr(providers, "_REPLAYED", "X-Never-Sent")
    till.behave(keep_errors=True, failure_rate=1)
    order = order_of()

    await refused(till, order, 2)
    till.behave(keep_errors=True)
    before = till.rows(GENERATIONS)
    await till.order(order)

    assert before == [(1, 1)]
    assert till.rows(GENERATIONS) == [(2, 1)]
    assert till.moved(order) == [CHARGED]


async def test_a_charge_behind_a_kept_error_is_found_and_not_made_again(till: Till) -> None:
    """The money moved, and the error about it is kept: the look-up finds the charge, no other key is used."""
    till.behave(keep_errors=True)
    order = order_of("pm_error_after_charge")

    await till.order(order)

    assert till.rows(GENERATIONS) == [(1, 1)]
    assert till.moved(order) == [CHARGED]


async def test_no_other_key_is_used_without_a_look_up(till: Till, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the provider cannot be asked what it has done, a kept error leads to no new key, however often it comes."""
    till.behave(keep_errors=True)
    order = order_of()
    await till.intend(order)
    asked: list[str] = []
    charge, find = till.psp.charge, till.psp.find

    async def noted(**wanted: object) -> object:
        asked.append(str(wanted["key"]))
        return domain.Unknown(cause="answered with 500", unanswered=False, is_error=True, is_kept=True)

    answers = 0

    async def found(reference: UUID) -> list[domain.Captured]:
        nonlocal answers
        answers += 1
        if answers % 2 == 0:
            raise payment_errors.ProviderUnavailableError("the look-up was answered with 503")
        return await find(reference)

    monkeypatch.setattr(till.psp, "charge", noted)
    monkeypatch.setattr(till.psp, "find", found)
    await refused(till, order, 5)
    monkeypatch.setattr(till.psp, "charge", charge)
    monkeypatch.setattr(till.psp, "find", find)

    assert asked == [domain.charge_key(order.saga_id)] * 5
    assert till.rows(GENERATIONS) == [(1, 1)]


async def test_a_call_without_an_answer_never_leads_to_another_key(till: Till, provider: services.Service) -> None:
    """What may still be under way keeps its key: a second one could charge twice."""
    order = order_of("pm_hang")
    async with providers.open_provider(provider.url, 1) as till.psp:
        await refused(till, order, 2)

        assert till.rows(GENERATIONS) == [(1, 1)]


async def test_a_kept_error_of_a_refund_does_not_stop_it(till: Till) -> None:
    """A refund's kept error, repeated, makes the next call go under the next key; the money goes back once."""
    order = order_of()
    await till.order(order)
    till.behave(keep_errors=True, refund_failures=1)

    for _ in range(2):
        with pytest.raises(errors.TransientError):
            await till.cancel(order)
    await till.cancel(order)

    assert till.rows(GENERATIONS) == [(1, 2)]
    assert till.names() == ["PaymentProcessed", "PaymentRefunded"]
    assert till.moved(order) == [CHARGED, RETURNED]


async def test_a_refusal_of_a_refund_that_was_mended_is_not_repeated(till: Till) -> None:
    """The refusal is kept under its key for a day; the next command uses the next key, and the money goes back at once."""
    order = order_of()
    await till.order(order)
    till.behave(keep_errors=True, refund_declined="refunds_suspended")
    await till.cancel(order)
    till.behave()

    await till.cancel(order)

    assert till.names() == ["PaymentProcessed", "RefundFailed", "PaymentRefunded"]
    assert till.rows(GENERATIONS) == [(1, 2)]
    assert till.moved(order) == [CHARGED, RETURNED]


async def test_a_surplus_charge_whose_refund_was_refused_goes_back_when_it_can(till: Till) -> None:
    """A kept refusal does not hold a surplus charge back until the provider forgets it."""
    order = order_of()
    await till.intend(order)
    await till.charge(order)
    await till.charge(order, f"other:{order.saga_id}")
    await till.order(order)
    till.behave(keep_errors=True, refund_declined="refunds_suspended")
    till.due()
    with pytest.raises(errors.TransientError):
        await till.look()
    till.behave()
    till.due()

    await till.look()

    assert till.moved(order) == [CHARGED, CHARGED, RETURNED]
    assert len(till.rows("SELECT 1 FROM duplicate_charges")) == 1
