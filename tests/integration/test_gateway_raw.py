"""What reaches the gateway's port without being a request that can be read in exactly one way, or without ever becoming one."""

import contextlib
import pathlib
import re
import socket
import time
from collections.abc import Generator

import msgspec
import pytest

from sagapost_sandbox import ports
from sagapost_sandbox.testing import polling, services

HOST = b"Host: localhost\r\n"
GET = b"GET /health/live HTTP/1.1\r\n"
POST = b"POST /api/checkout HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
GOOD = GET + HOST + b"\r\n"
MAX_OPEN = 12
HEAD_S = 10


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Generator[services.Service]:
    """Run one gateway in front of a port where nobody listens, on which few connections may be open."""
    nobody, metrics = ports.trial(2)
    env = {
        "SAGAPOST_ORDER_URL": f"http://127.0.0.1:{nobody}",
        "SAGAPOST_PAGE_PORT": "0",
        "SAGAPOST_METRICS_PORT": str(metrics),
        "SAGAPOST_MAX_OPEN": str(MAX_OPEN),
    }
    service = services.Service("sagapost_gateway", env, tmp_path_factory.mktemp("gateway") / "gateway.log")
    try:
        polling.eventually(lambda: not ports.is_free(service.port), services.READY_S)
        yield service
    finally:
        service.kill()


def opened(gateway: services.Service) -> socket.socket:
    """Open a connection."""
    return socket.create_connection(("127.0.0.1", gateway.port), timeout=20)


def until_closed(connection: socket.socket) -> bytes:
    """Read until the gateway closes."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            received += data
    return received


def one_answer(connection: socket.socket) -> bytes:
    """Read the whole of one answer from a connection that stays open; head and body may come apart."""
    received = b""
    while not (whole := re.match(rb"(?s).*?\r\ncontent-length: ([0-9]+)\r\n.*?\r\n\r\n(.*)", received)) or len(whole[2]) < int(whole[1]):
        data = connection.recv(65536)
        assert data, received
        received += data
    return received


def exchange(gateway: services.Service, *sent: bytes) -> list[tuple[int, bytes, bytes]]:
    """Send bytes on one connection and read until the gateway closes it: status, headers and body of every answer."""
    with contextlib.closing(opened(gateway)) as connection:
        for part in sent:
            connection.sendall(part)
        return answers(until_closed(connection))


def answers(received: bytes) -> list[tuple[int, bytes, bytes]]:
    """Take answers with a Content-Length apart."""
    found: list[tuple[int, bytes, bytes]] = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: ([0-9]+)", head)
        assert length, head
        found.append((int(head[9:12]), head, rest[: int(length[1])]))
        received = rest[int(length[1]) :]
    return found


def slug(answer: tuple[int, bytes, bytes]) -> str:
    """Check that an answer is a problem that tells nothing internal and ends the connection, and give its slug."""
    status, head, body = answer
    problem = msgspec.json.decode(body)
    assert b"\r\ncontent-type: application/problem+json" in head
    assert b"\r\nconnection: close" in head
    assert b"\r\nx-content-type-options: nosniff" in head
    assert not re.search(rb"\r\nserver:|uvicorn|httptools|Python", head + body)
    assert len(body) <= 4096
    assert problem["status"] == status
    assert re.fullmatch("[0-9a-f]{32}", problem["trace_id"])
    return str(problem["type"]).removeprefix("/problems/")


def gauge(gateway: services.Service, name: str) -> float:
    """Read one of the gateway's metrics."""
    with socket.create_connection(("127.0.0.1", int(gateway.env["SAGAPOST_METRICS_PORT"]))) as connection:
        connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        found = re.search(rf"^{re.escape(name)} (\S+)$".encode(), until_closed(connection), re.MULTILINE)
    return float(found[1]) if found else 0.0


AMBIGUOUS = {
    "two lengths": POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "the same length twice": POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "a list of lengths": POST + b"Content-Length: 2, 2\r\n\r\n{}",
    "a signed length": POST + b"Content-Length: +2\r\n\r\n{}",
    "a length that overflows": POST + b"Content-Length: 18446744073709551618\r\n\r\n{}",
    "length, then chunks": POST + b"Content-Length: 2\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
    "chunks, then length": POST + CHUNKED + b"Content-Length: 2\r\n\r\n0\r\n\r\n",
    "chunks twice": POST + CHUNKED + CHUNKED + b"\r\n0\r\n\r\n",
    "another coding before chunks": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "another coding": POST + b"Transfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "a coding that looks like chunks": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a coding behind a control character": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": POST.replace(b"HTTP/1.1", b"HTTP/1.0") + CHUNKED + b"\r\n0\r\n\r\n",
    "a folded header": GET + HOST + b"X: a\r\n b\r\n\r\n",
    "a folded first header": GET + b" Host: a\r\n\r\n",
    "bare line feeds": b"GET / HTTP/1.1\nHost: a\n\n",
    "one bare line feed": GET + b"Host: a\nX: y\r\n\r\n",
    "a bare line feed at the end": GET + HOST + b"\n",
    "a bare carriage return": GET + HOST + b"X: a\rY: b\r\n\r\n",
    "a zero byte": GET + HOST + b"X: a\0b\r\n\r\n",
    "a control character": GET + HOST + b"X: a\x01b\r\n\r\n",
    "a space before the colon": POST + b"Content-Length : 2\r\n\r\n{}",
    "a space in a name": GET + HOST + b"X y: z\r\n\r\n",
    "a header without a colon": GET + HOST + b"Xy\r\n\r\n",
    "a header without a name": GET + HOST + b": y\r\n\r\n",
    "no host": GET + b"\r\n",
    "two hosts": GET + HOST + HOST + b"\r\n",
    "an empty host": GET + b"Host:\r\n\r\n",
    "a host that is none": GET + b"Host: a/b@c\r\n\r\n",
    "an absolute target": b"GET http://shop.example/health/live HTTP/1.1\r\n" + HOST + b"\r\n",
    "an authority": b"CONNECT shop.example:80 HTTP/1.1\r\n" + HOST + b"\r\n",
    "an asterisk": b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n",
    "a fragment": b"GET /health/live#x HTTP/1.1\r\n" + HOST + b"\r\n",
    "a target that is not ASCII": b"GET /h\xc3\xa9 HTTP/1.1\r\n" + HOST + b"\r\n",
    "an unknown method": b"BREW / HTTP/1.1\r\n" + HOST + b"\r\n",
    "no version": b"GET /health/live\r\n\r\n",
    "another version": b"GET /health/live HTTP/2.0\r\n" + HOST + b"\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "a chunk of negative size": POST + CHUNKED + b"\r\n-1\r\n",
    "a chunk of no size": POST + CHUNKED + b"\r\nzz\r\n",
    "chunks with bare line feeds": POST + CHUNKED + b"\r\n2\n{}\n0\n\n",
    "a space behind a chunk's size": POST + CHUNKED + b"\r\n2 \r\n{}\r\n0\r\n\r\n",
    "a body for another protocol": POST + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 40\r\n\r\n",
    "a header of 20 kB": GET + HOST + b"X: " + b"x" * 20_000 + b"\r\n\r\n",
    "headers of 20 kB": GET + HOST + (b"X: " + b"x" * 1_000 + b"\r\n") * 20 + b"\r\n",
    "a target of 20 kB": b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "200 headers": GET + HOST + b"X: y\r\n" * 200 + b"\r\n",
    "trailers of 20 kB": POST + CHUNKED + b"\r\n2\r\n{}\r\n0\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("request_bytes", AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
def test_what_can_be_read_in_two_ways_is_refused_and_nothing_behind_it_is_read(gateway: services.Service, request_bytes: bytes) -> None:
    """One problem of status 400, then the end: what a proxy in front may have taken for a request of its own is not answered."""
    found = exchange(gateway, request_bytes + GOOD)

    assert [(answer[0], slug(answer)) for answer in found] == [(400, "malformed-request")]


def test_a_header_that_never_ends_is_cut_before_it_is_all_in_memory(gateway: services.Service) -> None:
    """The limit holds for headers that are not whole."""
    with contextlib.closing(opened(gateway)) as connection:
        connection.sendall(GET + HOST + b"X: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(4_000):
                connection.sendall(b"x" * 1_000)
                time.sleep(0)
        received = until_closed(connection)

    assert not received or slug(answers(received)[0]) == "malformed-request"
    assert gauge(gateway, "sagapost_http_open_connections") <= MAX_OPEN


def test_a_trailer_is_no_header(gateway: services.Service) -> None:
    """What comes behind the body has passed no check, and changes nothing."""
    trailers = b"Idempotency-Key: not a key\r\nConnection: x\r\n\r\n"

    found = exchange(gateway, POST + CHUNKED + b"Connection: close\r\n\r\n2\r\n{}\r\n0\r\n" + trailers)

    assert [(answer[0], slug(answer) in {"circuit-open", "order-service-unavailable"}) for answer in found] == [(503, True)]


def test_requests_in_a_row_are_answered_in_their_order_and_a_bad_one_last(gateway: services.Service) -> None:
    """Those before it were good; its refusal does not pass for the answer to one of them."""
    found = exchange(gateway, GOOD * 3 + b"GARBAGE\r\n\r\n" + GOOD)
    bodied = exchange(gateway, GOOD + POST + CHUNKED + b"\r\nzz\r\n" + GOOD)

    assert [status for status, _, _ in found] == [200, 200, 200, 400]
    assert [status for status, _, _ in bodied] == [200, 400]


def test_nothing_is_read_behind_the_last_request(gateway: services.Service) -> None:
    """After `Connection: close`, a wish for another protocol, or more requests at once than anybody needs, the connection ends."""
    closed = exchange(gateway, GET + HOST + b"Connection: close\r\n\r\n" + GOOD)
    upgraded = exchange(gateway, GET + HOST + b"Connection: upgrade\r\nUpgrade: h2c\r\n\r\n" + GOOD)
    crowded = exchange(gateway, GOOD * 200)

    assert [status for status, _, _ in closed] == [200]
    assert [status for status, _, _ in upgraded] == [200]
    assert 1 <= len(crowded) < 20
    assert {status for status, _, _ in crowded} == {200}


@pytest.mark.parametrize("first", [b"", b"\x1f\x8b" + b"x" * 50_000], ids=["nothing sent", "50 kB sent"])
def test_an_encoded_body_is_refused_unread(gateway: services.Service, first: bytes) -> None:
    """A bomb is not inflated, nor even waited for: 415 at once, and the connection ends, whatever was announced."""
    began_s = time.monotonic()
    found = exchange(gateway, POST + b"Content-Encoding: gzip\r\nContent-Length: 10000000000\r\n\r\n", first)

    assert [(answer[0], slug(answer)) for answer in found] == [(415, "unsupported-media-type")]
    assert time.monotonic() - began_s < HEAD_S


def test_a_body_that_is_announced_too_large_is_refused_unread(gateway: services.Service) -> None:
    """413 without an invitation to send it."""
    found = exchange(gateway, POST + b"Expect: 100-continue\r\nContent-Length: 10000000000\r\n\r\n")

    assert [(answer[0], slug(answer)) for answer in found] == [(413, "payload-too-large")]


def test_whoever_sends_on_after_a_refusal_can_still_read_it(gateway: services.Service) -> None:
    """The answer is not lost to a reset by the bytes that were on their way."""
    with contextlib.closing(opened(gateway)) as connection:
        connection.sendall(POST + b"Content-Encoding: gzip\r\nContent-Length: 1000000\r\n\r\n")
        connection.sendall(b"x" * 200_000)
        received = connection.recv(65536)
        connection.sendall(b"x" * 200_000)
        received += until_closed(connection)
        for _ in range(2):  # a socket that is gone answers the first with a reset, on which the second fails
            connection.sendall(b"x" * 1_000)

    assert [slug(answer) for answer in answers(received)] == ["unsupported-media-type"]


def test_whoever_is_slow_or_silent_is_cut_after_ten_seconds(gateway: services.Service) -> None:
    """Headers and bodies that trickle get 408, silence and stray line ends just the end; a good connection is kept meanwhile."""
    began_s = time.monotonic()
    with contextlib.ExitStack() as stack:
        lines = [stack.enter_context(contextlib.closing(opened(gateway))) for _ in range(6)]
        silent, head, body, stray, after, good = lines
        for connection, first in zip(lines, (b"", GET + b"Ho", POST + b"Content-Length: 9\r\n\r\n{", b"\r\n", GOOD, GOOD), strict=True):
            connection.sendall(first)
        assert one_answer(after)
        after.sendall(b"\r\n")
        while time.monotonic() - began_s < HEAD_S - 1:
            head.sendall(b"s")
            body.sendall(b" ") if time.monotonic() - began_s < 7 else None
            time.sleep(1)
        received = {name: until_closed(line) for name, line in (("head", head), ("body", body), ("silent", silent), ("after", after))}
        stray_got = until_closed(stray)
        took_s = time.monotonic() - began_s
        one_answer(good)
        good.sendall(GOOD)
        assert good.recv(65536).startswith(b"HTTP/1.1 200")

    assert [slug(answer) for answer in answers(received["head"])] == ["request-timeout"]
    assert [slug(answer) for answer in answers(received["body"])] == ["request-timeout"]
    assert received["silent"] == b""
    assert {answer[0] for answer in answers(received["after"] + stray_got)} <= {408}
    assert HEAD_S - 1 <= took_s < HEAD_S + 10


def test_beyond_the_limit_the_connection_idle_longest_makes_room(gateway: services.Service) -> None:
    """Whoever comes is served, however many hold connections that they do not use."""
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(contextlib.closing(opened(gateway))) for _ in range(MAX_OPEN)]
        polling.eventually(lambda: gauge(gateway, "sagapost_http_open_connections") == MAX_OPEN)
        late = stack.enter_context(contextlib.closing(opened(gateway)))
        late.sendall(GOOD)
        assert late.recv(65536).startswith(b"HTTP/1.1 200")
        assert until_closed(idle[0]) == b""
        idle[-1].sendall(GOOD)
        assert idle[-1].recv(65536).startswith(b"HTTP/1.1 200")
        assert gauge(gateway, "sagapost_http_open_connections") == MAX_OPEN


def test_when_every_connection_is_busy_a_newcomer_is_503(gateway: services.Service) -> None:
    """It learns to come again, and nobody who has begun is cut off."""
    with contextlib.ExitStack() as stack:
        busy = [stack.enter_context(contextlib.closing(opened(gateway))) for _ in range(MAX_OPEN)]
        for connection in busy:
            connection.sendall(POST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 100")
        found = exchange(gateway)
        busy[0].sendall(b"{}")
        assert busy[0].recv(65536).startswith(b"HTTP/1.1 503")

    assert [(answer[0], slug(answer)) for answer in found] == [(503, "overloaded")]
    assert b"\r\nretry-after: 1" in found[0][1]


def test_a_refusal_is_logged_once_under_its_trace(gateway: services.Service) -> None:
    """Who operates the gateway finds what a client was told, and why."""
    _, _, body = exchange(gateway, GET + b"\r\n")[0]

    trace_id = msgspec.json.decode(body)["trace_id"]
    (line,) = polling.eventually(lambda: [line for line in gateway.lines() if line.get("trace_id") == trace_id])
    assert (line["event"], line["status"], line["level"]) == ("http.refused", 400, "info")


def test_nothing_here_made_the_gateway_fail(gateway: services.Service) -> None:
    """Whatever came, no error is in the log, and the process lives."""
    assert [status for status, _, _ in exchange(gateway, GET + HOST + b"Connection: close\r\n\r\n")] == [200]
    assert [line for line in gateway.lines() if line["level"] == "error"] == []
    assert "Traceback" not in pathlib.Path(gateway.log).read_text(encoding="utf-8")
