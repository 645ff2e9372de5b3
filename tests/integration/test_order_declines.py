"""The limit of declined payments: who tries payment tokens is stopped, and nobody else."""

import asyncio
import uuid
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from integration import order_walk, pool_kit

from sagapost_chassis import db
from sagapost_order import domain, handlers, states

pytestmark = pytest.mark.anyio

LIMIT = 2
MINE = {"sagapost-client": "shop"}


@pytest.fixture
async def pool(order_db: str) -> AsyncGenerator[db.Pool]:
    """Open a pool on the database, to let things happen."""
    async with pool_kit.opened(order_db) as opened:
        yield opened


def cart(user_id: int) -> dict[str, Any]:
    """Write a checkout of a user."""
    return {"user_id": user_id, "user_email": "test@example.com", "items": [{"product_id": 2, "quantity": 1, "price": "49.99"}]}


async def test_declined_and_open_payments_of_a_user_stop_the_users_next_checkout(order_db: str, pool: db.Pool, tmp_path: Path) -> None:
    """Up to the limit and no further, whatever its key; other users and other clients go on, and so does the user after an hour."""

    async def decline(order_id: int) -> None:
        order = await handlers.get_order(pool, order_id, owner=None)
        await order_walk.happen(pool, order, states.PAYMENT_FAILED)

    env = {"DATABASE_URL": order_db, "AMQP_URL": order_walk.NOWHERE, "DECLINES_PER_USER_HOUR": str(LIMIT), **order_walk.PATIENT}
    with order_walk.running("order", tmp_path / "order.log", **env) as order:
        async with httpx.AsyncClient(base_url=order.url, timeout=20, headers=MINE) as client:

            async def buy(user_id: int, **headers: str) -> httpx.Response:
                return await client.post("/checkout", json=cart(user_id), headers={"idempotency-key": uuid.uuid4().hex, **headers})

            placed = [await buy(7) for _ in range(LIMIT)]
            await decline(placed[0].json()["id"])
            stopped = [await buy(7), await client.post("/checkout", json=cart(7))]
            await decline(placed[1].json()["id"])
            stopped.append(await buy(7))
            others = [await buy(8), await buy(7, **{"sagapost-client": "another"})]
            with psycopg.connect(order_db) as conn:
                conn.execute("UPDATE orders SET created_at = created_at - interval '61 minutes' WHERE id = %s", [placed[0].json()["id"]])
            later = await buy(7)
            paid = [await buy(9) for _ in range(LIMIT)]
            for answer in paid:
                await order_walk.happen(pool, await handlers.get_order(pool, answer.json()["id"], owner=None), states.PAYMENT_PROCESSED)
            paid.append(await buy(9))

    assert [answer.status_code for answer in (*placed, *others, later, *paid)] == [202] * (2 * LIMIT + 4)
    assert [(answer.status_code, answer.json()["type"]) for answer in stopped] == [(429, "/problems/rate-limited")] * 3
    assert all(0 < int(answer.headers["retry-after"]) <= 3600 for answer in stopped)


async def test_many_tokens_at_once_gain_nothing(order_db: str, tmp_path: Path) -> None:
    """Fifty checkouts of one user at the same moment: no more than the limit are placed."""
    env = {"DATABASE_URL": order_db, "AMQP_URL": order_walk.NOWHERE, "DECLINES_PER_USER_HOUR": str(LIMIT), **order_walk.PATIENT}
    with order_walk.running("order", tmp_path / "order.log", **env) as order:
        async with httpx.AsyncClient(base_url=order.url, timeout=30, headers=MINE) as client:
            answers = await asyncio.gather(*(client.post("/checkout", json=cart(7)) for _ in range(50)))
    with psycopg.connect(order_db) as conn:
        (stored,) = conn.execute("SELECT count(*) FROM orders WHERE user_id = 7").fetchone() or (0,)

    assert {answer.status_code for answer in answers} == {202, 429}
    assert sum(answer.status_code == 202 for answer in answers) == stored <= LIMIT


async def test_without_the_setting_there_is_no_limit(pool: db.Pool) -> None:
    """It is off by default: open payments of one user stop nothing."""
    item = domain.CheckoutItem(product_id=2, quantity=1, price=order_walk.PRICE)
    request = domain.CheckoutRequest(user_id=7, user_email="test@example.com", items=(item,), payment_method="pm_card_ok")

    placed = [await handlers.checkout(pool, request, pay_window_s=900, started_s=0) for _ in range(5)]

    assert len({order.id for order in placed}) == 5
