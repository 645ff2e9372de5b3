"""The consume loop against a real broker: acknowledged after the effect, retried on the ladder, dead-lettered with the reason."""

import asyncio
import collections
import contextlib
import gc
import itertools
import statistics
import sys
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import aiormq
import prometheus_client
import pytest
import structlog
from integration import queue_kit
from pamqp import commands as spec

from sagapost_chassis import amqp, consuming, errors, ids
from sagapost_chassis import topology as declaring
from sagapost_contracts import envelope, events, topology
from sagapost_sandbox.testing import polling, proxy, servers

pytestmark = pytest.mark.anyio
QUEUE = topology.PAYMENT_QUEUE
OWN = (topology.retry_exchange(QUEUE), topology.dead_letter_exchange(QUEUE))  # its exchanges


def _sealed(order_id: int = 7) -> envelope.Envelope:
    command = events.CancelPayment(order_id=order_id, saga_id=ids.uuid7(), reason="test", saga_version=1)
    return envelope.seal(command, message_id=ids.uuid7(), source="test", time=datetime.now(UTC), causation_id=None, traceparent=None)


class Gated(amqp.Publisher):
    """Publishes one message at a time, and none while somebody else holds the gate."""

    def __init__(self, url: str, name: str) -> None:
        super().__init__(url, name)
        self.gate = asyncio.Lock()

    async def publish(self, message: aio_pika.Message, *, exchange: str, routing_key: str, patience_s: float = 0) -> None:
        """Publish when the gate is free."""
        async with self.gate:
            await super().publish(message, exchange=exchange, routing_key=routing_key, patience_s=patience_s)


@contextlib.asynccontextmanager
async def _consuming(
    url: str, handler: consuming.Handler, delays_s: tuple[int, ...] = (1, 5), through: amqp.Publisher | None = None
) -> AsyncGenerator[amqp.Publisher]:
    """Run a consumer of the payment queue around the block, and stop it as a deployment does."""
    stop = asyncio.Event()
    async with through or amqp.Publisher(url, "test") as publisher:
        consumer = consuming.Consumer(url, QUEUE, {events.CancelPayment: handler}, publisher, retry_delays_s=delays_s)
        task = asyncio.create_task(consumer.run(stop))
        await polling.eventually(consumer.check)
        yield publisher
        stop.set()
        await task


async def test_a_handled_message_is_acknowledged_and_gone(vhost: str) -> None:
    """What a handler finished is neither on the queue nor delivered again."""
    seen: list[consuming.Delivery] = []

    async def handler(delivery: consuming.Delivery) -> None:
        seen.append(delivery)

    sealed = _sealed()
    async with _consuming(vhost, handler) as publisher:
        await publisher.publish(amqp.message_of(sealed), exchange=topology.EXCHANGE, routing_key=sealed.routing_key)
        await polling.eventually(lambda: _is(len(seen) == 1))

    assert (seen[0].message_id, seen[0].attempt, seen[0].message.order_id) == (sealed.message_id, 1, 7)
    assert await queue_kit.depth(vhost, QUEUE) == 0


async def test_a_message_is_not_acknowledged_before_its_handler_returned(vhost: str) -> None:
    """A consumer that dies inside a handler leaves the message to the next one."""
    entered = asyncio.Event()

    async def hanging(_: consuming.Delivery) -> None:
        entered.set()
        await asyncio.Event().wait()

    sealed = _sealed()
    async with amqp.Publisher(vhost, "test") as publisher:
        consumer = consuming.Consumer(vhost, QUEUE, {events.CancelPayment: hanging}, publisher)
        task = asyncio.create_task(consumer.run(asyncio.Event()))
        await publisher.publish(amqp.message_of(sealed), exchange=topology.EXCHANGE, routing_key=sealed.routing_key)
        await entered.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    again = await queue_kit.take(vhost, QUEUE)

    assert again.message_id == str(sealed.message_id)
    assert again.redelivered


async def test_a_transient_failure_climbs_the_ladder_and_then_succeeds(vhost: str) -> None:
    """A handler that fails once gets the same message again after the ladder's first delay, counted by us."""
    attempts: list[int] = []

    async def handler(delivery: consuming.Delivery) -> None:
        attempts.append(delivery.attempt)
        if len(attempts) < 2:
            raise errors.TransientError("not yet")

    sealed = _sealed()
    async with _consuming(vhost, handler) as publisher:
        await publisher.publish(amqp.message_of(sealed), exchange=topology.EXCHANGE, routing_key=sealed.routing_key)
        await polling.eventually(lambda: _is(len(attempts) == 2))

    assert attempts == [1, 2]
    assert await queue_kit.depth(vhost, topology.dead_letter_queue(QUEUE)) == 0


async def test_failures_below_the_ladders_length_cost_their_delays_and_nothing_else(vhost: str) -> None:
    """A handler that fails one, two or three times has its effect once, each wait is the step's, and good messages beside go on."""
    steps_s = (1, 1, 5)
    times: dict[int, list[float]] = collections.defaultdict(list)
    effects: collections.Counter[int] = collections.Counter()
    sent: dict[int, float] = {}
    now = asyncio.get_running_loop().time

    async def handler(delivery: consuming.Delivery) -> None:
        number, attempt = delivery.message.order_id, delivery.attempt
        times[number].append(now())
        if number < 10 and attempt <= number:
            # another message goes where this one belongs, at the same time: both come back together, however slow the machine is
            beside, step = amqp.message_of(_sealed(1000 + 10 * number + attempt)), topology.retry_queue(QUEUE, steps_s[attempt - 1])
            await publisher.publish(beside, exchange="", routing_key=step)
            raise errors.TransientError("not yet")
        effects[number] += 1

    async with _consuming(vhost, handler, steps_s) as publisher:

        async def publish(number: int) -> None:
            sent[number] = now()
            await publisher.publish(amqp.message_of(_sealed(number)), exchange="", routing_key=QUEUE)

        for number in range(100, 300):
            await publish(number)
        await asyncio.gather(*(publish(number) for number in (1, 2, 3)))
        for number in range(300, 500):
            await publish(number)
        await polling.eventually(lambda: _is(len(effects) == 409), 30)

    assert set(effects.values()) == {1}
    waits_s = {number: [round(b - a, 1) for a, b in itertools.pairwise(times[number])] for number in (1, 2, 3)}
    assert all(wanted <= wait for waits in waits_s.values() for wait, wanted in zip(waits, steps_s, strict=False))
    assert [len(waits) for waits in waits_s.values()] == [1, 2, 3]
    apart_s = [
        abs(times[number][attempt] - times[1000 + 10 * number + attempt][0]) for number in (1, 2, 3) for attempt in range(1, number + 1)
    ]
    assert max(apart_s) <= 1
    p99_ms = [
        statistics.quantiles([(times[number][0] - sent[number]) * 1000 for number in part], n=100)[98]
        for part in (range(100, 300), range(300, 500))
    ]
    sys.stdout.write(f"\nwaits {waits_s}; p99 of good ones alone {p99_ms[0]:.1f} ms, beside failing ones {p99_ms[1]:.1f} ms\n")


async def _bind(queue: aio_pika.abc.AbstractQueue, wanted: topology.Queue) -> None:
    for exchange, key in wanted.bindings:
        await queue.bind(exchange, key)


async def test_a_retry_that_no_queue_takes_is_not_lost(vhost: str) -> None:
    """Unroutable while its retry queue is gone, nacked while that is full: the message waits unacknowledged, and then climbs on."""
    attempts: list[int] = []

    async def handler(delivery: consuming.Delivery) -> None:
        attempts.append(delivery.attempt)
        if delivery.attempt == 1:
            raise errors.TransientError("not yet")

    step = next(queue for queue in topology.queues() if queue.name == topology.retry_queue(QUEUE, 1))
    publisher = Gated(vhost, "test")
    connection = await aio_pika.connect(vhost)
    async with connection, _consuming(vhost, handler, through=publisher):
        channel = await connection.channel()
        await channel.queue_delete(step.name)
        with structlog.testing.capture_logs() as lines:
            await publisher.publish(amqp.message_of(_sealed()), exchange="", routing_key=QUEUE)
            await polling.eventually(lambda: _is("no queue takes" in str(lines)))
            full: dict[str, Any] = {"x-max-length": 0, "x-overflow": "reject-publish"}
            await _bind(await channel.declare_queue(step.name, durable=True, arguments=full), step)
            await polling.eventually(lambda: _is("DeliveryError" in str(lines)))
        assert attempts == [1]
        async with publisher.gate:  # the broker confirms whatever a queue that is deleted has not answered yet, and it is gone
            await channel.queue_delete(step.name)
            await _bind(await channel.declare_queue(step.name, durable=True, arguments=dict(step.arguments)), step)
        await polling.eventually(lambda: _is(attempts == [1, 2]), 20)

    assert await queue_kit.depth(vhost, QUEUE) == 0
    assert await queue_kit.depth(vhost, topology.dead_letter_queue(QUEUE)) == 0


async def test_a_wish_for_a_longer_delay_skips_steps(vhost: str) -> None:
    """A failure that asks for at least six seconds waits on the step of half a minute, not on the first ones."""

    async def handler(_: consuming.Delivery) -> None:
        raise errors.TransientError("busy", delay_s=6)

    sealed = _sealed()
    async with _consuming(vhost, handler, (1, 5, 30)) as publisher:
        await publisher.publish(amqp.message_of(sealed), exchange=topology.EXCHANGE, routing_key=sealed.routing_key)
        waiting = await queue_kit.take(vhost, topology.retry_queue(QUEUE, 30))

    assert waiting.headers["x-attempt"] == 2


async def test_out_of_attempts_goes_to_the_dead_letter_queue_with_the_reason(vhost: str) -> None:
    """A handler that always fails ends in the dead-letter queue, and the headers say what, where and when."""

    async def handler(_: consuming.Delivery) -> None:
        raise ZeroDivisionError("always")

    sealed, before = _sealed(), _counted("ZeroDivisionError")
    async with _consuming(vhost, handler, delays_s=(1,)) as publisher:
        await publisher.publish(amqp.message_of(sealed), exchange=topology.EXCHANGE, routing_key=sealed.routing_key)
        dead = await queue_kit.take(vhost, topology.dead_letter_queue(QUEUE))

    assert dead.message_id == str(sealed.message_id)
    assert dead.body == sealed.body
    assert dead.headers["x-exception-type"] == "ZeroDivisionError"
    assert dead.headers["x-exception-message"] == "always"
    assert dead.headers["x-attempt"] == 2
    assert dead.headers["x-original-routing-key"] == "order.payment.cancel_requested"
    assert str(dead.headers["x-first-failed-at"]) < str(dead.headers["x-failed-at"])
    assert str(dead.headers["x-fingerprint"]).startswith("ZeroDivisionError@")
    assert [after - earlier for after, earlier in zip(_counted("ZeroDivisionError"), before, strict=True)] == [1, 1, 0]


async def test_a_fault_of_the_surroundings_costs_no_attempt(vhost: str) -> None:
    """A handler may fail so more often than the ladder has steps: the message waits, keeps its attempt, and is handled."""
    attempts: list[int] = []

    async def handler(delivery: consuming.Delivery) -> None:
        attempts.append(delivery.attempt)
        if len(attempts) < 5:
            raise errors.TransientError("the mail server is away", counted=False)

    sealed = _sealed()
    async with _consuming(vhost, handler, delays_s=(1, 1)) as publisher:
        await publisher.publish(amqp.message_of(sealed), exchange=topology.EXCHANGE, routing_key=sealed.routing_key)
        await polling.eventually(lambda: _is(len(attempts) == 5), 30)

    assert attempts == [1] * 5
    assert await queue_kit.depth(vhost, topology.dead_letter_queue(QUEUE)) == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"body": b"{not json"}, "does not decode"),
        ({"type": "NoSuchThing"}, "unknown message type"),
        ({"headers": {"schema-version": 99}}, "of version 99"),
        ({"type": "EmailSent", "body": b'{"order_id":1}'}, "does not decode"),
        ({"message_id": "not-a-uuid"}, "is not a UUID"),
    ],
    ids=["body", "type", "version", "fields", "message id"],
)
async def test_what_cannot_be_read_is_dead_lettered_at_first_sight(change: dict[str, Any], reason: str, vhost: str) -> None:
    """No retry is spent on a message that can never be decoded, and the next message is handled."""
    seen: list[consuming.Delivery] = []

    async def handler(delivery: consuming.Delivery) -> None:
        seen.append(delivery)

    sealed = _sealed()
    given: dict[str, Any] = {"body": sealed.body, "message_id": str(ids.uuid7()), "type": sealed.type, "headers": {"schema-version": 1}}
    poison = aio_pika.Message(**{**given, **change})
    async with _consuming(vhost, handler) as publisher:
        await publisher.publish(poison, exchange="", routing_key=QUEUE)
        await publisher.publish(amqp.message_of(sealed), exchange="", routing_key=QUEUE)
        dead = await queue_kit.take(vhost, topology.dead_letter_queue(QUEUE))
        await polling.eventually(lambda: _is(len(seen) == 1))

    assert dead.body == poison.body
    assert reason in str(dead.headers["x-exception-message"])
    assert dead.headers["x-attempt"] == 1


async def test_a_consumer_survives_a_broker_restart(private_broker: servers.Broker) -> None:
    """After the broker was killed and started again the same consumer takes messages, and what waited is not lost."""
    url = private_broker.amqp_url()
    seen: list[str] = []

    async def handler(delivery: consuming.Delivery) -> None:
        seen.append(str(delivery.message_id))

    async with _consuming(url, handler) as publisher:
        private_broker.kill()
        await asyncio.to_thread(private_broker.start)
        sealed = _sealed()

        async def published() -> bool:
            try:
                await publisher.publish(amqp.message_of(sealed), exchange=topology.EXCHANGE, routing_key=sealed.routing_key)
            except errors.TransientError:
                return False
            return True

        await polling.eventually(published, 60)
        await polling.eventually(lambda: _is(str(sealed.message_id) in seen), 30)


async def test_an_unroutable_publish_is_an_error_not_a_silence(vhost: str) -> None:
    """Publishing where no queue is bound raises; the broker's return is not swallowed."""
    sealed = _sealed()
    async with amqp.Publisher(vhost, "test") as publisher:
        with pytest.raises(amqp.UnroutableError):
            await publisher.publish(amqp.message_of(sealed), exchange=topology.EXCHANGE, routing_key="no.such.key")


async def test_a_late_confirm_costs_no_other_publish_its_connection(vhost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One publish gives up; another under way on the same channel gets its confirm, and the next ones have their own channel."""
    monkeypatch.setattr(amqp, "PUBLISH_TIMEOUT_S", 3)
    address = urlsplit(vhost)
    with proxy.Proxy(str(address.hostname), int(address.port or 0)) as link:
        async with amqp.Publisher(proxy.through(vhost, link), "test") as publisher:

            async def publish() -> None:
                await publisher.publish(amqp.message_of(_sealed()), exchange="", routing_key=QUEUE)

            await publish()
            link.pause()
            late = asyncio.create_task(publish())
            await asyncio.wait({late}, timeout=1.5)
            other = asyncio.create_task(publish())
            await asyncio.wait({late})
            assert isinstance(late.exception(), amqp.BrokerUnavailableError)
            link.resume()
            await other
            await publish()
            assert link.connections == 1

    assert await queue_kit.depth(vhost, QUEUE) == 4


async def test_a_stopping_consumer_finishes_what_it_began(vhost: str) -> None:
    """A stop while a handler runs lets it end and acknowledges: a deployment dead-letters and repeats nothing."""
    entered, release, finished = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def handler(_: consuming.Delivery) -> None:
        entered.set()
        await release.wait()
        finished.set()

    sealed = _sealed()
    async with _consuming(vhost, handler) as publisher:
        await publisher.publish(amqp.message_of(sealed), exchange=topology.EXCHANGE, routing_key=sealed.routing_key)
        await entered.wait()
        asyncio.get_running_loop().call_later(0.3, release.set)

    assert finished.is_set()
    assert await queue_kit.depth(vhost, QUEUE) == 0


async def test_a_message_whose_task_ended_oddly_is_delivered_again(vhost: str) -> None:
    """A task that is cancelled, by whatever, leaves no message unanswered: the session ends, and the broker delivers it again."""
    seen: list[consuming.Delivery] = []

    async def handler(delivery: consuming.Delivery) -> None:
        seen.append(delivery)
        if len(seen) == 1:
            raise asyncio.CancelledError

    sealed = _sealed()
    async with _consuming(vhost, handler) as publisher:
        await publisher.publish(amqp.message_of(sealed), exchange=topology.EXCHANGE, routing_key=sealed.routing_key)
        await polling.eventually(lambda: _is(len(seen) == 2))

    assert await queue_kit.depth(vhost, QUEUE) == 0


async def test_a_message_in_hand_for_too_long_makes_the_process_unready(vhost: str) -> None:
    """A handler that never ends shows: its age is a gauge, and readiness says what to do; it is ready again when the handler ends."""
    release = asyncio.Event()

    async def hanging(_: consuming.Delivery) -> None:
        await release.wait()

    sealed, stop = _sealed(), asyncio.Event()
    async with amqp.Publisher(vhost, "test") as publisher:
        consumer = consuming.Consumer(vhost, QUEUE, {events.CancelPayment: hanging}, publisher, longest_s=0.2)
        task = asyncio.create_task(consumer.run(stop))
        await polling.eventually(consumer.check)
        await publisher.publish(amqp.message_of(sealed), exchange=topology.EXCHANGE, routing_key=sealed.routing_key)
        await polling.eventually(lambda: _refused(consumer, "has been in hand for"))
        assert (prometheus_client.REGISTRY.get_sample_value("sagapost_message_oldest_seconds", {"queue": QUEUE}) or 0) > 0.2
        release.set()
        await polling.eventually(consumer.check)
        stop.set()
        await task


async def test_a_consumer_that_the_broker_forgot_consumes_anew(vhost: str) -> None:
    """The broker does not know of the consumer any more, and says nothing: it is noticed, readiness says so, and messages come again."""
    seen: list[consuming.Delivery] = []

    async def handler(delivery: consuming.Delivery) -> None:
        seen.append(delivery)

    stop = asyncio.Event()
    async with amqp.Publisher(vhost, "test") as publisher:
        consumer = consuming.Consumer(vhost, QUEUE, {events.CancelPayment: handler}, publisher)
        task = asyncio.create_task(consumer.run(stop))
        await publisher.publish(amqp.message_of(_sealed()), exchange="", routing_key=QUEUE)
        await polling.eventually(lambda: _is(len(seen) == 1))
        (channel,) = [found for found in gc.get_objects() if isinstance(found, aiormq.Channel) and found.consumers and not found.is_closed]

        async def forgotten() -> bool:
            for tag in list(channel.consumers):  # one of a new pace, too
                await channel.rpc(spec.Basic.Cancel(consumer_tag=tag))
            return await _refused(consumer, "does not know of the consumer")

        await polling.eventually(forgotten, 30)
        await publisher.publish(amqp.message_of(_sealed()), exchange="", routing_key=QUEUE)
        await polling.eventually(lambda: _is(len(seen) == 2), 20)
        await polling.eventually(consumer.check, 20)
        stop.set()
        await task


@pytest.mark.parametrize("name", [topology.EXCHANGE, topology.DEAD_LETTER_EXCHANGE, *OWN, QUEUE])
async def test_readiness_names_what_the_broker_lacks(name: str, vhost: str) -> None:
    """An exchange or the queue is deleted at run time: readiness names it, and is right again when it is declared again."""

    async def handler(_: consuming.Delivery) -> None:
        """Do nothing."""

    stop = asyncio.Event()
    connection = await aio_pika.connect(vhost)
    async with connection, amqp.Publisher(vhost, "test") as publisher:
        consumer = consuming.Consumer(vhost, QUEUE, {events.CancelPayment: handler}, publisher)
        task = asyncio.create_task(consumer.run(stop))
        await polling.eventually(consumer.check)
        channel = await connection.channel()
        await (channel.queue_delete(name) if name == QUEUE else channel.exchange_delete(name))
        await polling.eventually(lambda: _refused(consumer, f" {name}; declare it"), 20)
        await declaring.declare(vhost)
        await polling.eventually(consumer.check, 20)
        stop.set()
        await task


async def _refused(consumer: consuming.Consumer, reason: str) -> bool:
    """Return whether readiness fails for this reason."""
    try:
        await consumer.ready()
    except errors.NotReadyError as exc:
        return reason in str(exc)
    return False


def _counted(exception_type: str) -> list[float]:
    """Read how many were retried, dead and are in flight."""
    read = prometheus_client.REGISTRY.get_sample_value
    labels = {"queue": QUEUE, "exception_type": exception_type}
    counted = [read(f"sagapost_messages_{name}_total", labels) for name in ("retried", "dead")]
    return [value or 0 for value in (*counted, read("sagapost_messages_in_flight", {"queue": QUEUE}))]


async def _is(value: object) -> object:
    return value
