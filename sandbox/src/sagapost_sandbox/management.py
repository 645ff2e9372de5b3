"""Talks to any broker from outside: virtual hosts, users and figures over the management interface; starts nothing."""

import base64
import contextlib
import http.client
import json
import socket
import urllib.parse
from typing import Final

import msgspec

from sagapost_sandbox import errors

TIMEOUT_S: Final = 30.0
_PROTOCOL_HEADER: Final = b"AMQP\x00\x00\x09\x01"
_METHOD_FRAME: Final = 1
_MISSING: Final = 404
_REFUSED: Final = 400


class Management(msgspec.Struct, frozen=True, kw_only=True):
    """Where a broker's management interface is, and who asks."""

    host: str
    port: int
    user: str
    password: str
    tls: bool = False


class Rights(msgspec.Struct, frozen=True, kw_only=True):
    """What a user may do in a virtual host, as regular expressions over names; an empty one matches nothing."""

    configure: str
    write: str
    read: str


def of_url(url: str) -> Management:
    """Read where and who from an http or https URL."""
    parts = urllib.parse.urlsplit(url)
    tls = parts.scheme == "https"
    return Management(
        host=parts.hostname or "127.0.0.1",
        port=parts.port or (15671 if tls else 15672),
        user=urllib.parse.unquote(parts.username or "guest"),
        password=urllib.parse.unquote(parts.password or "guest"),
        tls=tls,
    )


def amqp_url(host: str, port: int, user: str, password: str, vhost: str) -> str:
    """Build an AMQP URL; every part but host and port is quoted."""
    quoted = [urllib.parse.quote(part, safe="") for part in (user, password, vhost)]
    return f"amqp://{quoted[0]}:{quoted[1]}@{host}:{port}/{quoted[2]}"


def create_vhost(api: Management, name: str) -> None:
    """Make a virtual host in which the asking user may do everything; nothing when it is there."""
    path = urllib.parse.quote(name, safe="")
    request(api, "PUT", f"/api/vhosts/{path}", {})
    user = urllib.parse.quote(api.user, safe="")
    request(api, "PUT", f"/api/permissions/{path}/{user}", {"configure": ".*", "write": ".*", "read": ".*"})


def delete_vhost(api: Management, name: str) -> None:
    """Remove a virtual host with everything in it; nothing when it is gone."""
    request(api, "DELETE", f"/api/vhosts/{urllib.parse.quote(name, safe='')}")


def put_user(api: Management, name: str, password: str) -> None:
    """Make a user without any tag, or give it this password and take its tags away."""
    request(api, "PUT", f"/api/users/{urllib.parse.quote(name, safe='')}", {"password": password, "tags": ""})


def permit(api: Management, vhost: str, user: str, rights: Rights) -> None:
    """Set what a user may do in a virtual host."""
    path = f"{urllib.parse.quote(vhost, safe='')}/{urllib.parse.quote(user, safe='')}"
    request(api, "PUT", f"/api/permissions/{path}", msgspec.to_builtins(rights))


def permit_topics(api: Management, vhost: str, user: str, topics: dict[str, str]) -> None:
    """Set the routing keys that a user may publish to topic exchanges, by exchange; an exchange not named takes every key."""
    name, account = urllib.parse.quote(vhost, safe=""), urllib.parse.quote(user, safe="")
    path = f"/api/topic-permissions/{name}/{account}"
    has = msgspec.convert(request(api, "GET", f"/api/vhosts/{name}/topic-permissions"), list[dict[str, object]])
    if any(line["user"] == user and line["exchange"] not in topics for line in has):
        request(api, "DELETE", path)  # only then: until the next call the user may use every key
    for exchange, keys in topics.items():
        request(api, "PUT", path, {"exchange": exchange, "write": keys, "read": ".*"})


def answers(api: Management) -> bool:
    """Whether the interface is up and knows the user."""
    try:
        request(api, "GET", "/api/whoami", timeout_s=2)
    except (errors.ManagementError, OSError, http.client.HTTPException):
        return False
    return True


def speaks_amqp(host: str, port: int) -> bool:
    """Tell a broker from a port that merely listens: it answers the protocol header with its first method frame."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=2) as connection:
        connection.sendall(_PROTOCOL_HEADER)
        return connection.recv(1) == bytes([_METHOD_FRAME])
    return False


def request(api: Management, method: str, path: str, body: object = None, *, timeout_s: float = TIMEOUT_S) -> object:
    """Send one request and return the decoded answer; None when it has no body, or for a DELETE of what is not there.

    Raises:
        ManagementError: any other answer of 400 or above.
        OSError: the interface cannot be reached.

    """
    token = base64.b64encode(f"{api.user}:{api.password}".encode()).decode("ascii")
    headers = {"Authorization": f"Basic {token}", "Content-Type": "application/json"}
    kind = http.client.HTTPSConnection if api.tls else http.client.HTTPConnection
    connection = kind(api.host, api.port, timeout=timeout_s)
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        content = answer.read()
    finally:
        connection.close()
    if answer.status == _MISSING and method == "DELETE":
        return None
    if answer.status >= _REFUSED:
        raise errors.ManagementError(f"{method} {path} on port {api.port}: {answer.status} {content[:300].decode(errors='replace')}")
    return msgspec.json.decode(content) if content else None
