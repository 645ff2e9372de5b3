"""What the tests of email share: a mailbox that misbehaves when told to, an order service that answers as told, events."""

import asyncio
import contextlib
import http.client
import json
import pathlib
from collections.abc import AsyncGenerator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID, uuid4

import aio_pika

from sagapost_chassis import amqp, consuming, ids
from sagapost_contracts import envelope, events, topology
from sagapost_sandbox.testing import services

MAIL_FROM: Final = "no-reply@sagapost.example"


def behave(mailbox: services.Service, **behaviour: object) -> None:
    """Make a mailbox misbehave; without arguments it behaves again."""
    connection = http.client.HTTPConnection("127.0.0.1", mailbox.port, timeout=5)
    try:
        connection.request("PUT", "/behaviour", json.dumps(behaviour), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert (answer.status, answer.read() != b"") == (200, True)
    finally:
        connection.close()


class OrderService:
    """A real HTTP server that answers the question about a receipt as it is told to; `asked` holds the heads of the requests."""

    def __init__(self) -> None:
        self.status = 200
        self.saga_status = 404
        self.answer: Mapping[str, object] = {"send": True, "lease_s": 60.0}
        self.asked: list[str] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request after the other."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                self.asked.append((await reader.readuntil(b"\r\n\r\n")).decode())
                status = self.status if self.asked[-1].startswith("POST") else self.saga_status
                body = json.dumps(self.answer).encode()
                writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))
        writer.close()


@contextlib.asynccontextmanager
async def order_service() -> AsyncGenerator[OrderService]:
    """Run the order service's one endpoint."""
    service = OrderService()
    server = await asyncio.start_server(service.serve, "127.0.0.1", 0)
    service.port = server.sockets[0].getsockname()[1]
    try:
        yield service
    finally:
        server.close()


def paid() -> events.PaymentProcessed:
    """Make the event of a captured payment."""
    return events.PaymentProcessed(
        order_id=1042,
        saga_id=ids.uuid7(),
        payment_id=7,
        payment_version=2,
        amount=Decimal("1299.99"),
        transaction_id="ch_1",
        captured_at=datetime.now(UTC),
        user_email="test@example.com",
        items=(events.Line(product_id=1, name="Gaming Laptop", quantity=1, price=Decimal("1299.99")),),
    )


def cancelled() -> events.OrderCancelled:
    """Make the event of a cancelled order."""
    return events.OrderCancelled(
        order_id=1042, saga_id=ids.uuid7(), user_email="test@example.com", reason="declined", refunded=Decimal(0), amount=Decimal("49.99")
    )


def delivery_of(message: events.Message, *, attempt: int = 1) -> consuming.Delivery:
    """Wrap a message as the broker would bring it."""
    return consuming.Delivery(message_id=uuid4(), type=type(message).__name__, message=message, attempt=attempt, time=datetime.now(UTC))


def ledger(mailbox: services.Service) -> list[dict[str, Any]]:
    """Return the accepted mails from the mailbox's own ledger, without a line that is being written."""
    whole = pathlib.Path(mailbox.env["SAGAPOST_MAILBOX_LEDGER"]).read_text(encoding="utf-8").rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def mails(mailbox: services.Service, saga_id: UUID) -> list[dict[str, Any]]:
    """Return the accepted mails of one saga."""
    return [mail for mail in ledger(mailbox) if str(saga_id) in mail["message_id"]]


async def published(vhost: str) -> list[tuple[str, dict[str, Any]]]:
    """Take what email has published: type, body."""
    found: list[tuple[str, dict[str, Any]]] = []
    async with await aio_pika.connect(vhost) as connection:
        queue = await (await connection.channel()).get_queue(topology.ORDER_QUEUE)
        while (message := await queue.get(fail=False)) is not None:
            await message.ack()
            if (message.type or "").startswith("Email"):
                found.append((message.type or "", json.loads(message.body)))
    return found


async def depth(vhost: str, queue: str) -> int:
    """Count the messages of a queue."""
    async with await aio_pika.connect(vhost) as connection:
        declared = await (await connection.channel()).declare_queue(queue, passive=True)
        return declared.declaration_result.message_count or 0


async def publish(vhost: str, *messages: events.Message) -> None:
    """Publish as the relays do."""
    async with amqp.Publisher(vhost, "test") as publisher:
        for message in messages:
            sealed = envelope.seal(
                message, message_id=uuid4(), source="payment", time=datetime.now(UTC), causation_id=None, traceparent=None
            )
            await publisher.publish(amqp.message_of(sealed), exchange=topology.EXCHANGE, routing_key=sealed.routing_key)
