"""One whole stack as `up` starts it, driven through the command line and HTTP as a person drives it."""

import contextlib
import functools
import http.client
import itertools
import json
import os
import pathlib
import random
import subprocess
import sys
from collections.abc import Iterator

import msgspec

from sagapost_ops import evidence, plan, reports, state
from sagapost_sandbox import ports, processes
from sagapost_sandbox.testing import polling

ROOT = pathlib.Path(__file__).parents[2]
COMMAND_S = 280
READY_S = 20
# A stack's ports lie below the kernel's range for outgoing connections, all but the broker's distribution below the range for trials too;
# multiples of 127 put no port of one stack on, or just below, another's.
OFFSETS = range(8 * 127, 6_300, 127)
SAGA_S = 60


class Saga(msgspec.Struct, frozen=True, kw_only=True):
    """What these tests read of a saga."""

    saga_id: str
    state: str
    captured: str
    refunded: str
    history: list[dict[str, object]] = []


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

    def ready(self) -> dict[str, reports.Line]:
        """Wait until every service of `status --json` is ready, and give them by name; one look may meet a slow moment."""

        def looked() -> dict[str, reports.Line]:
            found = self.services()
            return found if all(service.ready for service in found.values()) else {}

        return polling.eventually(looked, READY_S)

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

    def history(self, saga_id: str) -> list[object]:
        """Give the numbers of the events of a saga that is done."""
        saga = self.saga(saga_id)
        return [] if saga is None else [event["seq"] for event in saga.history]

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
    """Give an offset whose public ports are free, and that no other worker gives, nor this one soon again."""
    return next(offset for offset in _own_offsets() if all(ports.is_free(port) for port in plan.public_ports(offset).values()))


@functools.cache
def _own_offsets() -> Iterator[int]:
    worker, workers = os.environ.get("PYTEST_XDIST_WORKER", "gw0"), os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")
    own = OFFSETS[int(worker.removeprefix("gw")) :: int(workers)]
    return itertools.cycle(random.SystemRandom().sample(own, len(own)))


def left_in(home: pathlib.Path) -> list[int]:
    """Find processes that work in a stack's folder."""
    found: list[int] = []
    for pid in processes.pids():
        with contextlib.suppress(OSError):
            if pathlib.Path(f"/proc/{pid}/cwd").readlink().is_relative_to(home):
                found.append(pid)
    return found


def assert_gone(stack: Stack, before: state.State) -> None:
    """Check that no process of a stack and none of its ports is left; the broker's helpers end shortly after it."""
    polling.eventually(lambda: left_in(stack.home) == [])
    polling.eventually(lambda: [service.name for service in before.services if not ports.is_free(service.port)] == [])
