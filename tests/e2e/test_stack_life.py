"""The whole system as `up` starts it: the documented call, its end, restarts, a second stack, and nothing left after `down`."""

import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Generator

import httpx
import msgspec
import psycopg
import pytest
from e2e import shop_stack, shoppers

from sagapost_ops import plan, state
from sagapost_sandbox.testing import polling

RATE = int(os.environ.get("SAGAPOST_ROLLING_RATE", "20"))
ROUNDS = int(os.environ.get("SAGAPOST_ROLLING_ROUNDS", "1"))
FEW = 200
FUZZ = int(os.environ.get("SAGAPOST_FUZZ", str(FEW)))  # at least so many requests; the campaign makes 2000
FUZZ_S = 100 + FUZZ
SERVICES = ("order", "payment", "email", "relay-order", "relay-payment", "gateway")
pytestmark = pytest.mark.timeout(300 + 120 * ROUNDS + FUZZ_S)


@pytest.fixture(scope="module")
def stack(run_folder: pathlib.Path) -> Generator[shop_stack.Stack]:
    """Run one stack for the tests of this module."""
    made = shop_stack.Stack(run_folder / "stack" / "state")
    try:
        yield made
    finally:
        made.run("down", "--purge")


@pytest.fixture(scope="module")
def neighbour(run_folder: pathlib.Path) -> Generator[shop_stack.Stack]:
    """Prepare a second stack; the tests start it."""
    made = shop_stack.Stack(run_folder / "neighbour" / "state")
    try:
        yield made
    finally:
        made.run("down", "--purge")


def test_the_printed_call_is_answered_and_ends_with_one_receipt(stack: shop_stack.Stack) -> None:
    """What `up` prints as the call to try works as it stands, and its saga ends notified with exactly one receipt."""
    printed = stack.up()

    words = shlex.split(next(line for line in printed.splitlines() if line.startswith("curl ")))
    assert words[words.index("POST") + 1] == f"http://localhost:{plan.PUBLIC['gateway'] + stack.offset}/api/checkout"
    status, answer = stack.call("POST", "/api/checkout", json.loads(words[words.index("-d") + 1]))
    assert status == 202
    order = msgspec.json.decode(answer, type=shop_stack.Order)
    saga = stack.ended(order)
    assert (saga.state, saga.captured) == ("notified", "1299.99")
    assert stack.mails(order.saga_id) == ["receipt"]
    assert stack.charges(order.saga_id) == ["charge"]


def test_every_address_that_status_gives_is_ready(stack: shop_stack.Stack) -> None:
    """`up --detach` returned when everything was ready; status names each part with url, port, pid and version."""
    services = stack.ready()

    assert {"gateway", "page", "order", "payment", "email", "relay-order", "relay-payment"} <= services.keys()
    assert {"order-db", "payment-db", "rabbitmq", "rabbitmq-management", "provider", "mailbox", "smtp"} <= services.keys()
    assert all(service.pid and service.version and service.url for service in services.values())


def test_the_order_service_answers_nobody_but_services_of_ours(stack: shop_stack.Stack) -> None:
    """Whoever reaches its port can be no client and no operator by a header; the gateway and email have the stack's secret."""
    port = stack.ready()["order"].port
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"Sagapost-Client": "the-ceo"}, timeout=20) as client:
        statuses = [client.get(path).status_code for path in ("/", "/health/ready", "/sagas", "/ops/sagas", "/orders/1", "/products")]

    assert statuses == [200, 200, 401, 401, 401, 401]
    assert all(service.mode == "development" for service in stack.services().values() if service.mode)


def test_a_declined_card_ends_compensated_with_one_cancellation_mail(stack: shop_stack.Stack) -> None:
    """Nothing is charged, the customer is told once."""
    order = stack.checkout("pm_card_declined")

    saga = stack.ended(order)

    assert (saga.state, saga.captured) == ("compensated", "0.00")
    assert stack.charges(order.saga_id) == []
    assert polling.eventually(lambda: stack.mails(order.saga_id), shop_stack.SAGA_S) == ["cancellation"]


@pytest.mark.parametrize(
    ("story", "mails"),
    [
        ("happy", ["Your receipt"]),
        ("decline", ["was cancelled"]),
        ("cancel", ["Your receipt", "was cancelled"]),
        ("late-payment", ["was cancelled"]),
    ],
)
def test_the_demo_ends_as_its_story_says(stack: shop_stack.Stack, story: str, mails: list[str]) -> None:
    """`demo` shows each step, the money and the mails, and exits with 0 only because it came out so."""
    done = stack.run("demo", story)

    assert done.returncode == 0, done.stderr
    assert "OrderCreated" in done.stdout
    assert [said in done.stdout for said in ("Your receipt", "was cancelled")] == [
        said in mails for said in ("Your receipt", "was cancelled")
    ]
    is_undone = story in {"cancel", "late-payment"}
    assert ("The provider's own ledger: 1 charge and 1 refund, net 0.00 USD." in done.stdout) == is_undone


def test_a_second_up_says_that_it_runs(stack: shop_stack.Stack) -> None:
    """Nothing is started twice; the addresses are printed again."""
    before = {name: service.pid for name, service in stack.services().items()}

    done = stack.run("up", "--detach")

    assert done.returncode == 0
    assert "running already" in done.stderr
    assert {name: service.pid for name, service in stack.services().items()} == before


def test_a_taken_port_is_named_with_who_takes_it(stack: shop_stack.Stack, tmp_path: pathlib.Path) -> None:
    """A stack of another folder on the same ports is refused in one sentence, exit code 2."""
    other = shop_stack.Stack(tmp_path / "state")
    other.offset, gateway = stack.offset, stack.services()["gateway"]

    done = other.run("up", "--detach")

    assert done.returncode == 2
    assert f"port {gateway.port} is taken by python" in done.stderr
    assert f"(pid {stack.state().supervisor.pid})" in done.stderr  # it holds the ports while processes come and go
    assert len(done.stderr.splitlines()) == 1


def test_what_is_killed_is_started_again_and_loses_nothing(stack: shop_stack.Stack) -> None:
    """A service and its database get kill -9: both come back, a checkout made meanwhile ends, the books agree."""
    services = stack.services()
    for name in ("payment", "payment-db"):
        pid = services[name].pid
        assert pid
        os.kill(pid, signal.SIGKILL)

    order = stack.checkout("pm_card_ok")

    assert stack.ended(order).state == "notified"
    assert stack.charges(order.saga_id) == ["charge"]
    assert stack.services()["payment"].pid != services["payment"].pid
    done = stack.run("verify", "--settle", "30")
    assert done.returncode == 0, done.stdout


def test_a_rolling_restart_under_load_fails_nobody(stack: shop_stack.Stack) -> None:
    """Every process is replaced while people buy: each checkout is accepted and ends notified, no event of a stream is lost or doubled."""
    before = stack.services()
    load = shoppers.Shoppers(f"http://127.0.0.1:{before['gateway'].port}", RATE)
    load.start()
    try:
        for _ in range(ROUNDS):
            load.slowly.set()
            first = stack.run("restart", "order", "gateway", "--json")
            load.slowly.clear()  # so that payment, which waits for the provider when it ends, has little to wait for
            others = [stack.run("restart", *services, "--json") for services in (("email", "relay-order", "relay-payment"), ("payment",))]
            assert [done.returncode for done in (first, *others)] == [0, 0, 0], [done.stderr for done in (first, *others)]
    finally:
        books = load.finish()

    after = stack.ready()
    assert all(before[name].pid != after[name].pid for name in SERVICES)
    assert books.failed == {}
    assert len({placed.saga_id for placed in books.accepted}) == len({placed.id for placed in books.accepted}) == len(books.accepted) > 0
    assert all(
        saga.state == "notified"
        for saga in (stack.ended(shop_stack.Order(id=placed.id, saga_id=placed.saga_id)) for placed in books.accepted)
    )
    for story in books.stories:
        assert story.ended, story
        assert story.seen == stack.history(story.saga_id)
    assert any(story.connections > 1 for story in books.stories)
    verified = stack.run("verify", "--settle", "30")
    assert verified.returncode == 0, verified.stdout
    assert all(queue["depth"] == 0 for queue in json.loads(stack.run("dlq", "list", "--json").stdout))


def test_only_services_are_restarted(stack: shop_stack.Stack) -> None:
    """What is no service of ours is refused by name, with the names that there are, exit code 2; nothing is touched."""
    before = {name: service.pid for name, service in stack.services().items()}

    done = stack.run("restart", "provider")

    assert (done.returncode, {name: service.pid for name, service in stack.services().items()}) == (2, before)
    assert "provider is not a service of this stack; there are: order, payment" in done.stderr


def test_schemathesis_finds_nothing(stack: shop_stack.Stack, tmp_path: pathlib.Path) -> None:
    """Whatever the served document allows or forbids: every check, one request after the other, and orders that begin end as others do."""
    url = f"http://127.0.0.1:{stack.services()['gateway'].port}/schema/openapi.json"
    settings = shop_stack.ROOT / "schemathesis.toml"
    # more requests come of few examples: each operation has edges and sequences besides, of which there are not more when examples are many
    options = ("--checks", "all", "--max-examples", str(FUZZ // (20 if FUZZ <= FEW else 8)), "--request-timeout", "40")
    chance = ("--generation-database", "none") if FUZZ > FEW else ("--generation-deterministic",)

    done = subprocess.run(
        [sys.executable, "-P", "-m", "schemathesis.cli", "--config-file", str(settings), "run", url, *options, *chance],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=FUZZ_S,
    )

    assert done.returncode == 0, done.stdout[-20_000:]
    made = re.search(r"(\d+) generated", done.stdout)
    assert made, done.stdout[-2000:]
    assert int(made[1]) >= FUZZ
    stack.ready()
    verified = stack.run("verify", "--settle", "60")
    assert verified.returncode == 0, verified.stdout


def test_verify_fails_when_the_books_are_cooked(stack: shop_stack.Stack) -> None:
    """One wrong cent is enough, and putting it right is too."""
    url = stack.state().addresses.payment_database_url
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("UPDATE ledger SET amount = amount + 0.01 WHERE id = (SELECT min(id) FROM ledger)")
        cooked = stack.run("verify", "--settle", "0", "--json")
        conn.execute("UPDATE ledger SET amount = amount - 0.01 WHERE id = (SELECT min(id) FROM ledger)")

    assert cooked.returncode == 1
    assert [line["id"] for line in json.loads(cooked.stdout)["invariants"] if not line["ok"]] == [3]
    assert stack.run("verify").returncode == 0


def test_a_second_stack_runs_beside_the_first_and_survives_its_crash_point(stack: shop_stack.Stack, neighbour: shop_stack.Stack) -> None:
    """Two offsets are two systems; a process told to die once at a named point is started again without that."""
    neighbour.up(crash="payment.after_charge")

    order = neighbour.checkout("pm_card_ok")

    assert neighbour.ended(order).state == "notified"
    assert neighbour.charges(order.saga_id) == ["charge"]
    assert next(service for service in neighbour.state().services if service.name == "payment").restarts == 1
    assert stack.charges(order.saga_id) == []
    stack.ready()


def test_down_ends_what_a_killed_supervisor_left(neighbour: shop_stack.Stack) -> None:
    """Without its supervisor a stack counts as not running; `down` ends every process of it and frees every port."""
    before = neighbour.state()
    os.kill(before.supervisor.pid, signal.SIGKILL)
    polling.eventually(lambda: not state.is_supervised(before))

    status, down = neighbour.run("status"), neighbour.run("down")

    assert status.returncode == 3
    assert down.returncode == 0, down.stderr
    shop_stack.assert_gone(neighbour, before)


def test_down_leaves_nothing_and_up_finds_the_old_orders(stack: shop_stack.Stack) -> None:
    """No process and no port stays; what was ordered is there after the next start."""
    order = stack.checkout("pm_card_ok")
    assert stack.ended(order).state == "notified"
    before = stack.state()

    down = stack.run("down")

    assert down.returncode == 0, down.stderr
    shop_stack.assert_gone(stack, before)
    assert stack.run("status").returncode == 3
    stack.up()
    assert stack.ended(order).state == "notified"
    assert stack.mails(order.saga_id) == ["receipt"]
