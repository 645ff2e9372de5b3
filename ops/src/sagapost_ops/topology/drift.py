"""Names what a broker has otherwise than the contract says; pure, it asks nobody."""

from collections.abc import Iterator
from typing import Final, Literal

import msgspec

from sagapost_contracts import topology
from sagapost_ops.topology import found

Kind = Literal["missing", "type", "arguments", "binding-missing", "binding-too-many", "user-missing", "rights"]

_MENDS: Final[dict[Kind, str]] = {
    "missing": "declare",
    "binding-missing": "declare",
    "user-missing": "users",
    "rights": "users",
    "binding-too-many": "unbind",
    "type": "delete",
    "arguments": "delete",
}
_ADVICE: Final = {
    "declare": "what is missing: ./sagapost topology declare",
    "users": "users: ./sagapost topology declare --users",
    "unbind": "a binding too many: unbind it in the RabbitMQ page",
    "delete": "another type or other arguments: empty it (its consumers, ./sagapost dlq), delete it in the RabbitMQ page, declare it again",
}


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """One difference, as a sentence."""

    kind: Kind
    name: str
    says: str


def compare(broker: found.Broker, *, with_users: bool) -> tuple[Drift, ...]:
    """Name every difference: exchanges, queues, bindings, and with `with_users` the rights of the services' users."""
    drifts = [*_exchanges(broker), *_queues(broker), *_bindings(broker)]
    return (*drifts, *_users(broker)) if with_users else tuple(drifts)


def advice(drifts: tuple[Drift, ...]) -> str:
    """Say what mends them, each way once."""
    ways = {_MENDS[drift.kind] for drift in drifts}
    return "; ".join(sentence for way, sentence in _ADVICE.items() if way in ways)


def absent(name: str) -> Drift:
    """Name an exchange or a queue that is not there."""
    return Drift(kind="missing", name=name, says=f"{name} is not there")


def _exchanges(broker: found.Broker) -> Iterator[Drift]:
    there = {exchange.name: exchange for exchange in broker.exchanges}
    for wanted in topology.EXCHANGES:
        has = there.get(wanted.name)
        if has is None:
            yield absent(wanted.name)
            continue
        if has.type != wanted.type:
            yield Drift(kind="type", name=wanted.name, says=f"{wanted.name} is a {has.type} exchange instead of a {wanted.type} exchange")
        if not has.durable:
            yield Drift(kind="type", name=wanted.name, says=f"{wanted.name} is not durable")


def _queues(broker: found.Broker) -> Iterator[Drift]:
    there = {queue.name: queue for queue in broker.queues}
    for wanted in topology.queues():
        has = there.get(wanted.name)
        if has is None:
            yield absent(wanted.name)
            continue
        if has.type != wanted.arguments["x-queue-type"]:
            yield Drift(kind="type", name=wanted.name, says=f"{wanted.name} is a {has.type} queue instead of a quorum queue")
        for name in sorted({*wanted.arguments, *has.arguments} - {"x-queue-type"}):
            if has.arguments.get(name) != wanted.arguments.get(name):
                says = _argument(name, has.arguments.get(name), wanted.arguments.get(name))
                yield Drift(kind="arguments", name=wanted.name, says=f"{wanted.name} has {says}")


def _argument(name: str, has: object, wanted: object) -> str:
    if wanted is None:
        return f"{name} {has!r}, which is not wanted"
    return f"no {name}, {wanted!r} is wanted" if has is None else f"{name} {has!r} instead of {wanted!r}"


def _bindings(broker: found.Broker) -> Iterator[Drift]:
    there = {queue.name for queue in broker.queues}
    for wanted in topology.queues():
        has = {
            (binding.source, binding.routing_key)
            for binding in broker.bindings
            if binding.destination == wanted.name and binding.destination_type == "queue" and binding.source
        }
        if wanted.name not in there:
            continue  # which says it all
        for exchange, key in wanted.bindings:
            if (exchange, key) not in has:
                yield Drift(kind="binding-missing", name=wanted.name, says=f"{wanted.name} is not bound to {exchange} with {key}")
        for exchange, key in sorted(has - set(wanted.bindings)):
            says = f"{wanted.name} is bound to {exchange} with {key}, which is not wanted"
            yield Drift(kind="binding-too-many", name=wanted.name, says=says)


def _users(broker: found.Broker) -> Iterator[Drift]:
    users = {user.name: user for user in broker.users}
    rights = {permission.user: permission for permission in broker.permissions}
    for wanted in topology.USERS:
        if wanted.name not in users:
            yield Drift(kind="user-missing", name=wanted.name, says=f"there is no user {wanted.name}")
            continue
        if tags := users[wanted.name].tags:
            yield Drift(kind="rights", name=wanted.name, says=f"user {wanted.name} has tags: {', '.join(tags)}")
        has = rights.get(wanted.name)
        if has is None:
            yield Drift(kind="rights", name=wanted.name, says=f"user {wanted.name} may not use the virtual host {broker.vhost}")
            continue
        for right in ("configure", "write", "read"):
            is_so, should = getattr(has, right), getattr(wanted, right)
            if is_so != should:
                known = " (what consumers of the version before needed; it reaches every queue)" if is_so in _before(wanted) else ""
                says = f"user {wanted.name} may {right} “{is_so}” instead of “{should}”{known}"
                yield Drift(kind="rights", name=wanted.name, says=says)
        yield from _topics(broker, wanted)


def _before(user: topology.User) -> tuple[str | None, ...]:
    return (user.older_write, topology.FIRST_WRITES.get(user.name))


def _topics(broker: found.Broker, wanted: topology.User) -> Iterator[Drift]:
    has = {(line.exchange, line.write) for line in broker.topic_permissions if line.user == wanted.name}
    should = set() if wanted.topics is None else {(topology.EXCHANGE, wanted.topics)}
    for exchange, keys in sorted(should - has):
        says = f"user {wanted.name} is not held to the routing keys “{keys}” on {exchange}"
        yield Drift(kind="rights", name=wanted.name, says=says)
    for exchange, keys in sorted(has - should):
        says = f"user {wanted.name} is held to the routing keys “{keys}” on {exchange}, which is not wanted"
        yield Drift(kind="rights", name=wanted.name, says=says)
