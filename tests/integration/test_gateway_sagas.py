"""The saga through the gateway: waiting, events, cancelling and operators, on a real order service and database."""

import asyncio
import itertools
import json
import time
from collections.abc import AsyncGenerator, Generator, Mapping
from pathlib import Path

import httpx
import pytest
from integration import order_walk, pool_kit

from sagapost_chassis import db
from sagapost_order import domain, states
from sagapost_sandbox.testing import servers, services

pytestmark = pytest.mark.anyio

ORDER_WAITING = "sagapost_saga_waiting"
GATEWAY_WAITING = "sagapost_gateway_waiting"
NOBODY = "/api/sagas/0193b1c2-7d4e-7a10-9f0e-5f2f6c1d8a11"


@pytest.fixture(scope="module")
def shared_db(database_server: servers.Databases, templates: Mapping[str, str]) -> Generator[str]:
    """Give one database to all tests here."""
    with order_walk.database(database_server, templates) as dsn:
        yield dsn


@pytest.fixture(scope="module")
def order_service(shared_db: str, tmp_path_factory: pytest.TempPathFactory) -> Generator[services.Service]:
    """Run one order service without a broker for the tests that leave it running."""
    log = tmp_path_factory.mktemp("order") / "service.log"
    with order_walk.running("order", log, DATABASE_URL=shared_db, AMQP_URL=order_walk.NOWHERE, **order_walk.PATIENT) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(order_service: services.Service, tmp_path_factory: pytest.TempPathFactory) -> Generator[services.Service]:
    """Run one gateway in front of it for the tests that leave it running."""
    log = tmp_path_factory.mktemp("gateway") / "gateway.log"
    with order_walk.running("gateway", log, ORDER_URL=order_service.url, PAGE_PORT="0") as running:
        yield running


@pytest.fixture
async def pool(shared_db: str) -> AsyncGenerator[db.Pool]:
    """Open a pool on the database, to let things happen."""
    async with pool_kit.opened(shared_db) as opened:
        yield opened


@pytest.fixture
async def client(gateway: services.Service) -> AsyncGenerator[httpx.AsyncClient]:
    """Open a client of the gateway."""
    async with httpx.AsyncClient(base_url=gateway.url, timeout=40) as opened:
        yield opened


def saga_url(gateway: services.Service, order: domain.Order) -> str:
    """Give the address of an order's saga."""
    return f"{gateway.url}/api/sagas/{order.saga_id}"


async def test_a_poll_through_the_gateway_waits_longer_than_its_deadline(
    client: httpx.AsyncClient, pool: db.Pool, order_service: services.Service, gateway: services.Service
) -> None:
    """The time that a client wants to wait comes on top of what a call may take, and the answer comes with the change."""
    order = await order_walk.place(pool)
    waiting = {"Prefer": "wait=20", "If-None-Match": '"1"'}

    asking = asyncio.create_task(client.get(f"/api/sagas/{order.saga_id}", headers=waiting))
    await order_walk.shows(order_service, ORDER_WAITING, 1)
    await order_walk.shows(gateway, GATEWAY_WAITING, 1)
    await order_walk.happen(pool, order, states.PAYMENT_PROCESSED)
    answer = await asking
    unchanged = await client.get(f"/api/sagas/{order.saga_id}", headers={"Prefer": "wait=1", "If-None-Match": '"2"'})

    assert (answer.status_code, answer.json()["state"], answer.headers["etag"]) == (200, "paid", '"2"')
    assert answer.headers["preference-applied"] == "wait=20"
    assert (unchanged.status_code, unchanged.content, unchanged.headers["preference-applied"]) == (304, b"", "wait=1")


async def test_events_pass_the_gateway_one_by_one(gateway: services.Service, pool: db.Pool) -> None:
    """Each event arrives when it happens, while the stream goes on, and the end of the saga ends it."""
    order = await order_walk.place(pool)

    async with order_walk.streamed(f"{saga_url(gateway, order)}/events") as events:
        (created,) = await order_walk.heard(events)
        began_s = time.monotonic()
        await order_walk.happen(pool, order, states.PAYMENT_PROCESSED)
        (paid,) = await order_walk.heard(events)
        took_s = time.monotonic() - began_s
        await order_walk.happen(pool, order, states.EMAIL_SENT)
        rest = await order_walk.heard(events, 9)

    assert [event["id"] for event in (created, paid)] == ["1", "2"]
    assert took_s < 10  # comments come after 15 s
    assert [event["event"] for event in rest] == ["transition", "end"]


async def test_a_stream_is_resumed_through_the_gateway(gateway: services.Service, pool: db.Pool) -> None:
    """Last-Event-ID reaches the order service."""
    order = await order_walk.place(pool, states.NOTIFIED)

    async with order_walk.streamed(f"{saga_url(gateway, order)}/events", Last_Event_ID="2") as events:
        found = await order_walk.heard(events, 9)

    assert [event.get("id") for event in found] == ["3", None]


async def test_a_stream_has_the_headers_of_every_answer(gateway: services.Service, client: httpx.AsyncClient, pool: db.Pool) -> None:
    """No proxy keeps events or holds them back, and nothing tells which server sent them; HEAD has the same and streams nothing."""
    order = await order_walk.place(pool)

    async with client.stream("GET", f"/api/sagas/{order.saga_id}/events") as answer:
        headers = answer.headers
    head = await client.head(f"/api/sagas/{order.saga_id}/events")
    await order_walk.shows(gateway, GATEWAY_WAITING, 0)

    assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-cache", "no")
    assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")
    assert headers["content-security-policy"] == "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    assert "server" not in headers
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == headers["content-type"]


async def test_a_stream_of_an_unknown_saga_is_404(client: httpx.AsyncClient) -> None:
    """A refusal is a problem that names the path that was called."""
    answer = await client.get(f"{NOBODY}/events")

    assert (answer.status_code, answer.json()["type"], answer.json()["instance"]) == (404, "/problems/not-found", f"{NOBODY}/events")


async def test_a_client_that_goes_away_frees_gateway_and_order_service(
    gateway: services.Service, order_service: services.Service, pool: db.Pool
) -> None:
    """However many streams and polls are left, nothing of them stays: no place, no connection, no error."""
    order = await order_walk.place(pool)

    for _ in range(3):
        async with order_walk.streamed(f"{saga_url(gateway, order)}/events") as events:
            await order_walk.heard(events)
            await order_walk.shows(order_service, ORDER_WAITING, 1)
    async with httpx.AsyncClient() as hasty:
        asking = asyncio.create_task(hasty.get(saga_url(gateway, order), headers={"Prefer": "wait=30"}, timeout=40))
        await order_walk.shows(order_service, ORDER_WAITING, 1)
        asking.cancel()
        for _ in range(10):  # gone before the first event
            asking = asyncio.create_task(hasty.get(f"{saga_url(gateway, order)}/events"))
            await asyncio.sleep(0)
            asking.cancel()

    await order_walk.shows(gateway, GATEWAY_WAITING, 0)
    await order_walk.shows(order_service, ORDER_WAITING, 0)
    assert order_walk.failures(gateway) == order_walk.failures(order_service) == []


async def test_those_who_wait_leave_room_for_those_who_buy(order_service: services.Service, pool: db.Pool, tmp_path: Path) -> None:
    """When as many wait as may, another stream is 503 with advice, a poll is answered at once, and calls go on as ever."""
    order = await order_walk.place(pool)
    env = {"ORDER_URL": order_service.url, "PAGE_PORT": "0", "MAX_WAITING": "2", "MAX_CONNECTIONS": "1"}
    with order_walk.running("gateway", tmp_path / "gateway.log", **env) as gateway:
        url = saga_url(gateway, order)
        async with (
            httpx.AsyncClient(base_url=gateway.url, timeout=10) as client,
            order_walk.streamed(f"{url}/events"),
            order_walk.streamed(f"{url}/events"),
        ):
            refused = await client.get(f"{url}/events")
            polled = await client.get(url, headers={"Prefer": "wait=9", "If-None-Match": '"1"'})
            called = await client.get("/api/products")
        await order_walk.shows(gateway, GATEWAY_WAITING, 0)
        async with order_walk.streamed(f"{url}/events") as events:
            again = await order_walk.heard(events)

    assert (refused.status_code, refused.json()["type"], refused.headers["retry-after"]) == (503, "/problems/overloaded", "5")
    assert (polled.status_code, "preference-applied" in polled.headers) == (304, False)
    assert polled.elapsed.total_seconds() < 8
    assert called.status_code == 200
    assert len(again) == 1


async def test_sigterm_of_the_gateway_lets_nobody_wait(order_service: services.Service, pool: db.Pool, tmp_path: Path) -> None:
    """Streams end without `end`, polls are answered with what there is, and the gateway is gone at once, with 0."""
    order = await order_walk.place(pool)
    with order_walk.running("gateway", tmp_path / "gateway.log", ORDER_URL=order_service.url, PAGE_PORT="0") as gateway:
        url = saga_url(gateway, order)
        async with httpx.AsyncClient(timeout=40) as client, order_walk.streamed(f"{url}/events") as events:
            await order_walk.heard(events)
            asking = asyncio.create_task(client.get(url, headers={"Prefer": "wait=30", "If-None-Match": '"1"'}))
            await order_walk.shows(gateway, GATEWAY_WAITING, 2)

            code = await asyncio.to_thread(gateway.terminate, 15)
            rest = await order_walk.heard(events)
            answer = await asking

    assert (code, rest) == (0, [])
    assert (answer.status_code, answer.headers["etag"]) == (304, '"1"')
    stopping = itertools.dropwhile(lambda line: line["event"] != "process.stopping", gateway.lines())
    assert [line["event"] for line in stopping if line["level"] in {"error", "warning"}] == []
    await order_walk.shows(order_service, ORDER_WAITING, 0)


@pytest.mark.parametrize("killed", [False, True])
async def test_a_stream_ends_with_the_order_service_and_goes_on_with_the_next(
    shared_db: str, pool: db.Pool, tmp_path: Path, *, killed: bool
) -> None:
    """Stopped or killed, the client is told by the end of the stream, and has missed nothing when it comes back."""
    order = await order_walk.place(pool)
    env = {"DATABASE_URL": shared_db, "AMQP_URL": order_walk.NOWHERE}
    with (
        order_walk.running("order", tmp_path / "first.log", **env) as first,
        order_walk.running("gateway", tmp_path / "gateway.log", BREAKER_FAILURES="100", ORDER_URL=first.url, PAGE_PORT="0") as gateway,
    ):
        url = f"{saga_url(gateway, order)}/events"
        async with order_walk.streamed(url) as events:
            (created,) = await order_walk.heard(events)
            await asyncio.to_thread(first.kill if killed else first.terminate)
            rest = await order_walk.heard(events)
        async with httpx.AsyncClient() as client:
            gone = await client.get(url)
        await order_walk.happen(pool, order, states.PAYMENT_PROCESSED)
        with order_walk.running("order", tmp_path / "second.log", PORT=str(first.port), **env):
            async with order_walk.streamed(url, Last_Event_ID=created["id"]) as events:
                (missed,) = await order_walk.heard(events)

    assert rest == []
    assert (gone.status_code, gone.json()["type"]) == (503, "/problems/order-service-unavailable")
    assert (missed["id"], json.loads(missed["data"])["to"]) == ("2", "paid")


async def test_an_order_is_cancelled_through_the_gateway(client: httpx.AsyncClient, pool: db.Pool, shared_db: str) -> None:
    """Without a body, with any body, and again; the history knows the gateway's client, whatever the caller says it is."""
    order = await order_walk.place(pool)
    path = f"/api/orders/{order.id}/cancel"

    first = await client.post(path, headers={"Sagapost-Client": "mallory", "sagapost-client": "mallory"})
    again = await client.post(path, content=b"{not json", headers={"Content-Type": "text/plain"})
    large = await client.post(path, content=b" " * 70000)
    await order_walk.happen(pool, order, states.PAYMENT_VOIDED)
    settled = await client.post(path)
    unknown = await client.post("/api/orders/999999999/cancel")

    assert (first.status_code, again.status_code, large.status_code, settled.status_code, unknown.status_code) == (202, 202, 413, 200, 404)
    assert first.headers["location"] == settled.headers["location"] == f"/api/sagas/{order.saga_id}"
    assert (first.headers["retry-after"], "retry-after" in settled.headers) == ("1", False)
    assert [row[5] for row in order_walk.history(shared_db, order) if row[1] == "CancelRequested"] == ["demo"]
    assert unknown.json()["instance"] == "/api/orders/999999999/cancel"


@pytest.mark.parametrize("action", ["retry", "compensate", "waive-notify", "mark-refunded"])
async def test_an_operator_acts_through_the_gateway(client: httpx.AsyncClient, pool: db.Pool, shared_db: str, action: str) -> None:
    """Version and reason reach the order service, the caller's own name does not, and the answer is the saga."""
    order = await order_walk.place(pool, states.COMPENSATION_FAILED if action == "mark-refunded" else states.NOTIFY_FAILED)
    version = len(order_walk.history(shared_db, order))
    body = {"reason": "ticket 4711", **({"reference": "wire 17"} if action == "mark-refunded" else {})}
    path = f"/api/ops/sagas/{order.saga_id}/{action}"

    stale = await client.post(path, json=body, headers={"If-Match": f'"{version - 1}"'})
    done = await client.post(path, json=body, headers={"If-Match": f'"{version}"', "Sagapost-Client": "mallory"})

    rows = order_walk.history(shared_db, order)
    assert (stale.status_code, stale.json()["type"]) == (412, "/problems/version-mismatch")
    assert (done.status_code, done.json()["version"], done.headers["etag"]) == (202, version + 1, f'"{version + 1}"')
    assert done.headers["location"] == f"/api/ops/sagas/{order.saga_id}"
    assert [row[4:6] for row in rows[version:]] == [("operator", "demo")]


@pytest.mark.parametrize(
    ("headers", "body", "expected"),
    [
        ({}, b"", (422, "validation-failed")),
        ({}, b'{"reason": "x"}', (415, "unsupported-media-type")),
        ({"Content-Type": "text/plain"}, b"", (415, "unsupported-media-type")),
        ({"Content-Type": "application/json"}, b"", (422, "validation-failed")),
        ({"Content-Type": "application/json"}, b"{", (400, "malformed-request")),
        ({"Content-Type": "application/json"}, b'{"reason": "x"}', (422, "validation-failed")),
        ({"Content-Type": "application/json", "If-Match": "é"}, b'{"reason": "x"}', (422, "validation-failed")),
        ({"Content-Type": "application/json", "If-Match": '"1"'}, b'{"reason": "x", "y": 1}', (422, "validation-failed")),
        ({"Content-Type": "application/json", "If-Match": '"1"'}, b" " * 70000, (413, "payload-too-large")),
    ],
)
async def test_what_an_operator_may_not_send_is_refused(
    client: httpx.AsyncClient, pool: db.Pool, headers: dict[str, str], body: bytes, expected: tuple[int, str]
) -> None:
    """Nothing of it changes the saga, and each answer is a problem of the path that was called."""
    order = await order_walk.place(pool)
    path = f"/api/ops/sagas/{order.saga_id}/compensate"
    named = [(name.encode(), value.encode()) for name, value in headers.items()]

    answer = await client.post(path, content=body, headers=named)

    shown = await client.get(f"/api/sagas/{order.saga_id}")
    assert (answer.status_code, answer.json()["type"].removeprefix("/problems/")) == expected
    assert answer.json()["instance"] == path
    assert shown.json()["version"] == 1


async def test_sagas_are_listed_through_the_gateway(client: httpx.AsyncClient, pool: db.Pool) -> None:
    """Filters and cursor pass, a filter that means nothing is refused."""
    orders = [await order_walk.place(pool, states.PAID) for _ in range(3)]

    page = (await client.get("/api/ops/sagas", params={"state": "paid", "limit": 2})).json()
    rest = (await client.get("/api/ops/sagas", params={"state": "paid", "cursor": page["next_cursor"]})).json()
    wrong = [
        await client.get(f"/api/ops/sagas?{query}")
        for query in ("state=x", "limit=0", "stat=paid", "limit=1&limit=2", "limit=" + "1" * 9000)
    ]

    assert [row["order_id"] for row in page["sagas"]] == [orders[2].id, orders[1].id]
    assert rest["sagas"][0]["order_id"] == orders[0].id
    assert [answer.status_code for answer in wrong] == [422] * 5
    assert {answer.json()["instance"] for answer in wrong} == {"/api/ops/sagas"}
