"""A dead letter: where it came from, why it failed, how often it was sent again; and letters grouped by cause. Pure."""

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from sagapost_chassis import arrivals, escaping
from sagapost_contracts import topology
from sagapost_ops import errors
from sagapost_ops.dlq import properties, wire

REPLAY_COUNT: Final = arrivals.REPLAY_COUNT
REPLAY_ID: Final = "x-replay-id"
_SUFFIX: Final = topology.dead_letter_queue("")


class _Body(msgspec.Struct, frozen=True, kw_only=True):
    """The one field of any body that a choice asks for."""

    order_id: int | None = None


_BODY: Final = msgspec.json.Decoder(_Body)


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """One dead letter; `id` is its message id or, without one, `~` and the start of its body's SHA-256."""

    id: str
    type: str
    order_id: int | None
    fingerprint: str
    exception: str
    message: str
    first_failed_at: datetime | None
    failed_at: datetime | None
    attempt: int
    replays: int
    replay_id: str | None
    properties: properties.Properties
    delivery: wire.Delivery

    @property
    def faults(self) -> tuple[str, ...]:
        """What the services' client could not read in it."""
        return self.properties.faults


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Letters of one cause; `message` is the shortest of theirs, `replayed` the most often that one of them was sent again."""

    queue: str
    fingerprint: str
    exception: str
    message: str
    count: int
    first_seen: datetime | None
    last_seen: datetime | None
    replayed: int


def work_queue(name: str) -> str:
    """Give the work queue that is meant by its own name or by that of its dead-letter queue.

    Raises:
        UnfitError: there is none.

    """
    found = name.removesuffix(_SUFFIX)
    if found not in topology.WORK_QUEUES:
        raise errors.UnfitError(f"there is no queue {escaping.line(name)!r}; the queues are {', '.join(topology.WORK_QUEUES)}")
    return found


def read(delivery: wire.Delivery) -> Letter:
    """Read a letter; whatever it holds, it can be listed."""
    found = properties.read(delivery.properties)
    headers, values = found.headers, found.values
    death = _death(headers)
    exception, message, fingerprint = _cause(found, death)
    failed_at = _moment(headers.get("x-failed-at")) or _moment(death.get("time")) or _moment(values.get("timestamp"))
    return Letter(
        id=str(values.get("message_id") or "~" + hashlib.sha256(delivery.body).hexdigest()[:16]),
        type=str(values.get("type", "")),
        order_id=_order(delivery.body),
        fingerprint=fingerprint,
        exception=exception,
        message=message,
        first_failed_at=_moment(headers.get("x-first-failed-at")) or failed_at,
        failed_at=failed_at,
        attempt=_number(headers.get("x-attempt")),
        replays=_number(headers.get(REPLAY_COUNT)),
        replay_id=_string(headers.get(REPLAY_ID)),
        properties=found,
        delivery=delivery,
    )


def groups(queue: str, found: Iterable[Letter]) -> list[Group]:
    """Group letters by fingerprint, the largest group first."""
    sorted_out: dict[str, list[Letter]] = {}
    for letter in found:
        sorted_out.setdefault(letter.fingerprint, []).append(letter)
    made = [
        Group(
            queue=queue,
            fingerprint=fingerprint,
            exception=members[0].exception,
            message=min((member.message for member in members), key=lambda text: (not text, len(text))),
            count=len(members),
            first_seen=min((member.first_failed_at for member in members if member.first_failed_at), default=None),
            last_seen=max((member.failed_at for member in members if member.failed_at), default=None),
            replayed=max(member.replays for member in members),
        )
        for fingerprint, members in sorted_out.items()
    ]
    return sorted(made, key=lambda group: -group.count)


def _cause(found: properties.Properties, death: dict[str, Any]) -> tuple[str, str, str]:
    """Give exception, message and fingerprint: the consumer's, otherwise what the client cannot read, otherwise the broker's reason."""
    headers = found.headers
    fingerprint = _string(headers.get("x-fingerprint"))
    if fingerprint:
        return _string(headers.get("x-exception-type")) or "?", _string(headers.get("x-exception-message")) or "", fingerprint
    if found.faults:
        return "Unreadable", found.faults[0], f"Unreadable@{found.faults[0].replace(' ', '-')}"
    reason = _string(death.get("reason")) or _string(headers.get("x-first-death-reason"))
    if reason:
        return reason, f"set aside by the broker: {reason}", f"{reason}@broker"
    return "?", "it does not say why it is here", "unknown"


def _death(headers: dict[str, Any]) -> dict[str, Any]:
    history = headers.get("x-death")
    first = history[0] if isinstance(history, list) and history else None
    return first if isinstance(first, dict) else {}


def _order(body: bytes) -> int | None:
    try:
        return _BODY.decode(body).order_id
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _string(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _moment(value: object) -> datetime | None:
    try:
        if isinstance(value, str):
            read_back = datetime.fromisoformat(value)
            return read_back if read_back.tzinfo else read_back.replace(tzinfo=UTC)
        if isinstance(value, int):
            return datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return value if isinstance(value, datetime) else None
