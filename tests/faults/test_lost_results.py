"""Results of payments that were lost, and a payment database that was put back: no paid order is refunded, no refund is forgotten."""

import asyncio
import pathlib
import sys
import time
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import aio_pika
import psycopg
import pytest
from aio_pika import abc
from faults import conftest as stacks_of
from faults import stack as stacks

from sagapost_contracts import topology
from sagapost_sandbox import databases
from sagapost_sandbox.testing import servers

LOST: Final = 6
PAY_WINDOW_S: Final = 90  # asked for again after a third of it
RESULTS: Final = "payment.*.*"
PUT_BACK_S: Final = 60
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def shop(
    tmp_path: pathlib.Path, database_server: servers.Databases, broker: servers.Broker, templates: Mapping[str, str]
) -> Generator[stacks.Stack]:
    """Run a stack whose orders are asked for again after half a minute."""
    changes = {"order": {"SAGAPOST_PAY_WINDOW_S": str(PAY_WINDOW_S)}}
    with stacks_of.running(tmp_path, database_server, broker, templates, changes) as made:
        yield made


@asynccontextmanager
async def _results_lost(amqp_url: str) -> AsyncGenerator[abc.AbstractQueue]:
    """Let no result of a payment reach the order service for the length of a block; the queue that is given receives a copy of each."""
    connection = await aio_pika.connect(amqp_url)
    async with connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange(topology.EXCHANGE)
        updates = await channel.get_queue(topology.ORDER_QUEUE)
        copies = await channel.declare_queue(exclusive=True)
        await copies.bind(exchange, RESULTS)
        await updates.unbind(exchange, RESULTS)
        try:
            yield copies
        finally:
            await updates.bind(exchange, RESULTS)


async def _lose(shop: stacks.Stack, count: int) -> list[str]:
    """Buy, and lose the results of the payments; gives the sagas, all of them paid and none of them knowing of it."""
    async with _results_lost(str(shop.known.amqp_url)) as copies:
        bought = [await asyncio.to_thread(shop.checkout) for _ in range(count)]
        assert [status for status, _ in bought] == [202] * count
        sagas, seen = [str(answer["saga_id"]) for _, answer in bought], set[str | None]()
        async with asyncio.timeout(60), copies.iterator() as arriving:
            async for message in arriving:
                await message.ack()
                seen.add(message.correlation_id)
                if seen >= set(sagas):
                    break
    return sagas


def _retried(shop: stacks.Stack, saga_id: str) -> float:
    """Ask payment again as an operator does, and give the seconds until the receipt was accepted."""
    began = time.monotonic()
    version = shop.call("GET", f"/api/sagas/{saga_id}")[1]["version"]
    path, headers = f"/api/ops/sagas/{saga_id}/retry", {"If-Match": f'"{version}"'}
    assert shop.call("POST", path, {"reason": "the result was lost"}, **headers)[0] == 202
    shop.reached(saga_id, "notified")
    return time.monotonic() - began


def _kinds(shop: stacks.Stack, saga_id: str) -> list[str]:
    return [movement["kind"] for movement in shop.movements(saga_id)]


def test_a_lost_result_comes_again_when_it_is_asked_for(shop: stacks.Stack) -> None:
    """PaymentProcessed of several orders is lost: `saga retry` makes each notified at once, the nudge the others, and none is refunded."""
    sagas = asyncio.run(_lose(shop, LOST))
    states = [shop.call("GET", f"/api/sagas/{saga_id}")[1]["state"] for saga_id in sagas]

    took = [_retried(shop, saga_id) for saga_id in sagas[: LOST // 2]]
    for saga_id in sagas[LOST // 2 :]:
        shop.reached(saga_id, "notified", deadline_s=PAY_WINDOW_S)

    sys.stdout.write(f"\nnotified {', '.join(f'{seconds:.2f}' for seconds in took)} s after saga retry\n")
    assert states == ["created"] * LOST
    assert [_kinds(shop, saga_id) for saga_id in sagas] == [["charge"]] * LOST
    shop.verified()


def _put_back(shop: stacks.Stack, server: servers.Databases, copy: str, *, restore: bool) -> None:
    """Copy the payment database while nobody uses it, or put the copy in its place."""
    name = urlsplit(str(shop.known.payment_database_url)).path.lstrip("/")
    for service in ("payment", "relay-payment"):
        shop.running[service].terminate()
    if restore:
        databases.drop(server.admin_dsn, name)
    databases.clone(server.admin_dsn, copy if restore else name, name if restore else copy, "payment_user")
    for service in ("payment", "relay-payment"):
        shop.start(service)
    for service in ("payment", "relay-payment"):
        shop.running[service].wait_ready(60)


def _bought(shop: stacks.Stack, count: int) -> Sequence[Mapping[str, Any]]:
    found = [shop.checkout() for _ in range(count)]
    assert [status for status, _ in found] == [202] * count
    return [answer for _, answer in found]


def test_orders_whose_payments_a_restore_lost_are_refunded(shop: stacks.Stack, database_server: servers.Databases) -> None:
    """The payment database is put back by several orders, which are then cancelled: the provider gives all of their money back."""
    kept, copy = _bought(shop, 2), f"copy_{id(shop):x}"
    for order in kept:
        shop.reached(order["saga_id"], "notified")
    _put_back(shop, database_server, copy, restore=False)
    try:
        lost = _bought(shop, LOST)
        for order in lost:
            shop.reached(order["saga_id"], "notified")
        _put_back(shop, database_server, copy, restore=True)
    finally:
        databases.drop(database_server.admin_dsn, copy)
    with psycopg.connect(str(shop.known.payment_database_url)) as conn:
        assert conn.execute("SELECT count(*) FROM payments").fetchone() == (len(kept),)

    began = time.monotonic()
    statuses = [shop.cancel(order["id"]) for order in lost]
    ended = [shop.reached(order["saga_id"], "compensated", deadline_s=PUT_BACK_S) for order in lost]

    sys.stdout.write(f"\n{LOST} orders refunded {time.monotonic() - began:.2f} s after the first cancellation\n")
    assert statuses == [202] * LOST
    assert [_kinds(shop, order["saga_id"]) for order in lost] == [["charge", "refund"]] * LOST
    assert [_kinds(shop, order["saga_id"]) for order in kept] == [["charge"]] * len(kept)
    assert [saga["state"] for saga in ended] == ["compensated"] * LOST
