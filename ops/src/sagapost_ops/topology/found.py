"""What a broker has, read over its management interface; it must not know what it should have."""

import http.client
from typing import TypeVar
from urllib.parse import quote, unquote, urlsplit

import msgspec

from sagapost_contracts import topology
from sagapost_ops import errors
from sagapost_sandbox import errors as sandbox_errors
from sagapost_sandbox import management

T = TypeVar("T")


class Exchange(msgspec.Struct, frozen=True, kw_only=True):
    """An exchange as it is."""

    name: str
    type: str
    durable: bool = True


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """A queue as it is; `type` is quorum, classic or stream."""

    name: str
    type: str = "classic"
    durable: bool = True
    arguments: dict[str, object] = {}


class Binding(msgspec.Struct, frozen=True, kw_only=True):
    """A binding as it is; the default exchange has no name."""

    source: str
    destination: str
    destination_type: str
    routing_key: str


class User(msgspec.Struct, frozen=True, kw_only=True):
    """A user with its tags, which open the management interface."""

    name: str
    tags: list[str] = []


class Permission(msgspec.Struct, frozen=True, kw_only=True):
    """What a user may do in a virtual host."""

    user: str
    configure: str
    write: str
    read: str


class TopicPermission(msgspec.Struct, frozen=True, kw_only=True):
    """The routing keys that a user may publish to a topic exchange."""

    user: str
    exchange: str
    write: str


class _Connection(msgspec.Struct, frozen=True, kw_only=True):
    user: str = ""
    vhost: str = ""
    client_properties: dict[str, object] = {}


class Broker(msgspec.Struct, frozen=True, kw_only=True):
    """One virtual host; `users` is empty when nobody asked for them."""

    vhost: str
    exchanges: tuple[Exchange, ...]
    queues: tuple[Queue, ...]
    bindings: tuple[Binding, ...]
    users: tuple[User, ...] = ()
    permissions: tuple[Permission, ...] = ()
    topic_permissions: tuple[TopicPermission, ...] = ()


def vhost_of(amqp_url: str) -> str:
    """Name the virtual host that an AMQP URL means."""
    return unquote(urlsplit(amqp_url).path[1:]) or "/"


def read(api: management.Management, vhost: str, *, with_users: bool) -> Broker:
    """Read a virtual host and, with `with_users`, who may do what in it.

    Raises:
        UnfitError: the interface does not answer, or does not let this user read.

    """
    path = quote(vhost, safe="")
    try:
        return Broker(
            vhost=vhost,
            exchanges=_get(api, f"/api/exchanges/{path}", tuple[Exchange, ...]),
            queues=_get(api, f"/api/queues/{path}", tuple[Queue, ...]),
            bindings=_get(api, f"/api/bindings/{path}", tuple[Binding, ...]),
            users=_get(api, "/api/users", tuple[User, ...]) if with_users else (),
            permissions=_get(api, f"/api/vhosts/{path}/permissions", tuple[Permission, ...]) if with_users else (),
            topic_permissions=_get(api, f"/api/vhosts/{path}/topic-permissions", tuple[TopicPermission, ...]) if with_users else (),
        )
    except (OSError, http.client.HTTPException, sandbox_errors.ManagementError, msgspec.ValidationError) as exc:
        raise cannot(api, exc) from exc


def permissions(api: management.Management, vhost: str) -> tuple[Permission, ...]:
    """Read what every user may do in a virtual host.

    Raises:
        UnfitError: the interface does not answer, or does not let this user read.

    """
    try:
        return _get(api, f"/api/vhosts/{quote(vhost, safe='')}/permissions", tuple[Permission, ...])
    except (OSError, http.client.HTTPException, sandbox_errors.ManagementError, msgspec.ValidationError) as exc:
        raise cannot(api, exc) from exc


def older_clients(api: management.Management, vhost: str) -> set[str]:
    """Return the users of the connections to a virtual host whose client is older than this generation of the topology.

    Raises:
        UnfitError: the interface does not answer, or does not let this user read.

    """
    try:
        connections = _get(api, "/api/connections", tuple[_Connection, ...])
    except (OSError, http.client.HTTPException, sandbox_errors.ManagementError, msgspec.ValidationError) as exc:
        raise cannot(api, exc) from exc
    return {one.user for one in connections if one.vhost == vhost and not _is_new(one.client_properties)}


def _is_new(client_properties: dict[str, object]) -> bool:
    said = client_properties.get(topology.GENERATION_PROPERTY)
    return isinstance(said, str) and said.isdecimal() and int(said) >= topology.GENERATION


def cannot(api: management.Management, exc: Exception) -> errors.UnfitError:
    """Make the sentence for an interface that does not answer as it should."""
    return errors.UnfitError(
        f"the broker's management interface on port {api.port} cannot be used as {api.user}: {exc}; see SAGAPOST_MANAGEMENT_URL"
    )


def _get(api: management.Management, path: str, kind: type[T]) -> T:
    return msgspec.convert(management.request(api, "GET", path), kind)
