"""The secret between our services: callers send it in a header, a service refuses calls without it; it must not know what a route does."""

import hashlib
import hmac
from typing import Final

from litestar import enums, types

from sagapost_chassis import problems

HEADER: Final = "Sagapost-Secret"
_NAME: Final = HEADER.lower().encode()
_OPEN: Final = frozenset({"/", "/health", "/health/live", "/health/ready"})
_READING: Final = frozenset({"GET", "HEAD"})


def headers(secret: str) -> dict[str, str]:
    """Return what a caller sends with every call.

    Without a secret the header is there and empty: a service that has one then refuses the call on every path, health included.
    """
    return {HEADER: secret}


def guarding(inner: types.ASGIApp, secret: str) -> types.ASGIApp:
    """Return the application behind a check of the header; without a secret the application itself.

    Open are GET / and the health paths, for whoever looks whether the process lives; a wrong secret is refused there as well.
    """
    if not secret:
        return inner
    wanted = _digest(secret.encode())

    async def outer(scope: types.Scope, receive: types.Receive, send: types.Send) -> None:
        if scope["type"] != enums.ScopeType.HTTP:
            await inner(scope, receive, send)
            return
        given = [value for name, value in scope["headers"] if name.lower() == _NAME]
        right = len(given) == 1 and hmac.compare_digest(_digest(given[0]), wanted)
        public = not given and scope["method"] in _READING and scope["path"] in _OPEN
        if right or public:
            await inner(scope, receive, send)
        else:
            await _refuse(scope, send)

    return outer


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()  # of equal length: the comparison does not show how long the secret is


async def _refuse(scope: types.HTTPScope, send: types.Send) -> None:
    detail = f"This service answers the gateway and services of ours, which send {HEADER}."
    await problems.refuse(scope, send, 401, "unauthorized", detail, headers=[(b"www-authenticate", HEADER.encode())])
