"""The services' users of the broker: each can do its work and nothing else."""

import asyncio
import http.client
import json
import uuid
from collections.abc import Awaitable, Callable, Generator, Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import aiormq
import pytest
from aio_pika import abc
from integration import relay_kit, topology_kit

from sagapost_chassis import amqp, consuming, ids
from sagapost_chassis import topology as declaring
from sagapost_contracts import envelope, events, topology
from sagapost_ops import errors
from sagapost_ops.topology import accounts, found
from sagapost_sandbox import management
from sagapost_sandbox.testing import polling, servers, services

pytestmark = pytest.mark.anyio

Start = Callable[[str, dict[str, str]], services.Service]
WORK = {"order": topology.ORDER_QUEUE, "payment": topology.PAYMENT_QUEUE, "email": topology.EMAIL_QUEUE}
USERS = topology_kit.USERS


@pytest.fixture(scope="module")
def users(broker: servers.Broker) -> Generator[dict[str, str]]:
    """Give the AMQP URL of each user in one virtual host that the tests of this module share: they change nothing in it."""
    name = f"users-{uuid.uuid4().hex}"
    url = broker.create_vhost(name)
    asyncio.run(declaring.declare(url))
    yield topology_kit.make_users(broker, url)
    broker.delete_vhost(name)


async def _is_refused(connection: abc.AbstractConnection, deed: Callable[[abc.AbstractChannel], Awaitable[object]]) -> bool:
    channel = await connection.channel()
    try:
        await deed(channel)
    except aiormq.ChannelAccessRefused:  # which closes the channel
        return True
    await channel.close()
    return False


def _publishing(exchange: str, key: str) -> Callable[[abc.AbstractChannel], Awaitable[object]]:
    async def publish(channel: abc.AbstractChannel) -> None:
        target = channel.default_exchange if exchange == "" else await channel.get_exchange(exchange, ensure=False)
        await target.publish(aio_pika.Message(b"{}"), key, mandatory=False)

    return publish


async def _drop(_message: abc.AbstractIncomingMessage) -> None:
    pass


def _reading(queue: str) -> Callable[[abc.AbstractChannel], Awaitable[object]]:
    async def read(channel: abc.AbstractChannel) -> None:
        await (await channel.get_queue(queue, ensure=False)).consume(_drop)

    return read


async def _redeclare(channel: abc.AbstractChannel) -> None:
    await channel.declare_queue("mine", durable=True)


async def _redeclare_exchange(channel: abc.AbstractChannel) -> None:
    await channel.declare_exchange("mine", durable=True)


def _own(user: str) -> Callable[[abc.AbstractChannel], Awaitable[object]]:
    queue = next(queue for queue in topology.queues() if queue.name == WORK.get(user, topology.PAYMENT_QUEUE))

    async def declare(channel: abc.AbstractChannel) -> None:
        await channel.declare_queue(queue.name, durable=True, arguments=dict(queue.arguments))

    return declare


def _deleting(queue: str) -> Callable[[abc.AbstractChannel], Awaitable[object]]:
    async def delete(channel: abc.AbstractChannel) -> None:
        await channel.queue_delete(queue)

    return delete


def _purging(queue: str) -> Callable[[abc.AbstractChannel], Awaitable[object]]:
    async def purge(channel: abc.AbstractChannel) -> None:
        await (await channel.get_queue(queue, ensure=False)).purge()

    return purge


def _binding(queue: str) -> Callable[[abc.AbstractChannel], Awaitable[object]]:
    async def bind(channel: abc.AbstractChannel) -> None:
        await (await channel.get_queue(queue, ensure=False)).bind(topology.EXCHANGE, "#")

    return bind


async def _delete_exchange(channel: abc.AbstractChannel) -> None:
    await channel.exchange_delete(topology.EXCHANGE)


@pytest.mark.parametrize("user", USERS)
async def test_no_user_of_a_service_may_declare_bind_or_delete(users: dict[str, str], user: str) -> None:
    """New names and those that are there, its own included; the broker refuses each by closing the channel."""
    queue = WORK.get(user, topology.PAYMENT_QUEUE)
    deeds = (_redeclare, _redeclare_exchange, _own(user), _deleting(queue), _binding(queue), _delete_exchange)

    async with topology_kit.connected(users[user]) as connection:
        refused = [await _is_refused(connection, deed) for deed in deeds]

    assert refused == [True] * len(deeds)


@pytest.mark.parametrize("user", USERS)
async def test_a_user_reads_only_its_own_work_queue(users: dict[str, str], user: str) -> None:
    """Neither another's queue, nor any retry or dead-letter queue; reading covers emptying."""
    others = [queue.name for queue in topology.queues() if queue.name != WORK.get(user)]

    async with topology_kit.connected(users[user]) as connection:
        refused = {queue: await _is_refused(connection, _reading(queue)) for queue in others}
        is_purged = [not await _is_refused(connection, _purging(queue)) for queue in topology.WORK_QUEUES if queue != WORK.get(user)]
        own = [await _is_refused(connection, _reading(WORK[user]))] if user in WORK else []

    assert [queue for queue, is_refused in refused.items() if not is_refused] == []
    assert not any(is_purged)
    assert own == [False] * len(own)


TARGETS = [
    *(("", queue.name) for queue in topology.queues()),
    (topology.DEAD_LETTER_EXCHANGE, topology.ORDER_QUEUE),
    *((topology.retry_exchange(queue), topology.retry_key(delay_s)) for queue in WORK.values() for delay_s in topology.RETRY_DELAYS_S),
    *((topology.dead_letter_exchange(queue), queue) for queue in WORK.values()),
    *(("amq.topic", "x"), ("amq.direct", "x"), ("amq.fanout", "x"), ("amq.headers", "x"), ("amq.match", "x")),
]


@pytest.mark.parametrize("user", USERS)
async def test_a_user_publishes_only_to_the_exchanges_of_its_own_queue(users: dict[str, str], user: str) -> None:
    """Not to the default exchange under any queue's name, its own included, nor to another's retries or dead letters."""
    own = {topology.retry_exchange(WORK[user]), topology.dead_letter_exchange(WORK[user])} if user in WORK else set[str]()

    async with topology_kit.connected(users[user]) as connection:
        refused = {target: await _is_refused(connection, _publishing(*target)) for target in TARGETS}

    assert [target for target, is_refused in refused.items() if is_refused != (target[0] not in own)] == []


@pytest.mark.parametrize("user", USERS)
async def test_a_user_says_only_what_its_service_says(users: dict[str, str], user: str) -> None:
    """Each type of message, and keys that only look like a service's own: the broker refuses every key that is another service's."""
    keys = [
        *(cls.key for cls in envelope.TYPES.values()),
        "email.email.sent\n.order",
        "payment",
        "orders.order.created",
        "x.order.order.created",
    ]
    own = {"email": "email.", "relay-order": "order.", "relay-payment": "payment."}.get(user, "nothing")

    async with topology_kit.connected(users[user]) as connection:
        refused = {key: await _is_refused(connection, _publishing(topology.EXCHANGE, key)) for key in keys}

    allowed = {key for key, is_refused in refused.items() if not is_refused}
    assert allowed == {cls.key for cls in envelope.TYPES.values() if cls.key.startswith(own)}


@pytest.mark.parametrize("copied_to", [topology.PAYMENT_QUEUE, topology.retry_queue(topology.PAYMENT_QUEUE, 1)])
async def test_a_retry_reaches_no_other_queue_by_the_headers_of_the_message(vhost: str, copied_to: str) -> None:
    """CC and BCC name further routing keys, which the broker looks up in the exchange itself: there only the own queues are bound."""
    headers: dict[str, Any] = {"CC": [copied_to, "order.order.created"], "BCC": [copied_to, "order.payment.cancel_requested"]}
    async with topology_kit.connected(vhost) as connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange(topology.retry_exchange(topology.EMAIL_QUEUE), ensure=False)
        await exchange.publish(aio_pika.Message(b"{}", headers=headers), topology.retry_key(1))
        back = await _first(vhost, topology.EMAIL_QUEUE)
        depths = [(await (await channel.get_queue(queue.name)).declare()).message_count for queue in topology.queues()]

    assert (back.body, depths) == (b"{}", [0] * len(topology.queues()))


@pytest.mark.parametrize("user", USERS)
async def test_a_services_user_has_no_management_interface(broker: servers.Broker, users: dict[str, str], user: str) -> None:
    """Its password opens AMQP and nothing else."""
    assert user in users
    api = broker.management

    theirs = management.Management(host=api.host, port=api.port, user=user, password=accounts.development_password(user))

    polling.eventually(lambda: management.answers(api))
    assert not management.answers(theirs)


async def test_the_consume_loop_works_with_its_own_user(broker: servers.Broker, vhost: str) -> None:
    """Checking the queue, consuming, a retry and a dead letter through the exchanges of its queue need no other right."""
    users, seen = topology_kit.make_users(broker, vhost), list[int]()

    async def handle(delivery: consuming.Delivery) -> None:
        seen.append(delivery.attempt)
        raise RuntimeError("always")

    async with amqp.Publisher(users["payment"], "test") as publisher, amqp.Publisher(vhost, "test") as relay:
        worker = consuming.Consumer(
            users["payment"], topology.PAYMENT_QUEUE, {events.CancelPayment: handle}, publisher, retry_delays_s=(1,)
        )
        stop = asyncio.Event()
        running = asyncio.create_task(worker.run(stop))
        sealed = envelope.seal(
            _cancellation(), message_id=ids.uuid7(), source="test", time=datetime.now(UTC), causation_id=None, traceparent=None
        )
        await relay.publish(amqp.message_of(sealed), exchange=topology.EXCHANGE, routing_key=sealed.routing_key)
        dead = await _first(vhost, topology.dead_letter_queue(topology.PAYMENT_QUEUE))
        stop.set()
        await running

    assert (seen, dead.message_id) == ([1, 2], str(sealed.message_id))
    assert dead.headers["x-exception-type"] == "RuntimeError"


async def _first(url: str, queue: str) -> abc.AbstractIncomingMessage:
    async with topology_kit.connected(url) as connection, asyncio.timeout(20):
        dead = await (await connection.channel()).get_queue(queue)
        async with dead.iterator() as messages:
            message = await anext(messages)
            await message.ack()
            return message


async def test_every_service_works_with_its_own_user(
    *,
    broker: servers.Broker,
    vhost: str,
    start_service: Start,
    order_db: str,
    payment_db: str,
    provider: services.Service,
    mailbox: services.Service,
    eventually: Callable[..., Any],
) -> None:
    """A checkout goes from the order service through both relays, payment and email to its end, and nothing is dead."""
    users = topology_kit.make_users(broker, vhost)
    smtp = {"SAGAPOST_SMTP_HOST": "127.0.0.1", "SAGAPOST_SMTP_PORT": mailbox.env["SAGAPOST_SMTP_PORT"]}
    order_env, payment_env = {"SAGAPOST_DATABASE_URL": order_db}, {"SAGAPOST_DATABASE_URL": payment_db}
    environments = {
        "order": ("order", order_env),
        "payment": ("payment", payment_env | {"SAGAPOST_PROVIDER_URL": provider.url}),
        "email": ("email", smtp),
        "relay-order": ("relay", order_env),
        "relay-payment": ("relay", payment_env),
    }
    running = {name: start_service(module, env | {"SAGAPOST_AMQP_URL": users[name]}) for name, (module, env) in environments.items()}
    for service in running.values():
        await asyncio.to_thread(service.wait_ready)
    gateway = await asyncio.to_thread(
        start_service("gateway", {"SAGAPOST_ORDER_URL": running["order"].url, "SAGAPOST_PAGE_PORT": "0"}).wait_ready
    )
    address = f"{uuid.uuid4().hex[:8]}@example.com".translate(str.maketrans("0123456789", "ghijklmnop"))

    saga_id = await asyncio.to_thread(_check_out, gateway.url, address)

    await eventually(_is_notified(gateway.url, saga_id), 30)


async def test_a_relay_that_lost_its_right_says_so_and_goes_on_when_it_is_given_back(
    *, broker: servers.Broker, vhost: str, start_service: Start, order_db: str, eventually: Callable[..., Any]
) -> None:
    """Its log names the refusal; `declare --users` mends it while the relay runs, and nothing is lost."""
    url, name = topology_kit.make_users(broker, vhost)["relay-order"], found.vhost_of(vhost)
    nothing = management.Rights(configure=topology.NOTHING, write=topology.NOTHING, read=topology.NOTHING)
    management.permit(broker.management, name, "relay-order", nothing)
    relay = start_service("relay", relay_kit.env(order_db, url)).wait_ready()
    (sent,) = await relay_kit.add(order_db, _cancellation())
    await asyncio.to_thread(eventually, lambda: "403 ACCESS_REFUSED" in relay.logs(), 20)

    mended = await asyncio.to_thread(topology_kit.command, broker, vhost, "declare", "--users")

    assert mended.returncode == 0, mended.stderr
    assert (await _first(vhost, topology.PAYMENT_QUEUE)).message_id == str(sent)


def _cancellation() -> events.CancelPayment:
    return events.CancelPayment(order_id=1, saga_id=ids.uuid7(), reason="customer", saga_version=1)


def _check_out(url: str, address: str) -> str:
    body = {"user_id": 1, "user_email": address, "items": [{"product_id": 1, "quantity": 1, "price": "1299.99"}]}
    key = {"Idempotency-Key": uuid.uuid4().hex}

    def accepted() -> object:
        status, answer = _call(url, "POST", "/api/checkout", body, key)
        return answer["saga_id"] if status == HTTPStatus.ACCEPTED else None

    return str(polling.eventually(accepted, 30))


def _is_notified(url: str, saga_id: str) -> Callable[[], Awaitable[bool]]:
    async def asked() -> bool:
        _, saga = await asyncio.to_thread(_call, url, "GET", f"/api/sagas/{saga_id}", None)
        return bool(saga.get("state") == "notified")

    return asked


def _call(url: str, method: str, path: str, body: object, headers: Mapping[str, str] | None = None) -> tuple[int, dict[str, Any]]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    try:
        json_ = {"Content-Type": "application/json"} if body else {}
        connection.request(method, path, None if body is None else json.dumps(body), json_ | dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("arguments", "variables", "says"),
    [
        (("check",), {"SAGAPOST_MANAGEMENT_URL": "http://order:order-password@127.0.0.1:{port}"}, "cannot be used as order"),
        (("check",), {"SAGAPOST_MANAGEMENT_URL": "http://a:b@127.0.0.1:1"}, "port 1 cannot be used as a"),
        (("declare",), {"SAGAPOST_AMQP_URL": "amqp://order:wrong@127.0.0.1:{amqp}/"}, "does not know this user and password"),
        (("declare",), {"SAGAPOST_AMQP_URL": "amqp://order:order-password@127.0.0.1:{amqp}/{vhost}"}, "may not declare"),
    ],
)
def test_whoever_may_not_is_told_in_one_sentence(
    *, broker: servers.Broker, users: dict[str, str], arguments: tuple[str, ...], variables: dict[str, str], says: str
) -> None:
    """No rights, no interface, a wrong password: exit code 2, one line, no password in it."""
    url = users["order"]
    where = {"port": broker.management.port, "amqp": urlsplit(url).port, "vhost": found.vhost_of(url)}

    done = topology_kit.command(broker, broker.amqp_url(), *arguments, **{name: text.format(**where) for name, text in variables.items()})

    assert done.returncode == 2, done.stdout
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "order-password" not in done.stderr


def test_production_makes_no_user_with_a_weak_password(broker: servers.Broker) -> None:
    """The unprotected connection is refused first, then each password that nobody chose; none is printed."""
    done = topology_kit.command(broker, broker.amqp_url(), "declare", "--users", SAGAPOST_ENV="production")
    with pytest.raises(errors.UnfitError) as refused:
        accounts.passwords({"SAGAPOST_ENV": "production"})

    assert done.returncode == 2
    assert "refused in production: SAGAPOST_AMQP_URL: the connection is not encrypted" in done.stderr
    named = {line.split(":")[1].strip() for line in str(refused.value).splitlines()}
    assert named == {accounts.variable(user.name) for user in topology.USERS}
    assert "-password" not in done.stderr + str(refused.value)


def test_production_declares_nothing_beside_a_weak_cookie(broker: servers.Broker) -> None:
    """Whoever knows the Erlang cookie commands the broker's nodes: a default that `topology` is given is refused by name."""
    weak = {"SAGAPOST_ENV": "production", "SAGAPOST_RABBITMQ_COOKIE": "development-cookie"}

    done = topology_kit.command(broker, broker.amqp_url(), "declare", **weak)

    assert done.returncode == 2
    assert "refused in production: SAGAPOST_RABBITMQ_COOKIE: it is the development default" in done.stderr
