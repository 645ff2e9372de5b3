"""Rows in flight that the first version wrote: today's migrations and code take them over and bring them to their end."""

import json
import pathlib
from collections.abc import AsyncGenerator, Generator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final
from uuid import UUID

import psycopg
import pytest
from integration import pool_kit

from sagapost_chassis import consuming, db, ids
from sagapost_contracts import envelope
from sagapost_ops import migrations
from sagapost_order import moves, saga_queries, states
from sagapost_payment import domain, recovery
from sagapost_payment import provider as providers
from sagapost_sandbox import databases
from sagapost_sandbox.testing import servers, services

pytestmark = pytest.mark.anyio
GOLDEN: Final = pathlib.Path(__file__).parents[1] / "contracts" / "golden"
ROLES: Final = {"order": ("order_user", "order_password"), "payment": ("payment_user", "payment_password")}


@pytest.fixture
def upgraded(database_server: servers.Databases) -> Generator[dict[str, str]]:
    """Make databases of the first version with their rows, and migrate them to today's."""
    urls: dict[str, str] = {}
    for service, (user, password) in ROLES.items():
        urls[service] = database_server.create(user, password, f"golden_{service}_{ids.uuid7().hex[-8:]}")
        migrations.upgrade(urls[service], service, f"{service}_0001")
        with psycopg.connect(urls[service], autocommit=True) as conn:
            conn.execute((GOLDEN / "rows" / f"{service}_0001.sql").read_bytes())
        migrations.upgrade(urls[service], service)
    yield urls
    for url in urls.values():
        databases.drop(database_server.admin_dsn, url.rpartition("/")[2])


@pytest.fixture
async def pool(upgraded: dict[str, str]) -> AsyncGenerator[db.Pool]:
    """Open a pool on the order database."""
    async with pool_kit.opened(upgraded["order"]) as opened:
        yield opened


def saga_of(order_id: int) -> UUID:
    """Give a golden order's saga."""
    return UUID(f"0193b1c2-7d4e-7a10-9f0e-00000000000{order_id}")


async def hear(pool: db.Pool, kind: str, order_id: int, **fields: str | int) -> None:
    """Deliver the golden message of a type, as it was written then, about a golden order."""
    stored = json.loads((GOLDEN / f"{kind}.v1.json").read_bytes())
    body = {**stored["body"], "order_id": order_id, "saga_id": str(saga_of(order_id)), **fields}
    message = envelope.decode(kind, 1, json.dumps(body).encode())
    delivery = consuming.Delivery(message_id=ids.uuid7(), type=kind, message=message, attempt=1, time=datetime.now(UTC))
    await moves.on_event(pool, states.POLICY, delivery)


async def sweep_all(pool: db.Pool) -> None:
    """Let every deadline pass once."""
    async with db.transaction(pool) as conn:
        await conn.execute("UPDATE sagas SET deadline_at = now() WHERE deadline_at IS NOT NULL")
    swept = 0
    while swept < 5 and await moves.sweep(pool, states.POLICY, (), moves.Swept()):
        swept += 1


async def state_of(pool: db.Pool, order_id: int) -> str:
    """Read where a golden saga stands."""
    async with db.connection(pool) as conn:
        row = await saga_queries.saga(conn, saga_of(order_id), None)
    assert row is not None
    return row.state


async def test_the_first_version_s_sagas_are_brought_to_their_end(pool: db.Pool) -> None:
    """Each state that had not ended moves on by message and by deadline; what had ended stays as it was."""
    await hear(pool, "PaymentProcessed", 1, amount="49.99", payment_version=2)
    await hear(pool, "EmailSent", 1)
    await hear(pool, "EmailSent", 2)
    await hear(pool, "PaymentVoided", 3, payment_version=2)
    await hear(pool, "EmailSent", 4)
    await hear(pool, "PaymentRefunded", 5, amount="49.99", payment_version=5)

    ended = [await state_of(pool, order_id) for order_id in range(1, 8)]
    assert ended == ["notified", "notified", "compensated", "notified", "compensated", "notified", "compensated"]


async def test_the_first_version_s_deadlines_are_kept(pool: db.Pool, upgraded: dict[str, str]) -> None:
    """Without any message, each deadline of an old row does what today's table says, and the old time to pay is known."""
    await sweep_all(pool)

    with psycopg.connect(upgraded["order"]) as conn:
        told = conn.execute("SELECT type, count(*) FROM outbox GROUP BY type ORDER BY type").fetchall()
        pay_before = conn.execute(
            "SELECT count(*) FROM sagas WHERE pay_before BETWEEN now() + '5 minutes' AND now() + '11 minutes'"
        ).fetchone()
    assert [await state_of(pool, order_id) for order_id in (1, 2, 3, 4, 5)] == [
        "created",  # at the end of its time payment is asked once more
        "paid",
        "compensating",
        "notify_failed",
        "compensation_failed",
    ]
    assert told == [("CancelPayment", 2), ("OrderCreated", 1), ("RequestNotification", 2)]
    assert pay_before == (7,)


async def test_the_first_version_s_payments_are_looked_at(upgraded: dict[str, str], provider: services.Service) -> None:
    """What was under way is looked at at once, and charged under the old key, once."""
    async with pool_kit.opened(upgraded["payment"]) as pool, providers.open_provider(provider.url, 5) as psp:
        claimed = await recovery.claim(pool, domain.TERMS)
        for payment in claimed:
            await recovery.look(pool, psp, payment, domain.TERMS)
        found = await psp.find(saga_of(1))

    with psycopg.connect(upgraded["payment"]) as conn:
        statuses = [status for (status,) in conn.execute("SELECT status FROM payments ORDER BY order_id")]
    assert {payment.order_id for payment in claimed} == {1, 3}
    assert statuses == ["captured"] * 6 + ["failed"]
    assert [charge.amount for charge in found] == [Decimal("49.99")]


def test_the_first_version_may_go_on_writing(upgraded: dict[str, str]) -> None:
    """While a deployment rolls, old processes insert rows without today's columns: those get what keeps them moving."""
    with psycopg.connect(upgraded["order"]) as conn:
        conn.execute(
            "INSERT INTO orders (user_id, user_email, status, currency, total_amount, payment_method, processing_duration_ms, created_at,"
            " updated_at) VALUES (1, 'old@example.com', 'pending', 'USD', 1, 'pm_card_ok', 1, now(), now())"
        )
        row = conn.execute(
            "INSERT INTO sagas (id, order_id, state, version, amount, currency, deadline_at, deadline_kind, created_at, updated_at)"
            " SELECT gen_random_uuid(), max(id), 'created', 1, 1, 'USD', now() + interval '15 minutes', 'pay', now(), now() FROM orders"
            " RETURNING pay_before = deadline_at"
        ).fetchone()
    with psycopg.connect(upgraded["payment"]) as conn:
        looked_at = conn.execute(
            "INSERT INTO payments (order_id, saga_id, status, amount, currency, payment_method, user_email, items, pay_before)"
            " VALUES (99, gen_random_uuid(), 'processing', 1, 'USD', '', 'old@example.com', '[]', now()) RETURNING look_at > now()"
        ).fetchone()

    assert (row, looked_at) == ((True,), (True,))
