"""What the relay may ask of a channel that publishes blocks, and the slow one on the client's public interface; knows no database."""

import asyncio
import functools
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final, Protocol, cast

import aiormq
import msgspec
from pamqp import commands

from sagapost_chassis import amqp
from sagapost_relay import blocks, frames

DROP_TIMEOUT_S: Final = 1.0

_HEADERS: Final = msgspec.json.Decoder(dict[str, str | int])
_CODES: Final[dict[type[BaseException], int]] = {
    aiormq.ChannelAccessRefused: 403,
    aiormq.ChannelNotFoundEntity: 404,
    aiormq.ChannelLockedResource: 405,
    aiormq.ChannelPreconditionFailed: 406,
}


class Lane(Protocol):
    """One channel in confirm mode; rows arrive in the order in which they were sent."""

    @property
    def closed(self) -> str | None:
        """Why it can no longer be used; None while it can."""
        ...

    @property
    def reply_code(self) -> int | None:
        """The broker's reply code when it closed this channel alone; None while it is open, and when the connection was lost."""
        ...

    @property
    def nacked_at(self) -> float | None:
        """When a queue first rejected something on this lane, by time.monotonic(); None: never."""
        ...

    async def send(self, block: blocks.Block) -> None:
        """Write a block; its rows are settled as the broker answers. Rows that cannot be messages are settled at once as REFUSED.

        Raises:
            BrokerUnavailableError: the lane is closed; unknown whether the block was written.

        """
        ...

    async def drop(self) -> None:
        """Close it within `DROP_TIMEOUT_S` seconds, whatever state it is in; what is not settled by then stays unsettled."""
        ...


class Ending:
    """Why and how a channel ended; the first reason stands."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self.reason: str | None = None
        self.reply_code: int | None = None
        self._on_change = on_change

    def watch(self, closing: asyncio.Future[Any]) -> None:
        """Take the reason from what the client says when the channel has ended."""
        closing.add_done_callback(self._on_closing)

    def note(self, reason: str, reply_code: int | None = None) -> None:
        """Take the lane out of use."""
        if self.reason is None:
            self.reason, self.reply_code = reason, reply_code
            self._on_change()

    def check(self) -> None:
        """Raise BrokerUnavailableError when the lane is out of use."""
        if self.reason is not None:
            raise amqp.BrokerUnavailableError(f"not sent: {self.reason}")

    def fail(self, exc: BaseException | None) -> None:
        """Take the lane out of use for what the client raised."""
        if isinstance(exc, aiormq.ChannelClosed):
            code = _CODES.get(type(exc), exc.args[0])
            self.note(f"{code} {exc.args[-1]}", code if isinstance(code, int) else None)
        elif isinstance(exc, asyncio.CancelledError):
            self.note("lost: the broker fell silent")  # what the client makes of a connection without heartbeats
        else:
            self.note(f"lost: {type(exc).__name__}: {exc}")

    def _on_closing(self, closing: asyncio.Future[Any]) -> None:
        self.fail(None if closing.cancelled() else closing.exception())


class PlainLane:
    """Publishes row by row; for when the client is not the one that BlockChannel was written against."""

    def __init__(self, channel: aiormq.Channel, *, exchange: str, ending: Ending) -> None:
        self._channel = channel
        self._encoder = frames.Encoder(channel=channel.number, exchange=exchange, frame_max=channel.connection.connection_tune.frame_max)
        self._exchange = exchange
        self._ending = ending
        self._tasks: set[asyncio.Future[Any]] = set()
        self.nacked_at: float | None = None
        ending.watch(channel.closing)
        # a publish that waits to be written is not the client's own task, and would wait for ever
        channel.closing.add_done_callback(self._cancel)

    @property
    def closed(self) -> str | None:
        """See Lane."""
        return self._ending.reason

    @property
    def reply_code(self) -> int | None:
        """See Lane."""
        return self._ending.reply_code

    async def send(self, block: blocks.Block) -> None:
        """See Lane."""
        self._ending.check()
        for index, row in enumerate(block.rows):
            try:
                self._encoder.encode((row,))
            except frames.RefusedError as exc:
                block.settle_one(index, blocks.Outcome.REFUSED, str(exc))
                continue
            task = asyncio.ensure_future(self._publish(row))
            self._tasks.add(task)
            task.add_done_callback(functools.partial(self._on_answer, block, index))

    async def _publish(self, row: blocks.Row) -> object:
        message = amqp.make_message(
            row.payload or b"",
            message_id=row.event_id,
            type_name=row.type,
            correlation_id=row.correlation_id,
            time=datetime.fromtimestamp(row.created_s, UTC),
            headers=_HEADERS.decode(row.headers),
        )
        return await self._channel.basic_publish(
            message.body, exchange=self._exchange, routing_key=row.routing_key, properties=message.properties, mandatory=True, wait=False
        )

    def _on_answer(self, block: blocks.Block, index: int, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        exc = task.exception()
        if exc is None:
            block.settle(index, index + 1, blocks.Outcome.CONFIRMED)
        elif isinstance(exc, aiormq.PublishError):
            block.settle_one(index, blocks.Outcome.RETURNED, returned(exc.frame))
        elif isinstance(exc, aiormq.DeliveryError):
            self.nacked_at = self.nacked_at or time.monotonic()
            block.settle(index, index + 1, blocks.Outcome.NACKED)
        else:
            self._ending.fail(exc)

    def _cancel(self, _: asyncio.Future[Any]) -> None:
        for task in self._tasks:
            task.cancel()

    async def drop(self) -> None:
        """See Lane."""
        self._ending.note("dropped")
        await drop(self._channel)


async def open_plain(connection: aiormq.abc.AbstractConnection, *, exchange: str, on_change: Callable[[], None]) -> PlainLane:
    """Open a channel in confirm mode."""
    # no limit on the frames that wait to be read: what is unconfirmed bounds them, and a full queue would stop the connection's reader
    channel = await connection.channel(publisher_confirms=True, frame_buffer_size=0, on_return_raises=True)
    return PlainLane(cast("aiormq.Channel", channel), exchange=exchange, ending=Ending(on_change))


def returned(frame: object) -> str:
    """Say why the broker returned a message."""
    return f"{frame.reply_code} {frame.reply_text}" if isinstance(frame, commands.Basic.Return) else "returned"


async def drop(channel: aiormq.Channel) -> None:
    """Close a channel, broken or not, within `DROP_TIMEOUT_S` seconds."""
    with suppress(amqp.BrokerUnavailableError), amqp.failures("not closed"):
        await channel.close(aiormq.ChannelClosed(None, "dropped"), timeout=DROP_TIMEOUT_S)
