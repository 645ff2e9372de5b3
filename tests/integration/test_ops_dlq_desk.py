"""Dead letters written by hand, and the command line called on them; holds no test."""

import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final, NamedTuple
from uuid import UUID

import pamqp.commands
import pamqp.header
import psycopg
import pytest

from sagapost_chassis import ids
from sagapost_contracts import envelope, events, topology
from sagapost_ops import cli
from sagapost_ops.dlq import wire
from sagapost_sandbox.testing import polling, services

START: Final = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
MESSAGE_ID: Final = "00000000-0000-7000-8000-{:012d}"
TIMEOUT: Final = "TimeoutError@provider.py:charge"
NONE: Final[Mapping[str, Any]] = {}
Start = Callable[[str, Mapping[str, str]], services.Service]


class Run(NamedTuple):
    """How a call of the command line ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The document on standard output."""
        return dict(json.loads(self.out))

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The documents on standard output."""
        return list(json.loads(self.out))


class Found(NamedTuple):
    """A message taken out of a queue, read by a library that is not ours."""

    properties: pamqp.commands.Basic.Properties
    body: bytes

    @property
    def id(self) -> str:
        """Its message id."""
        return str(self.properties.message_id)

    @property
    def headers(self) -> dict[str, Any]:
        """Its headers."""
        return dict(self.properties.headers or {})


class Desk:
    """One virtual host, two databases, and the `dlq` commands on them."""

    def __init__(self, urls: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.vhost = urls["SAGAPOST_AMQP_URL"]
        self._urls = urls
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        self._link = wire.Link(self.vhost, "test")
        self._asking = self._link.channel()
        self._numbers = itertools.count(1)
        self._children: list[subprocess.Popen[str]] = []
        for name, url in urls.items():
            monkeypatch.setenv(name, url)

    def close(self) -> None:
        """End what was started."""
        for child in self._children:
            child.kill()
            child.communicate()
        with contextlib.suppress(wire.WireError), self._link:
            pass

    def raw(self, queue: str, properties: bytes, body: bytes = b"{}") -> None:
        """Put a message with these bytes for properties into a queue."""
        assert self._link.publish(self._link.channel(confirms=True), queue, properties, body) == "stored"

    def put(
        self,
        times: int = 1,
        *,
        queue: str = topology.PAYMENT_QUEUE,
        fingerprint: str = TIMEOUT,
        says: str = "the provider did not answer",
        kind: str = "OrderCreated",
        body: bytes | None = None,
        headers: Mapping[str, Any] = NONE,
    ) -> list[str]:
        """Put letters into a queue's dead-letter queue, a minute apart, and give their ids."""
        channel = self._link.channel(confirms=True)
        made: list[str] = []
        for _ in range(times):
            number = next(self._numbers)
            properties, content = letter(number, fingerprint=fingerprint, says=says, kind=kind, headers=headers)
            content = content if body is None else body
            raw = pamqp.header.ContentHeader(0, len(content), properties).marshal()[12:]
            assert self._link.publish(channel, topology.dead_letter_queue(queue), raw, content) == "stored"
            made.append(str(properties.message_id))
        return made

    def depth(self, queue: str = f"{topology.PAYMENT_QUEUE}.dlq") -> int:
        """Count what is ready in a queue."""
        return self._link.depth(self._asking, queue)

    def consumers(self, queue: str = f"{topology.PAYMENT_QUEUE}.dlq") -> int:
        """Count who consumes from a queue: what a consumer held has returned when it is no longer counted."""
        asked = pamqp.commands.Queue.Declare(queue=queue, passive=True)
        return self._link.call(self._asking, asked, pamqp.commands.Queue.DeclareOk).consumer_count or 0

    def peek(self, queue: str = f"{topology.PAYMENT_QUEUE}.dlq", *, take: bool = False) -> list[Found]:
        """Give every message of a queue; they go back, or out when they are taken."""
        channel = self._link.channel()
        number = self._link.depth(channel, queue)
        self._link.consume(channel, queue, max(1, number))
        found: list[Found] = []
        for _ in range(number):
            delivery = self._link.take(channel, 30)
            assert delivery is not None
            header = pamqp.header.ContentHeader()
            header.unmarshal(bytes(12) + delivery.properties)
            found.append(Found(header.properties, delivery.body))
            if take:
                self._link.ack(delivery)
        self._link.close_channel(channel)
        deadline = time.monotonic() + 30
        while not take and self.depth(queue) < number:  # the broker puts them back when it gets to it
            assert time.monotonic() < deadline
        return found

    def ids(self, queue: str = f"{topology.PAYMENT_QUEUE}.dlq") -> list[str]:
        """Give the message ids of a queue, in its order."""
        return [one.id for one in self.peek(queue)]

    def drop(self, queue: str) -> None:
        """Delete a queue."""
        self._link.call(self._link.channel(), pamqp.commands.Queue.Delete(queue=queue), pamqp.commands.Queue.DeleteOk)

    def call(self, *arguments: str, **environ: str) -> Run:
        """Call `./sagapost dlq …` in this process."""
        for name, value in environ.items():
            self._monkeypatch.setenv(name, value)
        self._monkeypatch.setattr(sys, "argv", ["./sagapost", "dlq", *arguments])
        self._capsys.readouterr()
        code = cli.run()
        return Run(code, *self._capsys.readouterr())

    def replay(self, *arguments: str, queue: str = topology.PAYMENT_QUEUE) -> Run:
        """Really replay, in this process, without waiting for consumers that are not there."""
        return self.call("replay", queue, "--settle", "0", "--yes", "--reason", "test", "--json", *arguments)

    def spawn(self, *arguments: str, crash: str = "") -> subprocess.Popen[str]:
        """Start `./sagapost dlq …` as a process, which is killed after the test."""
        environ = {name: value for name, value in os.environ.items() if not name.startswith("SAGAPOST_")}
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "sagapost_ops", "dlq", *arguments],
            env={**environ, **self._urls, "SAGAPOST_CRASH": crash},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._children.append(child)
        return child

    def ask(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Read from the order database."""
        with psycopg.connect(self._urls["SAGAPOST_ORDER_DATABASE_URL"]) as conn:
            return conn.execute(query.encode(), values or None).fetchall()

    def ask_payment(self, query: str) -> list[tuple[Any, ...]]:
        """Read from the payment database."""
        with psycopg.connect(self._urls["SAGAPOST_PAYMENT_DATABASE_URL"]) as conn:
            return conn.execute(query.encode()).fetchall()

    def start_payment(self, start: Start, provider: services.Service) -> services.Service:
        """Start the payment service, and wait until it consumes."""
        urls = {"SAGAPOST_DATABASE_URL": self._urls["SAGAPOST_PAYMENT_DATABASE_URL"], "SAGAPOST_AMQP_URL": self.vhost}
        service = start("payment", {**urls, "SAGAPOST_PROVIDER_URL": provider.url}).wait_ready()
        polling.eventually(lambda: any(line.get("event") == "consumer.started" for line in service.lines()), 30)
        return service


@contextlib.contextmanager
def opened(
    order_db: str, payment_db: str, vhost: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Generator[Desk]:
    """Give a desk for the length of a test."""
    urls = {"SAGAPOST_ORDER_DATABASE_URL": order_db, "SAGAPOST_PAYMENT_DATABASE_URL": payment_db, "SAGAPOST_AMQP_URL": vhost}
    with contextlib.closing(Desk(urls, monkeypatch, capsys)) as made:
        yield made


def order_of(number: int) -> events.OrderCreated:
    """Make an order that the payment service charges."""
    return events.OrderCreated(
        order_id=number,
        saga_id=ids.uuid7(),
        user_id=1,
        user_email="test@example.com",
        amount=Decimal("49.99"),
        items=(events.Line(product_id=2, name="Wireless Mouse", quantity=1, price=Decimal("49.99")),),
        payment_method="pm_card_ok",
        pay_before=datetime.now(UTC) + timedelta(minutes=15),
    )


def letter(
    number: int, *, fingerprint: str, says: str, kind: str, headers: Mapping[str, Any]
) -> tuple[pamqp.commands.Basic.Properties, bytes]:
    """Make a letter as the consumers leave it, `number` minutes after START."""
    sealed = envelope.seal(
        order_of(number),
        message_id=UUID(MESSAGE_ID.format(number)),
        source="order",
        time=START,
        causation_id=None,
        traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    )
    at = (START + timedelta(minutes=number)).isoformat()
    failure: dict[str, Any] = {
        "x-attempt": 6,
        "x-exception-type": fingerprint.partition("@")[0],
        "x-exception-message": says,
        "x-fingerprint": fingerprint,
        "x-first-failed-at": at,
        "x-failed-at": at,
        "x-original-routing-key": sealed.routing_key,
    }
    properties = pamqp.commands.Basic.Properties(
        headers={**sealed.headers(), **failure, **headers},
        content_type="application/json",
        delivery_mode=2,
        message_id=str(sealed.message_id),
        correlation_id=sealed.correlation_id,
        timestamp=START,
        message_type=kind,
    )
    return properties, sealed.body
