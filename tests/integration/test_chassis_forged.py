"""Messages that came on a way on which no service of ours sends them, against a real broker: dead letters, counted, and never handled."""

import asyncio
from datetime import UTC, datetime

import aio_pika
import prometheus_client
import pytest
from integration import queue_kit

from sagapost_chassis import amqp, consuming, ids
from sagapost_contracts import envelope, events, topology
from sagapost_sandbox.testing import polling

pytestmark = pytest.mark.anyio


def _sealed(message: events.Message) -> envelope.Envelope:
    return envelope.seal(message, message_id=ids.uuid7(), source="test", time=datetime.now(UTC), causation_id=None, traceparent=None)


def _failed() -> events.PaymentFailed:
    return events.PaymentFailed(order_id=7, saga_id=ids.uuid7(), payment_version=1, code="declined", reason="no")


async def _arrived(seen: list[consuming.Delivery]) -> bool:
    return len(seen) == 1


async def test_a_type_under_the_routing_key_of_another_service_is_a_dead_letter(vhost: str) -> None:
    """What the sender names as the first key is not believed, and a letter that is sent back is refused again."""
    seen: list[consuming.Delivery] = []

    async def handler(delivery: consuming.Delivery) -> None:
        seen.append(delivery)

    sealed = _sealed(_failed())
    forged = amqp.message_of(sealed)
    forged.headers |= {"x-original-routing-key": "payment.payment.failed"}
    async with amqp.Publisher(vhost, "test") as publisher:
        stop = asyncio.Event()
        worker = consuming.Consumer(vhost, topology.ORDER_QUEUE, {events.PaymentFailed: handler}, publisher)
        running = asyncio.create_task(worker.run(stop))
        await publisher.publish(forged, exchange=topology.EXCHANGE, routing_key="email.email.sent")
        dead = await queue_kit.take(vhost, topology.dead_letter_queue(topology.ORDER_QUEUE))
        back = aio_pika.Message(dead.body, headers=dead.headers, message_id=dead.message_id, type=dead.type, timestamp=dead.timestamp)
        await publisher.publish(back, exchange="", routing_key=topology.ORDER_QUEUE)
        again = await queue_kit.take(vhost, topology.dead_letter_queue(topology.ORDER_QUEUE))
        await publisher.publish(amqp.message_of(sealed), exchange=topology.EXCHANGE, routing_key=sealed.routing_key)
        await polling.eventually(lambda: _arrived(seen))
        stop.set()
        await running

    assert [letter.headers["x-original-routing-key"] for letter in (dead, again)] == ["email.email.sent"] * 2
    assert "came to order_updates_queue with email.email.sent" in str(dead.headers["x-exception-message"])


async def test_a_type_that_the_queue_is_not_bound_for_is_a_dead_letter(vhost: str) -> None:
    """Even one that has a handler, and even when it came through the default exchange, as what is tried again does."""
    async with amqp.Publisher(vhost, "test") as publisher:
        stop = asyncio.Event()
        worker = consuming.Consumer(vhost, topology.EMAIL_QUEUE, {events.CancelPayment: _never}, publisher)
        running = asyncio.create_task(worker.run(stop))
        command = events.CancelPayment(order_id=7, saga_id=ids.uuid7(), reason="test", saga_version=1)
        await publisher.publish(amqp.message_of(_sealed(command)), exchange="", routing_key=topology.EMAIL_QUEUE)
        dead = await queue_kit.take(vhost, topology.dead_letter_queue(topology.EMAIL_QUEUE))
        stop.set()
        await running

    assert dead.headers["x-exception-type"] == "ForgedError"


async def test_a_message_with_more_routing_keys_is_a_dead_letter(vhost: str) -> None:
    """CC is refused whatever the type, BCC, which the broker takes off, by the routing key; both are counted, and nothing is handled."""
    before = _forged()
    async with amqp.Publisher(vhost, "test") as publisher:
        stop = asyncio.Event()
        worker = consuming.Consumer(vhost, topology.ORDER_QUEUE, {events.PaymentFailed: _never}, publisher)
        running = asyncio.create_task(worker.run(stop))
        for name, key, others in (
            ("CC", "payment.payment.failed", ["order.order.created"]),
            ("CC", "order.order.cancelled", ["payment.payment.failed"]),
            ("BCC", "order.order.cancelled", ["payment.payment.failed"]),
        ):
            message = amqp.message_of(_sealed(_failed()))
            message.headers[name] = [*others]
            await publisher.publish(message, exchange=topology.EXCHANGE, routing_key=key)
        dead = [await queue_kit.take(vhost, topology.dead_letter_queue(topology.ORDER_QUEUE)) for _ in range(3)]
        stop.set()
        await running

    assert [letter.headers["x-exception-type"] for letter in dead] == ["ForgedError"] * 3
    reasons = sorted(str(letter.headers["x-exception-message"]) for letter in dead)
    assert reasons[0].startswith("PaymentFailed has the routing key payment.payment.failed, and came to")
    assert [reason.startswith("it carries the header CC") for reason in reasons[1:]] == [True, True]
    assert [letter.headers.keys() & {"CC", "BCC"} for letter in dead] == [set()] * 3
    assert _forged() == before + 3


def _forged() -> float:
    labels = {"queue": topology.ORDER_QUEUE, "exception_type": "ForgedError"}
    return prometheus_client.REGISTRY.get_sample_value("sagapost_messages_dead_total", labels) or 0


async def _never(_: consuming.Delivery) -> None:
    raise AssertionError("this message belongs to another queue")
