"""What one request may cost: the CPU time of gateway and order service for the worst requests that a client can write.

No clock is read: the kernel's count of the processes' own CPU time is compared with what the largest legal cart costs in the same run.
"""

import json
import os
import pathlib
import socket
from collections.abc import Callable

import pytest

from sagapost_sandbox import ports
from sagapost_sandbox.testing import services

Start = Callable[[str, dict[str, str]], services.Service]

BODY_BYTES = 8 * 1024
REPEATED = 60
RATIO_MAX = 2.0  # times the largest legal cart's CPU time, which is some 3 ms in both processes together
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
JSON = b"Content-Type: application/json\r\n"
SAGA = b"/api/sagas/0193b1c2-7d4e-7a10-9f0e-5f2f6c1d8a11"
KEY = b"sp_development_" + b"a" * 32


def filled(unit: bytes, size_bytes: int, head: bytes = b"", tail: bytes = b"") -> bytes:
    """Repeat a unit between head and tail until so many bytes are full."""
    return head + unit * ((size_bytes - len(head) - len(tail)) // len(unit)) + tail


def cart(**changes: object) -> bytes:
    """Write the largest legal cart, with these fields instead."""
    address = f"{'a' * 64}@{'b' * 63}.{'c' * 63}.{'d' * 57}.com"
    items = [{"product_id": 2**63 - 1 - at, "quantity": 100, "price": "9999999999.99"} for at in range(50)]
    whole = {"user_id": 2**63 - 1, "user_email": address, "payment_method": "p" * 64, "items": items}
    return json.dumps(whole | changes).encode()


BODIES = {
    "single digits": filled(b"1 ", BODY_BYTES, b'"', b'"'),
    "empty strings": filled(b',""', BODY_BYTES, b'[""', b"]"),
    "empty strings behind an escape": filled(b',""', BODY_BYTES, b'["\\u0041"', b"]"),
    "numbers": filled(b",0.1", BODY_BYTES, b"[0.1", b"]"),
    "whole numbers": filled(b",1", BODY_BYTES, b"[1", b"]"),
    "empty lists": filled(b",[]", BODY_BYTES, b"[[]", b"]"),
    "empty objects": filled(b",{}", BODY_BYTES, b"[{}", b"]"),
    "opening brackets": b"[" * BODY_BYTES,
    "opening objects": filled(b'{"":', BODY_BYTES),
    "a string that does not end": filled(b'\\"', BODY_BYTES, b'"'),
    "unknown fields": b"{" + b",".join(b'"%d":1' % at for at in range(1000)) + b"}",
    "a long name": filled(b"1 ", BODY_BYTES, b'{"', b'":1}'),
    "a name like an error's end": filled(b" - at `$", BODY_BYTES, b'{"', b'":1}'),
    "a long address": cart(user_email="1 " * 1800),
    "an address of dots": cart(user_email="a." * 1800 + "@x"),
    "digits in an address": cart(user_email="1-" * 31 + "1@" + "1-1." * 47 + "com"),
    "fifty wrong prices": cart(items=[{"product_id": 1, "quantity": 1, "price": "1 " * 50}] * 50),
    "a price of digits": cart(items=[], user_id=1).replace(b"[]", b'[{"product_id":1,"quantity":1,"price":"' + b"1" * 7000 + b'"}]'),
}
LARGER = {
    "single digits": filled(b"1 ", 64 * 1024, b'"', b'"'),
    "empty strings": filled(b',""', 64 * 1024, b'[""', b"]"),
    "a reason of digits": filled(b"1 ", 64 * 1024, b'{"reason":"', b'"}'),
    "unknown fields": b"{" + b",".join(b'"%d":1' % at for at in range(5000)) + b"}",
}
HEADS = {
    "Prefer": (b"GET", SAGA, b"Prefer: " + filled(b"wait ", 12_000) + b"\r\n"),
    "If-None-Match": (b"GET", SAGA, b"If-None-Match: " + filled(b'"1",', 12_000) + b"\r\n"),
    "Accept of the page": (b"GET", b"/", b"Accept: " + filled(b"a/b;q=0.1,", 12_000) + b"\r\n"),
    "Accept of a problem's page": (b"GET", b"/problems/not-found", b"Accept: " + filled(b"a/b,", 12_000) + b"\r\n"),
    "cookies": (b"GET", SAGA, b"Cookie: " + filled(b"a=b; ", 12_000) + b"\r\n"),
    "a hundred headers": (b"GET", SAGA, b"".join(b"X-%d: 1\r\n" % at for at in range(90))),
    "traceparent": (b"GET", SAGA, b"traceparent: " + filled(b"0-", 12_000) + b"\r\n"),
    "Idempotency-Key": (b"POST", b"/api/checkout", JSON + b"Idempotency-Key: " + filled(b"1", 12_000) + b"\r\n"),
    "Authorization": (b"GET", SAGA, b"Authorization: Bearer " + filled(b"  a", 12_000) + b"\r\n"),
    "Content-Type": (b"POST", b"/api/checkout", b"Content-Type: application/json" + filled(b" ;", 12_000) + b"\r\n"),
    "query of the list": (b"GET", b"/api/ops/sagas?" + filled(b"state=1&", 12_000), b""),
    "escaped query of the list": (b"GET", b"/api/ops/sagas?cursor=" + filled(b"%41", 12_000), b""),
    "query where none is read": (b"GET", SAGA + b"?" + filled(b"a=1&", 12_000), b""),
    "many slashes": (b"GET", filled(b"/a", 12_000), b""),
    "empty segments": (b"GET", b"/api" + filled(b"/", 12_000), b""),
    "an escaped path": (b"GET", b"/api/orders/" + filled(b"%31", 12_000), b""),
    "a long number": (b"GET", b"/api/orders/" + filled(b"1", 12_000), b""),
    "Connection": (b"GET", SAGA, b"Connection: " + filled(b"a,", 12_000) + b"\r\n"),
    "an origin": (b"GET", SAGA, b"Origin: " + filled(b"https://a.", 12_000) + b"\r\n"),
    "Last-Event-ID": (b"GET", SAGA + b"/events", b"Last-Event-ID: " + filled(b"1", 12_000) + b"\r\n"),
}


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


def request(method: bytes, path: bytes, head: bytes = b"", body: bytes | None = None) -> bytes:
    """Write a request; its headers may be as wrong as it likes."""
    length = b"Content-Length: %d\r\n" % len(body) if body is not None else b""
    return method + b" " + path + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + head + length + b"\r\n" + (body or b"")


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
    legal_ms, statuses = cost_ms(pair, request(b"POST", paths[to], JSON, cart()), to)
    assert statuses == {422}  # products that nobody sells: everything about the cart was looked at

    costs = {name: cost_ms(pair, request(b"POST", paths[to], JSON, body), to) for name, body in BODIES.items()}

    assert {status for _, found in costs.values() for status in found} == {400, 422}
    assert {name: cost for name, (cost, _) in costs.items() if cost > RATIO_MAX * legal_ms} == {}


def test_no_larger_body_costs_more_than_the_largest_cart(pair: tuple[services.Service, services.Service]) -> None:
    """A checkout over 8 KiB is 413; an operator's action and a cancellation of 64 KiB are not parsed to be refused."""
    legal_ms, _ = cost_ms(pair, request(b"POST", b"/api/checkout", JSON, cart()))
    places = {b"/api/checkout": {413}, SAGA.replace(b"/api/", b"/api/ops/") + b"/retry": {400}, b"/api/orders/1/cancel": {404}}

    for path, expected in places.items():
        for name, body in LARGER.items():
            cost, statuses = cost_ms(pair, request(b"POST", path, JSON + b"If-Match: *\r\n", body))
            assert (path, name, statuses) == (path, name, expected)
            assert cost <= RATIO_MAX * legal_ms, f"{path!r} {name}"


def test_no_head_costs_more_than_the_largest_cart(pair: tuple[services.Service, services.Service]) -> None:
    """Whatever stands in a header, a path or a query of 12,000 bytes."""
    legal_ms, _ = cost_ms(pair, request(b"POST", b"/api/checkout", JSON, cart()))

    costs = {name: cost_ms(pair, request(*parts)) for name, parts in HEADS.items()}

    assert {name: cost for name, (cost, _) in costs.items() if cost > RATIO_MAX * legal_ms} == {}


@pytest.mark.parametrize("path", [b"/api/checkout", b"/api/orders/1/cancel"])
def test_thousands_of_chunks_cost_no_more_than_the_largest_cart(pair: tuple[services.Service, services.Service], path: bytes) -> None:
    """Each chunk costs CPU however small it is, so their number is bounded, and so are the bytes around them."""
    legal_ms, _ = cost_ms(pair, request(b"POST", b"/api/checkout", JSON, cart()))
    head = request(b"POST", path, JSON + b"Transfer-Encoding: chunked\r\n")

    many, refused = cost_ms(pair, head + b"1\r\n \r\n" * 8000 + b"0\r\n\r\n")
    long = exchange(pair[0], head + b"1;" + b"x" * (2 * 1024 * 1024) + b"\r\n \r\n0\r\n\r\n")
    usual = exchange(pair[0], head + b"40\r\n" + b" " * 64 + b"\r\n" + b"0\r\n\r\n")

    assert (refused, long) == ({400}, 400)
    assert usual in {400, 404}
    assert many <= RATIO_MAX * legal_ms
