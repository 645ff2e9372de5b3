"""What a foreign page can do through the browser of somebody who can reach the gateway, the mailbox or the provider: nothing."""

import socket
from collections.abc import Callable, Generator, Mapping
from pathlib import Path

import httpx
import pytest
from integration import order_walk

from sagapost_sandbox.testing import servers, services

Start = Callable[[str, dict[str, str]], services.Service]
CART = {"user_id": 1, "user_email": "test@example.com", "items": [{"product_id": 1, "quantity": 1, "price": "1299.99"}]}
SAGA = "0193b1c2-7d4e-7a10-9f0e-5f2f6c1d8a11"
CHANGING = (
    ("POST", "/api/checkout"),
    ("POST", "/api/orders/1/cancel"),
    ("POST", f"/api/ops/sagas/{SAGA}/retry"),
    ("PUT", "/api/orders/1"),
    ("PATCH", "/api/orders/1"),
    ("DELETE", "/api/orders/1"),
    ("POST", "/nowhere"),
)
FOREIGN: tuple[dict[str, str], ...] = (
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Origin": "http://localhost:5173", "Sec-Fetch-Site": "same-site"},
)
OURS = ("localhost", "LOCALHOST", "127.0.0.1", "127.8.9.1", "[::1]")
NOT_OURS = (
    "evil.example",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "0.0.0.0",
    "192.0.2.7",
    "[2001:db8::7]",
    "[::]",
)


@pytest.fixture(scope="module")
def order(
    database_server: servers.Databases, templates: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Generator[services.Service]:
    """Run an order service on a database of its own."""
    with order_walk.database(database_server, templates) as dsn:
        env = {"DATABASE_URL": dsn, "AMQP_URL": order_walk.NOWHERE, **order_walk.PATIENT}
        with order_walk.running("order", tmp_path_factory.mktemp("order") / "order.log", **env) as running:
            yield running


@pytest.fixture
def gateway(order: services.Service, tmp_path: Path) -> Generator[services.Service]:
    """Run a gateway in front of it that lets one other site in."""
    settings = {"ORDER_URL": order.url, "PAGE_PORT": "0", "CORS_ORIGINS": "https://shop.example", "ALLOWED_HOSTS": "shop.internal"}
    with order_walk.running("gateway", tmp_path / "gateway.log", **settings) as running:
        yield running


def problem_of(answer: httpx.Response) -> tuple[int, str]:
    """Return status and type of a problem answer."""
    return answer.status_code, answer.json()["type"].removeprefix("/problems/")


def asked(service: services.Service, host: str, path: str, method: str = "GET") -> int:
    """Send a request with this Host header and return the status."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as connection:
        connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        received = b""
        while data := connection.recv(65536):
            received += data
    return int(received[9:12])


def test_a_foreign_page_changes_nothing(gateway: services.Service) -> None:
    """Whatever method and path, with JSON or as the simple request that a browser sends without asking: 403, and the order stays."""
    with httpx.Client(base_url=gateway.url, timeout=20) as client:
        placed = client.post("/api/checkout", json=CART).json()
        before = client.get("/api/orders").json()
        for headers in FOREIGN:
            for method, path in (*CHANGING, ("POST", placed["links"]["cancel"])):
                simple = client.request(method, path, headers={**headers, "Content-Type": "text/plain"})
                other = client.request(method, path, headers=headers, json=CART)
                assert (headers, path, problem_of(simple), problem_of(other)) == (headers, path, *[(403, "cross-site-request")] * 2)
        after = client.get(f"{placed['links']['order']}/status", headers=FOREIGN[0]).json()
        listed = client.get("/api/orders").json()

    assert after["status"] == "pending"
    assert listed == before


def test_our_own_pages_and_allowed_sites_change_what_they_may(gateway: services.Service) -> None:
    """The shop's page on its own port, a site that is named, and programs that send no Origin."""
    own = {"Origin": f"http://localhost:{gateway.port}", "Sec-Fetch-Site": "same-origin", "Host": f"localhost:{gateway.port}"}
    for headers in (own, {"Origin": "https://shop.example", "Sec-Fetch-Site": "cross-site"}, {}):
        answer = httpx.post(f"{gateway.url}/api/checkout", headers=headers, json=CART, timeout=20)
        cancelled = httpx.post(f"{gateway.url}{answer.json()['links']['cancel']}", headers=headers, timeout=20)
        assert (headers, answer.status_code, cancelled.status_code) == (headers, 202, 202)


def test_development_answers_to_loopback_and_to_named_hosts_only(gateway: services.Service, provider: services.Service) -> None:
    """A name that a foreign page points at 127.0.0.1 reads nothing, neither of the gateway nor of the sandbox."""
    for path in ("/api/orders", "/api/products", "/", "/docs", "/health", "/schema/openapi.json", "/nowhere"):
        usual = asked(gateway, "localhost", path)
        assert [asked(gateway, f"{host}:{gateway.port}", path) for host in OURS] == [usual] * len(OURS)
        assert [asked(gateway, f"{host}{port}", path) for host in NOT_OURS for port in ("", ":9000")] == [421] * 2 * len(NOT_OURS)
        assert asked(gateway, "Shop.Internal:9000", path) == usual
    assert asked(gateway, "evil.example", "/api/orders/1/cancel", "POST") == 421
    named = httpx.post(f"{gateway.url}/api/checkout", headers={"Host": "shop.internal"}, json=CART, timeout=20)
    assert (named.status_code, named.headers["location"].startswith("/api/sagas/"), "shop.internal" in named.text) == (202, True, False)
    assert [asked(provider, host, "/v1/ledger") for host in ("localhost", "evil.example")] == [200, 421]


def test_the_mailbox_answers_to_loopback_only(mailbox: services.Service) -> None:
    """Mails hold addresses and names; nor does a foreign page change how the mailbox behaves."""
    assert [asked(mailbox, host, "/api/v1/messages") for host in ("localhost", "127.0.0.1", "evil.example")] == [200, 200, 421]
    refused = httpx.put(f"http://127.0.0.1:{mailbox.port}/behaviour", headers={"Origin": "https://evil.example"}, json={})

    assert problem_of(refused) == (403, "cross-site-request")
