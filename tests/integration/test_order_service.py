"""The order service as a process: what it answers over HTTP, what it hears on its queue, and what becomes of it when it is killed."""

import functools
import re
import signal
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import httpx
import psycopg
import pytest
from psycopg import rows

from sagapost_chassis import amqp, ids
from sagapost_contracts import envelope, events, topology
from sagapost_ops import migrations
from sagapost_sandbox import databases
from sagapost_sandbox.testing import servers, services

pytestmark = pytest.mark.anyio

Json = dict[str, Any]
Sql = psycopg.Connection[Json]
Start = Callable[[str, Mapping[str, str]], services.Service]
NOWHERE = "amqp://guest:guest@127.0.0.1:1/"
CART: Json = {"user_id": 1, "user_email": "test@example.com", "items": [{"product_id": 1, "quantity": 1, "price": "1299.99"}]}
get, post = functools.partial(httpx.get, timeout=20), functools.partial(httpx.post, timeout=20)
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture
def servers_env(order_db: str, vhost: str) -> dict[str, str]:
    """Give the variables that name this test's database and virtual host."""
    return {"SAGAPOST_DATABASE_URL": order_db, "SAGAPOST_AMQP_URL": vhost}


@pytest.fixture
def service(servers_env: Mapping[str, str], start_service: Start) -> services.Service:
    """Run the order service on them."""
    return start_service("order", servers_env).wait_ready()


@pytest.fixture(scope="module")
def shared_db(database_server: servers.Databases, templates: Mapping[str, str]) -> Generator[str]:
    """Give one database to all tests here that only look at answers."""
    name = f"order_{uuid.uuid4().hex}"
    databases.clone(database_server.admin_dsn, templates["order"], name, "order_user")
    yield database_server.dsn("order_user", "order_password", name)
    databases.drop(database_server.admin_dsn, name)


@pytest.fixture(scope="module")
def alone(shared_db: str, tmp_path_factory: pytest.TempPathFactory) -> Generator[services.Service]:
    """Run one order service without a broker for all tests here that only look at answers."""
    env = {"SAGAPOST_DATABASE_URL": shared_db, "SAGAPOST_AMQP_URL": NOWHERE}
    running = services.Service("sagapost_order", env, tmp_path_factory.mktemp("order") / "service.log")
    try:
        yield running.wait_ready()
    finally:
        running.kill()


@pytest.fixture
def sql(order_db: str) -> Generator[Sql]:
    """Connect past the service, to see what it wrote."""
    with psycopg.connect(order_db, autocommit=True, row_factory=rows.dict_row) as connection:
        yield connection


@pytest.fixture
async def publisher(vhost: str) -> AsyncGenerator[amqp.Publisher]:
    """Publish as payment and email do."""
    async with amqp.Publisher(vhost, "test") as opened:
        yield opened


async def say(publisher: amqp.Publisher, message: events.Message, message_id: UUID | None = None) -> None:
    """Publish a message on the topic exchange."""
    sealed = envelope.seal(
        message, message_id=message_id or ids.uuid7(), source="test", time=datetime.now(UTC), causation_id=None, traceparent=None
    )
    await publisher.publish(amqp.message_of(sealed), exchange=topology.EXCHANGE, routing_key=sealed.routing_key)


def processed(order: Json, **changes: object) -> events.PaymentProcessed:
    """Say that an order's payment was taken."""
    fields: Json = {
        "order_id": order["id"],
        "saga_id": UUID(order["saga_id"]),
        "amount": Decimal(order["total_amount"]),
        "payment_id": 1,
        "payment_version": 1,
        "transaction_id": "tx",
        "captured_at": datetime.now(UTC),
        "user_email": order["user_email"],
        "items": (),
    }
    return events.PaymentProcessed(**(fields | changes))


def sent(order: Json) -> events.EmailSent:
    """Say that an order's receipt was taken."""
    return events.EmailSent(order_id=order["id"], saga_id=UUID(order["saga_id"]), template=events.RECEIPT, smtp_message_id="<m>")


def checkout(service: services.Service, **headers: str) -> httpx.Response:
    """Check out."""
    return post(f"{service.url}/checkout", json=CART, headers=headers)


def saga(service: services.Service, order: Json) -> Json:
    """Ask for an order's saga."""
    found: Json = get(f"{service.url}/sagas/{order['saga_id']}").json()
    return found


def order_status(service: services.Service, order: Json) -> str:
    """Ask where an order stands."""
    return str(get(f"{service.url}/orders/{order['id']}/status").json()["status"])


def test_checkout_answers_202_in_the_contract_s_shape(alone: services.Service) -> None:
    """Status, headers and every field of the answer are those that clients are written against, broker or not."""
    began_s = time.perf_counter()
    answer = checkout(alone)
    elapsed_ms = 1000 * (time.perf_counter() - began_s)

    assert answer.status_code == 202
    body = answer.json()
    path = f"/api/sagas/{body['saga_id']}"
    assert (answer.headers["location"], answer.headers["retry-after"]) == (path, "1")
    assert list(body) == [
        *("id", "user_id", "user_email", "status", "currency", "total_amount", "items"),
        *("processing_duration_ms", "created_at", "saga_id", "links"),
    ]
    assert body["items"] == CART["items"]
    assert (body["status"], body["currency"], body["total_amount"]) == ("pending", "USD", "1299.99")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", body["created_at"])
    order = f"/api/orders/{body['id']}"
    assert body["links"] == {"saga": path, "events": f"{path}/events", "order": order, "cancel": f"{order}/cancel"}
    assert 0 <= body["processing_duration_ms"] <= elapsed_ms + 1


def test_order_status_and_saga_can_be_read(alone: services.Service) -> None:
    """After a checkout the order, its status and its saga are there, the saga with its trace and an ETag."""
    order = checkout(alone, traceparent=f"00-{TRACE}-00f067aa0ba902b7-01").json()

    shown = get(f"{alone.url}/orders/{order['id']}").json()
    status = get(f"{alone.url}/orders/{order['id']}/status").json()
    answer = get(f"{alone.url}/sagas/{order['saga_id']}")

    assert shown == {**order, "updated_at": order["created_at"]}
    assert status == {"id": order["id"], "status": "pending", "saga_id": order["saga_id"], "saga_state": "created"}
    found = answer.json()
    assert answer.headers["etag"] == '"1"'
    assert (found["state"], found["version"], found["done"], found["trace_id"]) == ("created", 1, False, TRACE)
    assert (found["captured"], found["refunded"], found["currency"]) == ("0.00", "0.00", "USD")
    assert [(step["name"], step["state"]) for step in found["steps"]] == [("order", "done"), ("payment", "running"), ("email", "pending")]
    assert [(row["seq"], row["from"], row["to"], row["event"]) for row in found["history"]] == [(1, "none", "created", "OrderCreated")]
    unchanged = get(f"{alone.url}/sagas/{order['saga_id']}", headers={"If-None-Match": '"1"'})
    assert (unchanged.status_code, unchanged.content) == (304, b"")


def test_catalogue_can_be_read(alone: services.Service) -> None:
    """The catalogue starts with the three products every client knows."""
    listed = get(f"{alone.url}/products").json()
    one = get(f"{alone.url}/products/1").json()

    assert [(product["id"], product["name"], product["price"]) for product in listed[:3]] == [
        (1, "Gaming Laptop", "1299.99"),
        (2, "Wireless Mouse", "49.99"),
        (3, "Mechanical Keyboard", "149.99"),
    ]
    assert len(listed) == 12
    assert one == listed[0]


@pytest.mark.parametrize(
    "path",
    [
        *("/orders/0", "/orders/999", "/orders/abc", "/orders/-1", "/orders/1.0", "/orders/01", "/orders/99999999999999999999"),
        *("/orders/9223372036854775808", "/orders/%D9%A1", "/orders/1%27%20or%201=1/status", "/orders/1%00"),
        *("/sagas/abc", "/sagas/00000000-0000-0000-0000-000000000000", "/sagas/%00", "/products/0", "/products/x", "/nothing"),
    ],
)
def test_what_is_not_there_is_a_404_problem(alone: services.Service, path: str) -> None:
    """An id that does not exist and one that cannot exist get the same answer."""
    answer = get(alone.url + path)

    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "/problems/not-found"


@pytest.mark.parametrize(
    ("headers", "status", "slug"),
    [
        ({"content-type": "text/plain"}, 415, "unsupported-media-type"),
        ({"content-type": "application/json; charset=latin-1"}, 415, "unsupported-media-type"),
        ({"content-type": "application/jsonp"}, 415, "unsupported-media-type"),
        ({"content-type": ""}, 415, "unsupported-media-type"),
        ({"content-encoding": "gzip"}, 415, "unsupported-media-type"),
        ({"content-encoding": "identity"}, 415, "unsupported-media-type"),
        ({"idempotency-key": ""}, 400, "idempotency-key-invalid"),
        ({"idempotency-key": "a b"}, 400, "idempotency-key-invalid"),
        ({"idempotency-key": "a,b"}, 400, "idempotency-key-invalid"),
        ({"idempotency-key": '""'}, 400, "idempotency-key-invalid"),
        ({"idempotency-key": '"a'}, 400, "idempotency-key-invalid"),
        ({"idempotency-key": "a" * 256}, 400, "idempotency-key-invalid"),
        ({"idempotency-key": "4111111111111111"}, 400, "idempotency-key-invalid"),
        ({"idempotency-key": "4111_1111_1111_1111"}, 400, "idempotency-key-invalid"),
        ({"idempotency-key": "4111.1111.1111.1111"}, 400, "idempotency-key-invalid"),
        ({"idempotency-key": '"jane@example.com"'}, 400, "idempotency-key-invalid"),
        ({"idempotency-key": "cart:jane%40example.com:7"}, 400, "idempotency-key-invalid"),
    ],
)
def test_wrong_header_is_a_problem(alone: services.Service, shared_db: str, headers: dict[str, str], status: int, slug: str) -> None:
    """A media type, an encoding or a key that is not accepted is named, and nothing is stored."""
    stored = _orders(shared_db)

    answer = post(
        f"{alone.url}/checkout",
        content=httpx.Request("POST", "/", json=CART).content,
        headers={"content-type": "application/json"} | headers,
    )

    assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{slug}")
    assert _orders(shared_db) == stored


def _orders(dsn: str) -> int:
    with psycopg.connect(dsn) as connection:
        return int((connection.execute("SELECT count(*) FROM orders").fetchone() or (0,))[0])


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "application/json; charset=utf-8"},
        {"content-type": 'Application/JSON;charset="UTF-8"'},
        {"idempotency-key": '"8e03978e-40d5-43e8-bc93-6894a57f9324"'},
        {"idempotency-key": "a" * 255},
        {"idempotency-key": "cart@7"},
        {"idempotency-key": "1732870000004"},
    ],
)
def test_other_spellings_of_good_headers_are_accepted(alone: services.Service, headers: dict[str, str]) -> None:
    """Case, quotes and a charset of UTF-8 make no difference."""
    content = httpx.Request("POST", "/", json=CART).content

    assert post(f"{alone.url}/checkout", content=content, headers={"content-type": "application/json"} | headers).status_code == 202


def test_repeated_idempotency_key_is_refused(alone: services.Service) -> None:
    """Two keys are no key."""
    headers = [("content-type", "application/json"), ("idempotency-key", "a"), ("idempotency-key", "b")]

    answer = post(f"{alone.url}/checkout", content=b"{}", headers=headers)

    assert (answer.status_code, answer.json()["type"]) == (400, "/problems/idempotency-key-invalid")


def test_wrong_bodies_are_problems_that_show_nothing_internal(alone: services.Service) -> None:
    """Refusals carry slug, pointers and the current price, and never a traceback; a card number is neither repeated nor logged."""
    card = "4111111111111111"
    changed = post(f"{alone.url}/checkout", json=CART | {"items": [{"product_id": 1, "quantity": 1, "price": "0.01"}]})
    unknown = post(f"{alone.url}/checkout", json=CART | {"items": [{"product_id": 99, "quantity": 1, "price": "0.01"}]})
    carded = post(f"{alone.url}/checkout", json=CART | {"payment_method": card})
    broken = post(f"{alone.url}/checkout", content=b"[" * 8_000, headers={"content-type": "application/json"})
    large = post(f"{alone.url}/checkout", content=b" " * (8 * 1024 + 1), headers={"content-type": "application/json"})

    assert (changed.status_code, changed.json()["type"]) == (422, "/problems/price-changed")
    assert changed.json()["errors"] == [{"pointer": "/items/0/price", "code": "price_changed", "current_price": "1299.99"}]
    assert (unknown.status_code, unknown.json()["type"]) == (422, "/problems/unknown-product")
    assert (carded.status_code, carded.json()["type"]) == (422, "/problems/validation-failed")
    assert (broken.status_code, large.status_code) == (400, 413)
    assert card not in carded.text + alone.logs()
    assert "test@example.com" not in alone.logs()
    assert "Traceback" not in "".join(answer.text for answer in (changed, unknown, carded, broken, large)) + alone.logs()


def test_without_broker_it_is_ready_and_degraded(alone: services.Service) -> None:
    """A broker that is down shows in readiness, and checkout goes on answering 202."""
    ready = get(f"{alone.url}/health/ready")

    assert (ready.status_code, ready.json()["degraded"]) == (200, ["rabbitmq"])
    assert checkout(alone).status_code == 202


async def test_happy_path_over_the_broker_ends_notified(
    service: services.Service, publisher: amqp.Publisher, eventually: Callable[..., Any]
) -> None:
    """Payment's and email's events arrive through the real exchange, and the resource shows where the saga stands."""
    order = checkout(service).json()

    await say(publisher, processed(order))
    paid = eventually(lambda: (found := saga(service, order))["state"] == "paid" and found)
    await say(publisher, sent(order))
    done = eventually(lambda: (found := saga(service, order))["done"] and found)

    assert (paid["captured"], paid["version"], paid["steps"][2]["state"]) == ("1299.99", 2, "running")
    assert (done["state"], done["version"], done["deadline_at"]) == ("notified", 3, None)
    assert [(step["name"], step["state"]) for step in done["steps"]] == [("order", "done"), ("payment", "done"), ("email", "done")]
    assert all(step["ms"] >= 0 for step in done["steps"])
    assert order_status(service, order) == "completed"


async def test_event_for_an_unknown_saga_waits_on_the_retry_ladder(
    service: services.Service, publisher: amqp.Publisher, sql: Sql, eventually: Callable[..., Any]
) -> None:
    """An event that comes before its saga is not dropped: it is set aside, comes again and is heard then."""
    order = checkout(service).json()
    early = processed(order, saga_id=ids.uuid7())

    await say(publisher, early)
    eventually(lambda: any(line.get("outcome") == "retry_in_1s" for line in service.lines()))
    await say(publisher, processed(order))
    eventually(lambda: saga(service, order)["state"] == "paid")

    assert sql.execute("SELECT count(*) AS n FROM inbox").fetchone() == {"n": 1}


async def test_event_of_another_order_goes_to_the_dead_letters(
    service: services.Service, publisher: amqp.Publisher, eventually: Callable[..., Any]
) -> None:
    """What no retry can mend is a dead letter at first sight, and the queue goes on."""
    order = checkout(service).json()

    await say(publisher, processed(order, order_id=order["id"] + 1))
    eventually(lambda: any(line.get("outcome") == "dead" for line in service.lines()))
    await say(publisher, processed(order))

    eventually(lambda: saga(service, order)["state"] == "paid")


@pytest.mark.parametrize(("point", "orders"), [("order.before_commit", 0), ("order.after_commit", 1)])
def test_kill_around_the_commit_leaves_all_or_nothing(order_db: str, sql: Sql, start_service: Start, point: str, orders: int) -> None:
    """Killed before the commit there is no trace of the order; killed after it, order and event are both there."""
    env = {"SAGAPOST_DATABASE_URL": order_db, "SAGAPOST_AMQP_URL": NOWHERE, "SAGAPOST_CRASH": point}
    service = start_service("order", env).wait_ready()

    with pytest.raises(httpx.TransportError):
        checkout(service)

    assert service.wait() == -signal.SIGKILL
    found = sql.execute("SELECT (SELECT count(*) FROM orders) AS orders, (SELECT count(*) FROM outbox) AS events").fetchone()
    assert found == {"orders": orders, "events": orders}


async def test_kill_between_commit_and_acknowledgement_takes_effect_once(
    servers_env: Mapping[str, str], publisher: amqp.Publisher, start_service: Start, eventually: Callable[..., Any]
) -> None:
    """The broker delivers again what was committed and not acknowledged, and the inbox lets nothing happen twice."""
    env = dict(servers_env)
    dying = start_service("order", env | {"SAGAPOST_CRASH": "saga.after_commit"}).wait_ready()
    order = checkout(dying).json()

    await say(publisher, processed(order))
    assert dying.wait() == -signal.SIGKILL
    service = start_service("order", env).wait_ready()
    eventually(lambda: any(line["event"] == "message.handled" for line in service.lines()))

    found = saga(service, order)
    assert (found["state"], len(found["history"])) == ("paid", 2)


def test_database_that_goes_away_is_503_and_comes_back(
    private_databases: servers.Databases, start_service: Start, eventually: Callable[..., Any]
) -> None:
    """Without its database the service is unready and answers 503 with Retry-After; with it again, 202."""
    dsn = private_databases.create("order_user", "order_password", "order_db")
    migrations.upgrade(dsn, "order")
    service = start_service("order", {"SAGAPOST_DATABASE_URL": dsn, "SAGAPOST_AMQP_URL": NOWHERE}).wait_ready()

    private_databases.kill()
    refused = httpx.post(f"{service.url}/checkout", json=CART, timeout=10)
    ready = httpx.get(f"{service.url}/health/ready", timeout=10)
    private_databases.start()

    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert refused.headers["content-type"] == "application/problem+json"
    assert (ready.status_code, ready.json()["failing"]) == (503, ["database"])
    eventually(lambda: httpx.post(f"{service.url}/checkout", json=CART, timeout=10).status_code == 202, deadline_s=15)


def test_start_without_its_database_says_what_to_do(start_service: Start) -> None:
    """A database that is not there ends the start with one sentence and exit code 2, without the password."""
    env = {"SAGAPOST_DATABASE_URL": "postgresql://order_user:secret@127.0.0.1:1/order_db", "SAGAPOST_AMQP_URL": NOWHERE}
    service = start_service("order", env)

    assert service.wait() == 2
    last = service.logs().strip().splitlines()[-1]
    assert "cannot be used" in last
    assert "secret" not in service.logs()


def test_start_without_settings_names_them_all(start_service: Start) -> None:
    """Missing variables are all named at once, exit code 2."""
    service = start_service("order", {})

    assert service.wait() == 2
    assert service.logs().splitlines() == ["SAGAPOST_DATABASE_URL is not set", "SAGAPOST_AMQP_URL is not set"]


def test_taken_port_says_so(alone: services.Service, start_service: Start) -> None:
    """A port that somebody else has ends the start with one sentence and exit code 2."""
    service = start_service("order", alone.env)

    assert service.wait() == 2
    assert service.logs().splitlines()[-1].startswith(f"port {alone.port} of 127.0.0.1 cannot be used: Address already in use;")


def test_sigterm_ends_the_service_with_zero(order_db: str, start_service: Start) -> None:
    """A deployment stops the service without an error."""
    service = start_service("order", {"SAGAPOST_DATABASE_URL": order_db, "SAGAPOST_AMQP_URL": NOWHERE}).wait_ready()

    assert service.terminate() == 0
