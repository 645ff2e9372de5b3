"""`saga` on a real gateway and order service; what payment and mail say is written by hand."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
import pytest
from integration import pool_kit

from sagapost_chassis import consuming, ids
from sagapost_contracts import events
from sagapost_ops import cli, client
from sagapost_ops.saga import calls
from sagapost_order import moves, states
from sagapost_sandbox import databases, ports
from sagapost_sandbox.testing import ahead, proxy, servers, services

CART = {"user_id": 1, "user_email": "test@example.com", "items": [{"product_id": 2, "quantity": 1, "price": "49.99"}]}
NOBODY = "0193b1c2-7d4e-7a10-9f0e-5f2f6c1d8a11"
MANY = """
INSERT INTO saga_history (saga_id, seq, from_state, to_state, event, outcome, source, actor, reason, facts, at)
SELECT saga_id, n, 'created', 'created', 'OperatorRetry', 'applied', 'operator', 'ann', 'try ' || n, facts, now()
  FROM saga_history CROSS JOIN generate_series(2, %(rows)s) AS n WHERE saga_id = %(saga_id)s AND seq = 1
"""


class Order(NamedTuple):
    """An order that was placed."""

    id: int
    saga_id: str


class Run(NamedTuple):
    """How a call of the command line ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The document on standard output."""
        return dict(json.loads(self.out))


class Shop:
    """An order service behind a gateway, without a broker: the test says what payment and mail say."""

    def __init__(self, dsn: str, url: str) -> None:
        self.dsn = dsn
        self.url = url

    def place(self) -> Order:
        """Buy a mouse."""
        with client.Client(self.url) as gateway:
            placed = json.loads(gateway.call("POST", "/api/checkout", CART).body)
        return Order(placed["id"], placed["saga_id"])

    def get(self, order: Order) -> dict[str, Any]:
        """Read the order's saga."""
        with client.Client(self.url) as gateway:
            return dict(json.loads(gateway.call("GET", f"/api/ops/sagas/{order.saga_id}").body))

    def hear(self, *messages: events.Message) -> None:
        """Let the order service hear messages, one after another."""

        async def heard() -> None:
            async with pool_kit.opened(self.dsn) as pool:
                for message in messages:
                    delivery = consuming.Delivery(
                        message_id=ids.uuid7(), type=type(message).__name__, message=message, attempt=1, time=datetime.now(UTC)
                    )
                    await moves.on_event(pool, states.Policy(compensate_s=600), delivery)

        asyncio.run(heard())

    def do(self, statement: str, values: dict[str, object]) -> None:
        """Write past the service."""
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            conn.execute(statement.encode(), values)

    def parked_for_the_receipt(self) -> Order:
        """Buy, pay, and find the customer unreachable."""
        order = self.place()
        self.hear(paid(order), unmailed(order))
        return order

    def parked_for_the_refund(self) -> Order:
        """Buy, pay, cancel, and have the refund refused."""
        order = self.place()
        self.hear(paid(order))
        with client.Client(self.url) as gateway:
            assert gateway.call("POST", f"/api/orders/{order.id}/cancel").status == 202
        self.hear(unrefunded(order))
        return order


def paid(order: Order) -> events.PaymentProcessed:
    """Say that payment was taken."""
    return events.PaymentProcessed(
        order_id=order.id,
        saga_id=UUID(order.saga_id),
        amount=Decimal("49.99"),
        payment_id=1,
        payment_version=1,
        transaction_id="tx",
        captured_at=datetime.now(UTC),
        user_email="test@example.com",
        items=(),
    )


def unrefunded(order: Order) -> events.RefundFailed:
    """Say that the provider refuses the refund."""
    return events.RefundFailed(
        order_id=order.id, saga_id=UUID(order.saga_id), payment_version=2, amount=Decimal("49.99"), code="account_closed", permanent=True
    )


def unmailed(order: Order) -> events.EmailFailed:
    """Say that the receipt cannot be delivered."""
    return events.EmailFailed(
        order_id=order.id, saga_id=UUID(order.saga_id), template=events.RECEIPT, code="mailbox_unavailable", permanent=True
    )


def mailed(order: Order) -> events.EmailSent:
    """Say that the receipt was taken."""
    return events.EmailSent(order_id=order.id, saga_id=UUID(order.saga_id), template=events.RECEIPT, smtp_message_id="<m>")


Call = Callable[..., Run]


@pytest.fixture(scope="module")
def shop(order_clones: ahead.Ahead[str], database_server: servers.Databases, tmp_path_factory: pytest.TempPathFactory) -> Generator[Shop]:
    """Run a gateway and an order service whose broker is away, for all tests of this module: each has orders of its own."""
    folder, dsn = tmp_path_factory.mktemp("shop"), order_clones.take()
    broker = f"amqp://nobody:nothing@127.0.0.1:{ports.trial(1)[0]}/"
    env = {"SAGAPOST_DATABASE_URL": dsn, "SAGAPOST_AMQP_URL": broker, "SAGAPOST_COMPENSATE_S": "600"}  # no deadline comes between
    order = services.Service("sagapost_order", env, folder / "order.log")
    gateway = services.Service("sagapost_gateway", {"SAGAPOST_ORDER_URL": order.url, "SAGAPOST_PAGE_PORT": "0"}, folder / "gateway.log")
    try:
        order.wait_ready()
        yield Shop(dsn, gateway.wait_ready().url)
    finally:
        order.kill()
        gateway.kill()
        order_clones.clean(lambda: databases.drop(database_server.admin_dsn, dsn.rpartition("/")[2]))


@pytest.fixture
def call(shop: Shop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Give what calls `./sagapost saga …` on the shop, in this process."""
    monkeypatch.setenv("SAGAPOST_GATEWAY_URL", shop.url)

    def called(*arguments: str) -> Run:
        monkeypatch.setattr(sys, "argv", ["./sagapost", "saga", *arguments])
        capsys.readouterr()
        code = cli.run()
        return Run(code, *capsys.readouterr())

    return called


@contextlib.contextmanager
def watching(url: str, *arguments: str) -> Generator[subprocess.Popen[str]]:
    """Run `./sagapost saga show … --watch` as a process of its own."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SAGAPOST_")}
    line = [sys.executable, "-P", "-m", "sagapost_ops", "saga", "show", *arguments, "--watch"]
    pipe = subprocess.PIPE
    with subprocess.Popen(line, env=environ | {"SAGAPOST_GATEWAY_URL": url}, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def read(process: subprocess.Popen[str], wanted: str) -> str:
    """Give the next line with `wanted` in it; the test's own time limit ends the wait."""
    assert process.stdout is not None
    for line in process.stdout:
        if wanted in line:
            return line
    raise AssertionError(f"it ended without {wanted!r}: {process.stderr.read() if process.stderr else ''}")


def next_document(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Give the next line; the test's own time limit ends the wait."""
    assert process.stdout is not None
    return dict(json.loads(process.stdout.readline()))


def test_the_list_finds_who_calls_for_a_person(shop: Shop, call: Call) -> None:
    """Newest first; --state, --attention and --stuck choose; a parked saga is in all three, a healthy one in none."""
    healthy, parked = shop.place(), shop.parked_for_the_receipt()

    everything = call("list", "--json").json["sagas"]
    chosen = [
        [saga["order_id"] for saga in call("list", "--json", *wanted).json["sagas"]]
        for wanted in (("--state", "notify_failed"), ("--attention",), ("--stuck",), ("--state", "created"))
    ]
    page = call("list", "--stuck")

    numbers = [saga["order_id"] for saga in everything]
    assert numbers == sorted(numbers, reverse=True)
    assert {healthy.id, parked.id} <= set(numbers)
    assert [parked.id in found for found in chosen] == [True, True, True, False]
    assert [healthy.id in found for found in chosen] == [False, False, False, True]
    assert everything[0]["attention"] == "receipt_failed"
    assert page.code == 0
    for says in (str(parked.id), parked.saga_id, "in 60 min", "receipt not delivered", "attention: receipt_failed", "stuck"):
        assert says in page.out


def test_a_long_list_is_read_page_by_page_up_to_its_limit(shop: Shop, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many the gateway gives at once, each saga comes once, and that there are more is said."""
    orders = [shop.place().id for _ in range(5)]
    monkeypatch.setattr(calls, "PAGE_MAX", 2)

    found, page = call("list", "--limit", "5", "--json"), call("list", "--limit", "4")
    everything = call("list", "--limit", "10000", "--json")

    assert [saga["order_id"] for saga in found.json["sagas"]] == orders[::-1]
    assert "There are more; see --limit." in page.out
    assert [saga["order_id"] for saga in everything.json["sagas"]] == list(range(orders[-1], 0, -1))
    assert everything.json["more"] is False


def test_nothing_that_matches_is_code_3(shop: Shop, call: Call) -> None:
    """An empty list is still a document; an order or a saga that is not there is a sentence."""
    shop.place()

    empty = call("list", "--state", "created", "--stuck", "--json")

    assert (empty.code, empty.json) == (3, {"sagas": [], "more": False})
    assert empty.err == "sagapost: no saga matches\n"
    for name, says in (("999999", "there is no order 999999"), (NOBODY, f"there is no saga {NOBODY}")):
        for arguments in (("show", name), ("history", name), ("show", name, "--watch"), ("retry", name, "--reason", "why")):
            ended = call(*arguments)
            assert (ended.code, ended.out) == (3, "")
            assert ended.err == f"sagapost: {says}; see: ./sagapost saga list\n"


def test_a_saga_is_shown_by_its_orders_number_or_its_own_id(shop: Shop, call: Call) -> None:
    """The page tells state, money, steps, history and the exact commands; --json is the gateway's document."""
    order = shop.parked_for_the_receipt()

    by_number, by_id = call("show", str(order.id)), call("show", order.saga_id.upper())
    document = call("show", str(order.id), "--json")

    assert document.json == shop.get(order)
    assert by_number.code == by_id.code == 0
    assert by_number.out.splitlines()[0] == f"Order {order.id}: paid, receipt not delivered (notify_failed)"
    assert by_number.out.splitlines()[0] == by_id.out.splitlines()[0]
    for says in (
        f"saga {order.saga_id}, version 3",
        "49.99 USD captured, nothing refunded",
        "receipt_failed: the receipt could not be delivered",
        "in 60 min: the receipt is asked for again",
        "the receipt could not be delivered: mailbox_unavailable",
        f'./sagapost saga retry {order.id} --reason "…"',
    ):
        assert says in by_number.out
    assert [line.split()[:2] for line in by_number.out.splitlines() if line.startswith((" order", " payment", " email"))] == [
        ["order", "done"],
        ["payment", "done"],
        ["email", "failed"],
    ]


@pytest.mark.parametrize(
    ("action", "parked", "state", "more"),
    [
        ("retry", Shop.parked_for_the_receipt, "paid", ()),
        ("waive-notify", Shop.parked_for_the_receipt, "notified", ()),
        ("compensate", Shop.parked_for_the_receipt, "compensating", ()),
        ("retry", Shop.parked_for_the_refund, "compensating", ()),
        ("mark-refunded", Shop.parked_for_the_refund, "compensated", ("--reference", "T-17")),
    ],
)
def test_what_an_operator_does_happens_and_stays_in_the_history(
    *, action: str, parked: Callable[[Shop], Order], state: str, more: tuple[str, ...], shop: Shop, call: Call
) -> None:
    """The saga moves, its newest row says who and why, and what became of it is printed."""
    order = parked(shop)
    before = shop.get(order)

    done = call(action, str(order.id), "--reason", "because I say so", *more)

    after = shop.get(order)
    assert (done.code, done.err) == (0, "")
    assert (after["state"], after["version"]) == (state, before["version"] + 1)
    assert f"Order {order.id}: {before['state']} → {state}" in done.out
    said = "because I say so (reference T-17)" if more else "because I say so"
    row = after["history"][-1]
    assert (row["source"], row["actor"], row["reason"]) == ("operator", "demo", said)
    history = call("history", order.saga_id)
    assert history.code == 0
    assert [line for line in history.out.splitlines() if "operator demo" in line and said in line]


def test_an_action_on_another_version_than_was_looked_at_changes_nothing(shop: Shop, call: Call) -> None:
    """--expect-version is what the operator saw: exit code 1, and the sentence says which version there is now; the right one is taken."""
    order = shop.parked_for_the_receipt()
    before = shop.get(order)

    stale = call("retry", str(order.id), "--reason", "again", "--expect-version", str(before["version"] - 1), "--json")
    untouched = shop.get(order)
    right = call("retry", str(order.id), "--reason", "again", "--expect-version", str(before["version"]), "--json")

    assert (stale.code, stale.out) == (1, "")
    assert "The saga has version 3, not 2" in stale.err
    assert "./sagapost saga show" in stale.err
    assert untouched == before
    assert (right.code, right.json) == (0, shop.get(order))


def test_a_finished_order_is_refunded_only_with_yes(shop: Shop, call: Call) -> None:
    """Without --yes exit code 2 names the amount, and nothing changes; with it the refund begins."""
    order = shop.place()
    shop.hear(paid(order), mailed(order))
    before = shop.get(order)

    asked = call("compensate", str(order.id), "--reason", "goods came back")
    untouched = shop.get(order)
    done = call("compensate", str(order.id), "--reason", "goods came back", "--yes")

    assert (asked.code, asked.out, untouched) == (2, "", before)
    assert "refunds 49.99 USD" in asked.err
    assert (done.code, shop.get(order)["state"]) == (0, "compensating")


def test_an_action_without_a_use_is_refused(shop: Shop, call: Call) -> None:
    """A finished order has nothing to be tried again: exit code 1 with the service's own sentence, which a second look confirms."""
    order = shop.place()
    shop.hear(paid(order), mailed(order))

    ended = call("retry", str(order.id), "--reason", "again")

    assert (ended.code, ended.out) == (1, "")
    assert "A saga that is notified has no use for this action" in ended.err
    assert shop.get(order)["state"] == "notified"
    assert "had it tried again: again (changed nothing)" in call("history", str(order.id)).out


def test_a_history_longer_than_the_document_is_read_from_its_beginning(shop: Shop, call: Call) -> None:
    """The gateway's document shows the newest thousand rows; the older ones come as a stream."""
    order = shop.place()
    shop.do(MANY, {"rows": 1005, "saga_id": order.saga_id})
    shop.do("UPDATE sagas SET version = 1005 WHERE id = %(saga_id)s", {"saga_id": order.saga_id})

    found, page = call("history", str(order.id), "--json"), call("history", str(order.id))

    assert [row["seq"] for row in found.json["history"]] == list(range(1, 1006))
    assert "had it tried again: try 1005" in page.out


def test_a_watched_saga_is_told_row_by_row_over_a_broken_connection(shop: Shop) -> None:
    """Each row comes once, when it is written, also those written while the stream was cut; the end of the saga ends it with 0."""
    order = shop.place()
    with (
        proxy.Proxy("127.0.0.1", int(shop.url.rpartition(":")[2])) as link,
        watching(proxy.through(shop.url, link), str(order.id), "--json") as process,
    ):
        seen = [next_document(process)]
        shop.hear(paid(order))
        seen.append(next_document(process))
        assert link.cut() > 0
        shop.hear(unmailed(order))
        seen.append(next_document(process))
        shop.hear(mailed(order))
        seen.append(next_document(process))
        document = next_document(process)
        code = process.wait(20)

    assert [row["seq"] for row in seen] == [1, 2, 3, 4]
    assert [row["event"] for row in seen] == [row["event"] for row in document["history"]]
    assert (code, document["state"]) == (0, "notified")


def test_ctrl_c_ends_watching_and_changes_nothing(shop: Shop) -> None:
    """A saga that is parked while it is watched says what can be done; Ctrl-C is exit code 0 without a word of trouble."""
    order = shop.place()
    shop.hear(paid(order))
    with watching(shop.url, order.saga_id) as process:
        read(process, "the money was captured")
        shop.hear(unmailed(order))
        read(process, f"./sagapost saga retry {order.id} --reason")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)

    assert (process.returncode, err) == (0, "")
    assert shop.get(order)["state"] == "notify_failed"


def test_a_gateway_that_is_not_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    """Exit code 2 and where to look, at once, also for a watch."""
    monkeypatch.setenv("SAGAPOST_GATEWAY_URL", f"http://127.0.0.1:{ports.trial(1)[0]}")

    for arguments in (("list",), ("show", "1"), ("show", "1", "--watch"), ("retry", "1", "--reason", "again")):
        ended = call(*arguments)
        assert (ended.code, ended.out) == (2, "")
        assert "does not answer" in ended.err
        assert "./sagapost status" in ended.err
        assert len(ended.err.splitlines()) == 1
