"""A message as it came off a queue, and the copy of it that goes to a retry or dead-letter queue; knows no handler."""

import time
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

import aio_pika
from aiormq import abc
from pamqp import common

from sagapost_chassis import properties, telemetry
from sagapost_contracts import envelope, topology

REPLAY_COUNT: Final = "x-replay-count"  # how often an operator has published this message again
MAX_BODY_BYTES: Final = 1_000_000
MAX_FRAMES: Final = 20  # of a traceback in the log
_MODES: Final = (None, 1, 2)
# The broker's own history stays behind: our count is x-attempt, and a count of deliveries that is carried on would look like the broker's.
# CC and BCC would make the broker deliver the copy to other queues as well.
_LEFT_BEHIND: Final = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count", "x-opt-")
_NEVER_SENT: Final = (*topology.MORE_KEYS, properties.UNREADABLE)


class Arrival:
    """One delivery: what could be read of it, `fault` for what could not, and its acknowledgement."""

    def __init__(self, delivered: abc.DeliveredMessage) -> None:
        found = delivered.header.properties
        self.body = delivered.body
        self.headers: common.FieldTable = found.headers or {}
        self.message_id = found.message_id
        self.type = found.message_type
        self.correlation_id = found.correlation_id
        self.content_type = found.content_type
        self.content_encoding = found.content_encoding
        self.app_id = found.app_id
        self.timestamp = found.timestamp
        self.routing_key = delivered.routing_key or ""
        self.fault = _fault(self.headers, found.delivery_mode, found.expiration, len(self.body))
        self.since = time.monotonic()
        self._channel = delivered.channel
        self._tag = delivered.delivery_tag

    @property
    def attempt(self) -> int:
        """Which try of ours this is, from 1."""
        value = self.headers.get("x-attempt", 1)
        return value if type(value) is int and value > 0 else 1

    @property
    def waits(self) -> int:
        """How often it has waited for something that is not its own fault, which cost no attempt."""
        value = self.headers.get("x-waits", 0)
        return value if type(value) is int and value > 0 else 0

    @property
    def deliveries(self) -> int:
        """How often the broker has delivered it before and was not answered.

        Quorum queues count failures in the first header; from RabbitMQ 4.0 on those to consumers of this protocol may stand in the
        second one only, which counts every return to the queue.
        """
        counts = [self.headers.get(name) for name in ("x-delivery-count", "x-acquired-count")]
        return max((count for count in counts if type(count) is int), default=0)

    @property
    def is_repeated(self) -> bool:
        """Whether it was delivered before, or is a copy of one that may have been."""
        return self.attempt > 1 or self.deliveries > 0 or REPLAY_COUNT in self.headers

    @property
    def gone(self) -> bool:
        """Whether it can no longer be acknowledged: the broker delivers it again."""
        return self._channel.is_closed

    async def ack(self) -> None:
        """Acknowledge once; again does nothing, for the broker would close the channel."""
        tag, self._tag = self._tag, None
        if tag is not None:
            await self._channel.basic_ack(tag)

    def check(self) -> None:
        """Refuse what could be read only in part, and what was sent to more routing keys than the broker holds its sender to.

        Raises:
            envelope.UndecodableError: says what is wrong with which property.
            envelope.ForgedError: names the header with the other routing keys.

        """
        if self.fault is not None:
            raise envelope.UndecodableError(self.fault)
        for name in topology.MORE_KEYS:
            if name in self.headers:
                raise envelope.ForgedError(f"it carries the header {name}, which names more routing keys; no service of ours sends it")


def _fault(headers: common.FieldTable, delivery_mode: object, expiration: object, size_bytes: int) -> str | None:
    if properties.UNREADABLE in headers:
        return f"unreadable properties: {properties.text(headers[properties.UNREADABLE])}"
    if delivery_mode not in _MODES:
        return f"delivery_mode {delivery_mode!r} is neither 1 nor 2"
    if expiration is not None and not (isinstance(expiration, str) and expiration.isascii() and expiration.isdigit()):
        return f"expiration {properties.text(expiration)!r} is not a number of milliseconds"
    if size_bytes > MAX_BODY_BYTES:
        return f"a body of {size_bytes} bytes; at most {MAX_BODY_BYTES} are read"
    return None


def original_key(arrival: Arrival, queue: str) -> str:
    """Return the routing key that a message of `queue` was first published with.

    What comes back from a retry queue or from `dlq replay` bears the queue's name, and names the first key in a header. What comes from
    the topic exchange bears its own key; a header that names another is the sender's word, and is not believed.
    """
    if arrival.routing_key != queue:
        return arrival.routing_key
    return telemetry.headers_of(arrival.headers, "x-original-routing-key") or queue


def check_key(arrival: Arrival, queue: str, key: str) -> None:
    """Refuse a message whose type, published with `key`, does not belong to `queue`, or came with the routing key of another service.

    The first word of a routing key is the service that sends it, and the broker holds each service's user to its own. Only with this
    check does that hold for the types, too.

    Raises:
        envelope.ForgedError: says which type came with which key.

    """
    original = original_key(arrival, queue)
    is_its_own = original == queue or original.partition(".")[0] == key.partition(".")[0]
    if not topology.is_bound(queue, key) or not is_its_own:
        raise envelope.ForgedError(
            f"{properties.text(arrival.type)} has the routing key {key}, and came to {queue} with {properties.text(original)}"
        )


def failure_headers(arrival: Arrival, exc: BaseException, attempt: int, queue: str) -> dict[str, str | int]:
    """Return the headers of a copy: what failed, where and when; `attempt` is what the copy's next reader counts it as."""
    now = datetime.now(UTC).isoformat()
    return {
        "x-attempt": attempt,
        "x-exception-type": type(exc).__name__,
        "x-exception-message": properties.text(exc).partition("\n")[0],
        "x-fingerprint": fingerprint(exc),
        "x-first-failed-at": telemetry.headers_of(arrival.headers, "x-first-failed-at") or now,
        "x-failed-at": now,
        "x-original-routing-key": original_key(arrival, queue),
    }


def retry_headers(arrival: Arrival, exc: BaseException, queue: str) -> dict[str, str | int]:
    """Return the headers of a copy that will be tried again: one attempt more, or one wait more where the failure costs no attempt."""
    if getattr(exc, "counted", True):
        return failure_headers(arrival, exc, arrival.attempt + 1, queue)
    return failure_headers(arrival, exc, arrival.attempt, queue) | {"x-waits": arrival.waits + 1}


def fingerprint(exc: BaseException) -> str:
    """Name the cause: the exception's type and the innermost frame of our own code."""
    own = [frame for frame in traceback.extract_tb(exc.__traceback__) if "sagapost_" in frame.filename]
    place = f"{own[-1].filename.rpartition('/')[2]}:{own[-1].name}" if own else "?"
    return f"{type(exc).__name__}@{place}"


def frames(exc: BaseException) -> list[str]:
    """Say where an exception came from, innermost first, without the values of any variable."""
    found = traceback.extract_tb(exc.__traceback__)
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in reversed(found)][:MAX_FRAMES]


def copy(arrival: Arrival, headers: Mapping[str, str | int]) -> aio_pika.Message:
    """Make the copy with these headers beside its own; never raises, for nobody could set the message aside then."""
    kept = {
        name: properties.writable(value)
        for name, value in arrival.headers.items()
        if name not in _NEVER_SENT and name not in headers and not name.startswith(_LEFT_BEHIND)
    }
    room = properties.fitting(kept)
    return aio_pika.Message(
        arrival.body,
        headers={**room, **{name: value if isinstance(value, int) else properties.text(value) for name, value in headers.items()}},
        content_type=properties.short(arrival.content_type),
        content_encoding=properties.short(arrival.content_encoding),
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        message_id=properties.short(arrival.message_id),
        correlation_id=properties.short(arrival.correlation_id),
        timestamp=arrival.timestamp if isinstance(arrival.timestamp, datetime) else None,
        type=properties.short(arrival.type),
        app_id=properties.short(arrival.app_id),
    )
