"""Payment's second looks, on a real database and the real provider process: whatever was left half done is brought to its end."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Any, Final

import msgspec
import pytest
from integration import pool_kit
from integration.payment_till import AMOUNT, Till, delivery_of, order_of

from sagapost_chassis import errors
from sagapost_contracts import events
from sagapost_payment import domain, recovery
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


def cancellation(order: events.OrderCreated) -> events.CancelPayment:
    """Make the command to cancel an order's payment."""
    return events.CancelPayment(order_id=order.order_id, saga_id=order.saga_id, reason="customer", saga_version=2)


@pytest.mark.parametrize(
    ("charged", "expired", "cancelled", "status", "told", "moved"),
    [
        (False, False, False, "captured", "PaymentProcessed", [CHARGED]),
        (True, False, False, "captured", "PaymentProcessed", [CHARGED]),
        (False, True, False, "voided", "PaymentVoided", []),
        (True, True, False, "captured", "PaymentProcessed", [CHARGED]),
        (False, False, True, "voided", "PaymentVoided", []),
        (True, False, True, "refunded", "PaymentRefunded", [CHARGED, RETURNED]),
    ],
)
async def test_a_payment_whose_message_died_is_brought_to_its_end(
    *, till: Till, charged: bool, expired: bool, cancelled: bool, status: str, told: str, moved: list[tuple[str, str]]
) -> None:
    """Without any message a look captures, voids or refunds as the message would have, tells of it once, and nothing is left open."""
    order = order_of()
    await till.intend(order)
    if charged:
        await till.charge(order)
    if expired:
        till.expire()
    if cancelled:
        await till.cancel(order)
    till.due()

    looked = await till.look()

    assert looked == 1
    assert till.status()[0] == status
    assert till.names() == [told]
    assert till.moved(order) == moved


async def test_nothing_is_looked_at_before_its_time(till: Till) -> None:
    """A new payment has a minute before anybody looks, and one that was captured by its only call is never looked at."""
    order = order_of()
    await till.intend(order)
    looked = await till.look()
    waits = till.rows("SELECT look_at - now() BETWEEN '50 s' AND '60 s' FROM payments")
    captured = order_of()
    await till.order(captured)

    assert (looked, waits) == (0, [(True,)])
    assert till.rows("SELECT look_at FROM payments WHERE status = 'captured'") == [(None,)]


async def test_the_message_that_comes_after_the_look_changes_nothing(till: Till) -> None:
    """A message that was only late finds its payment captured: one charge, one event and the same once more, and it is ticked off."""
    order = order_of()
    await till.intend(order)
    till.due()
    await till.look()

    await till.order(order)

    assert till.moved(order) == [CHARGED]
    assert till.names() == ["PaymentProcessed", "PaymentProcessed"]
    assert till.rows("SELECT count(DISTINCT event_id) FROM outbox") == [(1,)]
    assert till.rows("SELECT type FROM inbox") == [("OrderCreated",)]


async def test_a_refund_whose_command_died_is_finished_and_told_once(till: Till) -> None:
    """A payment that is refunding is finished by a look; the command that comes again afterwards gets no second answer."""
    order = order_of()
    await till.order(order)
    till.behave(refund_failures=1)
    command = delivery_of(cancellation(order))
    with pytest.raises(errors.TransientError):
        await till.cancel(order, command)
    till.due()

    await till.look()
    looked = till.status()
    await till.cancel(order, command)

    assert looked == till.status()
    assert looked[0] == "refunded"
    assert till.moved(order) == [CHARGED, RETURNED]
    assert till.names() == ["PaymentProcessed", "PaymentRefunded"]


async def test_a_refund_that_a_look_is_refused_is_told(till: Till) -> None:
    """A definite refusal ends the refund as RefundFailed, whoever learns of it; the money counts as captured again."""
    order = order_of()
    await till.order(order)
    till.behave(refund_failures=1)
    with pytest.raises(errors.TransientError):
        await till.cancel(order)
    till.behave(refund_declined="refunds_suspended")
    till.due()

    await till.look()

    assert till.status()[0::2] == ("captured", "refunds_suspended")
    assert till.names() == ["PaymentProcessed", "RefundFailed"]


@pytest.mark.parametrize(("token", "status", "told"), [("pm_flaky", "voided", "PaymentVoided"), ("declined", "failed", "PaymentFailed")])
async def test_a_charge_that_appears_after_we_gave_up_goes_back(till: Till, token: str, status: str, told: str) -> None:
    """Money that shows up behind a void or a refusal is entered, refunded and told of: net nothing in every book."""
    order = order_of("pm_card_declined" if token == "declined" else token)
    await till.intend(order)
    if status == "voided":
        till.expire()
    await till.order(order)
    given_up = till.status()
    await till.charge(order, f"late:{order.saga_id}")
    till.due()

    await till.look()

    assert given_up[0] == status
    assert till.status()[0] == "refunded"
    assert till.rows("SELECT kind, amount FROM ledger ORDER BY id") == [("capture", AMOUNT), ("refund", AMOUNT)]
    assert till.moved(order) == [CHARGED, RETURNED]
    assert till.names() == [told, "PaymentRefunded"]


async def test_a_payment_in_doubt_is_looked_at_within_five_minutes_for_an_hour_and_then_for_a_day(till: Till) -> None:
    """With the defaults a charge that appears late is found within five minutes; in the end, after about a day, looking ends."""
    order = order_of("pm_error_after_charge")
    await till.order(order)
    pauses: list[float] = []

    while till.rows("SELECT 1 FROM payments WHERE look_at IS NOT NULL"):
        till.due()
        await recovery.claim(till.pool, domain.TERMS)
        left = till.rows("SELECT extract(epoch FROM look_at - now())::float8 FROM payments WHERE look_at IS NOT NULL")
        pauses += [wait for (wait,) in left if isinstance(wait, float)]

    early = [pause for number, pause in enumerate(pauses) if sum(pauses[:number]) < 3500]
    assert max(early) <= 300
    assert 12 * 3600 < sum(pauses) < 36 * 3600


async def test_what_is_under_way_is_looked_at_for_ever(till: Till) -> None:
    """A payment whose provider never answers keeps its next look, at most a quarter of an hour away."""
    await till.intend(order_of())
    till.write("UPDATE payments SET looks = 1000")
    till.due()

    await recovery.claim(till.pool, domain.TERMS)

    assert till.rows("SELECT look_at - now() BETWEEN '14 min' AND '15 min' FROM payments") == [(True,)]


async def test_two_replicas_never_look_at_one_payment_at_the_same_time(till: Till) -> None:
    """Claims that race get each payment once, and a payment that is claimed stays so for longer than a look may take."""
    till.write(
        "INSERT INTO payments (order_id, saga_id, status, amount, currency, payment_method, user_email, items, pay_before, look_at) "
        "SELECT number, gen_random_uuid(), 'processing', 1, 'USD', 'pm_card_ok', 'a@example.com', '[]', now(), now() "
        "  FROM generate_series(0, 19) AS number"
    )
    terms = domain.Terms(look_s=0.001, call_s=700)

    claims = await asyncio.gather(*(recovery.claim(till.pool, terms) for _ in range(8)))

    claimed = [payment.order_id for claim in claims for payment in claim]
    assert sorted(claimed) == list(range(20))
    assert till.rows("SELECT count(*) FROM payments WHERE look_at > now() + interval '690 s'") == [(20,)]


async def test_a_look_that_takes_longer_than_its_claim_is_given_up(till: Till) -> None:
    """Before the next one may begin, a look ends, and leaves the payment as kill -9 would."""
    order = order_of("pm_slow")
    await till.intend(order)
    till.due()

    with pytest.raises(errors.TransientError, match="not done within"):
        await till.look(domain.Terms(call_s=3))

    assert till.status() == ("processing", 1, None)
    assert till.rows("SELECT uncertain FROM payments") == [(True,)]


async def looking(till: Till, terms: domain.Terms, looks: list[int]) -> None:
    """Look as often as possible, as many replicas would, and note how many payments each time had."""
    while True:
        with contextlib.suppress(errors.TransientError):
            looks.append(await till.look(terms))
        await asyncio.sleep(0.005)


@pytest.mark.parametrize(("cancel_first", "told"), [(True, "PaymentRefunded"), (False, "PaymentProcessed")])
async def test_no_look_disturbs_a_call_that_is_under_way(
    till: Till, eventually: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, *, cancel_first: bool, told: str
) -> None:
    """However often somebody looks, a slow charge has its payment to itself, and a cancellation noted meanwhile one answer: a refund."""
    order, terms, looks = order_of(), domain.Terms(look_s=0.001), list[int]()
    entered, release = asyncio.Event(), asyncio.Event()
    charge: Callable[..., Any] = till.psp.charge

    async def held(**asked: object) -> object:
        entered.set()
        await release.wait()
        return await charge(**asked)

    async def looked(more: int) -> bool:
        return len(looks) >= more

    monkeypatch.setattr(till.psp, "charge", held)
    sweeping = asyncio.create_task(looking(till, terms, looks))
    charging = asyncio.create_task(till.order(order, terms=terms))
    await asyncio.wait_for(entered.wait(), 30)
    if cancel_first:
        await till.cancel(order, terms=terms)
    await eventually(partial(looked, len(looks) + 20), 30)
    release.set()
    await charging
    assert sweeping.cancel()

    assert set(looks) == {0}
    assert till.names() == [told]
    assert [kind for kind, _ in till.moved(order)] == (["charge", "refund"] if cancel_first else ["charge"])


async def test_a_message_that_comes_again_keeps_the_looks_away_from_its_call(till: Till) -> None:
    """A call that is repeated has the payment to itself for as long as it may take, as the first one had."""
    order = order_of("pm_flaky")
    await till.intend(order)
    till.due()

    with pytest.raises(errors.TransientError):
        await till.order(order)

    assert till.rows("SELECT look_at - now() BETWEEN '20 s' AND '25 s', uncertain FROM payments") == [(True, True)]


async def test_a_cancellation_of_an_open_payment_brings_a_look_soon(till: Till) -> None:
    """Nobody waits for a message that died: when no call can be under way any more, somebody looks, and the payment is voided."""
    order = order_of()
    await till.intend(order)
    till.write("UPDATE payments SET look_at = now() + interval '15 min', looks = 9")

    await till.cancel(order)

    assert till.rows("SELECT look_at - now() BETWEEN '20 s' AND '25 s', looks FROM payments") == [(True, 0)]


async def test_cancellations_that_race_with_captures_and_looks_have_one_answer_each(till: Till) -> None:
    """Forty orders, each cancelled at another moment of its charge, while looks go on: one answer each, and no money kept."""
    terms = domain.Terms(look_s=0.001)
    till.behave(delay_s=0.05)
    orders = [msgspec.structs.replace(order_of(), order_id=number) for number in range(40)]

    async def race(number: int, order: events.OrderCreated) -> None:
        charging = asyncio.create_task(till.order(order, terms=terms))
        await asyncio.sleep(number * 0.004)  # another moment each, from before the order to behind its capture
        await till.cancel(order, terms=terms)
        await charging

    sweeping = asyncio.create_task(looking(till, terms, []))
    for start in range(0, len(orders), 8):
        await asyncio.gather(*(race(number, orders[number]) for number in range(start, start + 8)))
    assert sweeping.cancel()

    answers = till.rows(
        "SELECT correlation_id, count(DISTINCT type) FROM outbox WHERE type IN ('PaymentVoided', 'PaymentRefunded', 'RefundFailed') "
        "GROUP BY correlation_id"
    )
    twice = till.rows("SELECT correlation_id FROM outbox GROUP BY correlation_id, type, headers ->> 'causation-id' HAVING count(*) > 1")
    assert sorted(answers) == sorted((str(order.saga_id), 1) for order in orders)
    assert twice == [], "no message is answered twice; an order that comes behind its cancellation is answered as that was"
    assert {status for (status,) in till.rows("SELECT status FROM payments")} <= {"voided", "refunded"}
    moved = [[kind for kind, _ in till.moved(order)] for order in orders]
    assert all(movements in ([], ["charge", "refund"]) for movements in moved)
    assert ["charge", "refund"] in moved
