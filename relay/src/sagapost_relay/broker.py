"""The relay's connection to RabbitMQ: opened once, never reopened, its lanes and what the broker says of itself; knows no database."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, cast
from urllib.parse import urlsplit

import aiormq
from aiormq import connection as connections
from aiormq import exceptions

from sagapost_chassis import amqp, asking, background, telemetry
from sagapost_contracts import topology
from sagapost_relay import channels, lanes

CLOSE_TIMEOUT_S: Final = 1.0
ABORT_TIMEOUT_S: Final = 0.5
BLOCKED_AFTER_S: Final = 0.05
WATCH_GAP_S: Final = 0.1


class Broker:
    """One connection for publishing; when it or a lane is lost, `on_change` is called, and whoever needs another opens another Broker."""

    def __init__(
        self, url: str, name: str, *, on_change: Callable[[], None], plain: bool = False, exchange: str = topology.EXCHANGE
    ) -> None:
        self._url = url
        self._name = name
        self._on_change = on_change
        self._exchange = exchange
        self._plain = plain
        self._transport = _Transport(tls=urlsplit(url).scheme == "amqps")
        self._connection: aiormq.Connection | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._blocked = False
        self.fault = ""  # the exchange that is missing, in a sentence

    @property
    def is_open(self) -> bool:
        """Whether the connection is up."""
        return self._connection is not None and self._connection.is_opened

    @property
    def blocked(self) -> bool:
        """Whether the broker has blocked this connection, for want of memory or disk; noticed within 0.2 s."""
        return self._blocked and self.is_open

    async def open(self) -> None:
        """Connect.

        Raises:
            BrokerUnavailableError: no node that the URL names answered within amqp.CONNECT_TIMEOUT_S seconds.

        """
        reason = channels.unsupported()
        if reason is not None and not self._plain:
            self._plain = True
            telemetry.log.warning("relay.plain_publish", reason=reason)
        self._connection = await amqp.first(self._url, self._connected)
        self._connection.closing.add_done_callback(self._on_closing)
        self._watcher = asyncio.create_task(self._watch(self._connection))
        background.watched(self._watcher, "relay.watch", self._transport.abort, cancelled=False)  # a lost connection is replaced

    async def _connected(self, node: str) -> aiormq.Connection:
        connection = aiormq.Connection(
            amqp.with_heartbeat(node), client_properties={"connection_name": self._name}, transport_factory=self._transport
        )
        try:
            await connection.connect()
        except BaseException:
            self._transport.abort()
            raise
        return connection

    async def lane(self, shard: int) -> lanes.Lane:
        """Open a channel for a shard, in confirm mode.

        Raises:
            BrokerUnavailableError: the connection is lost, or the broker does not answer.

        """
        with amqp.failures(f"no channel for shard {shard}"):
            if self._connection is None or not self._connection.is_opened:
                raise ConnectionError("the connection is not open")
            async with asyncio.timeout(amqp.CONNECT_TIMEOUT_S):
                if self._plain:
                    return await lanes.open_plain(self._connection, exchange=self._exchange, on_change=self._on_change)
                return await channels.open_channel(self._connection, exchange=self._exchange, on_change=self._on_change)

    async def close(self) -> None:
        """Close the connection, whatever state it is in, within two seconds; its lanes are closed with it."""
        connection, self._connection = self._connection, None
        if self._watcher is not None:
            self._watcher.cancel()
        if connection is None:
            return
        closing = asyncio.ensure_future(connection.close(aiormq.ConnectionClosed(0, "closed")))
        try:
            await asyncio.wait((closing,), timeout=CLOSE_TIMEOUT_S)
        finally:
            # a peer that does not read keeps the client waiting for its buffers to empty
            self._transport.abort()
        await asyncio.wait((closing,), timeout=ABORT_TIMEOUT_S)

    async def _watch(self, connection: aiormq.Connection) -> None:
        # The client tells nobody that it was blocked, and keeps it in a private event. What it offers is ready(), which does
        # not return meanwhile.
        asked_at = time.monotonic()
        while True:
            try:
                async with asyncio.timeout(BLOCKED_AFTER_S):
                    await connection.ready()
            except TimeoutError:
                self._set_blocked(blocked=True)
                await connection.ready()
                self._set_blocked(blocked=False)
            if time.monotonic() - asked_at >= asking.ASK_S:
                await self._ask(connection)
                asked_at = time.monotonic()
            await asyncio.sleep(WATCH_GAP_S)

    async def _ask(self, connection: aiormq.Connection) -> None:
        """Ask whether the exchange is there: with nothing to publish nobody would notice."""
        with suppress(amqp.BrokerUnavailableError), amqp.failures("not asked"):  # a connection that is lost says so by itself
            async with asyncio.timeout(asking.ANSWER_S):
                channel = await connection.channel(publisher_confirms=False)
                try:
                    await channel.exchange_declare(self._exchange, passive=True)
                    self.fault = ""
                except exceptions.ChannelNotFoundEntity as exc:
                    self.fault = asking.missing(exc)
                finally:
                    await channel.close()

    def _set_blocked(self, *, blocked: bool) -> None:
        self._blocked = blocked
        self._on_change()

    def _on_closing(self, _: asyncio.Future[Any]) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
        self._on_change()


class _Transport(aiormq.TransportFactory):
    """Makes the client's transport and remembers it, so that it can be cut off."""

    def __init__(self, *, tls: bool) -> None:
        self._factory = connections.TLSTransportFactory() if tls else connections.TCPTransportFactory()
        self._writer: asyncio.StreamWriter | None = None

    async def create(self, url: aiormq.abc.URLorStr, **kwargs: object) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect as the client would by itself."""
        reader, self._writer = await self._factory.create(cast("Any", url), **kwargs)
        return reader, self._writer

    def abort(self) -> None:
        """Cut the connection off."""
        if self._writer is not None:
            self._writer.transport.abort()
