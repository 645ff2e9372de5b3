"""What payment says when its rows are missing or a message is repeated, on a real database and provider: money follows the provider."""

from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import Final

import msgspec
import psycopg
import pytest
from integration import pool_kit
from integration.payment_till import AMOUNT, Till, again, delivery_of, order_of

from sagapost_chassis import errors, ids
from sagapost_contracts import events
from sagapost_payment import domain
from sagapost_payment import provider as providers
from sagapost_sandbox.testing import services

pytestmark = pytest.mark.anyio

CHARGED: Final = ("charge", str(AMOUNT))
RETURNED: Final = ("refund", str(AMOUNT))
OLD_ENTRY: Final = "INSERT INTO ledger (order_id, kind, amount, currency, transaction_id) VALUES (%s, 'capture', %s, 'USD', %s)"
IDS: Final = "SELECT count(DISTINCT event_id) FROM outbox WHERE type <> 'RefundFailed'"


@pytest.fixture
async def till(payment_db: str, provider: services.Service) -> AsyncGenerator[Till]:
    """Open the pool and the adapter; a call may take ten seconds."""
    async with pool_kit.opened(payment_db, "test-payment") as pool, providers.open_provider(provider.url, 10) as psp:
        opened = Till(pool, psp, payment_db, provider)
        yield opened
        opened.behave()


async def test_a_cancellation_whose_row_was_lost_refunds_what_the_provider_holds(till: Till) -> None:
    """After a restore a missing row is no proof: the provider is asked, the charge goes back, and only the refund is published."""
    order = order_of()
    await till.order(order)
    till.forget()

    await till.cancel(order)

    assert till.names() == ["PaymentRefunded"]
    assert till.moved(order) == [CHARGED, RETURNED]
    assert till.rows("SELECT status, amount FROM payments") == [("refunded", AMOUNT)]
    assert till.rows("SELECT kind, amount FROM ledger ORDER BY id") == [("capture", AMOUNT), ("refund", AMOUNT)]
    assert till.rows("SELECT type FROM inbox") == [("CancelPayment",)]


async def test_a_cancellation_whose_refund_was_lost_refunds_once(till: Till) -> None:
    """Row and refund are lost: the cancellation that comes again finds both at the provider and moves nothing."""
    order = order_of()
    await till.order(order)
    await till.cancel(order)
    till.forget()

    await till.cancel(order)

    assert till.names() == ["PaymentRefunded"]
    assert till.moved(order) == [CHARGED, RETURNED]


async def test_nothing_is_said_of_a_lost_row_while_the_provider_cannot_be_asked(till: Till) -> None:
    """No answer without a look-up; the row that is left is looked at soon, an order that comes meanwhile is not charged."""
    order, other = order_of(), order_of()
    await till.charge(order)
    psp = till.psp
    async with providers.open_provider("http://127.0.0.1:1", 1) as till.psp:
        for cancelled in (order, other):
            with pytest.raises(errors.TransientError):
                await till.cancel(cancelled)
    till.psp = psp
    silent = till.names()
    soon = till.rows("SELECT count(*) FROM payments WHERE uncertain AND look_at < now() + interval '30 s'")
    await till.order(other)
    till.due()

    while await till.look():
        pass

    assert (silent, soon) == ([], [(2,)])
    assert sorted(till.names()) == ["PaymentRefunded", "PaymentVoided"]
    assert till.moved(order) == [CHARGED, RETURNED]
    assert till.moved(other) == []


async def test_a_charge_that_appears_behind_a_tombstone_goes_back(till: Till) -> None:
    """The look-up said that there is no charge, and one came later: the second look finds it, refunds it and publishes the refund."""
    order = order_of()
    await till.cancel(order)
    soon = till.rows("SELECT look_at < now() + interval '61 s' FROM payments")
    await till.charge(order)
    till.due()

    await till.look()

    assert soon == [(True,)]
    assert till.names() == ["PaymentVoided", "PaymentRefunded"]
    assert till.moved(order) == [CHARGED, RETURNED]
    assert till.rows("SELECT status, amount FROM payments") == [("refunded", AMOUNT)]


@pytest.mark.parametrize(
    ("token", "cancelled", "told"),
    [
        ("pm_card_ok", False, "PaymentProcessed"),
        ("pm_card_declined", False, "PaymentFailed"),
        ("pm_card_ok", True, "PaymentRefunded"),
        ("expired", False, "PaymentVoided"),
    ],
)
async def test_an_order_that_is_asked_for_again_is_answered_with_how_its_payment_stands(
    till: Till, token: str, told: str, *, cancelled: bool
) -> None:
    """Whatever became of the first answer: the repetition is answered with the same facts under the same id, and nothing moves."""
    order = order_of("pm_card_ok", minutes_left=-1) if token == "expired" else order_of(token)
    await till.order(order)
    if cancelled:
        await till.cancel(order)
    first, moved = till.told()[-1], till.moved(order)
    till.write("DELETE FROM outbox")

    await till.order(order, again(order))
    await till.order(order)

    assert first[0] == told
    assert till.told() == [first, first]
    assert till.rows(IDS) == [(1,)]
    assert till.moved(order) == moved


async def test_a_refund_that_was_refused_leaves_a_capture_that_is_answered(till: Till) -> None:
    """The money is still there, and who asks again is answered so."""
    order = order_of()
    await till.order(order)
    till.behave(refund_declined="refunds_suspended")
    await till.cancel(order)

    await till.order(order, again(order))

    assert till.names() == ["PaymentProcessed", "RefundFailed", "PaymentProcessed"]


@pytest.mark.parametrize("forgetful", [False, True])
async def test_an_order_that_comes_again_after_a_restore_is_not_charged_twice(till: Till, *, forgetful: bool) -> None:
    """Its row is gone, the charge is not: it is found by reference, entered and published, even where the provider forgets its keys."""
    order = order_of()
    await till.order(order)
    till.forget()
    till.behave(ignore_idempotency_keys=forgetful)

    await till.order(order, again(order))

    assert till.status() == ("captured", 2, None)
    assert till.names() == ["PaymentProcessed"]
    assert till.moved(order) == [CHARGED]
    assert till.rows("SELECT kind, amount FROM ledger") == [("capture", AMOUNT)]


async def test_a_copy_of_an_order_is_not_charged_twice(till: Till) -> None:
    """An operator publishes OrderCreated again as it was, with its old time, and the provider has forgotten the key: it is asked first."""
    order = order_of()
    await till.order(order)
    till.forget()
    till.behave(ignore_idempotency_keys=True)

    await till.order(order, msgspec.structs.replace(delivery_of(order), is_repeated=True))

    assert till.moved(order) == [CHARGED]
    assert till.status()[0] == "captured"


async def test_a_refund_that_the_database_forgot_is_not_made_twice(till: Till) -> None:
    """The payment was put back to before its refund, and the provider forgets keys and checks no amounts: it is asked first."""
    order = order_of()
    await till.order(order)
    await till.cancel(order)
    till.write("GRANT DELETE ON ledger TO CURRENT_USER")
    till.write("DELETE FROM ledger WHERE kind = 'refund'; DELETE FROM inbox WHERE type = 'CancelPayment'")
    till.write("UPDATE payments SET status = 'captured', version = 2")
    till.behave(ignore_idempotency_keys=True, refunds_unchecked=True)

    await till.cancel(order)

    assert till.status()[0] == "refunded"
    assert till.moved(order) == [CHARGED, RETURNED]


async def test_an_order_number_that_comes_again_is_another_payment(till: Till) -> None:
    """After a restore of the order database numbers repeat: each saga is charged, entered, cancelled and answered by itself."""
    first = order_of()
    second, third = (msgspec.structs.replace(order_of(), order_id=first.order_id) for _ in range(2))

    for order in (first, second, third):
        await till.order(order)
    await till.cancel(second)
    await till.order(second, again(second))
    till.due()
    await till.look()

    assert till.rows("SELECT status FROM payments ORDER BY id") == [("captured",), ("refunded",), ("captured",)]
    assert [till.moved(order) for order in (first, second, third)] == [[CHARGED], [CHARGED, RETURNED], [CHARGED]]
    assert till.rows("SELECT count(*), count(DISTINCT saga_id), count(DISTINCT order_id) FROM ledger") == [(4, 3, 1)]
    assert till.names() == [*["PaymentProcessed"] * 3, "PaymentRefunded", "PaymentRefunded"]


async def test_a_cancellation_of_another_saga_does_not_make_an_order_unpayable(till: Till) -> None:
    """A command that names the order's number and a saga of its own leaves the true order alone, before it and after it."""
    early, late = order_of(), order_of()
    forged = [msgspec.structs.replace(order, saga_id=ids.uuid7()) for order in (early, late)]

    await till.cancel(forged[0])
    await till.order(early)
    await till.order(late)
    await till.cancel(forged[1])

    assert till.rows("SELECT count(*) FROM payments WHERE status = 'captured'") == [(2,)]
    assert [till.moved(order) for order in (early, late)] == [[CHARGED], [CHARGED]]
    assert sorted(till.names()) == [*["PaymentProcessed"] * 2, *["PaymentVoided"] * 2]


async def test_the_time_to_pay_begins_when_payment_hears_of_the_order(till: Till) -> None:
    """With `pay_within_s` only payment's own clock counts: an order clock one hour behind or ahead cancels nothing and extends nothing."""
    behind = msgspec.structs.replace(order_of(minutes_left=-60), pay_within_s=900.0)
    ahead = msgspec.structs.replace(order_of(minutes_left=60), pay_within_s=0.0)

    await till.order(behind)
    await till.order(ahead)

    assert till.rows("SELECT status FROM payments ORDER BY id") == [("captured",), ("voided",)]
    assert till.rows("SELECT pay_before - created_at FROM payments WHERE status = 'captured'") == [(timedelta(seconds=900),)]


async def test_a_repetition_does_not_begin_the_time_to_pay_anew(till: Till) -> None:
    """What payment has heard of keeps its window; a repetition of something it had not heard of begins one."""
    order = msgspec.structs.replace(order_of("pm_flaky"), pay_within_s=900.0)
    with pytest.raises(errors.TransientError):
        await till.order(order)
    till.expire()

    await till.order(msgspec.structs.replace(order, payment_method="pm_card_ok"), again(order))

    assert till.status() == ("voided", 2, domain.EXPIRED)


async def test_a_message_without_a_duration_is_judged_as_before(till: Till) -> None:
    """An older order service names a time: it stands, with the pair of clocks that it always had."""
    order = order_of(minutes_left=7)

    await till.order(order)

    assert till.rows("SELECT pay_before FROM payments") == [(order.pay_before,)]
    assert isinstance(till.told()[0][1], events.PaymentProcessed)


async def test_the_version_before_writes_the_ledger_beside_this_one(till: Till) -> None:
    """While a deployment rolls, entries come without a saga: the database adds it, and this version refunds what that one captured."""
    order = order_of()
    await till.intend(order)
    name = await till.charge(order)
    with psycopg.connect(till.dsn) as conn:
        conn.execute("UPDATE payments SET status = 'captured', version = 2, transaction_id = %s, look_at = NULL", (name,))
        conn.execute(OLD_ENTRY, (order.order_id, AMOUNT, name))

    await till.cancel(order)

    assert till.rows("SELECT DISTINCT saga_id FROM ledger") == [(order.saga_id,)]
    assert till.moved(order) == [CHARGED, RETURNED]
    assert till.names() == ["PaymentRefunded"]
