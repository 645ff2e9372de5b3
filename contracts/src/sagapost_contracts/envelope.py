"""The envelope around each message and the one table of message types; it must not know how messages travel."""

from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec

from sagapost_contracts import events

TYPES: Final[dict[str, type[events.Message]]] = {
    cls.__name__: cls
    for cls in (
        events.OrderCreated,
        events.OrderCancelled,
        events.CancelPayment,
        events.RequestNotification,
        events.PaymentProcessed,
        events.PaymentFailed,
        events.PaymentVoided,
        events.PaymentRefunded,
        events.RefundFailed,
        events.EmailSent,
        events.EmailFailed,
    )
}
_ENCODER: Final = msgspec.json.Encoder()
_DECODERS: Final = {name: msgspec.json.Decoder(cls) for name, cls in TYPES.items()}


class UndecodableError(ValueError):
    """A message that no retry can make readable; the sentence says why."""


class ForgedError(UndecodableError):
    """A message that came on a way on which no service of ours sends it; the sentence names the way."""


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """One message with everything the broker carries beside its body; `correlation_id` is the saga's id."""

    message_id: UUID
    type: str
    schema_version: int
    routing_key: str
    correlation_id: str
    causation_id: str | None
    traceparent: str | None
    source: str
    time: datetime
    body: bytes

    def headers(self) -> dict[str, str | int]:
        """Give the AMQP headers, CloudEvents 1.0.2 attributes of the AMQP binding among them."""
        found: dict[str, str | int | None] = {
            "schema-version": self.schema_version,
            "causation-id": self.causation_id,
            "traceparent": self.traceparent,
            "cloudEvents:id": str(self.message_id),
            "cloudEvents:source": self.source,
            "cloudEvents:type": self.type,
            "cloudEvents:time": self.time.isoformat(),
            "cloudEvents:specversion": "1.0",
        }
        return {name: value for name, value in found.items() if value is not None}


def seal(
    message: events.Message, *, message_id: UUID, source: str, time: datetime, causation_id: str | None, traceparent: str | None
) -> Envelope:
    """Put a message into its envelope."""
    return Envelope(
        message_id=message_id,
        type=type(message).__name__,
        schema_version=message.version,
        routing_key=message.key,
        correlation_id=str(message.saga_id),
        causation_id=causation_id,
        traceparent=traceparent,
        source=source,
        time=time,
        body=_ENCODER.encode(message),
    )


def decode(type_name: str | None, schema_version: object, body: bytes) -> events.Message:
    """Read a body as the message its envelope announces.

    Raises:
        UndecodableError: an unknown type, a newer version, or a body that does not fit.

    """
    cls = TYPES.get(type_name or "")
    if cls is None:
        raise UndecodableError(f"unknown message type {type_name!r}")
    if not isinstance(schema_version, int) or not 1 <= schema_version <= cls.version:
        raise UndecodableError(f"{type_name} of version {schema_version!r}; this reader knows versions up to {cls.version}")
    try:
        return _DECODERS[cls.__name__].decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise UndecodableError(f"{type_name} does not decode: {exc}") from exc
