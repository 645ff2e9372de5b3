"""A server that falls silent with its connections open: it hangs, or, in a container, is taken off its network."""

import pathlib
import uuid
from collections.abc import Callable, Generator, Mapping
from typing import Any, Final

import pytest
from faults import pairs
from faults import stack as stacks

from sagapost_sandbox.testing import containers, polling, servers

pytestmark = pytest.mark.timeout(240)

GIVEN_UP: Final = {"relay.interrupted", "relay.channel_lost", "relay.unanswered"}
NOTICED_S: Final = 40
Server = servers.Broker | servers.Databases


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Native servers hang; containers also lose their network, for which native tests have namespaces (test_half_open_database.py)."""
    faults = ("hangs", "loses-its-network") if metafunc.config.getoption("--infra") == "docker" else ("hangs",)
    metafunc.parametrize("fault", faults)


@pytest.fixture
def shop(tmp_path: pathlib.Path, private_databases: servers.Databases, vhost: str, broker: servers.Broker) -> Generator[stacks.Stack]:
    """Run every service on a database server of its own."""
    made = stacks.make(tmp_path, pairs.databases_on(private_databases), vhost, broker)
    try:
        yield made.start_all()
    finally:
        made.stop()


def _silence(server: Server, fault: str) -> Callable[[], None]:
    """Make a server fall silent, and give what ends it."""
    if fault == "hangs":
        server.pause()
        return server.resume
    assert isinstance(server, containers.Server)
    server.disconnect()
    return server.reconnect


def test_checkouts_go_on_beside_a_broker_that_falls_silent(fault: str, fragile_stack: stacks.Stack, private_broker: servers.Broker) -> None:
    """Each is answered 202, the relay gives its connection up, and when the broker speaks again each is paid and notified, once."""
    before = [fragile_stack.checkout() for _ in range(3)]
    end = _silence(private_broker, fault)

    try:
        answers = [*before, *(fragile_stack.checkout() for _ in range(10))]
        relay = fragile_stack.running["relay-order"]
        polling.eventually(lambda: any(line.get("event") in GIVEN_UP for line in relay.lines()), NOTICED_S)
    finally:
        end()

    assert [status for status, _ in answers] == [202] * 13
    for _, answer in answers:
        assert fragile_stack.ended(answer["saga_id"])["state"] == "notified"
    fragile_stack.verified()


def test_a_database_that_falls_silent_loses_no_order(fault: str, shop: stacks.Stack, private_databases: servers.Databases) -> None:
    """A customer is told within the deadline to come back, and with the same key has one order, paid and notified, when it speaks again."""
    body = {**stacks.CART, "user_email": "silent@example.com"}
    key = {"Idempotency-Key": f'"{uuid.uuid4().hex}"'}
    before = shop.checkout()
    end = _silence(private_databases, fault)

    try:
        status, problem = shop.call("POST", "/api/checkout", body, **key)
    finally:
        end()

    assert status in {503, 504}, problem
    answer = _accepted(shop, body, key)
    shop.accepted.append(uuid.UUID(answer["saga_id"]))
    for saga_id in (before[1]["saga_id"], answer["saga_id"]):
        assert shop.ended(saga_id)["state"] == "notified"
    shop.verified()


def _accepted(shop: stacks.Stack, body: Mapping[str, object], key: Mapping[str, str]) -> dict[str, Any]:
    """Repeat a checkout until it is accepted, and give the answer."""

    def found() -> dict[str, Any]:
        status, answer = shop.call("POST", "/api/checkout", body, **key)
        return answer if status == 202 else {}

    return polling.eventually(found, 60)
