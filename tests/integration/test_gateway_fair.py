"""One client harms no other: places to wait, breakers, unknown keys, the catalogue, connections, and what an operator sees of it."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import time
from collections.abc import AsyncGenerator, Callable, Generator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from integration import order_walk, pool_kit, told_server

from sagapost_chassis import db, lifecycle
from sagapost_contracts import access
from sagapost_gateway import admission, breaker, edge, errors, settings, upstream
from sagapost_ops.keys import queries
from sagapost_sandbox import ports
from sagapost_sandbox.testing import polling, servers, services

pytestmark = pytest.mark.anyio

CART = {"user_id": 1, "user_email": "test@example.com", "items": [{"product_id": 1, "quantity": 1, "price": "1299.99"}]}
ALL = ("checkout:read", "checkout:write")
Make = Callable[[str], dict[str, str]]


@pytest.fixture(scope="module")
def shared_db(database_server: servers.Databases, templates: dict[str, str]) -> Generator[str]:
    """Give one database to all tests here."""
    with order_walk.database(database_server, templates) as dsn:
        yield dsn


@pytest.fixture(scope="module")
def order_service(shared_db: str, tmp_path_factory: pytest.TempPathFactory) -> Generator[services.Service]:
    """Run one order service without a broker."""
    log, metrics = tmp_path_factory.mktemp("order") / "service.log", str(ports.trial(1)[0])
    env = {"DATABASE_URL": shared_db, "AMQP_URL": order_walk.NOWHERE, "METRICS_PORT": metrics, **order_walk.PATIENT}
    with order_walk.running("order", log, **env) as running:
        yield running


@pytest.fixture
async def pool(shared_db: str) -> AsyncGenerator[db.Pool]:
    """Open a pool on the database, to let things happen."""
    async with pool_kit.opened(shared_db) as opened:
        yield opened


@pytest.fixture
def make_key(shared_db: str) -> Make:
    """Give what stores a key as the command does, and gives the header that carries it."""

    def make(name: str) -> dict[str, str]:
        key = access.new_key("development")
        with psycopg.connect(shared_db, autocommit=True) as conn:
            queries.add(
                conn,
                client=name,
                label="",
                env="development",
                scopes=ALL,
                sha256=access.digest(key),
                rate_per_s=1000,
                burst=1000,
            )
        return {"Authorization": f"Bearer {key}"}

    return make


@contextlib.contextmanager
def gateway_of(order: services.Service, tmp_path: Path, **env: str) -> Generator[services.Service]:
    """Run a gateway with these settings in front of an order service."""
    settings = {"ORDER_URL": order.url, "PAGE_PORT": "0", "METRICS_PORT": str(ports.trial(1)[0])} | env
    with order_walk.running("gateway", tmp_path / "gateway.log", **settings) as running:
        yield running


def metric(service: services.Service, name: str) -> float:
    """Read one series of a service's metrics; 0 where there is none."""
    text = httpx.get(f"http://127.0.0.1:{service.env['SAGAPOST_METRICS_PORT']}/metrics").text
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


async def test_one_client_has_a_share_of_the_streams_and_loses_its_oldest(
    order_service: services.Service, pool: db.Pool, make_key: Make, tmp_path: Path
) -> None:
    """Twice as many streams as there are places, by one key: another client's stream opens, and only the first key's oldest ones end."""
    greedy, other = make_key("greedy"), make_key("other")
    mine, theirs = await order_walk.place(pool, client="greedy"), await order_walk.place(pool, client="other")
    with gateway_of(order_service, tmp_path, MAX_WAITING="30", MAX_WAITING_PER_CLIENT="3") as gateway:
        async with contextlib.AsyncExitStack() as stack:
            url = f"{gateway.url}/api/sagas/{mine.saga_id}/events"
            streams = [await stack.enter_async_context(order_walk.streamed(url, **greedy)) for _ in range(60)]
            await order_walk.shows(gateway, "sagapost_gateway_waiting", 3)
            good = await stack.enter_async_context(order_walk.streamed(f"{gateway.url}/api/sagas/{theirs.saga_id}/events", **other))
            polled = await asyncio.to_thread(
                httpx.get,
                f"{gateway.url}/api/sagas/{theirs.saga_id}",
                headers={**other, "Prefer": "wait=1", "If-None-Match": '"1"'},
                timeout=20,
            )
            first = [event async for event in streams[0]]

            assert len(await order_walk.heard(good)) == 1
            assert "preference-applied" in polled.headers
            assert "end" not in {event.get("event") for event in first}
            assert await asyncio.to_thread(metric, gateway, 'sagapost_gateway_streams_cut_total{reason="share"}') == 57


async def test_a_stream_has_a_longest_life(order_service: services.Service, pool: db.Pool, tmp_path: Path) -> None:
    """It ends by itself, and its client goes on from the last event that it saw."""
    order = await order_walk.place(pool)
    with gateway_of(order_service, tmp_path, STREAM_MAX_S="1") as gateway:
        async with order_walk.streamed(f"{gateway.url}/api/sagas/{order.saga_id}/events") as events:
            async with asyncio.timeout(20):
                seen = [event async for event in events]

    assert [event["event"] for event in seen if "event" in event] == ["transition"]


class _Limited(admission.Desk):
    """A desk whose client has made as many calls as it may."""

    async def admit(self, headers: edge.Headers, scope: str) -> admission.Caller:
        raise errors.LimitedError(f"no more calls of {scope} with {headers}")


async def test_a_stream_ends_when_its_client_may_make_no_more_calls() -> None:
    """The look at the key is a call: a client whose bucket is empty does not keep its streams for nothing."""
    async with upstream.Order("http://127.0.0.1:9", deadline_s=1, max_connections=1, max_waiting=1) as order:
        assert not await _Limited(order, env="development").still_allows([], access.CHECKOUT_READ)


def test_what_one_client_does_opens_no_breaker_for_others() -> None:
    """A hundred failures of one client, with or without a few of others, keep nobody else back; failures of several do."""
    circuit = breaker.Breakers(5)
    for _ in range(100):
        circuit.failed("greedy")
    for _ in range(4):
        circuit.failed("other")

    with pytest.raises(errors.CircuitOpenError):
        circuit.check("greedy")
    circuit.check("other")
    circuit.check("third")

    circuit.failed("third")
    with pytest.raises(errors.CircuitOpenError):
        circuit.check("fourth")


async def test_a_failing_clients_calls_stop_and_anothers_go_on() -> None:
    """Through the gateway's client, on a real server: five failures of one client are followed by a call of another."""
    server = told_server.Told()
    async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listening:
        url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        server.script, server.healthy = [*[told_server.FAILED] * 5, told_server.OK], False
        async with upstream.Order(url, deadline_s=3, max_connections=4, max_waiting=2) as order:
            for _ in range(5):
                with pytest.raises(errors.OrderUnavailableError):
                    await order.call("GET", "/orders/1", headers={upstream.CLIENT: "greedy"})
            with pytest.raises(errors.CircuitOpenError):
                await order.call("GET", "/orders/1", headers={upstream.CLIENT: "greedy"})
            answer = await order.call("GET", "/orders/1", headers={upstream.CLIENT: "other"})
        server.close()

    assert answer.status == 200


async def test_a_poll_whose_client_is_gone_calls_nobody() -> None:
    """A balancer that restarts drops hundreds of polls at once: none of them becomes a call among the checkouts."""
    server = told_server.Told()
    async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listening:
        url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        left = asyncio.Event()
        async with upstream.Order(url, deadline_s=3, max_connections=4, max_waiting=200) as order:
            server.script = [b"HTTP/1.1 100 Continue\r\n\r\n"]  # the answer itself never comes
            headers = {upstream.CLIENT: "a"}
            polls = [asyncio.create_task(order.poll("/sagas/x", headers=headers, wait_s=20, gone=_set(left))) for _ in range(10)]
            await polling.eventually(lambda: _true(len(server.seen) == 10))
            left.set()
            outcomes = await asyncio.gather(*polls, return_exceptions=True)
        server.close()

    assert {type(outcome) for outcome in outcomes} == {errors.BodyCutError}
    assert len(server.seen) == 10


def _set(event: asyncio.Event) -> Callable[[], Any]:
    async def gone() -> None:
        await event.wait()

    return gone


async def _true(value: object) -> bool:
    return bool(value)


def test_the_order_service_drops_what_nobody_waits_for(order_service: services.Service, shared_db: str) -> None:
    """Checkouts whose connections were closed while the process hung are neither parsed nor stored when it goes on; the next one is."""
    body = httpx.Request("POST", "http://localhost/", json=CART | {"user_id": 987}).content
    head = b"POST /checkout HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    before = metric(order_service, "sagapost_http_abandoned_total")

    os.kill(order_service.pid, signal.SIGSTOP)
    try:
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", order_service.port), timeout=5) as connection:
                connection.sendall(head + body)
    finally:
        os.kill(order_service.pid, signal.SIGCONT)
    answer = httpx.post(f"{order_service.url}/checkout", json=CART | {"user_id": 988}, timeout=20)
    polling.eventually(lambda: metric(order_service, "sagapost_http_abandoned_total") >= before + 20)

    with psycopg.connect(shared_db) as conn:
        stored = conn.execute("SELECT user_id, count(*) FROM orders WHERE user_id IN (987, 988) GROUP BY 1").fetchall()
    assert (answer.status_code, stored) == (202, [(988, 1)])


async def test_the_catalogue_is_read_from_memory_and_outlives_the_order_service(
    shared_db: str, start_service: Callable[[str, dict[str, str]], services.Service], tmp_path: Path
) -> None:
    """Hundreds of readers cost one call a second, a cache may keep the answer, and readers are served while the order service is away."""
    env = {"SAGAPOST_DATABASE_URL": shared_db, "SAGAPOST_AMQP_URL": order_walk.NOWHERE}
    order = start_service("order", env).wait_ready()
    with gateway_of(order, tmp_path) as gateway:
        async with httpx.AsyncClient(base_url=gateway.url, timeout=20) as client:
            begun_s = time.monotonic()
            answers = [await client.get("/api/products") for _ in range(200)]
            seconds = time.monotonic() - begun_s
            calls = len([line for line in order.lines() if line.get("path") == "/products"])
            order.kill()
            later = [(await client.get(path)).status_code for path in ("/api/products", "/api/products/1", "/api/products/999")]
            one = (await client.get("/api/products/2")).json()

    assert {answer.status_code for answer in answers} == {200}
    assert answers[0].headers["cache-control"] == "public, max-age=1"
    assert calls <= seconds + 1
    assert later == [200, 200, 404]
    assert one == answers[0].json()[1]


async def test_random_keys_do_not_shut_out_a_client_that_is_not_known_yet(
    order_service: services.Service, make_key: Make, tmp_path: Path
) -> None:
    """A fresh gateway, three hundred well-formed keys of nobody at once: each is 401, and five clients among them are served."""
    valid = [make_key(f"cold-{number}") for number in range(5)]
    with gateway_of(order_service, tmp_path) as gateway:
        limits = httpx.Limits(max_connections=400)
        async with httpx.AsyncClient(base_url=gateway.url, timeout=30, limits=limits) as client:

            async def ask(headers: dict[str, str]) -> int:
                return (await client.get("/api/orders/999999999", headers=headers)).status_code

            random = [{"Authorization": f"Bearer {access.new_key('development')}"} for _ in range(300)]
            found = await asyncio.gather(*(ask(headers) for headers in (*random, *valid)))

    assert set(found[:300]) == {401}
    assert found[300:] == [404] * 5


def begun(gateway: services.Service, stack: contextlib.ExitStack, sent: bytes) -> socket.socket:
    """Open a connection and send a part of a request on it."""
    connection = stack.enter_context(contextlib.closing(socket.create_connection(("127.0.0.1", gateway.port), timeout=20)))
    connection.sendall(sent)
    return connection


@pytest.mark.parametrize("path", ["/problems", "/api/checkout"], ids=["lingering", "a late body"])
async def test_connections_that_linger_or_whose_body_is_late_make_room(order_service: services.Service, tmp_path: Path, path: str) -> None:
    """With every connection held by bodies that do not come, answered early or not: a newcomer is served."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{{".encode()
    with gateway_of(order_service, tmp_path, MAX_OPEN="20") as gateway, contextlib.ExitStack() as stack:
        held = [begun(gateway, stack, head) for _ in range(20)]

        def served() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"{gateway.url}/health/live", timeout=20).status_code == 200
            return False

        if path == "/problems":  # answered, and still sending: no newcomer waits for the 2 s that this may take
            assert {connection.recv(12) for connection in held} == {b"HTTP/1.1 405"}
            assert await asyncio.to_thread(served)
        else:  # far sooner than the 10 s that a body may take
            assert await asyncio.to_thread(polling.eventually, served, 5)


async def test_an_operator_sees_who_calls_and_what_is_refused(
    order_service: services.Service, pool: db.Pool, make_key: Make, tmp_path: Path
) -> None:
    """Client and key stand in the lines of both services; refusals are counted by reason, answers by route and class."""
    order = await order_walk.place(pool, client="seen")
    headers = make_key("seen")
    saga = f"/api/sagas/{order.saga_id}"
    with gateway_of(order_service, tmp_path) as gateway:
        async with httpx.AsyncClient(base_url=gateway.url, timeout=20) as client:
            await client.get(saga, headers=headers)
            await client.get(saga, headers={**headers, "Prefer": "wait=1", "If-None-Match": '"1"'})
            await client.get(saga, headers={"Authorization": f"Bearer {access.new_key('development')}"})
            await client.get("/api/ops/sagas", headers=headers)
            await client.post("/api/checkout", headers=headers, json=CART | {"pad": "x" * 9000})
            await client.get("/api/nowhere")
            await client.post("/api/checkout", headers=headers, json=CART | {"user_id": 0})
        read, waited, unknown, scope, large, nowhere, wrong = polling.eventually(lambda: _at_least(gateway, 7, event="request.handled"))
        behind = polling.eventually(lambda: _at_least(order_service, 2, path=f"/sagas/{order.saga_id}"))
        counts = {name: metric(gateway, f'sagapost_refusals_total{{reason="{name}"}}') for name in REASONS}
        routed = 'name="GET /api/sagas/{saga_id}"'
        answers = [metric(gateway, f'sagapost_http_answers_total{{{routed},status="{status}"}}') for status in ("2xx", "3xx", "4xx")]
        handled = metric(gateway, f'sagapost_handled_seconds_count{{kind="http",{routed},outcome="ok"}}')
        polls = metric(gateway, f"sagapost_waited_seconds_count{{{routed}}}")

    assert {(line["client"], line["key_id"]) for line in (read, waited, large, wrong)} == {("seen", read["key_id"])}
    assert {(line["client"], line["key_id"]) for line in behind} == {("seen", str(read["key_id"]))}
    assert [line["name"] for line in (read, nowhere, wrong)] == ["GET /api/sagas/{saga_id}", "GET unrouted", "POST /api/checkout"]
    assert [line["outcome"] for line in (read, waited, unknown, scope, large, nowhere, wrong)] == ["ok", "ok", *["refused"] * 5]
    assert [line.get("reason") for line in (unknown, scope, large, nowhere, wrong)] == list(REASONS)
    assert counts == dict.fromkeys(REASONS, 1)
    assert (answers, handled, polls) == ([1, 1, 1], 1, 1)


def _at_least(service: services.Service, number: int, **wanted: str) -> list[dict[str, object]]:
    """Return the lines with these fields once there are enough: a line is written after its answer, which the client may have before."""
    lines = [line for line in service.lines() if wanted.items() <= line.items()]
    return lines if len(lines) >= number else []


REASONS = ("unauthorized", "insufficient-scope", "payload-too-large", "not-found", "validation-failed")


@pytest.mark.parametrize("line", ["OPTIONS /api/checkout RTSP/1.0", "GET /api/products RTSP/1.0", "GET / ICE/1.0"])
async def test_another_protocol_is_refused(order_service: services.Service, tmp_path: Path, line: str) -> None:
    """The parser takes them for HTTP; nothing else does, so they are not answered as if they were."""
    with gateway_of(order_service, tmp_path) as gateway:
        for pieces in ([line], [line[:-5], line[-5:]]):
            with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as connection:
                for piece in pieces:
                    connection.sendall(piece.encode())
                connection.sendall(b"\r\nHost: localhost\r\n\r\n")
                assert connection.recv(65536).startswith(b"HTTP/1.1 400")


async def test_an_idle_connection_is_kept_as_long_as_it_is_set(order_service: services.Service, tmp_path: Path) -> None:
    """The setting decides, and its default is longer than the 60 s after which proxies give a connection up."""
    request = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with (
        gateway_of(order_service, tmp_path, KEEP_ALIVE_S="1") as gateway,
        socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as connection,
    ):
        connection.sendall(request)
        received = b""
        while data := connection.recv(65536):  # until the gateway closes
            received += data

    assert received.count(b"HTTP/1.1 200") == 1
    assert settings.Settings().keep_alive_s == lifecycle.KEEP_ALIVE_S == 75
