"""More than the gateway can serve, for a short time: what is accepted is there, what is not is told so, and it is over when it is over."""

import asyncio
import collections
import contextlib
import os
import pathlib
import re
import time
import uuid
from collections.abc import AsyncGenerator, Callable

import aiohttp
import psycopg
import pytest

from sagapost_sandbox import ports
from sagapost_sandbox.testing import polling, services

pytestmark = pytest.mark.anyio

CART = b'{"user_id": 1, "user_email": "test@example.com", "items": [{"product_id": 1, "quantity": 1, "price": "1299.99"}]}'
SECONDS = float(os.environ.get("SAGAPOST_OVERLOAD_S", "3"))
CLIENTS = 120
PLACES = 4
GROWTH_MAX_MB = 40

Start = Callable[[str, dict[str, str]], services.Service]
Call = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
def pair(start_service: Start, order_db: str) -> tuple[services.Service, services.Service]:
    """Start a gateway that lets few calls through, in front of an order service with its database."""
    broker = f"amqp://nobody:nothing@127.0.0.1:{ports.trial(1)[0]}/"
    order = start_service("order", {"SAGAPOST_DATABASE_URL": order_db, "SAGAPOST_AMQP_URL": broker}).wait_ready()
    env = {"SAGAPOST_ORDER_URL": order.url, "SAGAPOST_PAGE_PORT": "0", "SAGAPOST_MAX_CONNECTIONS": str(PLACES)}
    env |= {"SAGAPOST_MAX_QUEUED": str(PLACES), "SAGAPOST_METRICS_PORT": str(ports.trial(1)[0])}
    return start_service("gateway", env).wait_ready(), order


async def hammer(session: aiohttp.ClientSession, url: str, found: collections.Counter[tuple[int, str]]) -> None:
    """Check out as fast as answers come, never waiting as long as Retry-After says."""
    ends_s = time.monotonic() + SECONDS
    while time.monotonic() < ends_s:
        headers = {"Content-Type": "application/json", "Idempotency-Key": uuid.uuid4().hex}
        async with session.post(f"{url}/api/checkout", data=CART, headers=headers) as answer:
            body = await answer.json(content_type=None)
            assert answer.status == 202 or answer.headers["Retry-After"]
            found[answer.status, str(body.get("type", ""))] += 1


def rss_mb(service: services.Service) -> float:
    """Read how much memory a process holds."""
    status = pathlib.Path(f"/proc/{service.pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


async def shed(gateway: services.Service) -> dict[str, int]:
    """Read how many were refused, and where."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{gateway.env['SAGAPOST_METRICS_PORT']}/metrics") as answer,
    ):
        text = await answer.text()
    return {
        where: int(float(count)) for where, count in re.findall(r'^sagapost_gateway_shed_total{where="(\w+)"} (.+)$', text, re.MULTILINE)
    }


async def test_what_is_too_much_is_refused_and_what_is_accepted_is_kept(
    pair: tuple[services.Service, services.Service], order_db: str
) -> None:
    """Only 202, 429 and 503; an order for each 202 and for nothing else; memory stays; the first call afterwards is served."""
    gateway, order = pair
    found: collections.Counter[tuple[int, str]] = collections.Counter()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        before_mb = rss_mb(gateway), rss_mb(order)
        await asyncio.gather(*(hammer(session, gateway.url, found) for _ in range(CLIENTS)))
        after_mb = rss_mb(gateway), rss_mb(order)

        async def served() -> bool:
            async with session.get(f"{gateway.url}/api/products/1") as answer:
                return answer.status == 200

        await polling.eventually(served, 5)

    with psycopg.connect(order_db) as connection:
        stored = connection.execute("SELECT count(*) FROM orders").fetchone()
    refused = collections.Counter(await shed(gateway))
    assert refused["gate"] == 0, "refused only when most of the work was done"
    assert refused["door"] + refused["queue"] == found[503, "/problems/overloaded"]
    assert set(found) <= {(202, ""), (429, "/problems/rate-limited"), (503, "/problems/overloaded")}
    assert found[503, "/problems/overloaded"] > 0
    assert stored == (found[202, ""],)
    assert found[202, ""] > 0
    assert all(after - before < GROWTH_MAX_MB for before, after in zip(before_mb, after_mb, strict=True))
    assert [line for line in gateway.lines() if line["level"] == "error"] == []


async def test_bodies_that_never_come_whole_take_nobodys_place(pair: tuple[services.Service, services.Service]) -> None:
    """Far more calls than there are places, each with a part of its body: whoever sends a whole one is served."""
    gateway, _ = pair
    async with contextlib.AsyncExitStack() as stack:
        await many_begun(stack, gateway)
        async with aiohttp.ClientSession() as session:
            for _ in range(20):
                headers = {"Content-Type": "application/json"}
                async with session.post(f"{gateway.url}/api/checkout", data=CART, headers=headers) as answer:
                    assert answer.status == 202, await answer.text()


async def test_bodies_that_come_whole_together_are_as_many_as_there_are_places(pair: tuple[services.Service, services.Service]) -> None:
    """Who was let in to send a body is refused when it is whole and others have the places: before anything is done with it."""
    gateway, _ = pair
    async with contextlib.AsyncExitStack() as stack:
        calls = await many_begun(stack, gateway)
        for _, writer in calls:
            writer.write(CART[-1:])
        heads = [await reader.readuntil(b"\r\n\r\n") for reader, _ in calls]

    found = collections.Counter(int(head[9:12]) for head in heads)
    assert set(found) == {202, 503}
    assert all(b"retry-after: 1\r\n" in head for head in heads if head[9:12] == b"503")
    refused = collections.Counter(await shed(gateway))
    assert refused["gate"] == 0
    assert refused["door"] + refused["queue"] == found[503]


async def many_begun(stack: contextlib.AsyncExitStack, gateway: services.Service) -> list[Call]:
    """Begin them all within the ten seconds that a body may take: as many at a time as find a place at the door."""
    calls: list[Call] = []
    for _ in range(CLIENTS // PLACES):
        calls += await asyncio.gather(*(stack.enter_async_context(begun(gateway)) for _ in range(PLACES)))
    return calls


@contextlib.asynccontextmanager
async def begun(gateway: services.Service) -> AsyncGenerator[Call]:
    """Send a checkout but for the last byte of its body; the gateway works on it by then, as its 100 Continue says."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    head = b"POST /api/checkout HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
    writer.write(head + b"Content-Length: %d\r\n\r\n" % len(CART) + CART[:-1])
    try:
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        yield reader, writer
    finally:
        writer.transport.abort()
