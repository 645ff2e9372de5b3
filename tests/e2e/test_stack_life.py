"""The whole system as `up` starts it: the documented call, its end, restarts, a second stack, and nothing left after `down`."""

import contextlib
import http.client
import json
import os
import pathlib
import random
import shlex
import signal
import subprocess
import sys
from collections.abc import Generator

import msgspec
import psycopg
import pytest

from sagapost_ops import evidence, plan, reports, state
from sagapost_sandbox import ports, processes
from sagapost_sandbox.testing import polling

COMMAND_S = 280
SAGA_S = 60
pytestmark = pytest.mark.timeout(300)


class Saga(msgspec.Struct, frozen=True, kw_only=True):
    """What these tests read of a saga."""

    saga_id: str
    state: str
    captured: str
    refunded: str


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What these tests read of a checkout's answer."""

    id: int
    saga_id: str


class Stack:
    """One stack in a folder of its own, driven through the command line as a person drives it."""

    def __init__(self, base: pathlib.Path) -> None:
        self.base = base
        self.offset = _free_offset()
        self.home = base.with_name(f"{base.name}-{self.offset}")

    def run(self, *arguments: str, crash: str = "") -> subprocess.CompletedProcess[str]:
        """Run one command against this stack."""
        environ = {name: value for name, value in os.environ.items() if not name.startswith("SAGAPOST_")}
        environ |= {"SAGAPOST_STATE": str(self.base)} | ({"SAGAPOST_CRASH": crash} if crash else {})
        line = [sys.executable, "-P", "-m", "sagapost_ops", *arguments, "--port-offset", str(self.offset)]
        return subprocess.run(line, env=environ, capture_output=True, text=True, check=False, timeout=COMMAND_S)

    def up(self, *arguments: str, crash: str = "") -> str:
        """Start it, without delays of the outside world, and give what was printed."""
        done = self.run("up", "--detach", "--payment-delay", "0", "--email-delay", "0", *arguments, crash=crash)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def services(self) -> dict[str, reports.Line]:
        """Give the services of `status --json` by name."""
        found = msgspec.json.decode(self.run("status", "--json").stdout, type=reports.Status)
        return {service.name: service for service in found.services}

    def call(self, method: str, path: str, body: object = None, port: str = "gateway") -> tuple[int, bytes]:
        """Send one request to the gateway, or to another public port."""
        connection = http.client.HTTPConnection("localhost", plan.PUBLIC[port] + self.offset, timeout=30)
        try:
            connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def checkout(self, payment_method: str) -> Order:
        """Buy a laptop."""
        item = {"product_id": 1, "quantity": 1, "price": "1299.99"}
        body = {"user_id": 1, "user_email": "e2e@example.com", "items": [item], "payment_method": payment_method}
        status, answer = self.call("POST", "/api/checkout", body)
        assert status == 202, answer
        return msgspec.json.decode(answer, type=Order)

    def saga(self, saga_id: str) -> Saga | None:
        """Read a saga; None while it is under way or cannot be read."""
        with contextlib.suppress(OSError):
            status, answer = self.call("GET", f"/api/sagas/{saga_id}")
            if status == 200 and (saga := msgspec.json.decode(answer, type=Saga)).state in {"notified", "compensated"}:
                return saga
        return None

    def ended(self, order: Order) -> Saga:
        """Wait until an order's saga is done."""
        found = polling.eventually(lambda: self.saga(order.saga_id), SAGA_S)
        assert found is not None
        return found

    def mails(self, saga_id: str) -> list[str]:
        """Name the templates of a saga's accepted mails."""
        _, answer = self.call("GET", "/api/v1/messages?limit=1000", port="mailbox")
        return [mail.template for mail in msgspec.json.decode(answer, type=evidence.Mails).messages if mail.saga_id == saga_id]

    def charges(self, saga_id: str) -> list[str]:
        """Name the movements of a saga's money at the provider."""
        _, answer = self.call("GET", f"/v1/ledger?reference={saga_id}", port="provider")
        return [movement.kind for movement in msgspec.json.decode(answer, type=list[evidence.Movement])]

    def state(self) -> state.State:
        """Read the state file."""
        found = state.read(self.home)
        assert found is not None
        return found


def _free_offset() -> int:
    """Give an offset whose public ports are free and below those that the other worker's servers choose from."""
    highest = ports.TRIAL_RANGE[0] - max(plan.PUBLIC.values())
    while True:
        offset = random.SystemRandom().randrange(10_000, highest)
        if all(ports.is_free(port) for port in plan.public_ports(offset).values()):
            return offset


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Generator[Stack]:
    """Run one stack for the tests of this module."""
    made = Stack(tmp_path_factory.mktemp("stack") / "state")
    try:
        yield made
    finally:
        made.run("down", "--purge")


@pytest.fixture(scope="module")
def neighbour(tmp_path_factory: pytest.TempPathFactory) -> Generator[Stack]:
    """Prepare a second stack; the tests start it."""
    made = Stack(tmp_path_factory.mktemp("neighbour") / "state")
    try:
        yield made
    finally:
        made.run("down", "--purge")


def _left_in(home: pathlib.Path) -> list[int]:
    """Find processes that work in a stack's folder."""
    found: list[int] = []
    for pid in processes.pids():
        with contextlib.suppress(OSError):
            if pathlib.Path(f"/proc/{pid}/cwd").readlink().is_relative_to(home):
                found.append(pid)
    return found


def _assert_gone(stack: Stack, before: state.State) -> None:
    assert _left_in(stack.home) == []
    assert [service.name for service in before.services if not ports.is_free(service.port)] == []


def test_the_printed_call_is_answered_and_ends_with_one_receipt(stack: Stack) -> None:
    """What `up` prints as the call to try works as it stands, and its saga ends notified with exactly one receipt."""
    printed = stack.up()

    words = shlex.split(next(line for line in printed.splitlines() if line.startswith("curl ")))
    assert words[words.index("POST") + 1] == f"http://localhost:{plan.PUBLIC['gateway'] + stack.offset}/api/checkout"
    status, answer = stack.call("POST", "/api/checkout", json.loads(words[words.index("-d") + 1]))
    assert status == 202
    order = msgspec.json.decode(answer, type=Order)
    saga = stack.ended(order)
    assert (saga.state, saga.captured) == ("notified", "1299.99")
    assert stack.mails(order.saga_id) == ["receipt"]
    assert stack.charges(order.saga_id) == ["charge"]


def test_every_address_that_status_gives_is_ready(stack: Stack) -> None:
    """`up --detach` returned when everything was ready; status names each part with url, port, pid and version."""
    services = stack.services()

    assert {"gateway", "page", "order", "payment", "email", "relay-order", "relay-payment"} <= services.keys()
    assert {"order-db", "payment-db", "rabbitmq", "rabbitmq-management", "provider", "mailbox", "smtp"} <= services.keys()
    assert all(service.ready and service.pid and service.version and service.url for service in services.values())


def test_a_declined_card_ends_compensated_with_one_cancellation_mail(stack: Stack) -> None:
    """Nothing is charged, the customer is told once."""
    order = stack.checkout("pm_card_declined")

    saga = stack.ended(order)

    assert (saga.state, saga.captured) == ("compensated", "0.00")
    assert stack.charges(order.saga_id) == []
    assert polling.eventually(lambda: stack.mails(order.saga_id), SAGA_S) == ["cancellation"]


@pytest.mark.parametrize(
    ("story", "mails"),
    [
        ("happy", ["Your receipt"]),
        ("decline", ["was cancelled"]),
        ("cancel", ["Your receipt", "was cancelled"]),
        ("late-payment", ["was cancelled"]),
    ],
)
def test_the_demo_ends_as_its_story_says(stack: Stack, story: str, mails: list[str]) -> None:
    """`demo` shows each step, the money and the mails, and exits with 0 only because it came out so."""
    done = stack.run("demo", story)

    assert done.returncode == 0, done.stderr
    assert "OrderCreated" in done.stdout
    assert [said in done.stdout for said in ("Your receipt", "was cancelled")] == [
        said in mails for said in ("Your receipt", "was cancelled")
    ]
    is_undone = story in {"cancel", "late-payment"}
    assert ("The provider's own ledger: 1 charge and 1 refund, net 0.00 USD." in done.stdout) == is_undone


def test_a_second_up_says_that_it_runs(stack: Stack) -> None:
    """Nothing is started twice; the addresses are printed again."""
    before = {name: service.pid for name, service in stack.services().items()}

    done = stack.run("up", "--detach")

    assert done.returncode == 0
    assert "running already" in done.stderr
    assert {name: service.pid for name, service in stack.services().items()} == before


def test_a_taken_port_is_named_with_who_takes_it(stack: Stack, tmp_path: pathlib.Path) -> None:
    """A stack of another folder on the same ports is refused in one sentence, exit code 2."""
    other = Stack(tmp_path / "state")
    other.offset, gateway = stack.offset, stack.services()["gateway"]

    done = other.run("up", "--detach")

    assert done.returncode == 2
    assert f"port {gateway.port} is taken by python" in done.stderr
    assert f"(pid {gateway.pid})" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_what_is_killed_is_started_again_and_loses_nothing(stack: Stack) -> None:
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


def test_verify_fails_when_the_books_are_cooked(stack: Stack) -> None:
    """One wrong cent is enough, and putting it right is too."""
    url = stack.state().addresses.payment_database_url
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("UPDATE ledger SET amount = amount + 0.01 WHERE id = (SELECT min(id) FROM ledger)")
        cooked = stack.run("verify", "--settle", "0", "--json")
        conn.execute("UPDATE ledger SET amount = amount - 0.01 WHERE id = (SELECT min(id) FROM ledger)")

    assert cooked.returncode == 1
    assert [line["id"] for line in json.loads(cooked.stdout)["invariants"] if not line["ok"]] == [3]
    assert stack.run("verify").returncode == 0


def test_a_second_stack_runs_beside_the_first_and_survives_its_crash_point(stack: Stack, neighbour: Stack) -> None:
    """Two offsets are two systems; a process told to die once at a named point is started again without that."""
    neighbour.up(crash="payment.after_charge")

    order = neighbour.checkout("pm_card_ok")

    assert neighbour.ended(order).state == "notified"
    assert neighbour.charges(order.saga_id) == ["charge"]
    assert next(service for service in neighbour.state().services if service.name == "payment").restarts == 1
    assert stack.charges(order.saga_id) == []
    assert all(service.ready for service in stack.services().values())


def test_down_ends_what_a_killed_supervisor_left(neighbour: Stack) -> None:
    """Without its supervisor a stack counts as not running; `down` ends every process of it and frees every port."""
    before = neighbour.state()
    os.kill(before.supervisor.pid, signal.SIGKILL)
    polling.eventually(lambda: not state.is_supervised(before))

    status, down = neighbour.run("status"), neighbour.run("down")

    assert status.returncode == 3
    assert down.returncode == 0, down.stderr
    _assert_gone(neighbour, before)


def test_down_leaves_nothing_and_up_finds_the_old_orders(stack: Stack) -> None:
    """No process and no port stays; what was ordered is there after the next start."""
    order = stack.checkout("pm_card_ok")
    assert stack.ended(order).state == "notified"
    before = stack.state()

    down = stack.run("down")

    assert down.returncode == 0, down.stderr
    _assert_gone(stack, before)
    assert stack.run("status").returncode == 3
    stack.up()
    assert stack.ended(order).state == "notified"
    assert stack.mails(order.saga_id) == ["receipt"]
