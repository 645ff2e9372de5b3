"""What a demo calls a good end, and that anything else is exit code 1; most good ends are shown on a whole stack, poison's here."""

import asyncio
import json
import pathlib
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import aio_pika
import msgspec
import psycopg
import pytest
from integration import state_folder

from sagapost_chassis import amqp
from sagapost_contracts import topology
from sagapost_ops import cli, targets
from sagapost_ops.demo import poison, shop, stories, telling
from sagapost_ops.saga import resources
from sagapost_sandbox import ports
from sagapost_sandbox.testing import polling, services

Start = Callable[[str, dict[str, str]], services.Service]

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
ORDER = shop.Order(id=7, saga_id="s", total_amount=Decimal("1399.97"), currency="USD", created_at=NOW)
UNDONE = resources.Saga(
    saga_id="s",
    order_id=7,
    state="compensated",
    version=4,
    done=True,
    captured=Decimal("1399.97"),
    refunded=Decimal("1399.97"),
    currency="USD",
    created_at=NOW,
)
CHARGE = shop.Movement(kind="charge", amount=Decimal("1399.97"), currency="USD", at=NOW)
REFUND = msgspec.structs.replace(CHARGE, kind="refund")
LARGE_PAYMENT = """
INSERT INTO payments (order_id, saga_id, status, amount, currency, payment_method, user_email, items, pay_before)
VALUES (1, gen_random_uuid(), 'processing', 5000.01, 'USD', 'pm_card_ok', %s, '[]', now())
"""
MAILS = tuple(shop.MailSeen(template=template, message_id="<m>", text="") for template in ("receipt", "cancellation"))


def _judged(saga: resources.Saga, movements: tuple[shop.Movement, ...] | None, mails: tuple[shop.MailSeen, ...]) -> tuple[str, ...]:
    return telling.judge(stories.STORIES["cancel"], ORDER, saga, movements, mails)


@pytest.mark.parametrize("movements", [(CHARGE, REFUND), None], ids=["with the ledger", "without one"])
def test_a_cancellation_came_out_well_when_the_money_is_neutral(movements: tuple[shop.Movement, ...] | None) -> None:
    """One charge, one refund, both mails; a provider without a ledger to read is not held against it."""
    assert _judged(UNDONE, movements, MAILS) == ()


@pytest.mark.parametrize(
    ("saga", "movements", "mails", "says"),
    [
        (msgspec.structs.replace(UNDONE, state="compensating"), (CHARGE, REFUND), MAILS, "should be compensated and is compensating"),
        (msgspec.structs.replace(UNDONE, refunded=Decimal(0)), (CHARGE, REFUND), MAILS, "it has 1399.97 and 0"),
        (UNDONE, (CHARGE,), MAILS, "should have charge, refund and has charge 1399.97"),
        (UNDONE, (CHARGE, CHARGE, REFUND), MAILS, "has charge 1399.97, charge 1399.97, refund 1399.97"),
        (UNDONE, (CHARGE, REFUND, REFUND), MAILS, "has charge 1399.97, refund 1399.97, refund 1399.97"),
        (UNDONE, (CHARGE, msgspec.structs.replace(REFUND, amount=Decimal("1399.96"))), MAILS, "refund 1399.96"),
        (UNDONE, (), MAILS, "and has nothing"),
        (UNDONE, (CHARGE, REFUND), MAILS[:1], "there are: receipt"),
        (UNDONE, (CHARGE, REFUND), (*MAILS, MAILS[1]), "there are: receipt, cancellation, cancellation"),
    ],
)
def test_whatever_is_not_as_the_story_says_is_named(
    saga: resources.Saga, movements: tuple[shop.Movement, ...], mails: tuple[shop.MailSeen, ...], says: str
) -> None:
    """Another state, a cent, a second charge or refund, a missing or a second mail: each is one fault in one sentence."""
    (fault,) = _judged(saga, movements, mails)

    assert says in fault


def test_a_demo_that_comes_to_no_end_is_code_1(
    *,
    start_service: Start,
    order_db: str,
    provider: services.Service,
    mailbox: services.Service,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without a payment service nothing moves: the document and one sentence say what there is instead of the story's end."""
    broker = f"amqp://nobody:nothing@127.0.0.1:{ports.trial(1)[0]}/"
    order = start_service("order", {"SAGAPOST_DATABASE_URL": order_db, "SAGAPOST_AMQP_URL": broker}).wait_ready()
    gateway = start_service("gateway", {"SAGAPOST_ORDER_URL": order.url, "SAGAPOST_PAGE_PORT": "0"}).wait_ready()
    state_folder.write(
        tmp_path / "state", targets.Targets(gateway_url=gateway.url, provider_url=provider.url, mailbox_url=mailbox.url), monkeypatch
    )
    monkeypatch.setattr(telling, "DEADLINE_S", 0.5)
    monkeypatch.setattr(telling, "MAILS_S", 0.0)
    monkeypatch.setattr(sys, "argv", ["./sagapost", "demo", "happy", "--json"])

    code = cli.run()

    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert (code, found["ok"], found["saga"]["state"]) == (1, False, "created")
    assert len(found["faults"]) == 4
    assert "the saga should be notified and is created" in printed.err
    assert f"./sagapost saga show {found['saga']['order_id']}" in printed.err


@pytest.fixture
def shop_urls(
    *,
    start_service: Start,
    order_db: str,
    payment_db: str,
    vhost: str,
    provider: services.Service,
    mailbox: services.Service,
) -> dict[str, str]:
    """Start every service, payment with a ladder of two steps, and return their addresses by variable."""
    broker = {"SAGAPOST_AMQP_URL": vhost}
    order_env, payment_env = {"SAGAPOST_DATABASE_URL": order_db} | broker, {"SAGAPOST_DATABASE_URL": payment_db} | broker
    smtp = {"SAGAPOST_SMTP_HOST": "127.0.0.1", "SAGAPOST_SMTP_PORT": mailbox.env["SAGAPOST_SMTP_PORT"]}
    order = start_service("order", order_env)
    others = [
        start_service("payment", payment_env | {"SAGAPOST_PROVIDER_URL": provider.url, "SAGAPOST_RETRY_DELAYS_S": "1,30"}),
        start_service("email", broker | smtp),
        start_service("relay", order_env),
        start_service("relay", payment_env),
    ]
    gateway = start_service("gateway", {"SAGAPOST_ORDER_URL": order.url, "SAGAPOST_PAGE_PORT": "0"})
    for service in (order, *others, gateway):
        service.wait_ready()
    return {
        "SAGAPOST_GATEWAY_URL": gateway.url,
        "SAGAPOST_ORDER_DATABASE_URL": order_db,
        "SAGAPOST_PAYMENT_DATABASE_URL": payment_db,
        "SAGAPOST_AMQP_URL": vhost,
        "SAGAPOST_PROVIDER_URL": provider.url,
        "SAGAPOST_MAILBOX_URL": mailbox.url,
    }


def test_poison_is_dead_is_mended_and_ends_paid(
    *, shop_urls: dict[str, str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message fails three times, is a dead letter with its reason, is replayed: one charge, a receipt, no rule and no letter left.

    From the step of 30 s it is moved on by hand; another message that waits there keeps its place.
    """
    state_folder.write(tmp_path / "state", _known(shop_urls), monkeypatch)
    monkeypatch.setattr(sys, "argv", ["./sagapost", "demo", "poison", "--json"])
    waiting = topology.retry_queue(topology.PAYMENT_QUEUE, 30)
    asyncio.run(_publish(shop_urls["SAGAPOST_AMQP_URL"], waiting))

    code = cli.run()

    printed = capsys.readouterr()
    found = json.loads(printed.out)
    dead = found["dead_letter"]
    assert (code, found["ok"], found["faults"]) == (0, True, []), printed.err
    assert (dead["exception"], dead["attempt"]) == ("CheckViolation", 3)
    assert [line["kind"] for line in found["movements"]] == ["charge"]
    with psycopg.connect(shop_urls["SAGAPOST_PAYMENT_DATABASE_URL"]) as conn:
        assert conn.execute("SELECT count(*) FROM pg_constraint WHERE conname = 'demo_poison'").fetchone() == (0,)
    polling.eventually(lambda: asyncio.run(_depths(shop_urls["SAGAPOST_AMQP_URL"])) == {waiting: 1})  # the receipt is still told of


def test_a_demo_that_is_killed_leaves_no_rule_behind_for_long(payment_db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody drops the rule after a kill: it holds until its time is over and then refuses nothing."""
    where = targets.Targets(payment_database_url=payment_db)
    with psycopg.connect(payment_db, autocommit=True) as conn, poison.planted(where), pytest.raises(psycopg.errors.CheckViolation):
        conn.execute(LARGE_PAYMENT, ["a@example.com"])  # not in the statement, which the server would log
    monkeypatch.setattr(poison, "LASTS", timedelta(0))

    with poison.planted(where), psycopg.connect(payment_db, autocommit=True) as conn:
        conn.execute(LARGE_PAYMENT, ["a@example.com"])


def _known(urls: dict[str, str]) -> targets.Targets:
    return targets.Targets(**{field: urls[variable] for field, variable in targets.VARIABLES.items() if variable in urls})


async def _publish(url: str, queue: str) -> None:
    async with amqp.Publisher(url, "test") as publisher:
        message = amqp.make_message(b"{}", message_id="m", type_name="T", correlation_id="another", time=NOW, headers={})
        await publisher.publish(message, exchange="", routing_key=queue)


async def _depths(url: str) -> dict[str, int]:
    """Count the messages of every queue that has some."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        counted = {queue.name: (await channel.get_queue(queue.name)).declaration_result.message_count or 0 for queue in topology.queues()}
    return {name: count for name, count in counted.items() if count}
