"""Leads orders into any state as customer, payment and email would, and reads streams and gauges, for the tests of the saga's HTTP."""

import asyncio
import contextlib
import re
import time
import uuid
from collections.abc import AsyncGenerator, Generator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import psycopg

from sagapost_chassis import consuming, db, ids
from sagapost_contracts import events
from sagapost_order import domain, handlers, moves, states
from sagapost_sandbox import databases, ports
from sagapost_sandbox.testing import polling, servers, services

NOWHERE = "amqp://guest:guest@127.0.0.1:1/"
PRICE = Decimal("49.99")
CANCEL = "cancel"
TOLD = "told"
# so that no deadline comes between: a running service looks for them four times a second
POLICY = states.Policy(compensate_s=600)
PATIENT: Mapping[str, str] = {"COMPENSATE_S": "600"}
# what happens to a new order until it is in a state
WAYS: Mapping[str, tuple[str, ...]] = {
    states.CREATED: (),
    states.PAID: (states.PAYMENT_PROCESSED,),
    states.NOTIFIED: (states.PAYMENT_PROCESSED, states.EMAIL_SENT),
    states.COMPENSATING: (CANCEL,),
    states.COMPENSATED: (CANCEL, states.PAYMENT_VOIDED, TOLD),
    states.NOTIFY_FAILED: (states.PAYMENT_PROCESSED, states.EMAIL_FAILED),
    states.COMPENSATION_FAILED: (states.PAYMENT_PROCESSED, CANCEL, states.REFUND_FAILED),
}


@contextlib.contextmanager
def database(server: servers.Databases, templates: Mapping[str, str]) -> Generator[str]:
    """Make one order database for all tests of a module, and give its connection string."""
    name = f"order_{uuid.uuid4().hex}"
    databases.clone(server.admin_dsn, templates["order"], name, "order_user")
    yield server.dsn("order_user", "order_password", name)
    databases.drop(server.admin_dsn, name)


@contextlib.contextmanager
def running(module: str, log: Path, **env: str) -> Generator[services.Service]:
    """Run a service with its gauges on."""
    variables = {f"SAGAPOST_{name}": value for name, value in env.items()}
    service = services.Service(f"sagapost_{module}", {**variables, "SAGAPOST_METRICS_PORT": str(ports.trial(1)[0])}, log)
    try:
        yield service.wait_ready()
    finally:
        service.kill()


async def place(pool: db.Pool, state: str = states.CREATED, client: str = "demo") -> domain.Order:
    """Place an order and lead it into a state."""
    item = domain.CheckoutItem(product_id=2, quantity=1, price=PRICE)
    request = domain.CheckoutRequest(user_id=1, user_email="test@example.com", items=(item,), payment_method="pm_card_ok")
    order = await handlers.checkout(pool, request, pay_window_s=900, started_s=time.perf_counter(), client=client)
    for step in WAYS[state]:
        await happen(pool, order, step, client)
    return order


async def happen(pool: db.Pool, order: domain.Order, step: str, client: str = "demo") -> None:
    """Let one thing happen to an order: a cancellation by its customer, or a message."""
    if step == CANCEL:
        await moves.cancel(pool, POLICY, order.id, client)
        return
    message = _message(order, step)
    delivery = consuming.Delivery(message_id=ids.uuid7(), type=type(message).__name__, message=message, attempt=1, time=datetime.now(UTC))
    await moves.on_event(pool, POLICY, delivery)


def history(dsn: str, order: domain.Order) -> list[tuple[int, str, str, str, str, str | None, str | None]]:
    """Read an order's history past the service: seq, event, to, outcome, source, actor, reason."""
    query = "SELECT seq, event, to_state, outcome, source, actor, reason FROM saga_history WHERE saga_id = %s ORDER BY seq"
    with psycopg.connect(dsn) as connection:
        return connection.execute(query, [order.saga_id]).fetchall()


def outbox(dsn: str, order: domain.Order) -> list[str]:
    """Name the messages about an order, in their order."""
    query = "SELECT type FROM outbox WHERE aggregate = %s ORDER BY id"
    with psycopg.connect(dsn) as connection:
        return [row[0] for row in connection.execute(query, [f"order-{order.id}"]).fetchall()]


async def shows(service: services.Service, name: str, value: float) -> None:
    """Wait until a gauge of a service has this value."""

    async def reads() -> bool:
        async with httpx.AsyncClient() as client:
            try:
                text = (await client.get(f"http://127.0.0.1:{service.env['SAGAPOST_METRICS_PORT']}/metrics")).text
            except httpx.TimeoutException:
                return False
        found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
        return found is not None and float(found.group(1)) == value

    await polling.eventually(reads)


def failures(service: services.Service) -> list[dict[str, object]]:
    """Give what a service logged as an error, except for the broker that is not there."""
    return [line for line in service.lines() if line["level"] == "error" and not str(line.get("logger")).startswith("aiormq")]


@contextlib.asynccontextmanager
async def streamed(url: str, **headers: str) -> AsyncGenerator[AsyncGenerator[dict[str, str]]]:
    """Open a stream of events; each is its fields, a comment the field "" ."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with httpx.AsyncClient(timeout=20) as client, client.stream("GET", url, headers=named) as answer:
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8"), answer.headers
        yield _events(answer)


async def heard(events: AsyncGenerator[dict[str, str]], count: int = 1) -> list[dict[str, str]]:
    """Wait for the next events that are no comments; fewer when the stream ends."""
    found: list[dict[str, str]] = []
    async with asyncio.timeout(10):
        while len(found) < count:
            event = await anext(events, None)
            if event is None:
                break
            if "event" in event:
                found.append(event)
    return found


async def _events(answer: httpx.Response) -> AsyncGenerator[dict[str, str]]:
    fields: dict[str, str] = {}
    async for line in answer.aiter_lines():
        if line:
            name, _, value = line.partition(": ")
            fields[name.strip(": ")] = value
        else:
            yield fields
            fields = {}


def _message(order: domain.Order, step: str) -> events.Message:
    about: dict[str, Any] = {"order_id": order.id, "saga_id": order.saga_id}
    made: dict[str, events.Message] = {
        states.PAYMENT_PROCESSED: events.PaymentProcessed(
            **about,
            amount=PRICE,
            payment_id=1,
            payment_version=1,
            transaction_id="tx",
            captured_at=datetime.now(UTC),
            user_email=order.user_email,
            items=order.items,
        ),
        states.PAYMENT_FAILED: events.PaymentFailed(**about, payment_version=1, code="card_declined", reason="declined"),
        states.PAYMENT_VOIDED: events.PaymentVoided(**about, payment_version=1, code="cancelled", reason="cancelled"),
        states.PAYMENT_REFUNDED: events.PaymentRefunded(**about, amount=PRICE, payment_version=2, refund_id="re"),
        states.REFUND_FAILED: events.RefundFailed(**about, amount=PRICE, payment_version=2, code="refused", permanent=True),
        states.EMAIL_SENT: events.EmailSent(**about, template=events.RECEIPT, smtp_message_id="<m>"),
        TOLD: events.EmailSent(**about, template=events.CANCELLATION, smtp_message_id="<c>"),
        states.EMAIL_FAILED: events.EmailFailed(**about, template=events.RECEIPT, code="mailbox_unavailable", permanent=True),
    }
    return made[step]
