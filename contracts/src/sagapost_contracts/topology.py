"""Exchanges, queues, bindings and the rights of the broker's users as data; it must not know a client library."""

from typing import Final, Literal

import msgspec

EXCHANGE: Final = "ecommerce_events"
DEAD_LETTER_EXCHANGE: Final = "ecommerce_events.dlx"
PAYMENT_QUEUE: Final = "payment_service_queue"
EMAIL_QUEUE: Final = "email_service_queue"
ORDER_QUEUE: Final = "order_updates_queue"
RETRY_DELAYS_S: Final = (1, 5, 30, 120, 600)
DELIVERY_LIMIT: Final = 20  # a backstop against messages that kill the process, not the retry mechanism
# looking at a dead letter and putting it back counts as a delivery, and RabbitMQ 4's own default would drop it after 20 looks
DEAD_LETTER_DELIVERY_LIMIT: Final = 1_000_000

BINDINGS: Final[dict[str, tuple[str, ...]]] = {
    PAYMENT_QUEUE: ("order.order.created", "order.payment.cancel_requested"),
    EMAIL_QUEUE: ("payment.payment.processed", "order.order.cancelled", "order.notification.requested"),
    ORDER_QUEUE: ("payment.*.*", "email.email.*"),
}
WORK_QUEUES: Final = tuple(BINDINGS)
NOTHING: Final = "^$"
_DEFAULT_EXCHANGE: Final = r"amq\.default"  # what the broker calls it where it asks for rights


class Exchange(msgspec.Struct, frozen=True, kw_only=True):
    """A durable exchange."""

    name: str
    type: Literal["topic", "direct"]


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """A durable quorum queue with its arguments and its bindings as (exchange, routing key)."""

    name: str
    arguments: dict[str, str | int]
    bindings: tuple[tuple[str, str], ...] = ()


class User(msgspec.Struct, frozen=True, kw_only=True):
    """A service's user of the broker; its rights are regular expressions over names, `topics` over the routing keys of EXCHANGE.

    None may configure: no user of a service makes, binds or deletes anything.
    """

    name: str
    write: str
    read: str = NOTHING
    topics: str | None = None
    configure: str = NOTHING


EXCHANGES: Final = (Exchange(name=EXCHANGE, type="topic"), Exchange(name=DEAD_LETTER_EXCHANGE, type="direct"))


def _exactly(*patterns: str) -> str:
    return f"^({'|'.join(patterns)})$"


_TOPIC: Final = EXCHANGE
_DEAD: Final = DEAD_LETTER_EXCHANGE.replace(".", r"\.")

# A consumer writes to its retry queues through the default exchange, where the broker cannot tell one queue from another.
# The relays' routing keys are not restricted: an outbox row with a foreign key would be refused with the whole channel, where it
# is now returned and set aside by itself.
USERS: Final = (
    User(name="order", read=_exactly(ORDER_QUEUE), write=_exactly(_DEFAULT_EXCHANGE, _DEAD)),
    User(name="payment", read=_exactly(PAYMENT_QUEUE), write=_exactly(_DEFAULT_EXCHANGE, _DEAD)),
    User(name="email", read=_exactly(EMAIL_QUEUE), write=_exactly(_DEFAULT_EXCHANGE, _DEAD, _TOPIC), topics=r"^email\.email\.[a-z_]+$"),
    User(name="relay-order", write=_exactly(_TOPIC)),
    User(name="relay-payment", write=_exactly(_TOPIC)),
)


def retry_queue(queue: str, delay_s: int) -> str:
    """Name the queue where a message of `queue` waits for `delay_s` seconds."""
    return f"{queue}.retry.{delay_s}s"


def dead_letter_queue(queue: str) -> str:
    """Name the queue for what `queue` could not process."""
    return f"{queue}.dlq"


def _dead_lettering(exchange: str, routing_key: str) -> dict[str, str | int]:
    # at-least-once needs reject-publish: the broker keeps the message until the target has confirmed it
    return {
        "x-queue-type": "quorum",
        "x-dead-letter-exchange": exchange,
        "x-dead-letter-routing-key": routing_key,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


def queues(retry_delays_s: tuple[int, ...] = RETRY_DELAYS_S) -> tuple[Queue, ...]:
    """List every queue: each work queue, its retry ladder and its dead-letter queue."""
    found: list[Queue] = []
    for name, keys in BINDINGS.items():
        found.append(
            Queue(
                name=name,
                arguments={**_dead_lettering(DEAD_LETTER_EXCHANGE, name), "x-delivery-limit": DELIVERY_LIMIT},
                bindings=tuple((EXCHANGE, key) for key in keys),
            )
        )
        found.extend(
            Queue(name=retry_queue(name, delay_s), arguments={**_dead_lettering("", name), "x-message-ttl": delay_s * 1000})
            for delay_s in retry_delays_s
        )
        found.append(
            Queue(
                name=dead_letter_queue(name),
                arguments={"x-queue-type": "quorum", "x-delivery-limit": DEAD_LETTER_DELIVERY_LIMIT},
                bindings=((DEAD_LETTER_EXCHANGE, name),),
            )
        )
    return tuple(found)
