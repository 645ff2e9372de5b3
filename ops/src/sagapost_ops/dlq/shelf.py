"""Holds a queue's letters unacknowledged, the oldest first and no more than were there; it must not know what is done with them."""

import collections
import time
from collections.abc import Generator
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self

from sagapost_chassis import urls
from sagapost_contracts import topology
from sagapost_ops import errors
from sagapost_ops.dlq import letters, wire

AT_MOST: Final = 50_000  # letters in one run, which are in memory
_A_CHANNEL: Final = 10_000
_IDLE_S: Final = 3.0
_RETURN_S: Final = 2.0
_POLL_S: Final = 0.01
_NAME: Final = "sagapost-dlq"


@contextmanager
def opened(url: str) -> Generator[wire.Link]:
    """Open a connection for the length of a block; what the broker says instead ends the command with one sentence.

    Raises:
        UnfitError: it cannot be reached, or this user may not.
        FailedError: it gave up in the middle.

    """
    where = f"the broker at {urls.shown(url)}"
    try:
        link = wire.Link(url, _NAME)
    except wire.RefusedError as exc:
        raise errors.UnfitError(f"{where} refuses the connection: {_plain(exc)}; correct SAGAPOST_AMQP_URL") from exc
    except (wire.WireError, ValueError) as exc:
        raise errors.UnfitError(f"{where} does not answer; start it (./sagapost up) or correct SAGAPOST_AMQP_URL") from exc
    try:
        with link:
            yield link
    except wire.RefusedError as exc:
        raise _refused(where, exc) from exc
    except wire.WireError as exc:
        raise errors.FailedError(f"{where} gave up: {_plain(exc)}; what was not confirmed is still a dead letter; call again") from exc


class Shelf:
    """The letters that were in a dead-letter queue when it was opened, held to the end of the block, and a watch on what comes after."""

    def __init__(self, link: wire.Link, queue: str, at_most: int = AT_MOST) -> None:
        self.queue = topology.dead_letter_queue(queue)
        self._link = link
        self._channels = [link.channel()]
        self.depth = link.depth(self._channels[0], self.queue)
        self._watch: int | None = None
        self._held: collections.Counter[int] = collections.Counter()  # letters of each channel
        self.letters = [letters.read(delivery) for delivery in self._hold(min(self.depth, at_most))]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        if exc is None or isinstance(exc, errors.CommandError):  # otherwise the connection is no more, and the broker puts them back
            self.put_back()

    def ack(self, letter: letters.Letter) -> None:
        """Take one letter out of the queue for good."""
        self._link.ack(letter.delivery)
        self._held[letter.delivery.channel] -= 1

    def flush(self) -> None:
        """Wait until the broker has seen every acknowledgement so far."""
        for channel in self._channels:
            self._link.depth(channel, self.queue)

    def arrived(self, timeout_s: float) -> letters.Letter | None:
        """Give the next letter that came after the first look, or None; it is held, not taken out."""
        if self._watch is None:
            self._watch = self._link.channel()
            self._link.consume(self._watch, self.queue, 0xFFFF)
        found = self._link.take(self._watch, timeout_s)
        if found is None:
            return None
        self._held[self._watch] += 1
        return letters.read(found)

    def put_back(self) -> None:
        """Give back what is still held, in the old order, and wait until it is there: the broker says so only when asked."""
        if self._watch is not None:
            self._link.cancel(self._watch)
            self._channels.append(self._watch)
        asking = self._link.channel()
        expected = self._link.depth(asking, self.queue)
        deadline = time.monotonic() + _RETURN_S
        for channel in self._channels:  # in their order, each when the last one's letters are there: so do they come back
            self._link.close_channel(channel)
            expected += self._held[channel]
            while self._link.depth(asking, self.queue) < expected and time.monotonic() < deadline:
                time.sleep(_POLL_S)

    def _hold(self, wanted: int) -> Generator[wire.Delivery]:
        while wanted:
            channel = self._channels[-1]
            size = min(wanted, _A_CHANNEL)
            self._link.consume(channel, self.queue, size)
            for _ in range(size):
                found = self._link.take(channel, _IDLE_S)
                if found is None:  # somebody else holds the rest
                    wanted = size
                    break
                self._held[channel] += 1
                yield found
            self._link.cancel(channel)
            wanted -= size
            if wanted:
                self._channels.append(self._link.channel())


def look(url: str, queue: str, at_most: int) -> tuple[int, list[letters.Letter]]:
    """Count a queue's dead letters and read the oldest, leaving all where they are."""
    with opened(url) as link, Shelf(link, queue, at_most) as shelf:
        return shelf.depth, shelf.letters


def wait(until: float) -> None:
    """Wait until a moment of the monotonic clock."""
    time.sleep(max(0.0, until - time.monotonic()))


def _refused(where: str, exc: wire.RefusedError) -> errors.CommandError:
    if exc.code == 404:
        return errors.UnfitError(f"{where} lacks a queue: {_plain(exc)}; declare it with: ./sagapost topology declare")
    if exc.code == 403:
        return errors.UnfitError(f"{where} does not permit this: {_plain(exc)}; use a broker user that may read and write these queues")
    return errors.FailedError(f"{where} gave up: {_plain(exc)}; what was not confirmed is still a dead letter; call again")


def _plain(exc: wire.WireError) -> str:
    return (str(exc).partition(" - ")[2] or str(exc)).replace("\n", " ")
