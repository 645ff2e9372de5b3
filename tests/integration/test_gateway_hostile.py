"""One client's worst requests and another client's checkouts: what one key sends keeps no order of another's back."""

import asyncio
import collections
import itertools
import re
from collections.abc import Callable

import psycopg
import pytest
from integration import costly_requests

from sagapost_contracts import access
from sagapost_ops.keys import queries
from sagapost_sandbox import ports
from sagapost_sandbox.testing import services

pytestmark = pytest.mark.anyio

Start = Callable[[str, dict[str, str]], services.Service]

CHECKOUTS = 40
HOSTILE = 8  # connections at once, each of which sends its next request as soon as the last one is answered
CART = b'{"user_id":1,"user_email":"test@example.com","items":[{"product_id":1,"quantity":1,"price":"1299.99"}]}'
LISTS = {"orders": (b"GET", b"/api/orders?limit=100", b""), "no such status": (b"GET", b"/api/orders?status=attention", b"")}


def key_of(dsn: str, client: str, rate_per_s: int) -> bytes:
    """Store a key as the command does, and return the header that carries it."""
    key = access.new_key("development")
    with psycopg.connect(dsn, autocommit=True) as conn:
        queries.add(
            conn,
            client=client,
            label="",
            env="development",
            scopes=("checkout:read", "checkout:write"),
            sha256=access.digest(key),
            rate_per_s=rate_per_s,
            burst=2 * rate_per_s,
        )
    return f"Authorization: Bearer {key}\r\n".encode()


async def status_of(service: services.Service, sent: bytes) -> int:
    """Send one request on a connection of its own and return the status of the answer; 0 when there is none."""
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    try:
        writer.write(sent)
        received = await asyncio.wait_for(reader.read(-1), 60)
    finally:
        writer.close()
    found = re.match(rb"HTTP/1\.1 ([0-9]{3}) ", received)
    return int(found[1]) if found else 0


def worst_of(key: bytes) -> list[bytes]:
    """Return every costly request with this key, which stands in each of them unless it has an Authorization of its own."""
    bodies = [
        costly_requests.request(b"POST", b"/api/checkout", costly_requests.JSON + key, body) for body in costly_requests.BODIES.values()
    ]
    heads = {**costly_requests.HEADS, **LISTS}.values()
    return bodies + [costly_requests.request(*head[:2], head[2] if b"Authorization" in head[2] else head[2] + key) for head in heads]


async def test_a_client_that_sends_the_worst_requests_costs_another_no_checkout(start_service: Start, order_db: str) -> None:
    """One key sends all costly requests again and again, as fast as it is let; each checkout of another client is accepted meanwhile."""
    env = {"SAGAPOST_DATABASE_URL": order_db, "SAGAPOST_AMQP_URL": f"amqp://nobody:nothing@127.0.0.1:{ports.trial(1)[0]}/"}
    order = start_service("order", env).wait_ready()
    gateway = start_service("gateway", {"SAGAPOST_ORDER_URL": order.url, "SAGAPOST_PAGE_PORT": "0"}).wait_ready()
    hostile, good = key_of(order_db, "hostile", 1000), key_of(order_db, "good", 1000)
    worst = itertools.cycle(worst_of(hostile))
    done = asyncio.Event()
    answers: collections.Counter[int] = collections.Counter()

    async def attack() -> None:
        while not done.is_set():
            answers[await status_of(gateway, next(worst))] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(HOSTILE):
            group.create_task(attack())
        checkout = costly_requests.request(b"POST", b"/api/checkout", costly_requests.JSON + good, CART)
        found = [await status_of(gateway, checkout) for _ in range(CHECKOUTS)]
        done.set()

    assert found == [202] * CHECKOUTS
    assert answers.total() >= CHECKOUTS
    assert set(answers) <= {200, 400, 401, 403, 404, 412, 415, 422, 429, 503}
