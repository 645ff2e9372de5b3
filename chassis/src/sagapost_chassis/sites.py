"""Which names a process answers to, and whose pages may change something through a visitor's browser; it must not know a route.

A browser on the machine of a developer reaches loopback ports for any page that it shows. Two things are refused for that: requests of
foreign pages that change something (CSRF), and names that are not this process's, which a page can point at 127.0.0.1 (DNS rebinding).
"""

import re
from collections.abc import Callable, Collection, Iterable
from typing import Final

from litestar import enums, types

from sagapost_chassis import loopback, problems, settings

_READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_OURS: Final = frozenset({b"same-origin", b"none"})  # the Fetch Metadata standard: our own page, or the visitor himself
_PORT: Final = re.compile(r":[0-9]*\Z")
_NAME: Final = re.compile(r"\A(?:[a-z0-9._~-]{1,253}|\[[0-9a-f:.]{2,45}\])\Z")

Guard = Callable[[types.ASGIApp], types.ASGIApp]


def names(text: str) -> frozenset[str]:
    """Read the host names of a setting, separated by spaces or commas.

    Raises:
        ValueError: one of them is no host name or address, or has a port.

    """
    found = frozenset(text.lower().replace(",", " ").split())
    for name in found:
        if not _NAME.match(name):
            text = "must hold host names or addresses without a port, separated by spaces or commas"
            raise ValueError(f"SAGAPOST_ALLOWED_HOSTS and SAGAPOST_DEVELOPMENT_HOSTS {text}")
    return found


def guarding(env: str, hosts: Collection[str], origins: Collection[str] = ()) -> Guard:
    """Return a wrapper that refuses unknown hosts (421) and pages of other sites (403).

    Hosts are checked in development, which also answers to loopback names, and in production when `hosts` is not empty. Pages of
    `origins` may change something.
    """
    named = frozenset(hosts) if hosts or env == settings.DEVELOPMENT else None
    allowed = frozenset(origin.encode("ascii") for origin in origins)

    def around(inner: types.ASGIApp) -> types.ASGIApp:
        async def outer(scope: types.Scope, receive: types.Receive, send: types.Send) -> None:
            if scope["type"] != enums.ScopeType.HTTP:
                await inner(scope, receive, send)
            elif named is not None and not all(_is_ours(host, named) for host in _values(scope["headers"], b"host")):
                detail = "This process does not answer to this name. SAGAPOST_ALLOWED_HOSTS names the hosts that it answers to."
                await problems.refuse(scope, send, 421, "misdirected-request", detail)
            elif scope["method"] not in _READING and is_foreign(scope["headers"], allowed):
                detail = "A page of another site may change something only when SAGAPOST_CORS_ORIGINS names its origin."
                await problems.refuse(scope, send, 403, "cross-site-request", detail)
            else:
                await inner(scope, receive, send)

        return outer

    return around


def is_foreign(headers: Iterable[tuple[bytes, bytes]], allowed: Collection[bytes]) -> bool:
    """Return whether a browser sent the request for another site's page; programs send neither Origin nor Sec-Fetch-Site.

    Another port is another origin, and another page: `same-site` is not enough.
    """
    sent = list(headers)
    origins = _values(sent, b"origin")
    if origins and all(origin in allowed for origin in origins):
        return False
    hosts = _values(sent, b"host")
    own = all(hosts and origin.lower().partition(b"://")[2] == hosts[0].lower() for origin in origins)
    return not own or any(site.lower() not in _OURS for site in _values(sent, b"sec-fetch-site"))


def _values(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    return [value.strip(b" \t") for key, value in headers if key == name]


def _is_ours(host: bytes, named: Collection[str]) -> bool:
    name = _PORT.sub("", host.decode("latin-1").lower())
    if name == "localhost" or name in named:
        return True
    try:
        return loopback.is_loopback(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
