"""What one request may cost: the CPU time of gateway and order service for the worst requests that a client can write.

No clock is read: the kernel's count of the processes' own CPU time is compared with what the largest legal cart costs in the same run.
"""

import os
import pathlib
import socket
from collections.abc import Callable

import pytest
from integration import costly_requests

from sagapost_sandbox import ports
from sagapost_sandbox.testing import services

Start = Callable[[str, dict[str, str]], services.Service]

REPEATED = 60
RATIO_MAX = 2.0  # times the largest legal cart's CPU time, which is some 3 ms in both processes together
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@pytest.fixture
def pair(start_service: Start, order_db: str) -> tuple[services.Service, services.Service]:
    """Start the gateway in front of an order service, of which neither lets this test's calls wait."""
    broker = f"amqp://nobody:nothing@127.0.0.1:{ports.trial(1)[0]}/"
    order = start_service("order", {"SAGAPOST_DATABASE_URL": order_db, "SAGAPOST_AMQP_URL": broker}).wait_ready()
    return start_service("gateway", {"SAGAPOST_ORDER_URL": order.url, "SAGAPOST_PAGE_PORT": "0"}).wait_ready(), order


def ticks(pair: tuple[services.Service, services.Service]) -> int:
    """Count the CPU time that both processes have used since they began, in the kernel's ticks."""
    total = 0
    for service in pair:
        fields = pathlib.Path(f"/proc/{service.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total


def exchange(service: services.Service, sent: bytes) -> int:
    """Send one request on a connection of its own, and give the status of the answer."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as connection:
        connection.sendall(sent)
        received = b""
        while data := connection.recv(65536):
            received += data
    return int(received[9:12])


def cost_ms(pair: tuple[services.Service, services.Service], sent: bytes, to: int = 0) -> tuple[float, set[int]]:
    """Measure the CPU time of one such request on average, and name the statuses of the answers."""
    before = ticks(pair)
    statuses = {exchange(pair[to], sent) for _ in range(REPEATED)}
    return (ticks(pair) - before) * 1000 / TICKS_PER_S / REPEATED, statuses


@pytest.mark.parametrize("to", [0, 1], ids=["gateway", "order"])
def test_no_checkout_that_is_refused_costs_more_than_the_largest_cart(pair: tuple[services.Service, services.Service], to: int) -> None:
    """Whatever a body of 8 KiB holds: its refusal costs as much CPU as a large legal cart at most, with room for a noisy machine."""
    paths = (b"/api/checkout", b"/checkout")
    legal_ms, statuses = cost_ms(pair, costly_requests.request(b"POST", paths[to], costly_requests.JSON, costly_requests.cart()), to)
    assert statuses == {422}  # products that nobody sells: everything about the cart was looked at

    costs = {
        name: cost_ms(pair, costly_requests.request(b"POST", paths[to], costly_requests.JSON, body), to)
        for name, body in costly_requests.BODIES.items()
    }

    assert {status for _, found in costs.values() for status in found} == {400, 422}
    assert {name: cost for name, (cost, _) in costs.items() if cost > RATIO_MAX * legal_ms} == {}


def test_no_larger_body_costs_more_than_the_largest_cart(pair: tuple[services.Service, services.Service]) -> None:
    """A checkout over 8 KiB is 413; an operator's action and a cancellation of 64 KiB are not parsed to be refused."""
    legal_ms, _ = cost_ms(pair, costly_requests.request(b"POST", b"/api/checkout", costly_requests.JSON, costly_requests.cart()))
    places = {
        b"/api/checkout": {413},
        costly_requests.SAGA.replace(b"/api/", b"/api/ops/") + b"/retry": {400},
        b"/api/orders/1/cancel": {404},
    }

    for path, expected in places.items():
        for name, body in costly_requests.LARGER.items():
            cost, statuses = cost_ms(pair, costly_requests.request(b"POST", path, costly_requests.JSON + b"If-Match: *\r\n", body))
            assert (path, name, statuses) == (path, name, expected)
            assert cost <= RATIO_MAX * legal_ms, f"{path!r} {name}"


def test_no_head_costs_more_than_the_largest_cart(pair: tuple[services.Service, services.Service]) -> None:
    """Whatever stands in a header, a path or a query of 12,000 bytes."""
    legal_ms, _ = cost_ms(pair, costly_requests.request(b"POST", b"/api/checkout", costly_requests.JSON, costly_requests.cart()))

    costs = {name: cost_ms(pair, costly_requests.request(*parts)) for name, parts in costly_requests.HEADS.items()}

    assert {name: cost for name, (cost, _) in costs.items() if cost > RATIO_MAX * legal_ms} == {}


@pytest.mark.parametrize("method", [b"PUT", b"PATCH", b"DELETE"])
def test_a_method_that_is_not_there_costs_no_more_than_the_largest_cart(
    pair: tuple[services.Service, services.Service], method: bytes
) -> None:
    """Whatever its body holds, nobody reads it."""
    legal_ms, _ = cost_ms(pair, costly_requests.request(b"POST", b"/api/checkout", costly_requests.JSON, costly_requests.cart()))

    for name, body in costly_requests.LARGER.items():
        cost, statuses = cost_ms(pair, costly_requests.request(method, b"/api/checkout", costly_requests.JSON, body))
        assert (name, statuses) == (name, {405})
        assert cost <= RATIO_MAX * legal_ms, name


@pytest.mark.parametrize("path", [b"/api/checkout", b"/api/orders/1/cancel"])
def test_thousands_of_chunks_cost_no_more_than_the_largest_cart(pair: tuple[services.Service, services.Service], path: bytes) -> None:
    """Each chunk costs CPU however small it is, so their number is bounded, and so are the bytes around them."""
    legal_ms, _ = cost_ms(pair, costly_requests.request(b"POST", b"/api/checkout", costly_requests.JSON, costly_requests.cart()))
    head = costly_requests.request(b"POST", path, costly_requests.JSON + b"Transfer-Encoding: chunked\r\n")

    many, refused = cost_ms(pair, head + b"1\r\n \r\n" * 8000 + b"0\r\n\r\n")
    long = exchange(pair[0], head + b"1;" + b"x" * (2 * 1024 * 1024) + b"\r\n \r\n0\r\n\r\n")
    usual = exchange(pair[0], head + b"40\r\n" + b" " * 64 + b"\r\n" + b"0\r\n\r\n")

    assert (refused, long) == ({400}, 400)
    assert usual in {400, 404}
    assert many <= RATIO_MAX * legal_ms
