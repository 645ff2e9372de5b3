"""RabbitMQ connections and confirmed publishing; it must not know what a message means."""

import asyncio
import functools
import random
import time
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import datetime
from typing import Any, Final, Self, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import aio_pika
import pamqp.commands
import pamqp.exceptions
import prometheus_client
from aio_pika import abc, exceptions

from sagapost_chassis import errors, tls
from sagapost_contracts import envelope, topology

CONNECT_TIMEOUT_S: Final = 5
PUBLISH_TIMEOUT_S: Final = 10
# StopAsyncIteration: what aiormq 7.2 raises when the broker hangs up during the handshake
BROKEN: Final = (exceptions.AMQPError, pamqp.exceptions.PAMQPException, OSError, TimeoutError, StopAsyncIteration)
# The client raises RuntimeError for a closed channel or connection; any other is a fault of the program and must not pass for an outage.
_CLIENT: Final = frozenset({"aio_pika", "aiormq", "pamqp"})
_LOOPS: Final = frozenset({"asyncio", "uvloop", "contextlib"})

BLOCKED: Final = prometheus_client.Gauge("sagapost_broker_blocked", "1 while the broker takes no messages from this process (an alarm)")

HeaderValue = str | int
C = TypeVar("C")
_DICE: Final = random.SystemRandom()


class BrokerUnavailableError(errors.TransientError):
    """The broker is gone, blocked or too slow; what was published may or may not have arrived. It costs no attempt."""

    counted = False


class UnroutableError(errors.TransientError):
    """The broker has no queue for this routing key: a binding is missing. It costs no attempt."""

    counted = False


def backoff_s(failures: int, *, cap_s: float = 5.0) -> float:
    """Full jitter: a random wait up to 0.2 s doubled per failure, at most `cap_s`."""
    return _DICE.uniform(0.05, min(cap_s, 0.2 * 2 ** min(failures, 6)))


def with_heartbeat(url: str) -> str:
    """Ask for a heartbeat every 5 s unless the URL names one; the client's 60 s notice a half-open connection only after minutes."""
    parts = urlsplit(url)
    query = {"heartbeat": "5"} | dict(parse_qsl(parts.query))
    return urlunsplit(parts._replace(query=urlencode(query)))


def nodes(url: str) -> list[str]:
    """Give one URL for each node that `amqp://user:password@a:5672,b:5672/` names, in random order: connections spread over them."""
    parts = urlsplit(url)
    account, at, hosts = parts.netloc.rpartition("@")
    found = [urlunsplit(parts._replace(netloc=f"{account}{at}{host}")) for host in hosts.split(",")]
    _DICE.shuffle(found)
    return found


@contextmanager
def failures(sentence: str) -> Generator[None]:
    """Turn whatever the client raises in the block into BrokerUnavailableError.

    A dying connection makes the client cancel futures that we await. That is no cancellation of ours, and taking it for
    one would end a supervisor in silence: Task.cancelling() tells the two apart.
    """
    try:
        yield
    except asyncio.CancelledError as exc:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise BrokerUnavailableError(f"{sentence}: the client gave up") from exc
    except BROKEN as exc:
        raise BrokerUnavailableError(f"{sentence}: {tls.fault(exc, 'broker') or f'{type(exc).__name__}: {exc}'}") from exc
    except RuntimeError as exc:
        if not _of_client(exc):
            raise
        raise BrokerUnavailableError(f"{sentence}: {type(exc).__name__}: {exc}") from exc


def _of_client(exc: BaseException) -> bool:
    """Return whether the client's code raised this, or the event loop for it."""
    frames = [frame.f_globals.get("__name__", "").partition(".")[0] for frame, _ in traceback.walk_tb(exc.__traceback__)]
    while frames and frames[-1] in _LOOPS:
        frames.pop()
    return bool(frames) and frames[-1] in _CLIENT


@functools.cache
def _closing(connection_class: type[aio_pika.Connection]) -> type[aio_pika.Connection]:
    """Derive a connection that counts as closed when it could not be opened.

    Else the client's destructor begins to close it, in whatever thread collects it, and where no loop runs nobody awaits that.
    """

    class Closing(connection_class):  # type: ignore[misc, valid-type]
        async def connect(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - the client's own signature
            try:
                await super().connect(timeout)
            except BaseException:
                await self.close()
                raise

    return Closing


async def connect(url: str, name: str, *, connection_class: type[aio_pika.Connection] = aio_pika.Connection) -> abc.AbstractConnection:
    """Open a plain connection; `name` shows in the broker's management page, and `connection_class` may be lenient.Connection.

    Raises:
        BrokerUnavailableError: no node that `url` names answered within `CONNECT_TIMEOUT_S` seconds.

    """
    kind = _closing(connection_class)
    properties: dict[str, Any] = {"connection_name": name, topology.GENERATION_PROPERTY: str(topology.GENERATION)}

    async def one(node: str) -> abc.AbstractConnection:
        return await aio_pika.connect(with_heartbeat(node), client_properties=properties, connection_class=kind)

    return await first(url, one)


async def first(url: str, connect_to: Callable[[str], Awaitable[C]]) -> C:
    """Try the nodes of a cluster one after the other, and give the first connection.

    Raises:
        BrokerUnavailableError: none answered within `CONNECT_TIMEOUT_S` seconds.

    """
    left = nodes(url)
    while True:
        node = left.pop()
        try:
            with failures("no connection to the broker"):
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    return await connect_to(node)
        except BrokerUnavailableError:
            if not left:
                raise


async def close(connection: abc.AbstractConnection) -> None:
    """Close a connection, broken or not, within two seconds."""
    with suppress(BrokerUnavailableError), failures("not closed"):
        async with asyncio.timeout(2):
            await connection.close()


class Publisher:
    """A connection of its own for publishing; each publish is persistent, mandatory and confirmed.

    A channel on which a confirm did not come in time takes no more messages: a late confirm must not be taken for another's. Those that
    are under way on it wait for their own confirms, and the channel is closed after the last.
    """

    def __init__(self, url: str, name: str) -> None:
        self._url = url
        self._name = name
        self._lock = asyncio.Lock()
        self._connection: abc.AbstractConnection | None = None
        self._channel: abc.AbstractChannel | None = None
        self._users: dict[abc.AbstractChannel, int] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._drop(self._connection)

    async def check(self) -> bool:
        """Return whether the broker can be reached."""
        await self._open()
        return True

    async def flows(self) -> bool:
        """Return whether the broker takes what is published; an alarm is said at the first message, and its end when it is over."""
        blocked = await _blocked(self._connection)
        BLOCKED.set(blocked)
        return not blocked

    async def _open(self) -> abc.AbstractChannel:
        async with self._lock:
            if self._channel is not None and not self._channel.is_closed:
                return self._channel
            if self._connection is None or self._connection.is_closed:
                await self._drop(self._connection)
                self._connection = await connect(self._url, self._name)
            try:
                with failures("no channel"):
                    self._channel = await self._connection.channel(publisher_confirms=True, on_return_raises=True)
            except BaseException:  # one that opens no channel, in time or at all, is no connection
                await self._drop(self._connection)
                raise
            return self._channel

    async def _drop(self, connection: abc.AbstractConnection | None) -> None:
        if connection is not self._connection:  # another publish has dropped it already, and the present one is new
            return
        self._connection, self._channel = None, None
        if connection is not None:
            await close(connection)

    @asynccontextmanager
    async def _using(self, channel: abc.AbstractChannel) -> AsyncGenerator[None]:
        """Publish on a channel that may be retired meanwhile; the last one out closes it."""
        self._users[channel] = self._users.get(channel, 0) + 1
        try:
            yield
        finally:
            self._users[channel] -= 1
            if not self._users[channel]:
                del self._users[channel]
                if channel is not self._channel and not channel.is_closed:
                    await _close_channel(channel)

    async def publish(self, message: aio_pika.Message, *, exchange: str, routing_key: str, patience_s: float = 0) -> None:
        """Publish and wait until the broker has stored the message; `patience_s` is how much longer while an alarm blocks the connection.

        A message that an alarm holds up is stored when the alarm ends: to publish it again meanwhile would store it again and again.

        Raises:
            BrokerUnavailableError: unknown whether it arrived; publish again with the same message id.
            UnroutableError: it did not arrive anywhere.

        """
        with failures("no channel"):
            async with asyncio.timeout(PUBLISH_TIMEOUT_S):
                channel = await self._open()
        async with self._using(channel):
            try:
                with failures("not confirmed"):
                    target = channel.default_exchange if exchange == "" else await channel.get_exchange(exchange, ensure=False)
                    result = await self._confirmed(target.publish(message, routing_key, mandatory=True), patience_s)
            except BrokerUnavailableError as exc:
                if isinstance(exc.__cause__, exceptions.PublishError):
                    raise UnroutableError(f"no queue takes {routing_key!r} from exchange {exchange!r}") from exc
                if channel is self._channel:
                    self._channel = None
                raise
        if not isinstance(result, pamqp.commands.Basic.Ack):
            raise BrokerUnavailableError(f"the broker answered {type(result).__name__} instead of a confirm")

    async def _confirmed(self, publishing: Coroutine[object, object, object], patience_s: float) -> object:
        task = asyncio.ensure_future(publishing)
        deadline = time.monotonic() + PUBLISH_TIMEOUT_S + patience_s
        wait_s: float = PUBLISH_TIMEOUT_S
        blocked = False
        try:
            while not (await asyncio.wait((task,), timeout=wait_s))[0]:
                was_blocked, blocked = blocked, await _blocked(self._connection)
                # when the alarm has just ended the confirm is under way, and takes no longer than any other
                wait_s = min(1.0 if blocked else PUBLISH_TIMEOUT_S, deadline - time.monotonic())
                if wait_s <= 0 or not (blocked or was_blocked):
                    raise TimeoutError
            return task.result()
        finally:
            task.cancel()


async def _close_channel(channel: abc.AbstractChannel) -> None:
    with suppress(BrokerUnavailableError), failures("not closed"):
        async with asyncio.timeout(2):
            await channel.close()


async def _blocked(connection: abc.AbstractConnection | None) -> bool:
    """Tell whether the broker has said, by Connection.Blocked, that it takes no messages now."""
    if connection is None or connection.is_closed or connection.transport is None:
        return False
    try:
        async with asyncio.timeout(0.01):
            await connection.transport.connection.ready()  # the client's only word on it that is not private
    except TimeoutError:
        return True
    return False


def message_of(sealed: envelope.Envelope) -> aio_pika.Message:
    """Make the AMQP message of an envelope."""
    return make_message(
        sealed.body,
        message_id=str(sealed.message_id),
        type_name=sealed.type,
        correlation_id=sealed.correlation_id,
        time=sealed.time,
        headers=sealed.headers(),
    )


def make_message(
    body: bytes, *, message_id: str, type_name: str, correlation_id: str, time: datetime, headers: Mapping[str, HeaderValue]
) -> aio_pika.Message:
    """Make a persistent JSON message; the client's own default is not persistent."""
    return aio_pika.Message(
        body,
        headers=dict(headers),
        content_type="application/json",
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        message_id=message_id,
        correlation_id=correlation_id,
        timestamp=time,
        type=type_name,
    )
