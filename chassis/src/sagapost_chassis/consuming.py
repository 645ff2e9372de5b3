"""The one consume loop: decode, handle, then acknowledge; failures go to the retry ladder or the dead-letter queue."""

import asyncio
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final, Literal, TypeVar
from uuid import UUID

import aio_pika
import msgspec
import structlog
from aio_pika import abc
from opentelemetry.trace import SpanKind

from sagapost_chassis import amqp, errors, telemetry
from sagapost_contracts import envelope, events, topology

DRAIN_S: Final = 20


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One decoded message; `attempt` counts from 1."""

    message_id: UUID
    type: str
    message: events.Message
    attempt: int
    time: datetime


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

    `retry_delays_s` is the ladder: the n-th failure waits for the n-th delay, each of them one of the declared retry
    queues', and a message that fails once more after the last is dead.
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
    ) -> None:
        self._url = url
        self._queue = queue
        self._handlers = {cls.__name__: handler for cls, handler in handlers.items()}
        self._publisher = publisher
        self._concurrency = concurrency
        self._retry_delays_s = retry_delays_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._broken = asyncio.Event()
        self._consuming = False

    async def check(self) -> bool:
        """Tell whether messages can arrive."""
        return self._consuming

    async def run(self, stop: asyncio.Event) -> None:
        """Consume until `stop` is set, then finish what is in flight."""
        failures = 0
        while not stop.is_set():
            try:
                with amqp.failures("the session broke"):
                    await self._session(stop)
                failures = 0
            except errors.TransientError as exc:
                failures += 1
                telemetry.log.warning("broker.lost", queue=self._queue, reason=f"{type(exc).__name__}: {exc}"[:300])
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), amqp.backoff_s(failures))
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=DRAIN_S)

    async def _session(self, stop: asyncio.Event) -> None:
        connection = await amqp.connect(self._url, f"sagapost-consumer-{self._queue}")
        self._broken.clear()
        waits: Sequence[asyncio.Future[Literal[True]]] = ()
        try:
            channel = await connection.channel(publisher_confirms=False)
            await channel.set_qos(prefetch_count=self._concurrency)
            queue = await channel.get_queue(self._queue, ensure=True)
            tag = await queue.consume(self._accept)
            self._consuming = True
            telemetry.log.info("consumer.started", queue=self._queue)
            waits = [asyncio.ensure_future(wait) for wait in (stop.wait(), self._broken.wait(), channel.closed(), connection.closed())]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set():
                async with asyncio.timeout(5):
                    await queue.cancel(tag)
                if self._tasks:
                    await asyncio.wait(self._tasks, timeout=DRAIN_S)
        finally:
            self._consuming = False
            for wait in waits:
                wait.cancel()
            await amqp.close(connection)

    async def _accept(self, incoming: abc.AbstractIncomingMessage) -> None:
        # the client cancels its callbacks when the channel dies, maybe between a charge and our commit: the work is a task of ours
        task = asyncio.create_task(self._process(incoming))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _process(self, incoming: abc.AbstractIncomingMessage) -> None:
        kind = incoming.type or "?"
        with (
            structlog.contextvars.bound_contextvars(message_id=incoming.message_id, correlation_id=incoming.correlation_id),
            telemetry.span(f"{self._queue} {kind}", SpanKind.CONSUMER, telemetry.headers_of(incoming.headers, "traceparent")),
        ):
            try:
                await self._handle(incoming, kind)
            except errors.TransientError as exc:
                # neither handled nor set aside: a new session makes the broker deliver it again
                telemetry.log.warning("message.left", queue=self._queue, reason=f"{type(exc).__name__}: {exc}"[:300])
                self._broken.set()
                return
            with suppress(errors.TransientError), amqp.failures("not acknowledged"):
                await incoming.ack()  # on a channel that is gone it raises; the redelivery is recognised by its id

    async def _handle(self, incoming: abc.AbstractIncomingMessage, kind: str) -> None:
        attempt = _attempt(incoming)
        with telemetry.canonical("message.handled", "amqp", kind, queue=self._queue, attempt=attempt) as line:
            try:
                delivery = _read(incoming, attempt)
                line["order_id"] = delivery.message.order_id
                await self._handler_of(kind)(delivery)
            except Exception as exc:  # top of the loop: everything that can go wrong goes to the ladder or the dead letters
                line["outcome"] = await self._set_aside(incoming, exc, attempt)
                line["error"] = f"{type(exc).__name__}: {exc}"[:300]

    def _handler_of(self, kind: str) -> Handler:
        try:
            return self._handlers[kind]
        except KeyError:
            raise envelope.UndecodableError(f"{kind} has no handler on {self._queue}") from None

    async def _set_aside(self, incoming: abc.AbstractIncomingMessage, exc: Exception, attempt: int) -> str:
        """Publish a confirmed copy to the retry ladder or the dead-letter queue; say which."""
        permanent = isinstance(exc, (envelope.UndecodableError, errors.PermanentError, errors.DomainError))
        steps = [delay_s for delay_s in self._retry_delays_s[attempt - 1 :] if delay_s >= getattr(exc, "delay_s", 0)]
        retry = not permanent and attempt <= len(self._retry_delays_s)
        delay_s = (steps or self._retry_delays_s[-1:])[0] if retry else 0
        copy = _copy(incoming, _failure_headers(incoming, exc, attempt + 1 if retry else attempt))
        if retry:
            await self._publisher.publish(copy, exchange="", routing_key=topology.retry_queue(self._queue, delay_s))
            return f"retry_in_{delay_s}s"
        telemetry.log.error("message.dead", queue=self._queue, exc_info=exc)
        await self._publisher.publish(copy, exchange=topology.DEAD_LETTER_EXCHANGE, routing_key=self._queue)
        return "dead"


def _attempt(incoming: abc.AbstractIncomingMessage) -> int:
    value = incoming.headers.get("x-attempt", 1)
    return value if isinstance(value, int) and value > 0 else 1


def _read(incoming: abc.AbstractIncomingMessage, attempt: int) -> Delivery:
    try:
        message_id = UUID(incoming.message_id or "")
    except ValueError as exc:
        raise envelope.UndecodableError(f"message id {incoming.message_id!r} is not a UUID") from exc
    return Delivery(
        message_id=message_id,
        type=incoming.type or "",
        message=envelope.decode(incoming.type, incoming.headers.get("schema-version"), incoming.body),
        attempt=attempt,
        time=incoming.timestamp or datetime.now(UTC),
    )


def _fingerprint(exc: BaseException) -> str:
    own = [frame for frame in traceback.extract_tb(exc.__traceback__) if "sagapost_" in frame.filename]
    place = f"{own[-1].filename.rpartition('/')[2]}:{own[-1].name}" if own else "?"
    return f"{type(exc).__name__}@{place}"


def _failure_headers(incoming: abc.AbstractIncomingMessage, exc: Exception, attempt: int) -> dict[str, amqp.HeaderValue]:
    now = datetime.now(UTC).isoformat()
    return {
        "x-attempt": attempt,
        "x-exception-type": type(exc).__name__,
        "x-exception-message": str(exc)[:500],
        "x-fingerprint": _fingerprint(exc),
        "x-first-failed-at": telemetry.headers_of(incoming.headers, "x-first-failed-at") or now,
        "x-failed-at": now,
        "x-original-routing-key": telemetry.headers_of(incoming.headers, "x-original-routing-key") or incoming.routing_key or "",
    }


def _copy(incoming: abc.AbstractIncomingMessage, headers: Mapping[str, amqp.HeaderValue]) -> aio_pika.Message:
    # the broker's own x-death history stays behind: our count is x-attempt
    kept = {name: value for name, value in incoming.headers.items() if not name.startswith("x-death")}
    return aio_pika.Message(
        incoming.body,
        headers={**kept, **headers},
        content_type=incoming.content_type,
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        message_id=incoming.message_id,
        correlation_id=incoming.correlation_id,
        timestamp=incoming.timestamp,
        type=incoming.type,
    )
