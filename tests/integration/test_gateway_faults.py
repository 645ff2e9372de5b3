import contextlib
import http.client
import pathlib
import re
import socket
import threading
import time
from collections.abc import Callable, Generator

import msgspec
import pytest

from sagapost_sandbox.testing import services

CART = b'{ "user_id": 1,\t"user_email": "test@example.com", "items": [{"product_id": 1, "quantity": 1, "price": 1299.990}]}'
SAGA = "/api/sagas/0193b1c2-7d4e-7a10-9f0e-5f2f6c1d8a11"
OPERATED = SAGA.replace("/api/", "/api/ops/")
DEADLINE_S = 1
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SENT = {
    "Content-Type": "application/json; charset=UTF-8",
    "Idempotency-Key": '"8e03978e-40d5-43e8-bc93-6894a57f9324"',
    "If-Match": '"3"',
    "traceparent": f"00-{TRACE_ID}-00f067aa0ba902b7-01",
    "Cookie": "session=1",
    "Authorization": "Bearer sp_development_abcdefghijklmnopqrstuvwxyz012345",
    "X-Forwarded-For": "10.0.0.1",
    "Sagapost-Client": "mallory",
}
ADMITTED = b'{"client":"demo","scopes":["checkout:write","checkout:read","ops:read","ops:write"],"rate_per_s":1000,"burst":1000,'
ADMITTED += b'"granted":50,"remaining":900}'
ADMIT = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(ADMITTED), ADMITTED)
LIVE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


Misbehave = Callable[[bytes], "Stranger"]


class Stranger:
    """A real TCP server at the order service's address: answers health and admission, notes all else, and sends `answer`, or nothing."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.answer: bytes | None = None
        self._stopped = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stop listening and let go of every connection."""
        self._stopped.set()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while request := _read(connection):
                if request.startswith(b"GET /health"):
                    connection.sendall(LIVE)
                    continue
                if request.startswith(b"POST /clients/admit"):
                    connection.sendall(ADMIT)
                    continue
                self.seen.append(request)
                if self.answer is None:
                    self._stopped.wait(60)
                else:
                    connection.sendall(self.answer)
                return


@contextlib.contextmanager
def running(log: pathlib.Path, deadline_s: int) -> Generator[tuple[services.Service, Stranger]]:
    """Run one gateway in front of a stranger; however often he fails, he is called."""
    stranger = Stranger()
    env = {"SAGAPOST_ORDER_URL": stranger.url, "SAGAPOST_PAGE_PORT": "0", "SAGAPOST_BREAKER_FAILURES": "1000"}
    gateway = services.Service("sagapost_gateway", env | {"SAGAPOST_DEADLINE_S": str(deadline_s)}, log)
    try:
        yield gateway.wait_ready(), stranger
    finally:
        gateway.kill()
        stranger.close()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[services.Service, Stranger]]:
    """Run a gateway that waits long enough for whatever comes back."""
    with running(tmp_path_factory.mktemp("gateway") / "gateway.log", 5) as found:
        yield found


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[services.Service, Stranger]]:
    """Run a gateway with a deadline of one second, for what never comes back."""
    with running(tmp_path_factory.mktemp("silent") / "gateway.log", DEADLINE_S) as found:
        yield found


@pytest.fixture
def gateway(pair: tuple[services.Service, Stranger]) -> services.Service:
    """Give the gateway."""
    return pair[0]


@pytest.fixture
def in_front_of(pair: tuple[services.Service, Stranger]) -> Misbehave:
    """Give what decides how the stranger answers in this test: with these bytes and the end of the connection."""

    def answer(sent: bytes) -> Stranger:
        pair[1].seen.clear()
        pair[1].answer = sent
        return pair[1]

    return answer


def _read(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = connection.recv(65536)
        if not chunk:
            return b""
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    while lengths and len(body) < lengths[0]:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def _send(gateway: services.Service, method: str = "POST", path: str = "/api/checkout") -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)
    with contextlib.closing(connection):
        connection.request(method, path, body=CART if method == "POST" else None, headers=SENT)
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()


def test_an_order_service_that_never_answers_is_504_after_the_deadline(silent: tuple[services.Service, Stranger]) -> None:
    """The client is not kept waiting; it learns that repeating with the same key is safe, and the request was sent once."""
    gateway, stranger = silent
    stranger.seen.clear()

    started_s = time.monotonic()
    status, _, body = _send(gateway)
    took_s = time.monotonic() - started_s

    problem = msgspec.json.decode(body)
    assert (status, problem["type"]) == (504, "/problems/upstream-timeout")
    assert "same Idempotency-Key is safe" in problem["detail"]
    assert DEADLINE_S <= took_s < 5  # the deadline that there is without the setting
    assert len(stranger.seen) == 1


def test_a_checkout_is_forwarded_byte_for_byte_with_the_named_headers_only(silent: tuple[services.Service, Stranger]) -> None:
    """The body is untouched, the key loses its quotes, the trace goes on, and nothing else of the client's headers passes."""
    gateway, stranger = silent
    stranger.seen.clear()

    _send(gateway)

    head, _, body = stranger.seen[0].partition(b"\r\n\r\n")
    line, *fields = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (field.split(": ", 1) for field in fields)}
    assert line == "POST /checkout HTTP/1.1"
    assert body == CART
    assert headers["content-type"] == "application/json"
    assert headers["idempotency-key"] == "8e03978e-40d5-43e8-bc93-6894a57f9324"
    assert headers["traceparent"].split("-")[1] == TRACE_ID
    assert headers["traceparent"] != SENT["traceparent"]
    assert headers["sagapost-client"] == "demo"
    ours = {"sagapost-client", "sagapost-secret"}  # the gateway's own
    assert set(headers) <= {"host", "accept", "content-type", "content-length", "idempotency-key", "traceparent", *ours}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/products"),
        ("GET", "/api/orders/1"),
        ("GET", "/api/orders/1/status"),
        ("POST", "/api/orders/1/cancel"),
        ("GET", SAGA),
        ("GET", f"{SAGA}/events"),
        ("GET", "/api/ops/sagas"),
        ("POST", f"{SAGA.replace('/api/', '/api/ops/')}/retry"),
    ],
)
def test_no_header_that_a_client_made_up_is_forwarded(gateway: services.Service, in_front_of: Misbehave, method: str, path: str) -> None:
    """Whoever a client says it is, no operation tells the order service so."""
    stranger = in_front_of(b"")

    _send(gateway, method, path)

    request = stranger.seen[0].decode().lower()
    assert not re.search(r"mallory|10\.0\.0\.1|session|bearer", request)


def test_what_an_operator_sends_is_forwarded_as_it_is(gateway: services.Service, in_front_of: Misbehave) -> None:
    """Body and version are the order service's to judge."""
    stranger = in_front_of(b"")

    _send(gateway, "POST", f"{SAGA.replace('/api/', '/api/ops/')}/compensate")

    head, _, body = stranger.seen[0].partition(b"\r\n\r\n")
    assert head.startswith(f"POST {SAGA.removeprefix('/api')}/compensate HTTP/1.1".encode())
    assert body == CART
    assert b'If-Match: "3"' in head
    assert b"Sagapost-Client: demo" in head


@pytest.mark.parametrize(
    ("method", "path", "times"), [("POST", f"{SAGA.replace('/api/', '/api/ops/')}/retry", 1), ("GET", "/api/products", 2)]
)
def test_what_may_be_done_twice_is_asked_for_twice_when_the_connection_breaks(
    gateway: services.Service, in_front_of: Misbehave, method: str, path: str, times: int
) -> None:
    """Nobody can know whether a broken POST without a key took effect, so the gateway does not repeat it; reading again does no harm."""
    stranger = in_front_of(b"")

    status, headers, body = _send(gateway, method, path)

    assert (status, headers["retry-after"]) == (503, "1")
    assert msgspec.json.decode(body)["type"] == "/problems/order-service-unavailable"
    assert len(stranger.seen) == times


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: text/plain\r\nContent-Length: 34\r\n\r\nTraceback secret at /srv/secret.py",
        b'HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nContent-Length: 19\r\n\r\n{"detail":"secret"}',
        b"HTTP/1.1 302 Found\r\nLocation: /secret\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\ncut secret",
        b"SSH-2.0-secret\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz secret",
    ],
    ids=["500", "503", "redirect", "cut", "not-http", "bad-chunk"],
)
@pytest.mark.parametrize(("method", "path"), [("POST", "/api/checkout"), ("GET", "/api/products"), ("GET", f"{SAGA}/events")])
def test_a_failing_order_service_is_503_and_nothing_of_it_leaks(
    gateway: services.Service, in_front_of: Misbehave, answer: bytes, method: str, path: str
) -> None:
    """Whatever comes back that is no answer for the client becomes one problem of our own."""
    stranger = in_front_of(answer)

    status, headers, body = _send(gateway, method, path)

    assert (status, headers["retry-after"]) == (503, "1")
    assert msgspec.json.decode(body)["type"] == "/problems/order-service-unavailable"
    assert b"secret" not in body
    assert "location" not in headers
    assert not any(b"/secret" in request for request in stranger.seen)


def test_a_stream_that_breaks_off_ends(gateway: services.Service, in_front_of: Misbehave) -> None:
    """What had come has been passed on; the client asks again from there."""
    in_front_of(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 900\r\n\r\nid: 1\n\n")

    status, headers, body = _send(gateway, "GET", f"{SAGA}/events")

    assert (status, headers["content-type"].partition(";")[0], body) == (200, "text/event-stream", b"id: 1\n\n")


def test_a_stream_that_does_not_begin_is_504(silent: tuple[services.Service, Stranger]) -> None:
    """The deadline holds for the beginning of a stream as for any answer."""
    status, _, body = _send(silent[0], "GET", f"{SAGA}/events")

    assert (status, msgspec.json.decode(body)["type"]) == (504, "/problems/upstream-timeout")


@pytest.mark.parametrize(
    ("path", "advice"), [("/api/orders/1/cancel", "repeating it is safe"), ("/api/ops/sagas/" + SAGA[-36:] + "/retry", "look at the saga")]
)
def test_what_may_have_taken_effect_says_what_to_do(gateway: services.Service, in_front_of: Misbehave, path: str, advice: str) -> None:
    """A client that got no answer learns whether it may repeat its request."""
    in_front_of(b"")

    assert advice in msgspec.json.decode(_send(gateway, "POST", path)[2])["detail"]


def test_a_refusal_that_is_no_problem_document_becomes_one(gateway: services.Service, in_front_of: Misbehave) -> None:
    """A plain-text 4xx keeps its status and loses its text."""
    in_front_of(b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n\r\nsecret")

    status, headers, body = _send(gateway)

    assert (status, headers["content-type"]) == (400, "application/problem+json")
    assert b"secret" not in body


def test_a_long_list_of_faults_is_cut_to_4_kib(gateway: services.Service, in_front_of: Misbehave) -> None:
    """Fifty wrong items do not make a long error answer; it still says where the client called."""
    faults = [{"pointer": f"/items/{index}/" + "x" * 100, "code": "unknown_product"} for index in range(50)]
    refusal = msgspec.json.encode({"type": "/problems/unknown-product", "status": 422, "instance": "/checkout", "errors": faults})
    head = f"HTTP/1.1 422 Unprocessable Content\r\nContent-Type: application/problem+json\r\nContent-Length: {len(refusal)}\r\n\r\n"
    in_front_of(head.encode() + refusal)

    status, _, body = _send(gateway)

    problem = msgspec.json.decode(body)
    assert (status, problem["instance"]) == (422, "/api/checkout")
    assert len(body) <= 4096
    assert problem["errors"][0] == faults[0]
