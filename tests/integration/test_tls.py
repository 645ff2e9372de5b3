"""The services in production mode on servers with certificates of a private authority: they work, and refuse every other certificate."""

import asyncio
import contextlib
import json
import pathlib
from collections.abc import Callable, Generator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final, Protocol
from urllib.parse import quote
from uuid import UUID

import httpx
import msgspec
import psycopg
import pytest
from integration import tls_authority

from sagapost_chassis import amqp, ids, lenient, topology
from sagapost_contracts import envelope, events
from sagapost_contracts import topology as words
from sagapost_ops import migrations, rights, roles
from sagapost_ops.topology import accounts
from sagapost_sandbox import packages, ports, postgres, rabbitmq
from sagapost_sandbox.testing import polling, services

SECRET: Final = "6f0a7c1be94d25e83b"
INTERNAL: Final = "5d0c82e1b7f94a36d1e0b85f27c4936a"
CALLER: Final = {"Sagapost-Secret": INTERNAL}
CART: Final = {"user_id": 1, "user_email": "tls@example.com", "items": [{"product_id": 1, "quantity": 1, "price": "1299.99"}]}
REASONS: Final = {"ca": "unable to get local issuer certificate", "host": "IP address mismatch"}
Start = Callable[[str, Mapping[str, str]], services.Service]


class Servers(msgspec.Struct, frozen=True, kw_only=True):
    """Where PostgreSQL and RabbitMQ listen with TLS, and whose word on a certificate counts."""

    authority: tls_authority.Authority
    stranger: pathlib.Path
    database_port: int
    broker_port: int

    def database(self, role: str, *, host: str = "localhost", ca: pathlib.Path | None = None) -> dict[str, str]:
        """Name a database by the role that uses it."""
        name, root = role.partition("_")[0], quote(str(ca or self.authority.ca))
        where = f"{host}:{self.database_port}/{name}_db"
        return {"SAGAPOST_DATABASE_URL": f"postgresql://{role}:{SECRET}@{where}?sslmode=verify-full&sslrootcert={root}"}

    def broker(self, user: str, *, host: str = "localhost", ca: pathlib.Path | None = None) -> dict[str, str]:
        """Name the broker by the user."""
        return {"SAGAPOST_AMQP_URL": f"amqps://{user}:{SECRET}@{host}:{self.broker_port}/?cafile={quote(str(ca or self.authority.ca))}"}


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory, run_folder: pathlib.Path) -> Generator[Servers]:
    """Run both servers with TLS, everything made with the operator's commands over TLS as well."""
    packages.ensure()
    folder = tmp_path_factory.mktemp("authorities")
    own, stranger = tls_authority.make(folder / "own", "localhost"), tls_authority.make(folder / "stranger", "localhost")
    database_port, broker_port, *others = ports.trial(6)
    made = Servers(authority=own, stranger=stranger.ca, database_port=database_port, broker_port=broker_port)
    cluster = postgres.Cluster(run_folder / "tls-postgres", database_port, fast=True, tls=(own.certificate, own.key))
    listener = rabbitmq.Tls(port=broker_port, certificate=own.certificate, key=own.key)
    node = rabbitmq.Node(run_folder / "tls-rabbitmq", *others, credentials=("operator", SECRET), tls=listener)
    with contextlib.ExitStack() as stack:
        for server in (cluster, node):
            stack.callback(server.stop)
            stack.callback(server.kill)
            server.start()
        for name in ("order", "payment"):
            cluster.create(f"{name}_user", SECRET, f"{name}_db")
            url = made.database(f"{name}_user")["SAGAPOST_DATABASE_URL"]
            migrations.upgrade(url, name)
            rights.make(url, name, {role.name: SECRET for role in roles.of(name)})
            rights.grant(url, name)
        asyncio.run(topology.declare(made.broker("operator")["SAGAPOST_AMQP_URL"]))
        accounts.make(node.management, "/", {user.name: SECRET for user in words.USERS})
        yield made


class Mailboxes(Protocol):
    """Starts a mailbox with a certificate."""

    def __call__(self, mode: str) -> dict[str, str]:
        """Start it and give the variables that lead to it, by STARTTLS when `mode` is off."""
        ...


@pytest.fixture
def mailbox_of(secured: Servers, start_service: Start, tmp_path: pathlib.Path) -> Mailboxes:
    """Give what starts a mailbox."""

    def start(mode: str) -> dict[str, str]:
        (port,) = ports.trial(1)
        env = {"SAGAPOST_MAILBOX_LEDGER": str(tmp_path / "mails.jsonl"), "SAGAPOST_SMTP_PORT": str(port), "SAGAPOST_SMTP_TLS": mode}
        own = secured.authority
        files = {"SAGAPOST_SMTP_CERTIFICATE": str(own.certificate), "SAGAPOST_SMTP_KEY": str(own.key)}
        start_service("sagapost_sandbox.mailbox", env | files).wait_ready()
        found = {"SAGAPOST_SMTP_TLS": "starttls" if mode == "off" else mode, "SAGAPOST_SMTP_CA_FILE": str(own.ca)}
        return found | {"SAGAPOST_SMTP_HOST": "localhost", "SAGAPOST_SMTP_PORT": str(port)}

    return start


def _production(*parts: Mapping[str, str]) -> dict[str, str]:
    found = {"SAGAPOST_ENV": "production", "SAGAPOST_INTERNAL_SECRET": INTERNAL}
    for part in parts:
        found |= part
    return found


async def _say(url: str, message: events.Message) -> None:
    sealed = envelope.seal(message, message_id=ids.uuid7(), source="test", time=datetime.now(UTC), causation_id=None, traceparent=None)
    async with amqp.Publisher(url, "test") as publisher:
        await publisher.publish(amqp.message_of(sealed), exchange=words.EXCHANGE, routing_key=sealed.routing_key)


def _receipts(tmp_path: pathlib.Path, saga_id: str) -> int:
    lines = (tmp_path / "mails.jsonl").read_text(encoding="utf-8").splitlines()
    return sum(saga_id in json.loads(line)["message_id"] for line in lines)


@pytest.mark.parametrize("mode", ["starttls", "tls"])
def test_a_checkout_passes_every_service_over_tls(
    secured: Servers, start_service: Start, mailbox_of: Mailboxes, tmp_path: pathlib.Path, mode: str
) -> None:
    """In production mode, with roles and users of few rights, order, relays, payment and email do their work, every connection verified."""
    mail = mailbox_of(mode)
    order = start_service("order", _production(secured.database("order_service"), secured.broker("order")))
    others = [
        start_service("relay", _production(secured.database("order_relay"), secured.broker("relay-order"))),
        start_service("relay", _production(secured.database("payment_relay"), secured.broker("relay-payment"))),
        start_service(
            "payment",
            _production(secured.database("payment_service"), secured.broker("payment"), {"SAGAPOST_PROVIDER_URL": "https://localhost:1"}),
        ),
        start_service("email", _production(secured.broker("email"), mail, {"SAGAPOST_ORDER_URL": order.url})),
    ]
    for service in (order, *others):
        service.wait_ready()

    placed = httpx.post(f"{order.url}/checkout", json=CART, headers=CALLER, timeout=20).json()

    with psycopg.connect(secured.database("payment_user")["SAGAPOST_DATABASE_URL"], autocommit=True) as payments:
        intent = "SELECT status FROM payments WHERE saga_id = %(saga_id)s"
        polling.eventually(lambda: payments.execute(intent, placed).fetchone(), 20)
    paid = events.PaymentProcessed(
        order_id=placed["id"],
        saga_id=UUID(placed["saga_id"]),
        payment_id=1,
        payment_version=2,
        amount=Decimal(placed["total_amount"]),
        transaction_id=f"ch-{placed['id']}",
        captured_at=datetime.now(UTC),
        user_email=placed["user_email"],
        items=(),
    )
    asyncio.run(_say(secured.broker("relay-payment")["SAGAPOST_AMQP_URL"], paid))
    saga = f"{order.url}/sagas/{placed['saga_id']}"
    polling.eventually(lambda: httpx.get(saga, headers=CALLER, timeout=20).json()["state"] == "notified", 20)
    assert _receipts(tmp_path, placed["saga_id"]) == 1
    assert not any("fallback" in service.logs() for service in (order, *others))
    assert not any(SECRET in service.logs() for service in (order, *others))


@pytest.mark.parametrize("name", ["order", "payment", "relay"])
@pytest.mark.parametrize(("wrong", "reason"), [("ca", "certificate verify failed"), ("host", 'does not match host name "127.0.0.1"')])
def test_a_database_with_another_certificate_ends_the_start(
    secured: Servers, start_service: Start, name: str, wrong: str, reason: str
) -> None:
    """A certificate of an unknown authority, or of another host: one sentence with the reason, exit code 2, no password."""
    role = "payment_service" if name == "payment" else "order_service"
    chosen = secured.database(role, ca=secured.stranger) if wrong == "ca" else secured.database(role, host="127.0.0.1")
    env = _production(chosen, secured.broker("order"), {"SAGAPOST_PROVIDER_URL": "https://localhost:1"})

    service = start_service(name, env)

    assert service.wait() == 2
    sentences = [line for line in service.logs().splitlines() if not line.startswith("{")]
    assert len(sentences) == 1
    assert reason in sentences[0]
    assert "SAGAPOST_DATABASE_URL" in sentences[0]
    assert SECRET not in service.logs()


@pytest.mark.parametrize("name", ["order", "relay"])
@pytest.mark.parametrize("wrong", ["ca", "host"])
def test_a_broker_with_another_certificate_is_not_spoken_to(secured: Servers, start_service: Start, name: str, wrong: str) -> None:
    """A certificate of an unknown authority, or of another host: the log says so in one sentence, and nothing is sent."""
    user = "relay-order" if name == "relay" else "order"
    broker = secured.broker(user, ca=secured.stranger) if wrong == "ca" else secured.broker(user, host="127.0.0.1")

    service = start_service(name, _production(secured.database("order_service" if name == "order" else "order_relay"), broker))

    said = polling.eventually(
        lambda: [line for line in service.lines() if "the certificate of the broker is refused" in str(line.get("reason"))],
        20,
    )
    assert REASONS[wrong] in str(said[0]["reason"])
    assert SECRET not in service.logs()
    assert service.running()


@pytest.mark.parametrize(("mode", "wrong"), [("starttls", "ca"), ("starttls", "host"), ("tls", "ca"), ("tls", "host")])
def test_a_mail_server_with_another_certificate_gets_no_mail(
    secured: Servers, mailbox_of: Mailboxes, start_service: Start, mode: str, wrong: str
) -> None:
    """A certificate of an unknown authority, or of another host: the service is degraded, and its log says why in one sentence."""
    mail = mailbox_of(mode)
    mail |= {"SAGAPOST_SMTP_CA_FILE": str(secured.stranger)} if wrong == "ca" else {"SAGAPOST_SMTP_HOST": "127.0.0.1"}

    service = start_service("email", _production(secured.broker("email"), mail, {"SAGAPOST_ORDER_URL": "http://localhost:1"})).wait_ready()

    polling.eventually(lambda: httpx.get(f"{service.url}/health/ready", timeout=20).json()["degraded"] == ["smtp"])
    said = polling.eventually(lambda: _why_no_mail(service, "the certificate of the mail server is refused"))
    assert REASONS[wrong] in said[0]


def test_a_mail_server_without_starttls_gets_no_mail(secured: Servers, start_service: Start, mailbox_of: Mailboxes) -> None:
    """Whoever takes the offer of STARTTLS out of the conversation gains nothing: the mail is not sent in the clear."""
    mail = mailbox_of("off")

    service = start_service("email", _production(secured.broker("email"), mail, {"SAGAPOST_ORDER_URL": "http://localhost:1"})).wait_ready()

    polling.eventually(lambda: httpx.get(f"{service.url}/health/ready", timeout=20).json()["degraded"] == ["smtp"])
    polling.eventually(lambda: _why_no_mail(service, "STARTTLS"))


def _why_no_mail(service: services.Service, word: str) -> list[str]:
    """Look once more, and find this among the reasons: a look may also end because it took too long."""
    httpx.get(f"{service.url}/health/ready", timeout=20)
    said = [str(line.get("reason")) for line in service.lines() if line.get("dependency") == "smtp"]
    return [reason for reason in said if word in reason]


@pytest.mark.anyio
async def test_the_lenient_reader_reads_over_tls(secured: Servers) -> None:
    """A consumer's connection is the lenient one, and its frames arrive over amqps as they do over amqp."""
    url = secured.broker("order")["SAGAPOST_AMQP_URL"]
    connection = await amqp.connect(url, "test", connection_class=lenient.connection_class())
    try:
        channel = await connection.channel()
        queue = await channel.get_queue(words.ORDER_QUEUE)
        assert isinstance(connection, lenient.Connection)
        while (left := await queue.get(no_ack=True, fail=False)) is not None:  # from a test that ended before it was acknowledged
            assert json.loads(left.body)
    finally:
        await amqp.close(connection)
