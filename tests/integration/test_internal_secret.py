"""Only the gateway and services of ours reach the order service: whoever else can open a connection to it learns and changes nothing."""

import json
import pathlib
import stat
import uuid
from collections.abc import Callable, Generator, Mapping

import httpx
import psycopg
import pytest
from integration import order_walk

from sagapost_ops import plan, state
from sagapost_sandbox.testing import polling, servers, services

Start = Callable[[str, Mapping[str, str]], services.Service]
SECRET = "8b1d6f0a93c7e25b4d80f61ca95e3b72"
CART = {"user_id": 1, "user_email": "test@example.com", "items": [{"product_id": 1, "quantity": 1, "price": "1299.99"}]}
SAGA = "0193b1c2-7d4e-7a10-9f0e-5f2f6c1d8a11"
PORTS = plan.choose_ports(plan.Options(), lambda port, _: port)
WRONG: list[list[tuple[str, str]]] = [
    [],
    [("Sagapost-Secret", "")],
    [("Sagapost-Secret", SECRET[:-1])],
    [("Sagapost-Secret", SECRET + "0")],
    [("Sagapost-Secret", SECRET.upper())],
    [("Sagapost-Secret", SECRET), ("Sagapost-Secret", "x")],
    [("Sagapost-Secret", "x"), ("Sagapost-Secret", SECRET)],
    [("Authorization", f"Bearer {SECRET}")],
]


ROUTES = [
    ("POST", "/checkout"),
    ("GET", "/sagas?limit=200"),
    ("GET", f"/sagas/{SAGA}"),
    ("GET", f"/sagas/{SAGA}/events"),
    ("POST", f"/sagas/{SAGA}/receipt"),
    ("POST", f"/sagas/{SAGA}/compensate"),
    ("GET", "/ops/sagas"),
    ("POST", f"/ops/sagas/{SAGA}/compensate"),
    ("GET", "/orders/1"),
    ("POST", "/orders/1/cancel"),
    ("GET", "/products"),
    ("POST", "/clients/admit"),
    ("GET", "/no-such-path"),
    ("OPTIONS", "/checkout"),
    ("GET", "/health/../products"),
    ("GET", "/health/live/../../products"),
    ("POST", "/"),
    ("POST", "/health"),
    ("PUT", "/health/ready"),
]


@pytest.fixture(scope="module")
def database(database_server: servers.Databases, templates: Mapping[str, str]) -> Generator[str]:
    """Make the database of this module's order service."""
    with order_walk.database(database_server, templates) as dsn:
        yield dsn


@pytest.fixture(scope="module")
def order(database: str, run_folder: pathlib.Path) -> Generator[services.Service]:
    """Run an order service that has a secret."""
    env = {"DATABASE_URL": database, "AMQP_URL": order_walk.NOWHERE, "INTERNAL_SECRET": SECRET}
    with order_walk.running("order", run_folder / "order-with-a-secret.log", **env) as running:
        yield running


@pytest.fixture
def client(order: services.Service) -> Generator[httpx.Client]:
    """Call the order service itself, past the gateway."""
    with httpx.Client(base_url=order.url, timeout=20) as made:
        yield made


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_caller_without_the_secret_is_refused(client: httpx.Client, database: str, method: str, path: str) -> None:
    """Whatever the route, the client it says it is, and the secret it guesses: 401, a problem, and no row is written."""
    for headers in WRONG:
        claimed = [("Sagapost-Client", "the-ceo"), ("If-Match", "*"), ("Content-Type", "application/json"), *headers]

        answer = client.request(method, path, headers=claimed, content=json.dumps({**CART, "reason": "because"}))

        assert answer.status_code == 401, headers
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["type"] == "/problems/unauthorized"
        assert SECRET not in answer.text
    with psycopg.connect(database) as connection:
        row = connection.execute("SELECT count(*) FROM orders WHERE client = 'the-ceo'").fetchone()
    assert row == (0,)


def test_who_looks_whether_it_lives_needs_no_secret(client: httpx.Client) -> None:
    """GET / and the health paths stay open; a wrong secret is refused there too, so that a gateway with one is not ready."""
    paths = ("/", "/health", "/health/live", "/health/ready")

    assert [client.get(path).status_code for path in paths] == [200] * 4
    assert [client.get(path, headers={"Sagapost-Secret": "x"}).status_code for path in paths] == [401] * 4


def test_the_gateway_sends_the_secret_with_every_call(start_service: Start, order: services.Service) -> None:
    """Checkout, long poll, stream, list of operators, catalogue, admission of a key: all pass, and the secret reaches no client."""
    env = {"SAGAPOST_ORDER_URL": order.url, "SAGAPOST_PAGE_PORT": "0", "SAGAPOST_INTERNAL_SECRET": SECRET}
    gateway = start_service("gateway", env).wait_ready()
    with httpx.Client(base_url=gateway.url, timeout=20) as client:
        placed = client.post("/api/checkout", json=CART)
        saga = f"/api/sagas/{placed.json()['saga_id']}"
        with client.stream("GET", f"{saga}/events") as stream:
            first = next(stream.iter_lines())
        answers = [
            client.get(saga, headers={"Prefer": "wait=1"}),
            client.get("/api/ops/sagas"),
            client.get("/api/products"),
            client.get("/health/ready"),
        ]

    assert (placed.status_code, stream.status_code, bool(first)) == (202, 200, True)
    assert [answer.status_code for answer in answers] == [200] * 4
    assert not any(SECRET in f"{answer.text}{answer.headers}" for answer in (placed, *answers))
    assert SECRET not in gateway.logs() + order.logs()


@pytest.mark.parametrize("secret", ["", SECRET[::-1]])
def test_a_gateway_with_another_secret_is_not_ready(start_service: Start, order: services.Service, secret: str) -> None:
    """Customers get 503 and not 401, for their key is not what is wrong; readiness fails, and the log says what to set."""
    env = {"SAGAPOST_ORDER_URL": order.url, "SAGAPOST_PAGE_PORT": "0", "SAGAPOST_INTERNAL_SECRET": secret}
    gateway = start_service("gateway", env)
    with httpx.Client(base_url=gateway.url, timeout=20) as client:
        polling.eventually(lambda: _status(client, "/health/live") == 200, 20)
        checkout = client.post("/api/checkout", json=CART)
        ready = client.get("/health/ready")

    assert (checkout.status_code, checkout.headers["content-type"]) == (503, "application/problem+json")
    assert (ready.status_code, ready.json()["failing"]) == (503, ["order"])
    assert "SAGAPOST_INTERNAL_SECRET" in gateway.logs()


def test_every_stack_has_a_secret_of_its_own(tmp_path: pathlib.Path) -> None:
    """`up` draws it once a folder, readable for its owner alone, and hands gateway, order and email the file; others do not get it."""
    homes = [tmp_path / name for name in ("one", "two")]
    for home in homes:
        state.prepare(home)
    drawn = [(home / state.INTERNAL).read_text(encoding="utf-8") for home in homes]
    state.prepare(homes[0])

    made = plan.make(plan.Options(), PORTS, homes[0])

    assert len({text.strip() for text in drawn}) == 2
    assert all(len(text.strip()) == 64 for text in drawn)
    assert stat.S_IMODE((homes[0] / state.INTERNAL).stat().st_mode) == 0o600
    assert (homes[0] / state.INTERNAL).read_text(encoding="utf-8") == drawn[0]
    holders = {unit.name for unit in made.units if unit.environ.get("SAGAPOST_INTERNAL_SECRET_FILE") == str(homes[0] / state.INTERNAL)}
    assert holders == {"gateway", "order", "email"}
    assert not any(drawn[0].strip() in text for unit in made.units for text in (*unit.environ.values(), *unit.arguments))


def test_a_stack_from_before_is_restarted_without_a_secret(tmp_path: pathlib.Path) -> None:
    """Old and new processes side by side: an old gateway does not send one, so the new order service must not ask for it."""
    made = plan.make(plan.Options(), PORTS, tmp_path / str(uuid.uuid4()))

    assert not any("SAGAPOST_INTERNAL_SECRET_FILE" in unit.environ for unit in made.units)


def _status(client: httpx.Client, path: str) -> int:
    try:
        return client.get(path).status_code
    except httpx.TransportError:
        return 0
