"""What a demo calls a good end, and that anything else is exit code 1; the good ends themselves are shown on a whole stack."""

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal

import msgspec
import pytest

from sagapost_ops import cli
from sagapost_ops.demo import shop, stories, telling
from sagapost_ops.saga import resources
from sagapost_sandbox import ports
from sagapost_sandbox.testing import services

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
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without a payment service nothing moves: the document and one sentence say what there is instead of the story's end."""
    broker = f"amqp://nobody:nothing@127.0.0.1:{ports.trial(1)[0]}/"
    order = start_service("order", {"SAGAPOST_DATABASE_URL": order_db, "SAGAPOST_AMQP_URL": broker}).wait_ready()
    gateway = start_service("gateway", {"SAGAPOST_ORDER_URL": order.url, "SAGAPOST_PAGE_PORT": "0"}).wait_ready()
    for name, url in (("GATEWAY", gateway.url), ("PROVIDER", provider.url), ("MAILBOX", mailbox.url)):
        monkeypatch.setenv(f"SAGAPOST_{name}_URL", url)
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
