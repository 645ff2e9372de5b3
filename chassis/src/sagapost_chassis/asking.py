"""Asks the broker, on a channel of its own, whether what a consumer relies on is there; it must not know what a message means.

A consumer that the broker has forgotten, or delivers nothing to, looks like an idle one (seen with RabbitMQ 3.10 after the
leader of a quorum queue was killed).
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Final

import aiormq.abc
import msgspec
from aio_pika import abc
from aiormq import exceptions

ASK_S: Final = 3.0
ANSWER_S: Final = 5.0
# A queue without a leader answers that it has no consumer, for the seconds of an election.
DEAF_AFTER: Final = 2
_MISSING: Final = re.compile(r"no (queue|exchange) '([^']{1,255})'")


class Consuming(msgspec.Struct, frozen=True, kw_only=True):
    """What a consumer knows of itself: its tag, None while it has none, how many messages came, whether it has room for one more."""

    tag: str | None
    arrived: int
    room: bool


class Asking:
    """The checks of one session; `consuming` returns the consumer's present state."""

    def __init__(
        self, connection: abc.AbstractConnection, queue: str, exchanges: Sequence[str], consuming: Callable[[], Consuming]
    ) -> None:
        self._connection = connection
        self._queue = queue
        self._exchanges = exchanges
        self._consuming = consuming
        self._channel: aiormq.abc.AbstractChannel | None = None
        self._strikes = 0
        self.fault = ""  # what is wrong, in a sentence; empty when all is there

    async def ask(self) -> bool:
        """Ask once, and return whether to subscribe again: the broker does not know this consumer, or delivers nothing to it.

        Raises:
            Exception: whatever the client raises when the connection is lost.

        """
        before = self._consuming()
        try:
            async with asyncio.timeout(ANSWER_S):
                consumers, waiting = await self._look()
        except TimeoutError:
            return False  # a slow broker has said nothing about this consumer
        except exceptions.ChannelNotFoundEntity as exc:
            self.fault = missing(exc)
            return False
        after = self._consuming()
        unknown = consumers == 0
        starved = waiting > 0 and before.room and after.room and before.arrived == after.arrived
        judged = before.tag is not None and before.tag == after.tag
        self._strikes = self._strikes + 1 if judged and (unknown or starved) else 0
        self.fault = f"the broker does not know of the consumer on {self._queue}" if self._strikes and unknown else ""
        if self._strikes < DEAF_AFTER:
            return False
        self._strikes = 0
        return True

    async def _look(self) -> tuple[int, int]:
        """Return how many consumers the queue has, and how many messages wait in it."""
        if self._channel is None or self._channel.is_closed:
            made = await self._connection.channel(publisher_confirms=False)
            self._channel = await made.get_underlay_channel()
        for exchange in self._exchanges:
            await self._channel.exchange_declare(exchange, passive=True)
        found = await self._channel.queue_declare(self._queue, passive=True)
        return found.consumer_count or 0, found.message_count or 0


def missing(exc: BaseException) -> str:
    """Return a sentence that names the queue or exchange that the broker says is not there; empty when it says something else."""
    found = _MISSING.search(str(exc))
    return f"the broker has no {found[1]} {found[2]}; declare it: ./sagapost topology declare" if found else ""
