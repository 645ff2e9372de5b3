"""The one consume loop: decode, handle, then acknowledge; failures go to the retry ladder or the dead-letter queue."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final, Literal, TypeVar
from uuid import UUID

import aio_pika
import aiormq.abc
import msgspec
import prometheus_client
import structlog
from aio_pika import abc
from opentelemetry.trace import SpanKind

from sagapost_chassis import amqp, arrivals, asking, background, errors, ladder, lenient, properties, telemetry
from sagapost_contracts import envelope, events, topology

DRAIN_S: Final = 20
AGAIN_MAX_S: Final = 2.0  # a session that was lost is tried again so often at least: customers wait for what it consumes
WATCH_S: Final = 1
SET_ASIDE_S: Final = 600  # well below the 30 minutes after which the broker closes a channel that does not answer
# A message that this many deliveries went unanswered of may be one that kills its process, and is handled with nothing beside it: each
# death counts against all that the process held, and the broker's delivery limit would make dead letters of innocent ones.
# A lost connection or a restarted broker counts too, so one or two are no suspicion.
SUSPECT_AFTER: Final = 3
# Suspects that have waited for this long go back to the broker, which closes the channel of who keeps one for 30 minutes: what is handled
# at that moment may take `SET_ASIDE_S` more.
SUSPECTS_S: Final = 600
# No handler takes this long, nor does a copy that an alarm of the broker holds up for `SET_ASIDE_S`.
IN_HAND_S: Final = 1200
_DICE: Final = random.SystemRandom()

HANDLED: Final = prometheus_client.Counter("sagapost_messages_handled_total", "Messages whose handler returned", ["queue", "type"])
RETRIED: Final = prometheus_client.Counter(
    "sagapost_messages_retried_total", "Messages put on the retry ladder", ["queue", "exception_type"]
)
DEAD: Final = prometheus_client.Counter(
    "sagapost_messages_dead_total", "Messages put into the dead-letter queue", ["queue", "exception_type"]
)
OLDEST: Final = prometheus_client.Gauge(
    "sagapost_message_oldest_seconds", "Seconds that the oldest message in hand has been there", ["queue"]
)
IN_FLIGHT: Final = prometheus_client.Gauge("sagapost_messages_in_flight", "Messages that are being handled", ["queue"])


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One decoded message; `attempt` counts from 1. `is_repeated`: it was delivered before, or is a copy of one that may have been."""

    message_id: UUID
    type: str
    message: events.Message
    attempt: int
    time: datetime
    is_repeated: bool = False


Handler = Callable[[Delivery], Awaitable[None]]
M = TypeVar("M", bound=events.Message)


def typed(cls: type[M], handle: Callable[[Delivery, M], Awaitable[None]]) -> Handler:
    """Make a handler that takes the decoded message, of its own type, beside the delivery."""

    async def handler(delivery: Delivery) -> None:
        if not isinstance(delivery.message, cls):
            raise TypeError(f"{delivery.type} arrived as {type(delivery.message).__name__}")
        await handle(delivery, delivery.message)

    return handler


class Consumer:
    """Consumes one work queue for as long as the process lives, across broker outages.

    At most `concurrency` messages are in hand at once. `retry_delays_s` is the ladder: the n-th failure waits for the n-th
    delay, each of them one of the declared retry queues', and a message that fails once more after the last is dead.
    """

    def __init__(
        self,
        url: str,
        queue: str,
        handlers: Mapping[type[events.Message], Handler],
        publisher: amqp.Publisher,
        *,
        concurrency: int = 32,
        retry_delays_s: tuple[int, ...] = topology.RETRY_DELAYS_S,
        longest_s: float = IN_HAND_S,
    ) -> None:
        self._url = url
        self._queue = queue
        self._handlers = {cls.__name__: handler for cls, handler in handlers.items()}
        self._publisher = publisher
        self._concurrency = concurrency
        self._places = asyncio.Semaphore(concurrency)
        self._retry_delays_s = retry_delays_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._broken = asyncio.Event()
        self._stop = asyncio.Event()
        self._consuming = False
        self._tag: str | None = None  # of the consumer that the broker should know
        self._arrived = 0
        self._alone = True  # take one message at a time
        self._turn = asyncio.Event()  # the pace must change
        self._suspects: list[arrivals.Arrival] = []
        self._held: set[arrivals.Arrival] = set()
        self._longest_s = longest_s
        self._fault = ""
        OLDEST.labels(queue).set_function(self.oldest_s)

    async def check(self) -> bool:
        """Return whether messages can arrive and none is stuck."""
        with suppress(errors.NotReadyError):
            return await self.ready()
        return False

    async def ready(self) -> bool:
        """Return what `check` does, for a health check, which shows the reason.

        Raises:
            errors.NotReadyError: what the broker lacks, or that a message has been in hand for too long.

        """
        if self._fault:
            raise errors.NotReadyError(self._fault)
        if self.oldest_s() > self._longest_s:
            raise errors.NotReadyError(
                f"a message of {self._queue} has been in hand for {self.oldest_s():.0f} s, {self._longest_s:.0f} s at most are usual; "
                "restart this process, and the broker delivers it again"
            )
        return self._consuming

    def oldest_s(self) -> float:
        """Return for how many seconds the oldest message that is not acknowledged has been in hand; 0 when there is none."""
        return max((time.monotonic() - arrival.since for arrival in tuple(self._held)), default=0.0)

    async def flows(self) -> bool:
        """Tell whether failures can be set aside: an alarm of the broker blocks who publishes, not who consumes."""
        return await self._publisher.flows()

    async def run(self, stop: asyncio.Event) -> None:
        """Consume until `stop` is set, then finish what is in flight."""
        self._stop = stop
        connection_class = lenient.connection_class()
        failures = 0
        while not stop.is_set():
            try:
                with amqp.failures("the session broke"):
                    await self._session(
                        await amqp.connect(self._url, f"sagapost-consumer-{self._queue}", connection_class=connection_class)
                    )
                failures = 0
            except errors.TransientError as exc:
                failures += 1
                self._fault = asking.missing(exc)
                telemetry.log.warning("broker.lost", queue=self._queue, reason=f"{type(exc).__name__}: {exc}"[:300])
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), amqp.backoff_s(failures, cap_s=AGAIN_MAX_S))
        await self._drain()

    async def _watch(self, connection: abc.AbstractConnection) -> None:
        """Keep the metric of an alarm true, and ask the broker whether what this consumer relies on is there."""
        own = topology.retry_exchange(self._queue), topology.dead_letter_exchange(self._queue)
        broker = asking.Asking(connection, self._queue, (topology.EXCHANGE, topology.DEAD_LETTER_EXCHANGE, *own), self._believes)
        asked_at = time.monotonic()
        while not self._broken.is_set():
            await self._publisher.flows()
            await asyncio.sleep(WATCH_S)
            if time.monotonic() - asked_at < asking.ASK_S:
                continue
            try:
                with amqp.failures("not asked"):
                    anew = await broker.ask()
            except errors.TransientError:
                self._broken.set()  # the connection is lost
                return
            asked_at, self._fault = time.monotonic(), broker.fault
            if anew:
                self._turn.set()
                telemetry.log.warning("consumer.anew", queue=self._queue, reason=broker.fault or "messages wait, and none is brought")

    def _believes(self) -> asking.Consuming:
        room = len(self._held) < (1 if self._alone else self._concurrency)
        return asking.Consuming(tag=self._tag, arrived=self._arrived, room=room)

    async def _session(self, connection: abc.AbstractConnection) -> None:
        self._broken.clear()
        self._held.difference_update(self._suspects)
        self._suspects.clear()
        self._alone = True  # what a dead process left stands in front of everything else
        waits: Sequence[asyncio.Future[Literal[True]]] = ()
        watch = asyncio.create_task(self._watch(connection))
        try:
            channel = await connection.channel(publisher_confirms=False)
            underlay = await channel.get_underlay_channel()
            underlay.on_consumer_cancel_callbacks.add(lambda _: self._broken.set())
            waits = [
                asyncio.ensure_future(wait) for wait in (self._stop.wait(), self._broken.wait(), channel.closed(), connection.closed())
            ]
            background.watched(watch, f"watch {self._queue}", self._broken.set, cancelled=False)
            telemetry.log.info("consumer.started", queue=self._queue)
            while not any(wait.done() for wait in waits):
                await self._take(underlay, waits)
            if self._stop.is_set():
                await self._drain()
        finally:
            self._consuming, self._tag = False, None
            watch.cancel()
            for wait in waits:
                wait.cancel()
            await amqp.close(connection)

    async def _take(self, channel: aiormq.abc.AbstractChannel, waits: Sequence[asyncio.Future[Literal[True]]]) -> None:
        """Consume at one pace until it must change or the session ends; then handle suspects one by one."""
        self._turn.clear()
        await channel.basic_qos(prefetch_count=1 if self._alone else self._concurrency)
        self._tag = str((await channel.basic_consume(self._queue, self._accept)).consumer_tag)
        self._consuming = True
        turn = asyncio.ensure_future(self._turn.wait())
        try:
            await asyncio.wait([*waits, turn], return_when=asyncio.FIRST_COMPLETED)
        finally:
            turn.cancel()
        if self._broken.is_set() or channel.is_closed:
            return
        tag, self._tag = self._tag, None
        async with asyncio.timeout(5):
            await channel.basic_cancel(str(tag))
        self._alone = bool(self._suspects)
        if self._alone:
            await self._drain()
        while self._suspects and not any(wait.done() for wait in waits):
            if time.monotonic() - min(arrival.since for arrival in self._suspects) > SUSPECTS_S:
                self._broken.set()  # the session ends, and the broker delivers those that are left again, one by one
                return
            await self._process(self._suspects.pop(_DICE.randrange(len(self._suspects))))

    async def _drain(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=DRAIN_S)

    async def _accept(self, delivered: aiormq.abc.DeliveredMessage) -> None:
        try:
            self._begin(arrivals.Arrival(delivered))
        except Exception:  # the client only logs it, and the message would stay here unanswered
            self._broken.set()
            raise

    def _begin(self, arrival: arrivals.Arrival) -> None:
        self._held.add(arrival)
        self._arrived += 1
        suspect = arrival.deliveries >= SUSPECT_AFTER
        if suspect and (not self._alone or self._turn.is_set()):
            self._suspects.append(arrival)
            self._turn.set()
            return
        if not suspect and self._alone:
            self._turn.set()
        # the client cancels its callbacks when the channel dies, maybe between a charge and our commit: the work is a task of ours
        task = asyncio.create_task(self._process(arrival))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        background.watched(task, f"message {self._queue}", self._broken.set)

    async def _process(self, arrival: arrivals.Arrival) -> None:
        # the broker counts for each consumer, and what an earlier pace or a lost session still has in hand is not in its count
        try:
            async with self._places:
                await self._answer(arrival)
        finally:
            self._held.discard(arrival)

    async def _answer(self, arrival: arrivals.Arrival) -> None:
        kind = arrival.type if arrival.type in self._handlers else "?"  # a name that a sender may choose is no label
        with (
            IN_FLIGHT.labels(self._queue).track_inprogress(),
            structlog.contextvars.bound_contextvars(message_id=arrival.message_id, correlation_id=arrival.correlation_id),
            telemetry.span(f"{self._queue} {kind}", SpanKind.CONSUMER, telemetry.headers_of(arrival.headers, "traceparent")),
        ):
            try:
                await self._handle(arrival, kind)
            except Exception as exc:  # neither handled nor set aside: a new session makes the broker deliver it again
                self._broken.set()  # before anything else: a message must not stay here unanswered
                _report_left(self._queue, exc)
                return
            with suppress(errors.TransientError), amqp.failures("not acknowledged"):
                await arrival.ack()  # on a channel that is gone it raises; the redelivery is recognised by its id

    async def _handle(self, arrival: arrivals.Arrival, kind: str) -> None:
        with telemetry.canonical("message.handled", "amqp", kind, queue=self._queue, attempt=arrival.attempt) as line:
            try:
                arrival.check()
                delivery = _read(arrival)
                arrivals.check_key(arrival, self._queue, type(delivery.message).key)
                line["order_id"] = delivery.message.order_id
                await self._handler_of(delivery.type)(delivery)
                HANDLED.labels(self._queue, kind).inc()
            except Exception as exc:  # top of the loop: everything that can go wrong goes to the ladder or the dead letters
                line["outcome"] = await self._set_aside(arrival, exc)
                line["error"] = f"{type(exc).__name__}: {properties.text(exc)}"[:300]

    def _handler_of(self, kind: str) -> Handler:
        try:
            return self._handlers[kind]
        except KeyError:
            raise envelope.UndecodableError(f"{kind} has no handler on {self._queue}") from None

    async def _set_aside(self, arrival: arrivals.Arrival, exc: Exception) -> str:
        """Publish a confirmed copy to the retry ladder or the dead-letter queue; say which."""
        permanent = isinstance(exc, (envelope.UndecodableError, errors.PermanentError, errors.DomainError))
        reason = type(exc).__name__
        delay_s = None if permanent else self._delay_s(arrival, exc)
        if delay_s is not None:
            copy = arrivals.copy(arrival, arrivals.retry_headers(arrival, exc, self._queue))
            await self._publish(arrival, copy, exchange=topology.retry_exchange(self._queue), routing_key=topology.retry_key(delay_s))
            RETRIED.labels(self._queue, reason).inc()
            return f"retry_in_{delay_s}s"
        copy = arrivals.copy(arrival, arrivals.failure_headers(arrival, exc, arrival.attempt, self._queue))
        await self._publish(arrival, copy, exchange=topology.dead_letter_exchange(self._queue), routing_key=self._queue)
        DEAD.labels(self._queue, reason).inc()
        # not exc_info: the log would show the frames' variables, the message with its e-mail address among them
        telemetry.log.error("message.dead", queue=self._queue, fingerprint=arrivals.fingerprint(exc), traceback=arrivals.frames(exc))
        return "dead"

    def _delay_s(self, arrival: arrivals.Arrival, exc: Exception) -> int | None:
        wish_s: float = getattr(exc, "delay_s", 0)
        if getattr(exc, "counted", True):
            return ladder.step(self._retry_delays_s, arrival.attempt, wish_s)
        return ladder.pause(self._retry_delays_s, arrival.waits, wish_s)

    async def _publish(self, arrival: arrivals.Arrival, copy: aio_pika.Message, *, exchange: str, routing_key: str) -> None:
        """Publish until it is confirmed.

        To leave the message instead would count as an unanswered delivery of all that this process holds, and while the broker takes no
        messages, under an alarm for instance, the delivery limit would soon make dead letters of them.

        Raises:
            errors.TransientError: the message cannot be acknowledged any more, this process stops, or it took too long.

        """
        failures, deadline = 0, time.monotonic() + SET_ASIDE_S
        while True:
            try:
                return await self._publisher.publish(copy, exchange=exchange, routing_key=routing_key, patience_s=SET_ASIDE_S)
            except errors.TransientError as exc:
                failures += 1
                if arrival.gone or self._stop.is_set() or time.monotonic() > deadline:
                    raise
                telemetry.log.warning(
                    "message.not_set_aside", queue=self._queue, to=routing_key, reason=f"{type(exc).__name__}: {exc}"[:300]
                )
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), amqp.backoff_s(failures))


def _report_left(queue: str, exc: Exception) -> None:
    if isinstance(exc, errors.TransientError):
        telemetry.log.warning("message.left", queue=queue, reason=f"{type(exc).__name__}: {exc}"[:300])
    else:  # our own fault; the broker's delivery limit ends what always fails
        telemetry.log.error("message.left", queue=queue, fingerprint=arrivals.fingerprint(exc), traceback=arrivals.frames(exc))


def _read(arrival: arrivals.Arrival) -> Delivery:
    try:
        message_id = UUID(arrival.message_id or "")
    except ValueError as exc:
        raise envelope.UndecodableError(f"message id {arrival.message_id!r} is not a UUID") from exc
    return Delivery(
        message_id=message_id,
        type=arrival.type or "",
        message=envelope.decode(arrival.type, arrival.headers.get("schema-version"), arrival.body),
        attempt=arrival.attempt,
        time=arrival.timestamp or datetime.now(UTC),
        is_repeated=arrival.is_repeated,
    )
