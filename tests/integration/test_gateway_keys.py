"""API keys, scopes, ownership and limits at the gateway, on a real order service and database."""

import asyncio
import functools
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec
import psycopg
import pytest
from integration import order_walk, pool_kit

from sagapost_chassis import db, web
from sagapost_chassis.errors import TransientError
from sagapost_contracts import access
from sagapost_gateway import admission, api, operations, upstream
from sagapost_ops.keys import queries
from sagapost_order import client_api, domain, states
from sagapost_sandbox import ports
from sagapost_sandbox.testing import polling, servers, services

pytestmark = pytest.mark.anyio

CART = {"user_id": 1, "user_email": "test@example.com", "items": [{"product_id": 1, "quantity": 1, "price": "1299.99"}]}
ALL = access.SCOPES
Make = Callable[..., dict[str, str]]
Start = Callable[[str, Mapping[str, str]], services.Service]
T = TypeVar("T")


@pytest.fixture(scope="module")
def shared_db(database_server: servers.Databases, templates: Mapping[str, str]) -> Generator[str]:
    """Give one database to all tests here."""
    with order_walk.database(database_server, templates) as dsn:
        yield dsn


@pytest.fixture(scope="module")
def order_service(shared_db: str, tmp_path_factory: pytest.TempPathFactory) -> Generator[services.Service]:
    """Run one order service without a broker."""
    log = tmp_path_factory.mktemp("order") / "service.log"
    with order_walk.running("order", log, DATABASE_URL=shared_db, AMQP_URL=order_walk.NOWHERE, **order_walk.PATIENT) as running:
        yield running


@pytest.fixture(scope="module")
def running(order_service: services.Service, tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[services.Service, ...]]:
    """Run two gateways in front of it; nobody waits there for a turn."""
    logs = tmp_path_factory.mktemp("gateway")
    env = {"ORDER_URL": order_service.url, "PAGE_PORT": "0", "MAX_CONNECTIONS": "64"}
    with order_walk.running("gateway", logs / "1.log", **env) as first, order_walk.running("gateway", logs / "2.log", **env) as second:
        yield first, second


@pytest.fixture(scope="module")
def gateways(running: tuple[services.Service, ...]) -> tuple[str, ...]:
    """Give their addresses."""
    return tuple(gateway.url for gateway in running)


@pytest.fixture
async def client(gateways: tuple[str, ...]) -> AsyncGenerator[httpx.AsyncClient]:
    """Open a client of the first gateway."""
    async with httpx.AsyncClient(base_url=gateways[0], timeout=20) as opened:
        yield opened


@pytest.fixture
async def pool(shared_db: str) -> AsyncGenerator[db.Pool]:
    """Open a pool on the database, to let things happen."""
    async with pool_kit.opened(shared_db) as opened:
        yield opened


@pytest.fixture
def make_key(shared_db: str) -> Make:
    """Give what stores a key as the command does, and gives the header that carries it."""

    def make(
        name: str, *scopes: str, env: str = "development", rate_per_s: float | None = None, burst: int | None = None
    ) -> dict[str, str]:
        key = access.new_key(env)
        with psycopg.connect(shared_db, autocommit=True) as conn:
            queries.add(
                conn,
                client=name,
                label="",
                env=env,
                scopes=scopes or ALL,
                sha256=access.digest(key),
                rate_per_s=rate_per_s,
                burst=burst,
            )
        return {"Authorization": f"Bearer {key}"}

    return make


def revoke(dsn: str, name: str) -> None:
    """Take all of a client's keys back."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        queries.revoke(conn, [key.id for key in queries.listed(conn, name)])


def slug(answer: httpx.Response) -> str:
    """Give the type of a problem."""
    return str(answer.json()["type"]).removeprefix("/problems/")


def but_for_the_path(answer: httpx.Response) -> tuple[int, dict[str, Any]]:
    """Give what an answer says, without the path that was called and the trace."""
    return answer.status_code, {name: value for name, value in answer.json().items() if name not in {"instance", "trace_id"}}


async def until(answer: Callable[[], Any], status: int, deadline_s: float = 10) -> None:
    """Call until the answer has this status."""
    ends_s = time.monotonic() + deadline_s
    while (found := (await answer()).status_code) != status:
        assert time.monotonic() < ends_s, f"still {found} after {deadline_s} s"
        await asyncio.sleep(0.05)


async def by_the_bucket(gateways: tuple[services.Service, ...], burst: Callable[[str], Awaitable[T]]) -> T:
    """Let a new client make its calls; when a gateway could not ask in time and went by the limit alone, let another new one."""

    def alone() -> int:
        return sum(gateway.logs().count("admission.alone") for gateway in gateways)

    for number in range(5):
        before = alone()
        found = await burst(f"client-{number}")
        if alone() == before:
            return found
    raise AssertionError("no burst went by the bucket alone")


def paths_of(order: domain.Order) -> list[tuple[str, str]]:
    """Give every call that names one order or its saga as a customer."""
    order_path, saga_path = f"/api/orders/{order.id}", f"/api/sagas/{order.saga_id}"
    return [
        ("GET", order_path),
        ("GET", f"{order_path}/status"),
        ("GET", saga_path),
        ("GET", f"{saga_path}/events"),
        ("POST", f"{order_path}/cancel"),
    ]


async def test_another_clients_order_is_as_if_it_were_not_there(
    client: httpx.AsyncClient, pool: db.Pool, shared_db: str, make_key: Make
) -> None:
    """Whoever asks for it gets the very 404 of an order that never was, and nothing of it changes; its owner sees it."""
    order = await order_walk.place(pool, states.PAID, "mine")
    nobody = msgspec.structs.replace(order, id=999_999_999, saga_id=order.saga_id.__class__(int=7))
    before = order_walk.history(shared_db, order)
    mine, other = make_key("mine"), make_key("other")

    for headers in (other, {}):
        async with asyncio.timeout(20):  # a stream that is opened for a stranger would not end by itself
            foreign = [await client.request(method, path, headers=headers) for method, path in paths_of(order)]
        unknown = [await client.request(method, path, headers=headers) for method, path in paths_of(nobody)]
        assert [but_for_the_path(answer) for answer in foreign] == [but_for_the_path(answer) for answer in unknown]
        assert {answer.status_code for answer in foreign} == {404}
        assert [{*answer.headers} for answer in foreign] == [{*answer.headers} for answer in unknown]

    assert order_walk.history(shared_db, order) == before
    assert [(await client.get(path, headers=mine)).status_code for method, path in paths_of(order)[:3]] == [200] * 3
    assert (await client.post(f"/api/orders/{order.id}/cancel", headers=mine)).status_code == 202
    assert [row[5] for row in order_walk.history(shared_db, order) if row[1] == "CancelRequested"] == ["mine"]


async def test_an_operator_sees_everybodys_sagas_and_acts_by_name(
    client: httpx.AsyncClient, pool: db.Pool, shared_db: str, make_key: Make
) -> None:
    """List, document, events and actions under /api/ops know no owner; the history knows who acted."""
    order = await order_walk.place(pool, states.NOTIFY_FAILED, "mine")
    anna = make_key("anna", access.OPS_READ, access.OPS_WRITE)
    path = f"/api/ops/sagas/{order.saga_id}"

    shown = await client.get(path, headers=anna)
    listed = await client.get("/api/ops/sagas", headers=anna, params={"cursor": order.id + 1, "limit": 1})
    acted = await client.post(f"{path}/waive-notify", headers={**anna, "If-Match": shown.headers["etag"]}, json={"reason": "called"})
    events = await client.get(f"{path}/events", headers=anna)

    assert (shown.status_code, shown.json()["order_id"]) == (200, order.id)
    assert listed.json()["sagas"][0]["order_id"] == order.id
    assert acted.status_code == 202
    assert events.text.count("event: transition") == len(order_walk.history(shared_db, order))
    assert order_walk.history(shared_db, order)[-1][4:6] == ("operator", "anna")


@pytest.mark.parametrize("operation", [one for one in operations.OPERATIONS if one.scope], ids=lambda one: one.name)
async def test_every_operation_needs_its_scope(client: httpx.AsyncClient, make_key: Make, operation: operations.Operation) -> None:
    """A key with every other scope is 403 and says which one is missing; with that scope alone the call goes through the door."""
    path = operation.path.replace("{saga_id}", "00000000-0000-0000-0000-000000000007").replace("{order_id}", "999999999")
    without = make_key("others", *(scope for scope in ALL if scope != operation.scope))
    only = make_key("only", operation.scope)

    refused = await client.request(operation.method, path, headers=without)
    passed = await client.request(operation.method, path, headers=only)

    assert (refused.status_code, slug(refused)) == (403, "insufficient-scope")
    assert refused.headers["www-authenticate"] == f'Bearer error="insufficient_scope", scope="{operation.scope}"'
    assert passed.status_code not in {401, 403, 429}


@pytest.mark.parametrize(
    "values",
    [
        ("",),
        ("Bearer",),
        ("Bearer x",),
        ("Basic dXNlcjpwYXNz",),
        ("Bearer sp_development_short",),
        ("Bearer sp_development_" + "a" * 32,),
        ("Bearer sp_production_" + "a" * 32,),
        ("good", "good"),
        ("good", "Bearer sp_development_" + "a" * 32),
        ("good, Bearer x",),
    ],
)
async def test_credentials_that_cannot_be_used_are_401_in_development_too(
    client: httpx.AsyncClient, make_key: Make, values: tuple[str, ...]
) -> None:
    """Whoever sends credentials wants them used: wrong, repeated, unknown or another environment's, they never fall back to demo."""
    good = make_key("shop")["Authorization"]
    headers = [("Authorization", value.replace("good", good)) for value in values]

    answer = await client.post("/api/checkout", headers=headers, json=CART)

    assert (answer.status_code, slug(answer)) == (401, "unauthorized")
    assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'


async def test_production_needs_a_key_for_everything_that_is_not_public(
    order_service: services.Service, make_key: Make, tmp_path: Path
) -> None:
    """There is no demo client, and a key made for development opens nothing."""
    secret = "5d0c82e1b7f94a36d1e0b85f27c4936a"
    env = {"ENV": "production", "ORDER_URL": order_service.url, "PAGE_PORT": "0", "INTERNAL_SECRET": secret}
    with order_walk.running("gateway", tmp_path / "gateway.log", **env) as gateway:
        async with httpx.AsyncClient(base_url=gateway.url, timeout=20) as client:
            keyless = await client.post("/api/checkout", json=CART)
            development = await client.post("/api/checkout", json=CART, headers=make_key("shop"))
            placed = await client.post("/api/checkout", json=CART, headers=make_key("shop", env="production"))
            public = [(await client.get(path)).status_code for path in ("/api/products", "/api/products/1", "/health/ready", "/docs")]

    assert (keyless.status_code, slug(keyless), keyless.headers["www-authenticate"]) == (401, "unauthorized", "Bearer")
    assert (development.status_code, slug(development)) == (401, "unauthorized")
    assert placed.status_code == 202
    assert public == [200] * 4


@pytest.mark.parametrize(("env", "known"), [("production", None), ("development", access.DEMO)])
async def test_the_order_service_knows_the_demo_client_in_development_only(pool: db.Pool, env: str, known: str | None) -> None:
    """A gateway that was started in the wrong environment opens nothing: whoever has no key is nobody."""
    application: Any = web.app(client_api.routes(pool, env=env))  # litestar and httpx type ASGI's scopes differently
    async with httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://order") as client:
        answer = await client.post("/clients/admit", json={"sha256": None, "want": 1})

    assert (answer.status_code, answer.json()["client"]) == (200, known)
    assert answer.json()["granted"] == (1 if known else 0)


async def test_a_revoked_key_is_refused_everywhere_within_seconds(gateways: tuple[str, ...], shared_db: str, make_key: Make) -> None:
    """Both gateways had let it through and forget it by themselves; nobody restarts anything."""
    headers = make_key("leaver")
    async with httpx.AsyncClient(timeout=20) as client:
        before = [(await client.get(f"{url}/api/orders/999999999", headers=headers)).status_code for url in gateways]
        revoke(shared_db, "leaver")
        for url in gateways:
            await until(functools.partial(client.get, f"{url}/api/orders/999999999", headers=headers), 401)

    assert before == [404, 404]


async def test_an_open_stream_ends_when_its_key_is_revoked(
    order_service: services.Service,
    pool: db.Pool,
    shared_db: str,
    make_key: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was opened with a key does not outlive it: the stream ends with what comes next, before the saga does."""
    monkeypatch.setattr(api, "RECHECK_S", 0)
    order = await order_walk.place(pool, states.CREATED, "leaver2")
    sent = [(b"authorization", make_key("leaver2")["Authorization"].encode())]
    async with upstream.Order(order_service.url, deadline_s=5, max_connections=5, max_waiting=5) as behind:
        desk = admission.Desk(behind, env="development")
        await desk.admit(sent, access.CHECKOUT_READ)
        opened = await behind.stream(f"/sagas/{order.saga_id}/events", headers={"Sagapost-Client": "leaver2"})
        assert isinstance(opened, upstream.Stream)
        chunks = api.while_allowed(desk, sent, access.CHECKOUT_READ, opened)
        first = await anext(chunks)
        revoke(shared_db, "leaver2")
        ends_s = time.monotonic() + 10
        while await desk.still_allows(sent, access.CHECKOUT_READ):
            assert time.monotonic() < ends_s
            await asyncio.sleep(0.05)
        await order_walk.happen(pool, order, states.PAYMENT_PROCESSED)
        rest = await asyncio.wait_for(_all(chunks), 10)

    assert first
    assert b"event: end" not in rest


async def _all(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


async def test_all_gateways_share_one_limit_whatever_the_caller_claims_to_be(running: tuple[services.Service, ...], make_key: Make) -> None:
    """Two keys, two gateways and a hundred made-up addresses: the client gets its burst and its rate, once; the rest is 429 with a time."""
    async with httpx.AsyncClient(timeout=20) as client:

        async def burst(name: str) -> tuple[list[httpx.Response], float]:
            keys = [make_key(f"busy-{name}", rate_per_s=2, burst=20), make_key(f"busy-{name}")]

            async def ask(number: int) -> httpx.Response:
                forged = {"X-Forwarded-For": f"10.0.{number}.1", "Forwarded": f"for=10.0.{number}.1", "X-Real-IP": f"10.0.{number}.1"}
                url = f"{running[number % 2].url}/api/orders/999999999"
                return await client.get(url, headers={**keys[number // 2 % 2], **forged})

            began_s = time.monotonic()
            answers = await asyncio.gather(*(ask(number) for number in range(100)))
            took_s = time.monotonic() - began_s
            await until(lambda: ask(0), 404)
            return answers, took_s

        answers, took_s = await by_the_bucket(running, burst)

    refused = [answer for answer in answers if answer.status_code == 429]
    passed = [answer for answer in answers if answer.status_code == 404]
    assert len(passed) + len(refused) == 100
    assert 20 <= len(passed) <= 20 + 2 * took_s + 1
    assert {slug(answer) for answer in refused} == {"rate-limited"}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert {answer.headers["ratelimit-policy"] for answer in answers} == {'"client";q=20;w=10'}
    assert all(answer.headers["ratelimit"].startswith('"client";r=0;t=') for answer in refused)
    assert all(answer.headers["ratelimit"].startswith('"client";r=') for answer in passed)


async def test_a_limited_client_takes_nothing_from_another(
    client: httpx.AsyncClient, running: tuple[services.Service, ...], make_key: Make
) -> None:
    """Each client has a bucket of its own; product pages have none."""

    async def burst(name: str) -> tuple[list[int], int, list[int]]:
        greedy, modest = (make_key(f"{kind}-{name}", rate_per_s=0.01, burst=1) for kind in ("greedy", "modest"))
        first = [(await client.get("/api/orders/999999999", headers=greedy)).status_code for _ in range(3)]
        other = (await client.get("/api/orders/999999999", headers=modest)).status_code
        return first, other, [(await client.get("/api/products", headers=greedy)).status_code for _ in range(3)]

    first, other, public = await by_the_bucket(running, burst)

    assert first == [404, 429, 429]
    assert other == 404
    assert public == [200] * 3


async def test_a_forged_host_is_in_no_answer(client: httpx.AsyncClient, make_key: Make) -> None:
    """Links and Location are paths: whoever lies about the host's name gets them nowhere."""
    forged = {"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "gopher", "Forwarded": "host=evil.example"}

    placed = await client.post("/api/checkout", json=CART, headers={**make_key("shop"), **forged})
    missing = await client.get("/api/orders/999999999", headers=forged)
    elsewhere = await client.get("/api/orders/999999999", headers={**forged, "Host": "evil.example"})

    assert (placed.status_code, missing.status_code, elsewhere.status_code) == (202, 404, 421)
    assert placed.headers["location"].startswith("/api/sagas/")
    for answer in (placed, missing, elsewhere):
        assert "evil" not in f"{answer.text}{answer.headers}"
        assert "gopher" not in f"{answer.text}{answer.headers}"


async def test_a_hundred_identical_checkouts_at_once_are_one_order(gateways: tuple[str, ...], shared_db: str, make_key: Make) -> None:
    """One is stored; every other answer is the first one byte for byte, or says that it is under way. The key is the client's own."""
    mine, other = make_key("hundred", rate_per_s=1000, burst=1000), make_key("hundred-and-one")
    same = {"Idempotency-Key": "8e03978e-40d5-43e8-bc93-6894a57f9324"}
    async with httpx.AsyncClient(timeout=30) as client:

        async def buy(url: str, headers: dict[str, str], cart: dict[str, Any]) -> httpx.Response:
            return await client.post(f"{url}/api/checkout", headers={**headers, **same}, json=cart)

        answers = await asyncio.gather(*(buy(gateways[number % 2], mine, CART) for number in range(100)))
        again = await buy(gateways[1], mine, CART)
        reused = await buy(gateways[0], mine, CART | {"user_id": 2})
        independent = await buy(gateways[0], other, CART | {"user_id": 2})

    placed = [answer for answer in answers if answer.status_code == 202]
    assert {answer.status_code for answer in answers} <= {202, 409}
    assert {slug(answer) for answer in answers if answer.status_code == 409} <= {"idempotency-in-progress"}
    assert {answer.content for answer in (*placed, again)} == {placed[0].content}
    assert (again.status_code, again.headers["idempotent-replayed"]) == (202, "true")
    assert (reused.status_code, slug(reused)) == (422, "idempotency-key-reused")
    assert (independent.status_code, independent.json()["id"] != placed[0].json()["id"]) == (202, True)
    with psycopg.connect(shared_db) as conn:
        found = conn.execute("SELECT client, count(*) FROM orders WHERE client LIKE 'hundred%' GROUP BY client ORDER BY 1").fetchall()
    assert found == [("hundred", 1), ("hundred-and-one", 1)]


async def test_a_checkout_without_a_key_is_one_order_although_the_answer_was_lost(
    shared_db: str, tmp_path: Path, start_service: Start, make_key: Make
) -> None:
    """The order process dies between commit and answer; the gateway asks the next one, and the client notices nothing."""
    headers, port = make_key("unlucky"), str(ports.trial(1)[0])
    env = {"SAGAPOST_DATABASE_URL": shared_db, "SAGAPOST_AMQP_URL": order_walk.NOWHERE, "SAGAPOST_PORT": port}
    first = start_service("order", {**env, "SAGAPOST_CRASH": "order.after_commit"}).wait_ready()
    with order_walk.running("gateway", tmp_path / "gateway.log", ORDER_URL=first.url, PAGE_PORT="0", DEADLINE_S="30") as gateway:
        async with httpx.AsyncClient(timeout=40) as client:
            buying = asyncio.create_task(client.post(f"{gateway.url}/api/checkout", headers=headers, json=CART))
            await asyncio.to_thread(first.wait)
            await asyncio.to_thread(start_service("order", env).wait_ready)
            answer = await buying

    assert answer.status_code == 202, answer.text
    assert "idempotent-replayed" not in answer.headers
    with psycopg.connect(shared_db) as conn:
        found = conn.execute("SELECT id FROM orders WHERE client = 'unlucky'").fetchall()
    assert found == [(answer.json()["id"],)]


async def test_a_gateway_that_dies_between_the_commit_and_the_answer_costs_nobody_an_order(
    shared_db: str, tmp_path: Path, start_service: Start, make_key: Make
) -> None:
    """The client, told nothing, asks another gateway with the same key, and is answered with the order that was stored."""
    headers = make_key("abandoned") | {"Idempotency-Key": "5f0c1b0e-97a5-4b9b-a4c7-3f2f2b9f2a11"}
    env = {"SAGAPOST_DATABASE_URL": shared_db, "SAGAPOST_AMQP_URL": order_walk.NOWHERE, "SAGAPOST_CRASH": "order.after_commit:sleep=30"}
    order = start_service("order", env).wait_ready()

    def stored() -> list[tuple[int]]:
        with psycopg.connect(shared_db) as conn:
            return conn.execute("SELECT id FROM orders WHERE client = 'abandoned'").fetchall()

    with (
        order_walk.running("gateway", tmp_path / "first.log", ORDER_URL=order.url, PAGE_PORT="0", DEADLINE_S="30") as dying,
        order_walk.running("gateway", tmp_path / "second.log", ORDER_URL=order.url, PAGE_PORT="0") as living,
    ):
        async with httpx.AsyncClient(timeout=20) as client:
            buying = asyncio.create_task(client.post(f"{dying.url}/api/checkout", headers=headers, json=CART))
            await polling.eventually(lambda: asyncio.to_thread(stored), 20)
            dying.kill()
            with pytest.raises(httpx.TransportError):
                await buying
            answer = await client.post(f"{living.url}/api/checkout", headers=headers, json=CART)

    assert answer.status_code == 202, answer.text
    assert stored() == [(answer.json()["id"],)]


async def test_a_known_key_goes_on_without_admissions_and_an_unknown_one_does_not(
    shared_db: str, start_service: Start, make_key: Make
) -> None:
    """While the order service is away a known client's wrong request is still told what is wrong; a stranger's key cannot be judged."""
    env = {"SAGAPOST_DATABASE_URL": shared_db, "SAGAPOST_AMQP_URL": order_walk.NOWHERE}
    service = start_service("order", env).wait_ready()
    known, stranger = make_key("known"), make_key("stranger")
    async with upstream.Order(service.url, deadline_s=2, max_connections=5, max_waiting=5) as behind:
        desk = admission.Desk(behind, env="development")
        raw = [{b"authorization": headers["Authorization"].encode()}.items() for headers in (known, stranger)]
        await desk.admit(raw[0], access.CHECKOUT_READ)
        service.kill()

        alone = [await desk.admit(raw[0], access.CHECKOUT_READ) for _ in range(3)]

        assert {caller.client for caller in alone} == {"known"}
        with pytest.raises(TransientError):
            await desk.admit(raw[1], access.CHECKOUT_READ)
