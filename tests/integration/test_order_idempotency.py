"""Repeating a checkout with its Idempotency-Key on real servers: one order, one answer, whatever happens in between."""

import asyncio
import concurrent.futures
import contextlib
import signal
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from typing import Any

import httpx
import msgspec
import psycopg
import pytest
from integration import order_cutter, pool_kit
from psycopg import rows

from sagapost_chassis import db
from sagapost_order import domain, errors, handlers, resources
from sagapost_sandbox.testing import services

pytestmark = pytest.mark.anyio

Json = dict[str, Any]
Sql = psycopg.Connection[Json]
Start = Callable[[str, Mapping[str, str]], services.Service]
NOWHERE = "amqp://guest:guest@127.0.0.1:1/"
CART: Json = {"user_id": 1, "user_email": "test@example.com", "items": [{"product_id": 1, "quantity": 1, "price": "1299.99"}]}
OTHER: Json = CART | {"user_id": 2}
KEY = "8e03978e-40d5-43e8-bc93-6894a57f9324"
REQUEST = domain.parse_checkout(msgspec.json.encode(CART))
ONCE = domain.IdempotencyKey(client="demo", key=KEY, fingerprint=domain.fingerprint(REQUEST))


@pytest.fixture
def env(order_db: str) -> dict[str, str]:
    """Give the variables of an order service on this test's database, without a broker."""
    return {"SAGAPOST_DATABASE_URL": pool_kit.patient(order_db), "SAGAPOST_AMQP_URL": NOWHERE}


@pytest.fixture
def service(env: Mapping[str, str], start_service: Start) -> services.Service:
    """Run the order service."""
    return start_service("order", env).wait_ready()


@pytest.fixture
async def pool(order_db: str) -> AsyncGenerator[db.Pool]:
    """Open a pool on this test's database."""
    async with pool_kit.opened(pool_kit.patient(order_db)) as opened:
        yield opened


@pytest.fixture
def sql(order_db: str) -> Generator[Sql]:
    """Connect past the service, to see what it wrote."""
    with psycopg.connect(order_db, autocommit=True, row_factory=rows.dict_row) as connection:
        yield connection


def checkout(url: str, cart: Json = CART, key: str = KEY, path: str = "/checkout") -> httpx.Response:
    """Check out with a key."""
    return httpx.post(url + path, json=cart, headers={"Idempotency-Key": key}, timeout=20)


async def place(pool: db.Pool) -> domain.Answer:
    """Check out with the key, past HTTP."""
    return await handlers.checkout_once(pool, REQUEST, ONCE, answer=resources.accepted, pay_window_s=900, started_s=time.perf_counter())


def counts(sql: Sql) -> tuple[int, int, int]:
    """Count orders, events and keys."""
    found = sql.execute(
        "SELECT (SELECT count(*) FROM orders) AS orders, (SELECT count(*) FROM outbox) AS events,"
        " (SELECT count(*) FROM idempotency_keys) AS keys"
    ).fetchone()
    return (found or {})["orders"], (found or {})["events"], (found or {})["keys"]


@contextlib.contextmanager
def orders_held(order_db: str) -> Generator[Sql]:
    """Let no order be written: a checkout has its key by then, and waits."""
    with psycopg.connect(order_db, row_factory=rows.dict_row) as holder:
        holder.execute("LOCK TABLE orders IN SHARE MODE")
        yield holder


def waits(sql: Sql) -> bool:
    """Tell whether somebody waits for the orders."""
    return sql.execute("SELECT 1 FROM pg_locks WHERE relation = 'orders'::regclass AND NOT granted").fetchone() is not None


@contextlib.contextmanager
def under_way(url: str, order_db: str, sql: Sql, eventually: Callable[..., Any]) -> Generator[concurrent.futures.Future[httpx.Response]]:
    """Begin a checkout that cannot end before the block does."""
    with concurrent.futures.ThreadPoolExecutor(1) as thread, orders_held(order_db):
        first = thread.submit(checkout, url)
        eventually(lambda: waits(sql))
        yield first


def is_replay(answer: httpx.Response) -> bool:
    """Tell whether an answer says that it is the first one again."""
    return bool(answer.headers.get("idempotent-replayed") == "true")


def same(one: httpx.Response, other: httpx.Response) -> bool:
    """Tell whether two answers are one, byte for byte."""
    names = ("location", "retry-after", "content-type")
    return (one.status_code, one.content, *(one.headers[name] for name in names)) == (
        *(other.status_code, other.content),
        *(other.headers[name] for name in names),
    )


async def test_fifty_identical_checkouts_at_once_are_one_order(service: services.Service, sql: Sql, eventually: Callable[..., Any]) -> None:
    """One begins the order; every other gets exactly its answer, or is told that it is still running; who finds no room comes again."""
    async with httpx.AsyncClient(timeout=20, limits=httpx.Limits(max_connections=50)) as client:

        async def answered() -> httpx.Response | None:
            answer = await client.post(f"{service.url}/checkout", json=CART, headers={"Idempotency-Key": KEY})
            return None if answer.status_code == 503 else answer

        answers = await asyncio.gather(*(eventually(answered, 60) for _ in range(50)))

    (first,) = [answer for answer in answers if answer.status_code == 202 and not is_replay(answer)]
    assert {answer.status_code for answer in answers} <= {202, 409}
    assert all(same(first, answer) for answer in answers if answer.status_code == 202)
    assert all(answer.json()["type"] == "/problems/idempotency-in-progress" for answer in answers if answer.status_code == 409)
    assert counts(sql) == (1, 1, 1)
    again = checkout(service.url)
    assert (is_replay(again), same(first, again)) == (True, True)


async def test_repetition_does_not_wait_for_the_first(
    service: services.Service, order_db: str, sql: Sql, eventually: Callable[..., Any]
) -> None:
    """While the first is under way, more repetitions than there are database connections are told so at once, and hold none."""
    with under_way(service.url, order_db, sql, eventually) as first:
        async with httpx.AsyncClient(timeout=20, base_url=service.url, headers={"Idempotency-Key": KEY}) as client:
            others = await asyncio.gather(*(client.post("/checkout", json=cart) for cart in (CART, OTHER) * 15))
            products = await client.get("/products")
        assert not first.done()
    placed = first.result()

    assert {(answer.status_code, answer.headers["retry-after"]) for answer in others} == {(409, "1")}
    assert others[0].json()["type"] == "/problems/idempotency-in-progress"
    assert (products.status_code, placed.status_code, is_replay(placed)) == (200, 202, False)
    assert same(placed, checkout(service.url))
    assert counts(sql) == (1, 1, 1)


def test_repetition_in_another_spelling_gets_the_first_answer(service: services.Service, sql: Sql) -> None:
    """A number for a string, fields turned round, white space, the default named, quotes around the key: still the same request."""
    first = checkout(service.url)

    body = b'{"payment_method": "pm_card_ok",\n "items": [{"price": 1299.99, "quantity": 1, "product_id": 1}],'
    body += b'\t"user_email": "test@example.com", "user_id": 1}'
    headers = {"Content-Type": "application/json", "Idempotency-Key": f'"{KEY}"'}
    again = httpx.post(f"{service.url}/checkout", content=body, headers=headers)

    assert (first.status_code, is_replay(first)) == (202, False)
    assert (is_replay(again), same(first, again)) == (True, True)
    assert counts(sql) == (1, 1, 1)


def test_key_of_another_body_is_refused(service: services.Service, sql: Sql) -> None:
    """A key names one request; another body is a mistake of the client, begins nothing and spoils nothing."""
    first = checkout(service.url)

    reused = checkout(service.url, OTHER)

    assert (reused.status_code, reused.json()["type"]) == (422, "/problems/idempotency-key-reused")
    assert not is_replay(reused)
    assert counts(sql) == (1, 1, 1)
    assert same(first, checkout(service.url))


def test_another_key_and_no_key_are_orders_of_their_own(service: services.Service, sql: Sql) -> None:
    """Only the same key makes two requests one; without a key nothing is kept."""
    answers = [
        checkout(service.url),
        checkout(service.url, key=KEY.upper()),
        *(httpx.post(f"{service.url}/checkout", json=CART) for _ in "ab"),
    ]

    assert len({answer.json()["id"] for answer in answers}) == 4
    assert not any(is_replay(answer) for answer in answers)
    assert counts(sql) == (4, 4, 2)


@pytest.mark.parametrize(
    ("cart", "slug"),
    [
        (CART | {"user_id": 0}, "validation-failed"),
        (CART | {"items": [{"product_id": 1, "quantity": 1, "price": "0.01"}]}, "price-changed"),
        (CART | {"items": [{"product_id": 99, "quantity": 1, "price": "0.01"}]}, "unknown-product"),
    ],
)
def test_refusal_leaves_the_key_free(service: services.Service, sql: Sql, cart: Json, slug: str) -> None:
    """Nothing is kept for an answer that began no order: the corrected request may use the same key."""
    refused = checkout(service.url, cart)
    kept = counts(sql)
    corrected = checkout(service.url)

    assert (refused.status_code, refused.json()["type"], kept) == (422, f"/problems/{slug}", (0, 0, 0))
    assert (corrected.status_code, is_replay(corrected)) == (202, False)


def test_first_answer_outlives_the_process_and_the_price(
    service: services.Service, env: Mapping[str, str], sql: Sql, start_service: Start
) -> None:
    """After a restart, and after the catalogue has another price, the repetition gets what was answered then."""
    first = checkout(service.url)
    service.terminate()
    sql.execute("UPDATE products SET price = 1.00 WHERE id = 1")

    again = checkout(start_service("order", env).wait_ready().url)

    assert (is_replay(again), same(first, again)) == (True, True)
    assert counts(sql) == (1, 1, 1)


def test_kill_between_commit_and_answer_loses_and_doubles_nothing(env: Mapping[str, str], sql: Sql, start_service: Start) -> None:
    """The client got no answer and repeats: it gets the answer to the order that was stored, and goes on getting it."""
    dying = start_service("order", {**env, "SAGAPOST_CRASH": "order.after_commit"}).wait_ready()
    with pytest.raises(httpx.TransportError):
        checkout(dying.url)
    assert dying.wait() == -signal.SIGKILL
    service = start_service("order", env).wait_ready()

    answers = [checkout(service.url), checkout(service.url)]

    stored = sql.execute("SELECT orders.id, sagas.id::text AS saga_id FROM orders JOIN sagas ON sagas.order_id = orders.id").fetchall()
    assert [{"id": answer.json()["id"], "saga_id": answer.json()["saga_id"]} for answer in answers] == stored * 2
    assert all(is_replay(answer) for answer in answers)
    assert same(*answers)
    assert counts(sql) == (1, 1, 1)


def test_kill_before_the_commit_leaves_the_key_free(
    env: Mapping[str, str], sql: Sql, start_service: Start, eventually: Callable[..., Any]
) -> None:
    """The server notices that the client of the lock is gone; the repetition then begins the one order."""
    dying = start_service("order", {**env, "SAGAPOST_CRASH": "order.before_commit"}).wait_ready()
    with pytest.raises(httpx.TransportError):
        checkout(dying.url)
    assert dying.wait() == -signal.SIGKILL
    assert counts(sql) == (0, 0, 0)
    service = start_service("order", env).wait_ready()

    answer = eventually(lambda: (found := checkout(service.url)).status_code != 409 and found)

    assert (answer.status_code, is_replay(answer)) == (202, False)
    assert counts(sql) == (1, 1, 1)


async def test_commit_without_an_answer_keeps_the_answer(order_db: str, sql: Sql) -> None:
    """The connection breaks after COMMIT was sent: what is answered once that is settled is what a repetition gets."""
    async with order_cutter.Cutter(order_db, deliver=True).running() as cutter, pool_kit.opened(cutter.dsn) as pool:
        first = await place(pool)
        again = await place(pool)

    assert cutter.cuts == 1
    assert again == msgspec.structs.replace(first, replayed=True)
    assert counts(sql) == (1, 1, 1)


async def test_key_that_was_kept_meanwhile_takes_the_order_back(
    pool: db.Pool, order_db: str, sql: Sql, eventually: Callable[..., Any]
) -> None:
    """Even past the lock the table lets a key in once: whoever comes second writes no order."""
    await place(pool)
    sql.execute("UPDATE idempotency_keys SET key = 'first'")

    with orders_held(order_db) as holder:
        second = asyncio.create_task(place(pool))
        await asyncio.to_thread(eventually, lambda: waits(sql))
        holder.execute("UPDATE idempotency_keys SET key = %(key)s", {"key": KEY})

    with pytest.raises(errors.KeyInProgressError):
        await second
    assert counts(sql) == (1, 1, 1)


async def test_keys_are_forgotten_after_seven_days_in_batches(pool: db.Pool, sql: Sql) -> None:
    """One pass deletes a bounded number of the oldest, passes over a row that somebody holds, and leaves what is younger."""
    await place(pool)
    sql.execute(
        "INSERT INTO idempotency_keys (client, key, fingerprint, order_id, status, location, body, created_at)"
        " SELECT client, n::text, fingerprint, order_id, status, location, body, now() - interval '7 days' - n * interval '1 minute'"
        " FROM idempotency_keys, generate_series(-59, 501) AS n"
    )

    with sql.transaction():
        sql.execute("SELECT 1 FROM idempotency_keys WHERE key = '501' FOR UPDATE")
        passes = [await handlers.forget_answers(pool) for _ in range(3)]
    last = await handlers.forget_answers(pool)

    assert (handlers.FORGET_BATCH, passes, last) == (500, [500, 1, 0], 1)
    assert sql.execute("SELECT count(*) AS n FROM idempotency_keys").fetchone() == {"n": 60}


def test_service_forgets_by_itself(
    service: services.Service, env: Mapping[str, str], sql: Sql, start_service: Start, eventually: Callable[..., Any]
) -> None:
    """A running service deletes keys whose time is over, and their orders stay."""
    checkout(service.url, key="old")
    checkout(service.url, key="young")
    sql.execute("UPDATE idempotency_keys SET created_at = now() - interval '8 days' WHERE key = 'old'")

    start_service("order", env).wait_ready()

    eventually(lambda: sql.execute("SELECT key FROM idempotency_keys").fetchall() == [{"key": "young"}], 75)
    assert counts(sql) == (2, 2, 1)


def test_gateway_passes_it_on(
    service: services.Service, sql: Sql, order_db: str, start_service: Start, eventually: Callable[..., Any]
) -> None:
    """Through the public API: the first answer again with its header, and both refusals with theirs, quoted key or bare."""
    url = start_service("gateway", {"SAGAPOST_ORDER_URL": service.url, "SAGAPOST_PAGE_PORT": "0"}).wait_ready().url
    path = "/api/checkout"

    with under_way(service.url, order_db, sql, eventually) as first:
        running = checkout(url, path=path)
    again, reused = checkout(url, key=f'"{KEY}"', path=path), checkout(url, OTHER, path=path)

    assert (running.status_code, running.json()["type"]) == (409, "/problems/idempotency-in-progress")
    assert (running.headers["retry-after"], running.json()["instance"]) == ("1", path)
    assert (is_replay(again), same(first.result(), again)) == (True, True)
    assert (reused.status_code, reused.json()["type"]) == (422, "/problems/idempotency-key-reused")


def test_a_repetition_keeps_status_and_body_whatever_became_of_the_order(service: services.Service) -> None:
    """The order is cancelled meanwhile: the repetition is still the first 202 with `pending`, byte for byte; the order itself says more."""
    first = checkout(service.url)
    cancelled = httpx.post(f"{service.url}/orders/{first.json()['id']}/cancel", timeout=20)
    again = checkout(service.url)
    now = httpx.get(f"{service.url}/orders/{first.json()['id']}/status", timeout=20).json()

    assert (first.status_code, cancelled.status_code, again.status_code) == (202, 202, 202)
    assert (is_replay(again), same(first, again), again.json()["status"]) == (True, True, "pending")
    assert now["status"] == "cancelling"
