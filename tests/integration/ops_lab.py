"""Two fresh databases, a fresh virtual host and services that may be mutated, for the tests that take safeguards out."""

import pathlib
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Protocol
from uuid import UUID

from sagapost_chassis import amqp, ids
from sagapost_contracts import envelope, events, topology
from sagapost_ops import targets, verify
from sagapost_ops.invariants.outcome import Expectations
from sagapost_sandbox.testing import services


class StartService(Protocol):
    """The fixture that starts services."""

    def __call__(self, name: str, env: dict[str, str]) -> services.Service:
        """Start one."""
        ...


class Lab:
    """Two fresh databases, a fresh virtual host, and services that may be mutated."""

    def __init__(self, start: StartService, folder: pathlib.Path, urls: dict[str, str], provider: services.Service) -> None:
        self.vhost = urls["vhost"]
        self._start = start
        self._folder = folder
        self._urls = urls
        self.provider = provider

    def start(self, name: str, mutation: str, crash: str = "", **more: str) -> services.Service:
        """Start order or payment with this mutation and `more` variables; an empty mutation changes nothing."""
        (self._folder / "sitecustomize.py").write_text(mutation, encoding="utf-8")
        env = {
            "PYTHONPATH": str(self._folder),
            "SAGAPOST_CRASH": crash,
            "SAGAPOST_DATABASE_URL": self._urls[name],
            "SAGAPOST_AMQP_URL": self.vhost,
            "SAGAPOST_PROVIDER_URL": self.provider.url,
            **more,
        }
        return self._start(name, env).wait_ready()

    @property
    def payment_db(self) -> str:
        """Where payment's database is."""
        return self._urls["payment"]

    def violations(self, number: int) -> tuple[str, ...]:
        """Verify, and give what one invariant has to say."""
        where = targets.Targets(
            order_database_url=self._urls["order"], payment_database_url=self._urls["payment"], provider_url=self.provider.url
        )
        return verify.run(where, Expectations(consumers=False, strangers=True)).invariants[number - 1].violations


def sealed(message: events.Message, message_id: UUID | None = None) -> envelope.Envelope:
    """Seal a message as the relay publishes it."""
    return envelope.seal(
        message, message_id=message_id or ids.uuid7(), source="test", time=datetime.now(UTC), causation_id=None, traceparent=None
    )


async def publish(url: str, *envelopes: envelope.Envelope) -> None:
    """Publish sealed messages, in order."""
    async with amqp.Publisher(url, "mutants") as publisher:
        for one in envelopes:
            await publisher.publish(amqp.message_of(one), exchange=topology.EXCHANGE, routing_key=one.routing_key)


def handled(service: services.Service) -> int:
    """Count the messages that a service has handled; one that it tries again later is not handled yet."""
    return sum((line.get("event"), line.get("outcome")) == ("message.handled", "ok") for line in service.lines())


def soon(condition: Callable[[], bool]) -> Callable[[], Coroutine[None, None, bool]]:
    """Make a plain condition one that can be awaited."""

    async def asked() -> bool:
        return condition()

    return asked
