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
# Headers with more routing keys for one message. RabbitMQ 3.10 holds a user to the routing key of the method only, and not to these
# (rabbitmq-server, pull request 12553). No service of ours sends them. BCC is taken off by the broker before it delivers.
MORE_KEYS: Final = ("CC", "BCC")
_DEFAULT_EXCHANGE: Final = r"amq\.default"  # what the broker calls it where it asks for rights
# Consumers since generation 2 publish to the exchanges of their own queue; those of generation 1, which do not name it in their
# connection's properties, published to the default exchange and to DEAD_LETTER_EXCHANGE.
GENERATION: Final = 2
GENERATION_PROPERTY: Final = "sagapost_topology"


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

    None may configure: no user of a service makes, binds or deletes anything. `older_write` replaces `write` while
    consumers of generation 1 are running.
    """

    name: str
    write: str
    older_write: str | None = None
    read: str = NOTHING
    topics: str | None = None
    configure: str = NOTHING


def retry_exchange(queue: str) -> str:
    """Return the name of the exchange where the consumer of `queue` publishes what it will try again."""
    return f"{queue}.retry"


def retry_key(delay_s: int) -> str:
    """Return the routing key on a retry exchange for a wait of `delay_s` seconds."""
    return f"{delay_s}s"


def retry_queue(queue: str, delay_s: int) -> str:
    """Return the name of the queue where a message of `queue` waits for `delay_s` seconds."""
    return f"{retry_exchange(queue)}.{retry_key(delay_s)}"


def dead_letter_exchange(queue: str) -> str:
    """Return the name of the exchange where the consumer of `queue` publishes its dead letters, with the queue's name as routing key."""
    return f"{queue}.dlx"


def dead_letter_queue(queue: str) -> str:
    """Return the name of the queue for what `queue` could not process."""
    return f"{queue}.dlq"


def is_bound(queue: str, routing_key: str) -> bool:
    """Return whether messages with this routing key reach `queue` from EXCHANGE."""
    words = routing_key.split(".")
    return any(
        len(words) == len(wanted) and all(part in {"*", word} for part, word in zip(wanted, words, strict=True))
        for wanted in (key.split(".") for key in BINDINGS[queue])
    )


# The work queues dead-letter to DEAD_LETTER_EXCHANGE: the broker does it with no right of any user, and the arguments of a queue that is
# there cannot be changed. No user of a service may write to it.
EXCHANGES: Final = (
    Exchange(name=EXCHANGE, type="topic"),
    Exchange(name=DEAD_LETTER_EXCHANGE, type="direct"),
    *(Exchange(name=name(queue), type="direct") for queue in WORK_QUEUES for name in (retry_exchange, dead_letter_exchange)),
)


def _exactly(*patterns: str) -> str:
    return f"^({'|'.join(patterns)})$"


def _quoted(name: str) -> str:
    return name.replace(".", r"\.")


def _consumer(name: str, queue: str, *more: str, topics: str | None = None) -> User:
    own = [_quoted(retry_exchange(queue)), _quoted(dead_letter_exchange(queue)), *more]
    older = _exactly(_DEFAULT_EXCHANGE, _quoted(DEAD_LETTER_EXCHANGE), *own)
    return User(name=name, read=_exactly(queue), write=_exactly(*own), older_write=older, topics=topics)


# None writes to the default exchange, which reaches every queue by its name.
USERS: Final = (
    _consumer("order", ORDER_QUEUE),
    _consumer("payment", PAYMENT_QUEUE),
    _consumer("email", EMAIL_QUEUE, EXCHANGE, topics=r"^email\.email\.[a-z_]+$"),
    User(name="relay-order", write=_exactly(EXCHANGE), topics=r"^order\..*"),
    User(name="relay-payment", write=_exactly(EXCHANGE), topics=r"^payment\..*"),
)


# what consumers of generation 1 were given: declare --users recognises it
FIRST_WRITES: Final = {
    "order": _exactly(_DEFAULT_EXCHANGE, _quoted(DEAD_LETTER_EXCHANGE)),
    "payment": _exactly(_DEFAULT_EXCHANGE, _quoted(DEAD_LETTER_EXCHANGE)),
    "email": _exactly(_DEFAULT_EXCHANGE, _quoted(DEAD_LETTER_EXCHANGE), EXCHANGE),
}


def keys_of(user: str) -> str | None:
    """Return the regular expression of the routing keys that a user may publish to EXCHANGE; None for a user that is no service's."""
    return next((one.topics for one in USERS if one.name == user), None)


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
            Queue(
                name=retry_queue(name, delay_s),
                arguments={**_dead_lettering("", name), "x-message-ttl": delay_s * 1000},
                bindings=((retry_exchange(name), retry_key(delay_s)),),
            )
            for delay_s in retry_delays_s
        )
        found.append(
            Queue(
                name=dead_letter_queue(name),
                arguments={"x-queue-type": "quorum", "x-delivery-limit": DEAD_LETTER_DELIVERY_LIMIT},
                bindings=((DEAD_LETTER_EXCHANGE, name), (dead_letter_exchange(name), name)),
            )
        )
    return tuple(found)
