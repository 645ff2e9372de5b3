"""One service's password of the broker buys nothing of another service's: money, orders and mails stay as they are."""

import asyncio
import functools
import http.client
import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

import aio_pika
import aiormq
import pytest
from integration import topology_kit

from sagapost_chassis import amqp, ids
from sagapost_contracts import envelope, events, topology
from sagapost_sandbox.testing import polling, servers, services

pytestmark = pytest.mark.anyio

Start = Callable[[str, dict[str, str]], services.Service]
Money = dict[str, Any]
OWN: Final = {"order": topology.ORDER_QUEUE, "payment": topology.PAYMENT_QUEUE, "email": topology.EMAIL_QUEUE}
NOBODY: Final = 987_654  # an order that is not there
MAY_SAY: Final = {"email": "email.", "relay-order": "order.", "relay-payment": "payment."}
ADDRESS: Final = "victim@forged.example"


class Shop:
    """Every service with its own user of the broker, and what customers and the provider see."""

    def __init__(self, gateway: str, provider: str, mailbox: str) -> None:
        self.gateway = gateway
        self.provider = provider
        self.mailbox = mailbox

    def buy(self, token: str, end: str) -> dict[str, Any]:
        """Check out, and return the saga when it has come to this end."""
        cart = {"user_id": 1, "user_email": "buyer@example.com", "items": [{"product_id": 1, "quantity": 1, "price": "1299.99"}]}
        headers = {"Idempotency-Key": uuid.uuid4().hex}

        def accepted() -> object:
            status, answer = _call(self.gateway, "POST", "/api/checkout", cart | {"payment_method": token}, headers)
            return answer["saga_id"] if status == HTTPStatus.ACCEPTED else None

        saga_id = str(polling.eventually(accepted, 30))
        polling.eventually(lambda: self._is_over(saga_id, end), 60)
        return self.saga(saga_id)

    def _is_over(self, saga_id: str, end: str) -> bool:
        saga = self.saga(saga_id)
        return bool(saga["state"] == end) and saga["history"][-1]["event"] == "EmailSent"  # after which nothing moves it

    def saga(self, saga_id: str) -> dict[str, Any]:
        """Return a saga with its history."""
        found: dict[str, Any] = _call(self.gateway, "GET", f"/api/sagas/{saga_id}")[1]
        return found

    def moved(self) -> list[Money]:
        """Return every movement of money at the provider."""
        found: Any = _call(self.provider, "GET", "/v1/ledger")[1]
        return list(found)

    def mails(self) -> list[Any]:
        """Return every mail that was sent."""
        found: Any = _call(self.mailbox, "GET", "/api/v1/messages")[1]
        return list(found["messages"])


def _call(url: str, method: str, path: str, body: object = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    try:
        kind = {"Content-Type": "application/json"} if body else {}
        connection.request(method, path, None if body is None else json.dumps(body), kind | (headers or {}))
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def _start(start: Start, users: dict[str, str], environments: dict[str, tuple[str, dict[str, str]]]) -> str:
    running = {name: start(module, env | {"SAGAPOST_AMQP_URL": users[name]}) for name, (module, env) in environments.items()}
    for service in running.values():
        service.wait_ready()
    return start("gateway", {"SAGAPOST_ORDER_URL": running["order"].url, "SAGAPOST_PAGE_PORT": "0"}).wait_ready().url


def _lies(declined: dict[str, Any], delivered: dict[str, Any]) -> Iterator[events.Message]:
    """Make what is worth something to a forger: goods without payment, charges, refunds, unpayable orders, mails, end of a saga."""
    amount, item = Decimal("1299.99"), events.Line(product_id=1, name="Log in at http://evil.example", quantity=1, price=Decimal("1299.99"))
    paid: dict[str, Any] = {"amount": amount, "currency": "USD", "user_email": ADDRESS, "items": (item,)}
    for order_id, saga_id in (
        (declined["order_id"], declined["saga_id"]),
        (delivered["order_id"], delivered["saga_id"]),
        (NOBODY, str(ids.uuid7())),
    ):
        whose: dict[str, Any] = {"order_id": order_id, "saga_id": uuid.UUID(saga_id)}
        yield events.PaymentProcessed(**whose, **paid, payment_id=1, payment_version=7, transaction_id="x", captured_at=datetime.now(UTC))
        yield events.PaymentFailed(**whose, payment_version=9, code="declined", reason="no")
        yield events.PaymentRefunded(**whose, payment_version=9, amount=amount, currency="USD", refund_id="x")
        yield events.OrderCreated(**whose, **paid, user_id=1, payment_method="pm_card_ok", pay_before=datetime(2100, 1, 1, tzinfo=UTC))
        yield events.CancelPayment(**whose, reason="customer", saga_version=9)
        yield events.OrderCancelled(**whose, user_email=ADDRESS, reason="customer", refunded=Decimal("0.00"))
        yield events.RequestNotification(**whose, **paid, template="receipt", attempt=9)


def _targets(message: events.Message) -> Iterator[tuple[str, str]]:
    yield topology.EXCHANGE, message.key
    yield topology.EXCHANGE, "email.email.sent"  # which brings it to the order queue
    for queue in topology.WORK_QUEUES:
        yield "", queue
        yield "", topology.retry_queue(queue, 1)
        yield topology.retry_exchange(queue), topology.retry_key(1)
        yield topology.dead_letter_exchange(queue), queue
        yield topology.DEAD_LETTER_EXCHANGE, queue


def _is_allowed(user: str, exchange: str, key: str) -> bool:
    if exchange == topology.EXCHANGE:
        return user in MAY_SAY and key.startswith(MAY_SAY[user])
    return user in OWN and exchange in {topology.retry_exchange(OWN[user]), topology.dead_letter_exchange(OWN[user])}


async def _publish(channel: aio_pika.abc.AbstractChannel, said: events.Message, exchange: str, key: str, *copies: str) -> None:
    sealed = envelope.seal(said, message_id=ids.uuid7(), source="forged", time=datetime.now(UTC), causation_id=None, traceparent=None)
    message = amqp.message_of(sealed)
    message.headers |= {"x-original-routing-key": said.key} | ({"CC": list(copies), "BCC": list(copies)} if copies else {})
    target = channel.default_exchange if exchange == "" else await channel.get_exchange(exchange, ensure=False)
    await target.publish(message, key, mandatory=False)


async def _is_refused(connection: aio_pika.abc.AbstractConnection, said: events.Message, *where: str) -> bool:
    channel = await connection.channel()
    try:
        await _publish(channel, said, *where)
    except aiormq.ChannelAccessRefused:  # which closes the channel
        return True
    await channel.close()
    return False


async def _forge(url: str, user: str, lies: list[events.Message]) -> tuple[int, list[tuple[str, str, str]]]:
    """Publish every lie wherever it could help; return how many were refused, and what went otherwise than it should.

    What the service of this user may say is left out: there the liar is the service itself.
    """
    refused, wrong = 0, list[tuple[str, str, str]]()
    async with topology_kit.connected(url) as connection:
        for lie, (exchange, key) in [(said, target) for said in lies for target in _targets(said)]:
            is_allowed = _is_allowed(user, exchange, key)
            if is_allowed and (exchange != topology.EXCHANGE or lie.key.startswith(MAY_SAY[user])):
                continue
            is_refused = await _is_refused(connection, lie, exchange, key)
            refused += is_refused
            wrong += [(exchange, key, lie.key)] if is_refused == is_allowed else []
    return refused, wrong


async def _forge_copies(url: str, lies: list[events.Message]) -> Counter[str]:
    """Publish every lie as the e-mail service, with further routing keys in CC and BCC; count what reached each queue.

    RabbitMQ 3.10 holds the user to the first key only.
    """
    reached: Counter[str] = Counter()
    async with topology_kit.connected(url) as connection:
        for lie in lies:
            if not await _is_refused(connection, lie, topology.EXCHANGE, "email.email.sent", lie.key, *topology.WORK_QUEUES):
                reached.update({topology.ORDER_QUEUE, *(queue for queue in topology.WORK_QUEUES if topology.is_bound(queue, lie.key))})
    return reached


async def _depth(url: str, queue: str) -> int:
    async with topology_kit.connected(url) as connection:
        declared = await (await connection.channel()).declare_queue(queue, passive=True)
        return declared.declaration_result.message_count or 0


async def test_no_users_password_moves_anothers_orders_money_or_mails(
    *,
    broker: servers.Broker,
    vhost: str,
    start_service: Start,
    order_db: str,
    payment_db: str,
    provider: services.Service,
    mailbox: services.Service,
) -> None:
    """Each user publishes what is worth something wherever it could help: refused, or a dead letter of ForgedError, and nothing else."""
    users = topology_kit.make_users(broker, vhost)
    order, payment = {"SAGAPOST_DATABASE_URL": order_db}, {"SAGAPOST_DATABASE_URL": payment_db}
    environments = {
        "order": ("order", order),
        "payment": ("payment", payment | {"SAGAPOST_PROVIDER_URL": provider.url}),
        "email": ("email", {"SAGAPOST_SMTP_HOST": "127.0.0.1", "SAGAPOST_SMTP_PORT": mailbox.env["SAGAPOST_SMTP_PORT"]}),
        "relay-order": ("relay", order),
        "relay-payment": ("relay", payment),
    }
    shop = Shop(await asyncio.to_thread(_start, start_service, users, environments), provider.url, mailbox.url)
    declined = await asyncio.to_thread(shop.buy, "pm_card_declined", "compensated")
    delivered = await asyncio.to_thread(shop.buy, "pm_card_ok", "notified")
    money, mails = await asyncio.to_thread(shop.moved), await asyncio.to_thread(shop.mails)
    lies = list(_lies(declined, delivered))

    done = {user: await _forge(url, user, lies) for user, url in users.items()}

    assert {user: wrong for user, (_, wrong) in done.items() if wrong} == {}
    assert all(refused > len(lies) for refused, _ in done.values())
    dead = await _forge_copies(users["email"], lies) + Counter({topology.ORDER_QUEUE: len(lies)})  # as email.email.sent, without copies
    await polling.eventually(functools.partial(_are_dead, vhost, dead), 60)
    assert {queue: set(await _causes(vhost, queue)) for queue in dead} == {queue: {"ForgedError"} for queue in dead}
    again = await asyncio.to_thread(shop.buy, "pm_card_ok", "notified")
    assert await asyncio.to_thread(shop.saga, declined["saga_id"]) == declined
    assert await asyncio.to_thread(shop.saga, delivered["saga_id"]) == delivered
    moved = [one for one in await asyncio.to_thread(shop.moved) if one not in money]
    assert [one["reference"] for one in moved] == [again["saga_id"]]
    sent = [mail for mail in await asyncio.to_thread(shop.mails) if mail not in mails]
    assert ADDRESS not in json.dumps(sent)
    assert len(sent) == 1


async def _causes(url: str, queue: str) -> list[object]:
    """Return why each message of a dead-letter queue is there."""
    found: list[object] = []
    async with topology_kit.connected(url) as connection:
        source = await (await connection.channel()).get_queue(topology.dead_letter_queue(queue), ensure=False)
        while letter := await source.get(fail=False):
            found.append(letter.headers["x-exception-type"])
    return found


async def _are_dead(url: str, dead: Counter[str]) -> bool:
    return {queue: await _depth(url, topology.dead_letter_queue(queue)) for queue in dead} == dead
