"""More than the gateway can serve, for a short time: what is accepted is there, what is not is told so, and it is over when it is over."""

import asyncio
import collections
import os
import pathlib
import re
import time
import uuid
from collections.abc import Callable

import aiohttp
import psycopg
import pytest

from sagapost_sandbox import ports
from sagapost_sandbox.testing import polling, services

pytestmark = pytest.mark.anyio

CART = b'{"user_id": 1, "user_email": "test@example.com", "items": [{"product_id": 1, "quantity": 1, "price": "1299.99"}]}'
SECONDS = float(os.environ.get("SAGAPOST_OVERLOAD_S", "3"))
CLIENTS = 120
GROWTH_MAX_MB = 40

Start = Callable[[str, dict[str, str]], services.Service]


@pytest.fixture
def pair(start_service: Start, order_db: str) -> tuple[services.Service, services.Service]:
    """Start a gateway that lets few calls through, in front of an order service with its database."""
    broker = f"amqp://nobody:nothing@127.0.0.1:{ports.trial(1)[0]}/"
    order = start_service("order", {"SAGAPOST_DATABASE_URL": order_db, "SAGAPOST_AMQP_URL": broker}).wait_ready()
    env = {"SAGAPOST_ORDER_URL": order.url, "SAGAPOST_PAGE_PORT": "0", "SAGAPOST_MAX_CONNECTIONS": "4", "SAGAPOST_MAX_QUEUED": "4"}
    return start_service("gateway", env | {"SAGAPOST_METRICS_PORT": str(ports.trial(1)[0])}).wait_ready(), order


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
