import http.client
import re
from collections.abc import Generator, Iterator

import msgspec
import pytest

from sagapost_sandbox import ports
from sagapost_sandbox.testing import polling, services

JSON = ("Content-Type", "application/json")
CART = b'{"user_id": 1, "user_email": "test@example.com", "items": [{"product_id": 1, "quantity": 1, "price": "1299.99"}]}'
CHECKOUT_BYTES = 8 * 1024
LIMIT_BYTES = 64 * 1024
SAGA = "/api/sagas/0193b1c2-7d4e-7a10-9f0e-5f2f6c1d8a11"
SECURE = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
OPERATED = SAGA.replace("/api/", "/api/ops/")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Generator[services.Service]:
    """Run one gateway in front of a port where nobody listens: whatever gets past the edge is 503, and seen to be.

    Its breaker is open, so that nothing waits for somebody to listen.
    """
    nobody, page = ports.trial(2)
    env = {"SAGAPOST_ORDER_URL": f"http://127.0.0.1:{nobody}", "SAGAPOST_PAGE_PORT": str(page)}
    service = services.Service("sagapost_gateway", env, tmp_path_factory.mktemp("gateway") / "gateway.log")
    try:
        polling.eventually(lambda: not ports.is_free(service.port) and not ports.is_free(page), services.READY_S)
        polling.eventually(lambda: send(service.port, "GET", "/api/products").problem() == "circuit-open")
        yield service
    finally:
        service.kill()


class Answer(msgspec.Struct):
    """One answer, its headers by lower-case name."""

    status: int
    headers: dict[str, str]
    body: bytes

    def problem(self) -> str:
        """Check that this is a problem with nothing internal in it, and give its slug."""
        assert self.headers["content-type"] == "application/problem+json"
        assert len(self.body) <= 4096
        decoded = msgspec.json.decode(self.body)
        assert decoded["status"] == self.status
        assert re.fullmatch(r"[0-9a-f]{32}", decoded["trace_id"])
        assert not re.search(rb"Traceback|SELECT|/src/|site-packages|\.py|127\.0\.0\.1|aiohttp|litestar", self.body)
        return str(decoded["type"]).removeprefix("/problems/")


def send(
    port: int, method: str, path: str, headers: tuple[tuple[str, str], ...] = (), body: bytes | Iterator[bytes] | None = None
) -> Answer:
    """Make one request on a connection of its own; headers are sent as they are, as often as they are; an iterator is sent in chunks."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in headers:
            connection.putheader(name, value)
        if isinstance(body, bytes):
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
        elif body:
            connection.putheader("Transfer-Encoding", "chunked")
            connection.endheaders(body, encode_chunked=True)
        else:
            connection.endheaders()
        response = connection.getresponse()
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())
    finally:
        connection.close()


def post(gateway: services.Service, *headers: tuple[str, str], body: bytes | Iterator[bytes] = CART) -> Answer:
    """Post a cart, without any header but those given."""
    return send(gateway.port, "POST", "/api/checkout", headers, body)


def test_a_good_checkout_gets_past_every_rule(gateway: services.Service) -> None:
    """The rules refuse nothing that is right, so that the refusals below mean something: only the missing order service stops it."""
    answer = post(gateway, JSON, ("Idempotency-Key", '"8e03978e-40d5-43e8-bc93-6894a57f9324"'))

    assert (answer.status, answer.problem()) == (503, "circuit-open")


@pytest.mark.parametrize(
    "headers",
    [
        (),
        (("Content-Type", "text/plain"),),
        (("Content-Type", "application/x-www-form-urlencoded"),),
        (("Content-Type", "application/json; charset=utf-16"),),
        (JSON, JSON),
        (JSON, ("Content-Encoding", "gzip")),
        (JSON, ("Content-Encoding", "identity")),
    ],
)
def test_another_media_type_or_any_encoding_is_415(gateway: services.Service, headers: tuple[tuple[str, str], ...]) -> None:
    """Only plain JSON is read."""
    answer = post(gateway, *headers)

    assert (answer.status, answer.problem()) == (415, "unsupported-media-type")


PRIVATE_KEYS = ("4111111111111111", "cart_4111_1111_1111_1111", "jane@example.com", "cart:jane%40example.com:7")


@pytest.mark.parametrize(
    "keys", [("",), ("a b",), ("a,b",), ('"a',), ("a" * 256,), ("é",), ("a", "a"), ("a", "b"), *((key,) for key in PRIVATE_KEYS)]
)
def test_a_malformed_or_repeated_key_is_400(gateway: services.Service, keys: tuple[str, ...]) -> None:
    """An unusable key is refused, never ignored: the client relies on it."""
    answer = post(gateway, JSON, *(("Idempotency-Key", key) for key in keys))

    assert (answer.status, answer.problem()) == (400, "idempotency-key-invalid")


@pytest.mark.parametrize(("path", "limit_bytes"), [("/api/checkout", CHECKOUT_BYTES), ("/api/orders/1/cancel", LIMIT_BYTES)])
def test_a_body_over_the_limit_is_413(gateway: services.Service, path: str, limit_bytes: int) -> None:
    """One byte over the limit is too much, the limit itself is not: 8 KiB for a checkout, 64 KiB for anything else."""
    over = send(gateway.port, "POST", path, (JSON,), b" " * (limit_bytes + 1))
    exact = send(gateway.port, "POST", path, (JSON,), b" " * limit_bytes)

    assert (over.status, over.problem()) == (413, "payload-too-large")
    assert exact.status == 503


def test_a_body_over_8_kib_is_413_without_a_length_too(gateway: services.Service) -> None:
    """Chunks are counted as they arrive."""
    over = post(gateway, JSON, body=iter([b" " * 512] * 17))
    exact = post(gateway, JSON, body=iter([b" " * 512] * 16))

    assert (over.status, over.problem()) == (413, "payload-too-large")
    assert exact.status == 503


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [(method, "/api/checkout", "POST") for method in ("GET", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND")]
    + [("GET", path, "POST") for path in (f"{OPERATED}/retry", f"{OPERATED}/mark-refunded", "/api/orders/1/cancel")]
    + [
        ("POST", path, "GET")
        for path in (
            SAGA,
            f"{SAGA}/events",
            "/api/ops/sagas",
            "/api/orders/1",
            "/api/orders/1/status",
            "/api/products",
            "/api/products/1",
            "/docs",
            "/",
        )
    ],
)
def test_another_method_is_405_and_says_which_are_allowed(gateway: services.Service, method: str, path: str, allowed: str) -> None:
    """A known path with another method names the right one."""
    answer = send(gateway.port, method, path)

    assert (answer.status, answer.problem()) == (405, "method-not-allowed")
    assert allowed in answer.headers["allow"].split(", ")


@pytest.mark.parametrize(
    "path",
    [
        "/api/checkout/",
        "/api//checkout",
        "//api/checkout",
        "/api/checkout%2F",
        "/api/checkout%00",
        "/api/checkout/../../etc/passwd",
        "/api/%2e%2e/%2e%2e/etc/passwd",
        "/api/%ff%fe",
        "/api/checkout;a=b",
        "/api",
        "/nothing",
        "/" + "a" * 8000,
    ],
)
def test_a_path_that_is_not_exactly_a_route_is_404(gateway: services.Service, path: str) -> None:
    """One resource has one spelling; junk is not found and never a failure."""
    answer = send(gateway.port, "POST", path, (JSON,), CART)

    assert (answer.status, answer.problem()) == (404, "not-found")


@pytest.mark.parametrize(
    "path",
    [
        "/api/orders/abc",
        "/api/orders/0",
        "/api/orders/1.0",
        "/api/orders/1_000",
        "/api/orders/%D9%A1",
        "/api/orders/99999999999999999999",
        "/api/orders/1%27%20or%201=1",
        "/api/orders/1/",
        "/api/orders/-1/status",
        "/api/products/x",
        "/api/sagas/x",
        "/api/sagas/..%2Forders%2F1",
        "/api/sagas/x/events",
        f"{SAGA}/events/",
        f"{SAGA}/nothing",
        "/api/ops",
    ],
)
def test_an_impossible_identifier_is_404_without_a_call(gateway: services.Service, path: str) -> None:
    """What no row can be called is answered at the edge: no order service is there, and the answer is not 503."""
    answer = send(gateway.port, "GET", path)

    assert (answer.status, answer.problem()) == (404, "not-found")


@pytest.mark.parametrize("path", ["/api/orders/x/cancel", "/api/ops/sagas/x/retry", f"{OPERATED}/explode", f"{OPERATED}/retry/"])
def test_what_cannot_be_acted_on_is_404_without_a_call(gateway: services.Service, path: str) -> None:
    """The same holds for what would change something."""
    answer = send(gateway.port, "POST", path, (JSON,), b'{"reason": "x"}')

    assert (answer.status, answer.problem()) == (404, "not-found")


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", f"{SAGA}/events"), ("GET", "/api/ops/sagas"), ("POST", f"{OPERATED}/retry"), ("POST", "/api/orders/1/cancel")],
)
def test_without_the_order_service_every_operation_is_503(gateway: services.Service, method: str, path: str) -> None:
    """A stream too says so before it begins."""
    answer = send(gateway.port, method, path)

    assert (answer.status, answer.problem()) == (503, "circuit-open")


def test_broken_http_is_400(gateway: services.Service) -> None:
    """What is not HTTP gets an answer and no failure."""
    answer = send(gateway.port, "BREW", "/api/checkout")

    assert answer.status == 400


@pytest.mark.parametrize("path", ["/", "/docs", "/schema/openapi.json", "/problems", "/api/products", "/nothing", "/health/live"])
def test_every_answer_carries_the_security_headers(gateway: services.Service, path: str) -> None:
    """Nothing is sniffed, framed or referred, no browser is told of HTTPS that is not there, and no answer tells which server made it."""
    answer = send(gateway.port, "GET", path, (("Accept", "text/html"),))

    assert {name: answer.headers[name] for name in SECURE} == SECURE
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == ("no-cache" if path in {"/", "/docs", "/schema/openapi.json", "/problems"} else "no-store")
    assert not {"server", "x-powered-by", "strict-transport-security", "access-control-allow-origin"} & set(answer.headers)


def test_problem_types_have_pages(gateway: services.Service) -> None:
    """The `type` of an error answer leads to what it means: a page for people, JSON for programs."""
    kind = str(msgspec.json.decode(send(gateway.port, "GET", "/api/products").body)["type"])

    page = send(gateway.port, "GET", kind, (("Accept", "text/html"),))
    data = send(gateway.port, "GET", kind, (("Accept", "application/json"),))
    nothing = send(gateway.port, "GET", "/problems/nothing-like-this")

    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert b"What to do" in page.body
    assert msgspec.json.decode(data.body)["status"] == 503
    assert nothing.problem() == "not-found"


def test_without_configuration_no_other_site_may_use_the_api(gateway: services.Service) -> None:
    """A preflight is an ordinary OPTIONS, and nothing in the answer allows anything."""
    headers = (("Origin", "https://shop.example"), ("Access-Control-Request-Method", "POST"))

    answer = send(gateway.port, "OPTIONS", "/api/checkout", headers)

    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_the_root_is_the_page_for_people_and_health_for_programs(gateway: services.Service) -> None:
    """A browser gets the shop, curl gets JSON, on both ports."""
    for port in (gateway.port, int(gateway.env["SAGAPOST_PAGE_PORT"])):
        page = send(port, "GET", "/", (("Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),))
        health = send(port, "GET", "/", (("Accept", "*/*"),))
        bare = send(port, "GET", "/")

        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert b"<title>Sagapost</title>" in page.body
        assert msgspec.json.decode(health.body)["status"] == "ok"
        assert bare.body == health.body
        assert page.headers["vary"] == health.headers["vary"] == "Accept"


def test_head_is_get_without_the_body(gateway: services.Service) -> None:
    """HEAD answers what GET would, and nothing after the headers."""
    head, get = (send(gateway.port, method, "/docs") for method in ("HEAD", "GET"))

    assert head.status == 200
    assert head.headers["content-length"] == get.headers["content-length"]
    assert head.body == b""


def test_the_documents_need_no_order_service(gateway: services.Service) -> None:
    """The schema and its page are there although nothing behind the edge is."""
    schema = send(gateway.port, "GET", "/schema/openapi.json")
    docs = send(gateway.port, "GET", "/docs")

    assert msgspec.json.decode(schema.body)["openapi"] == "3.1.0"
    assert docs.status == 200


def test_the_gateway_lives_but_is_not_ready_without_the_order_service(gateway: services.Service) -> None:
    """Live asks nobody; ready names what is missing."""
    live, ready = send(gateway.port, "GET", "/health/live"), send(gateway.port, "GET", "/health/ready")

    assert live.status == 200
    assert (ready.status, msgspec.json.decode(ready.body)["failing"]) == (503, ["order"])
