"""The secret between our services: callers send it in a header, a service refuses calls without it; it must not know what a route does."""

import hashlib
import hmac
from typing import Final

import msgspec
from litestar import enums, types

from sagapost_chassis import problems, telemetry

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
    problem = problems.Problem(
        type="/problems/unauthorized",
        title="Credentials are missing or wrong",
        status=401,
        detail=f"This service answers the gateway and services of ours, which send {HEADER}.",
        instance=scope["path"][:200],
        trace_id=telemetry.current_trace_id(),
    )
    body = msgspec.json.encode(problem)
    told = [
        (b"content-type", problems.MEDIA_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"www-authenticate", HEADER.encode()),
    ]
    await send({"type": "http.response.start", "status": 401, "headers": told})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body, "more_body": False})
