"""Services whose standard error takes nothing: every checkout ends as usual, once, and all is as before when there is room again."""

import functools
import http.client
import os
import resource
import time
from collections.abc import Generator, Mapping, Sequence

import pytest
from faults import conftest, stack

from sagapost_sandbox import ports
from sagapost_sandbox.testing import polling, servers, services

SERVICES = ("order", "payment", "email", "relay-order", "relay-payment", "gateway")
SANDBOX = ("sagapost_sandbox.provider", "sagapost_sandbox.mailbox")
FULL_S = float(os.environ.get("SAGAPOST_TEST_FULL_S", "4"))
# how a process is started with such a standard error; a program after `exec` has the shell's process id
STATES = {
    "full": 'exec "$@" 2>/dev/full',
    "closed": 'exec 2> >(exit); wait $!; exec "$@"',
    "unread": 'exec 2> >(exec sleep 600); head -c 65536 /dev/zero >&2; exec "$@"',
}


@pytest.fixture(scope="module", params=sorted(STATES))
def deaf_stack(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    database_server: servers.Databases,
    broker: servers.Broker,
    templates: Mapping[str, str],
) -> Generator[stack.Stack]:
    """Run a stack in which no process has a standard error that takes a line."""
    inside: dict[str, Sequence[str]] = dict.fromkeys((*SERVICES, *SANDBOX), ("/bin/bash", "-c", STATES[request.param], "bash"))
    changes = {"email": {"SAGAPOST_METRICS_PORT": str(ports.trial(1)[0])}}
    folder = tmp_path_factory.mktemp("deaf")
    with conftest.running(folder, database_server, broker, templates, changes, inside=inside) as made:
        yield made


def test_no_checkout_needs_standard_error(deaf_stack: stack.Stack, request: pytest.FixtureRequest) -> None:
    """A full device, a closed pipe, a pipe that is not read: sold, declined, mailed, each once; the lost lines are counted."""
    sold = [_bought(deaf_stack) for _ in range(3)]
    declined = _bought(deaf_stack, "pm_card_declined")

    assert [deaf_stack.ended(saga_id)["state"] for saga_id in sold] == ["notified"] * 3
    assert deaf_stack.ended(declined)["state"] == "compensated"
    deaf_stack.verified()
    for name in SERVICES:
        deaf_stack.running[name].wait_ready()
    # a full device and a closed pipe lose each line, a pipe that is not read keeps the first megabyte of them waiting
    lost = _metric(int(deaf_stack.environment("email")["SAGAPOST_METRICS_PORT"]), "sagapost_log_lines_lost_total")
    assert (lost > 0) == (request.node.callspec.params["deaf_stack"] != "unread")


def test_a_disk_that_was_full_costs_nothing(stack: stack.Stack) -> None:
    """No service can write to its log for a while: its checkouts end, once each, and within ten seconds of room all is as before."""
    before = [_bought(stack) for _ in range(2)]
    for name in SERVICES:
        _room(stack.running[name].pid, 0)
    until = time.monotonic() + FULL_S
    meanwhile = [_bought(stack) for _ in range(4)]
    while time.monotonic() < until:
        meanwhile.append(_bought(stack))
        stack.ended(meanwhile[-1])
    for name in SERVICES:
        _room(stack.running[name].pid, resource.RLIM_INFINITY)

    after = _bought(stack)
    assert stack.ended(after, 10)["state"] == "notified"
    assert {stack.ended(saga_id)["state"] for saga_id in (*before, *meanwhile)} == {"notified"}
    stack.verified()
    for name in ("order", "payment", "email"):
        assert polling.eventually(functools.partial(_said_lost, stack.running[name])) > 0


def _bought(shop: stack.Stack, payment_method: str = "pm_card_ok") -> str:
    status, answer = shop.checkout(payment_method)
    assert status == 202, answer
    return str(answer["saga_id"])


def _said_lost(service: services.Service) -> int:
    """Return how many lines a service says that it lost."""
    return sum(int(str(line["number"])) for line in service.lines() if line["event"] == "log.lines_lost")


def _room(pid: int, size_bytes: int) -> None:
    """Let a process make no file longer than this, as on a full disk; only the soft limit, which can be lifted again."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size_bytes, resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]))


def _metric(port: int, name: str) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))
