"""Payment's database clock is set while payments are under way: none expires for it, and each is looked at in time."""

import contextlib
import time
from collections.abc import AsyncGenerator
from datetime import UTC, datetime

import msgspec
import pytest
from integration import clock_shim, pool_kit
from integration.payment_till import AMOUNT, Till, order_of

from sagapost_chassis import db, errors, steps
from sagapost_payment import domain, queries
from sagapost_payment import provider as providers
from sagapost_sandbox.testing import services

pytestmark = pytest.mark.anyio


@pytest.fixture
async def till(payment_db: str, provider: services.Service) -> AsyncGenerator[Till]:
    """Open the pool, on a database whose clock can be set, and the adapter."""
    clock_shim.install(payment_db)
    async with pool_kit.opened(payment_db, "test-payment") as pool, providers.open_provider(provider.url, 2) as psp:
        opened = Till(pool, psp, payment_db, provider)
        yield opened
        opened.behave()


async def watched(till: Till) -> domain.Terms:
    """Look at the clock as the sweeper does, and return the terms of a process that watches it."""
    terms = domain.Terms(seen=steps.Steps())
    async with db.connection(till.pool) as conn:
        shown_s = await queries.clock(conn)
    assert terms.seen is not None
    terms.seen.observe(datetime.fromtimestamp(shown_s, UTC), time.monotonic(), time.monotonic())
    return terms


async def test_a_payment_under_way_does_not_expire_by_a_step_of_the_clock(till: Till) -> None:
    """The provider answers errors when the clock is set forward by an hour: the order is charged when it is well again."""
    terms, order = await watched(till), order_of("pm_flaky")
    with pytest.raises(errors.TransientError):
        await till.order(order, terms=terms)

    clock_shim.step(till.dsn, "1 hour")
    for _ in range(5):
        if till.status()[0] == "processing":
            try:
                await till.order(order, terms=terms)
            except errors.TransientError:
                continue

    assert till.status()[0] == "captured"
    assert till.moved(order) == [("charge", str(AMOUNT))]


@pytest.mark.parametrize("steps_", [("-1 hour", "0"), ("-3 days", "0"), ("0", "1 hour")])
async def test_a_step_that_no_process_saw_expires_nothing(till: Till, steps_: tuple[str, str]) -> None:
    """Back and forward between two looks, or forward while no process ran: this machine's clock says that the time is not over."""
    began, later = steps_
    order = msgspec.structs.replace(order_of("pm_flaky"), pay_within_s=900)
    clock_shim.step(till.dsn, began)
    with pytest.raises(errors.TransientError):
        await till.order(order, terms=await watched(till))
    clock_shim.step(till.dsn, later)
    terms = await watched(till)

    for _ in range(5):
        if till.status()[0] == "processing":
            with contextlib.suppress(errors.TransientError):
                await till.order(order, terms=terms)

    assert till.status()[0] == "captured"
    assert till.moved(order) == [("charge", str(AMOUNT))]


async def test_a_payment_that_ended_is_looked_at_in_time_after_a_passing_step(till: Till) -> None:
    """It ended while the clock was three days ahead: the second look, which finds a late charge, does not wait for three days."""
    order = order_of()
    clock_shim.step(till.dsn, "3 days")
    await till.order(order)
    till.write("UPDATE payments SET uncertain = true, look_at = now() + interval '4 minutes'")
    clock_shim.step(till.dsn, "0")

    assert await till.look() == 0
    ((wait_s,),) = till.rows("SELECT extract(epoch FROM look_at - now())::float8 FROM payments")

    assert 0 < float(str(wait_s)) <= domain.TERMS.call_s


async def test_a_payment_expires_when_its_time_is_over_by_any_clock(till: Till) -> None:
    """An hour's step, and a time to pay that ended a minute before it: nothing is charged."""
    terms, order = await watched(till), order_of(minutes_left=-1)
    clock_shim.step(till.dsn, "1 hour")

    await till.order(order, terms=terms)

    assert (till.status()[0], till.status()[2], till.moved(order)) == ("voided", domain.EXPIRED, [])


async def test_a_payment_that_stands_is_looked_at_in_time_when_the_clock_is_set_back(till: Till) -> None:
    """Its next look would be in more than an hour: it comes when a call that may be under way must be over."""
    order = order_of()
    await till.intend(order)
    clock_shim.step(till.dsn, "-1 hour")

    assert await till.look() == 0
    ((wait_s,),) = till.rows("SELECT extract(epoch FROM look_at - now())::float8 FROM payments")
    assert 0 < float(str(wait_s)) <= domain.TERMS.call_s
    till.due()
    assert await till.look() == 1

    assert till.status()[0] == "captured"
