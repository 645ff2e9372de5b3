"""Which other sites' pages may use the API from a browser (the Fetch standard's CORS): those that are named, without cookies."""

from collections.abc import Collection
from typing import Final

from litestar import enums, types

_PREFLIGHT: Final = (
    (b"access-control-allow-methods", b"GET, POST"),
    (
        b"access-control-allow-headers",
        b"Authorization, Content-Type, Idempotency-Key, If-Match, If-None-Match, Last-Event-ID, Prefer, traceparent",
    ),
    (b"access-control-max-age", b"600"),
)
_EXPOSED: Final = (
    b"access-control-expose-headers",
    b"ETag, Idempotent-Replayed, Location, Preference-Applied, RateLimit, RateLimit-Policy, Retry-After",
)


def allowing(inner: types.ASGIApp, origins: Collection[str]) -> types.ASGIApp:
    """Answer preflights of `origins`, and let their pages read what is answered; without any, nothing changes."""
    allowed = {origin.encode("ascii") for origin in origins}
    if not allowed:
        return inner

    async def outer(scope: types.Scope, receive: types.Receive, send: types.Send) -> None:
        if scope["type"] != enums.ScopeType.HTTP or not scope["path"].startswith("/api/"):
            await inner(scope, receive, send)
            return
        sent = dict(scope["headers"])
        origin = sent.get(b"origin", b"")
        told = ((b"access-control-allow-origin", origin), _EXPOSED) if origin in allowed else ()
        if told and scope["method"] == "OPTIONS" and b"access-control-request-method" in sent:
            headers = [(b"vary", b"Origin"), *told[:1], *_PREFLIGHT]
            await send({"type": "http.response.start", "status": 204, "headers": headers})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return

        async def shared(message: types.Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"vary", b"Origin"), *told]
            await send(message)

        await inner(scope, receive, shared)

    return outer
