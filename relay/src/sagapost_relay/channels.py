"""The one module that reaches into aiormq: a channel that writes many rows as one piece and is answered in ranges; knows no database.

What the client does per message (a frame, a future, a task, a callback) costs more than all the rest of a publish, and its handling of an
acknowledgement of many is quadratic in what is unconfirmed. `unsupported` says whether the installed client is one that this fits.
"""

import asyncio
import dataclasses
import inspect
import itertools
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from typing import Any, Final

import aiormq
from aiormq import abc, channel, connection
from pamqp import commands, header

from sagapost_chassis import telemetry
from sagapost_relay import blocks, frames, lanes, tags

TESTED: Final = ("7.2.4",)
# what is called or overridden, with its parameters after self; None: a property
RELIES_ON: Final[tuple[tuple[type, str, tuple[str, ...] | None], ...]] = (
    (channel.Channel, "__init__", ("connector", "number", "publisher_confirms", "frame_buffer", "on_return_raises")),
    (channel.Channel, "open", ("timeout",)),
    (channel.Channel, "closing", None),
    (channel.Channel, "is_closed", None),
    (channel.Channel, "create_future", ()),
    (channel.Channel, "_on_confirm_frame", ("frame",)),
    (channel.Channel, "_on_return_frame", ("frame",)),
    (channel.Channel, "_on_close_frame", ("frame",)),
    (channel.Channel, "_get_frame", ()),
    (channel.Channel, "_read_content", ("frame", "header")),
)
# what these functions must mention: instance attributes that they set, and methods of a channel that they call
MENTIONS: Final[tuple[tuple[type, str, tuple[str, ...]], ...]] = (
    (channel.Channel, "__init__", ("write_queue",)),
    (channel.Channel, "_reader", ("_on_confirm_frame", "_on_return_frame", "_on_close_frame")),
    (connection.Connection, "__init__", ("channels", "write_queue")),
    (connection.Connection, "_Connection__reader", ("channels", "frames")),
    (connection.Connection, "_Connection__writer", ("payload", "should_drain", "drain")),
)
FRAME_FIELDS: Final = ("payload", "should_close", "drain_future")


def unsupported() -> str | None:
    """Say in one sentence why BlockChannel must not be used with the installed aiormq; None: it may."""
    version = metadata.version("aiormq")
    if version not in TESTED:
        return f"aiormq {version} is installed, and the block publish was tested with {', '.join(TESTED)}"
    for owner, name, wanted in RELIES_ON:
        found = getattr(owner, name, None)
        if found is None:
            return f"aiormq {version} has no {owner.__name__}.{name}"
        if wanted is not None and tuple(inspect.signature(found).parameters)[1:] != wanted:
            return f"aiormq {version} has another {owner.__name__}.{name}{inspect.signature(found)}"
    for owner, name, mentions in MENTIONS:
        code = getattr(getattr(owner, name, None), "__code__", None)
        for mentioned in mentions:
            if code is None or mentioned not in code.co_names:
                return f"aiormq {version} no longer uses {mentioned} in {owner.__name__}.{name}"
    if tuple(field.name for field in dataclasses.fields(abc.ChannelFrame)) != FRAME_FIELDS:
        return f"aiormq {version} has another ChannelFrame"
    return None


class BlockChannel(channel.Channel):
    """A Lane that writes each block as one piece."""

    def __init__(self, connector: connection.Connection, number: int, *, exchange: str, ending: lanes.Ending) -> None:
        # no limit on the frames that wait to be read: what is unconfirmed bounds them, and a full queue would stop the connection's reader
        super().__init__(connector, number, publisher_confirms=True, frame_buffer=None)
        self._encoder = frames.Encoder(channel=number, exchange=exchange, frame_max=connector.connection_tune.frame_max)
        self._ending = ending
        self._tags = tags.Tags()
        self.nacked_at: float | None = None
        self._drained: asyncio.Future[None] | None = None
        self._put: asyncio.Future[None] | None = None
        self._gone: asyncio.Future[Any] = self.closing
        ending.watch(self._gone)

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
        self._check()
        payload, spans = self._encode(block)
        # One piece of a lane waits in the client at a time: its queue has ten places for all channels, and when they are taken
        # the client drops its answer to the broker's Channel.Close. The client ends this future when the channel ends.
        while self._drained is not None and not self._drained.done():
            await asyncio.wait((self._drained,))
        self._check()
        if not spans:
            return
        self._drained = self.create_future()
        for start, end in spans:
            self._tags.take(block, start, end)
        await self._write(abc.ChannelFrame(payload=payload, should_close=False, drain_future=self._drained))

    def _check(self) -> None:
        if self.is_closed:
            self._halt("the channel is closed")
        self._ending.check()

    def _encode(self, block: blocks.Block) -> tuple[bytes, list[tuple[int, int]]]:
        """Give the frames and which rows they are, as half-open ranges; rows that cannot be messages are settled."""
        parts: list[bytes] = []
        spans: list[tuple[int, int]] = []
        start = 0
        while start < len(block.rows):
            end = len(block.rows)
            try:
                part = self._encoder.encode(block.rows[start:])
            except frames.RefusedError as exc:
                end = start + exc.index
                block.settle_one(end, blocks.Outcome.REFUSED, str(exc))
                part = self._encoder.encode(block.rows[start:end])
            if end > start:
                parts.append(part)
                spans.append((start, end))
            start = end + 1
        return b"".join(parts), spans

    async def _write(self, piece: abc.ChannelFrame) -> None:
        with suppress(asyncio.QueueFull):
            self.write_queue.put_nowait(piece)
            return
        # heartbeats alone fill the queue while the broker does not read; a connection that dies meanwhile never empties it
        self._put = asyncio.ensure_future(self.write_queue.put(piece))
        try:
            await asyncio.wait((self._put, self._gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not self._put.done():  # the rows' delivery tags are taken: nothing may follow on this channel
                self._halt("a block was not written")
        if self._put.cancelled() or not self._put.done():
            self._check()

    def _halt(self, reason: str, reply_code: int | None = None) -> None:
        """Write nothing from now on: a frame after the answer to Channel.Close would cost the connection."""
        self._ending.note(reason, reply_code)
        for waiting in (self._put, self._drained):
            if waiting is not None:
                waiting.cancel()

    async def drop(self) -> None:
        """See Lane."""
        self._halt("dropped")
        await lanes.drop(self)

    async def _on_close_frame(self, frame: commands.Channel.Close) -> None:
        self._halt(f"{frame.reply_code} {frame.reply_text}", frame.reply_code)
        await super()._on_close_frame(frame)

    async def _on_confirm_frame(self, frame: abc.ConfirmationFrameType) -> None:
        outcome = blocks.Outcome.CONFIRMED if isinstance(frame, commands.Basic.Ack) else blocks.Outcome.NACKED
        if outcome == blocks.Outcome.NACKED:
            self.nacked_at = self.nacked_at or time.monotonic()
        if not self._tags.answer(frame.delivery_tag or 0, outcome, multiple=getattr(frame, "multiple", False)):
            telemetry.log.warning("relay.unknown_confirm", frame=frame.name, delivery_tag=frame.delivery_tag)

    async def _on_return_frame(self, frame: commands.Basic.Return) -> None:
        # the header and the body are read whoever the message belongs to: the next frame must be a method's again
        properties = await self._get_frame()
        if not isinstance(properties, header.ContentHeader):
            raise aiormq.InvalidFrameError(properties)
        message = await self._read_content(frame, properties)
        message_id = message.header.properties.message_id
        found = self._tags.find(message_id)
        if found is None:
            telemetry.log.warning("relay.unknown_return", message_id=message_id, reason=lanes.returned(frame))
            return
        block, index = found
        block.settle_one(index, blocks.Outcome.RETURNED, lanes.returned(frame))  # the confirm that follows finds it answered


async def open_channel(connector: connection.Connection, *, exchange: str, on_change: Callable[[], None]) -> BlockChannel:
    """Open a channel in confirm mode; what the client does in Connection.channel, with this class."""
    number = next(number for number in itertools.count(1) if number not in connector.channels)
    opened = BlockChannel(connector, number, exchange=exchange, ending=lanes.Ending(on_change))
    connector.channels[number] = opened
    await opened.open()
    return opened
