"""The list of a client's own orders through the gateway: newest first, in pages, by status, and nobody else's."""

from collections.abc import AsyncGenerator, Generator
from decimal import Decimal
from pathlib import Path

import httpx
import psycopg
import pytest
from integration import order_walk, pool_kit

from sagapost_chassis import db
from sagapost_contracts import access
from sagapost_ops.keys import queries
from sagapost_order import domain, handlers, states
from sagapost_sandbox.testing import services

pytestmark = pytest.mark.anyio

LINES_MAX = 150  # a page ends with the order that brings its lines to 100, and an order has at most 50


@pytest.fixture
def gateway(order_db: str, tmp_path: Path) -> Generator[services.Service]:
    """Run a gateway in front of an order service."""
    env = {"DATABASE_URL": order_db, "AMQP_URL": order_walk.NOWHERE, **order_walk.PATIENT}
    with (
        order_walk.running("order", tmp_path / "order.log", **env) as order,
        order_walk.running("gateway", tmp_path / "gateway.log", ORDER_URL=order.url, PAGE_PORT="0") as running,
    ):
        yield running


@pytest.fixture
async def client(gateway: services.Service) -> AsyncGenerator[httpx.AsyncClient]:
    """Open a client of the gateway."""
    async with httpx.AsyncClient(base_url=gateway.url, timeout=20) as opened:
        yield opened


@pytest.fixture
async def pool(order_db: str) -> AsyncGenerator[db.Pool]:
    """Open a pool on the database, to let things happen."""
    async with pool_kit.opened(order_db) as opened:
        yield opened


def key_of(order_db: str, name: str) -> dict[str, str]:
    """Store a key as the command does, and give the header that carries it."""
    key = access.new_key("development")
    with psycopg.connect(order_db, autocommit=True) as conn:
        queries.add(
            conn,
            client=name,
            label="",
            env="development",
            scopes=("checkout:read",),
            sha256=access.digest(key),
            rate_per_s=1000,
            burst=1000,
        )
    return {"Authorization": f"Bearer {key}"}


async def test_a_client_lists_its_own_orders_newest_first(client: httpx.AsyncClient, pool: db.Pool, order_db: str) -> None:
    """Every order of one's own once, in pages and by status; another client's never; what is no filter is 422."""
    mine = [await order_walk.place(pool, client="shop") for _ in range(4)]
    mine.append(await order_walk.place(pool, states.PAID, client="shop"))
    other = await order_walk.place(pool, client="other")
    headers, ids = key_of(order_db, "shop"), [order.id for order in reversed(mine)]

    whole = (await client.get("/api/orders", headers=headers)).json()
    pages, cursor = [], ""
    while cursor is not None:
        page = (await client.get("/api/orders", params={"limit": "2"} | ({"cursor": cursor} if cursor else {}), headers=headers)).json()
        pages.append([item["id"] for item in page["items"]])
        cursor = page["next_cursor"]
    paid = (await client.get("/api/orders?status=paid", headers=headers)).json()
    theirs = (await client.get("/api/orders", headers=key_of(order_db, "other"))).json()
    nobodys = (await client.get("/api/orders")).json()
    one = (await client.get(f"/api/orders/{ids[0]}", headers=headers)).json()
    wrong = [
        (await client.get(f"/api/orders?{query}", headers=headers)).status_code
        for query in ("status=lost", "limit=0", "limit=101", "cursor=x", "cursor=0", "state=paid", "limit=1&limit=2")
    ]

    assert ([item["id"] for item in whole["items"]], whole["next_cursor"]) == (ids, None)
    assert [number for page in pages for number in page] == ids
    assert [item["id"] for item in paid["items"]] == ids[:1]
    assert [item["id"] for item in theirs["items"]] == [other.id]
    assert nobodys == {"items": [], "next_cursor": None}
    assert whole["items"][0] == one
    assert wrong == [422] * 7


async def test_a_page_of_large_orders_ends_early(client: httpx.AsyncClient, pool: db.Pool, order_db: str) -> None:
    """A page of orders with many lines holds fewer orders than were asked for, and the pages together hold each order once."""
    products = (await client.get("/api/products")).json()
    items = tuple(domain.CheckoutItem(product_id=one["id"], quantity=1, price=Decimal(one["price"])) for one in products)
    large = domain.CheckoutRequest(user_id=1, user_email="test@example.com", items=items, payment_method="pm_card_ok")
    placed = [(await handlers.checkout(pool, large, pay_window_s=900, started_s=0, client="shop")).id for _ in range(30)]
    headers = key_of(order_db, "shop")

    pages, cursor = [], ""
    while cursor is not None:
        page = (await client.get("/api/orders", params={"limit": "100"} | ({"cursor": cursor} if cursor else {}), headers=headers)).json()
        pages.append(page["items"])
        cursor = page["next_cursor"]

    assert [one["id"] for page in pages for one in page] == placed[::-1]
    assert {len(one["items"]) for page in pages for one in page} == {len(products)}
    assert max(sum(len(one["items"]) for one in page) for page in pages) < LINES_MAX
