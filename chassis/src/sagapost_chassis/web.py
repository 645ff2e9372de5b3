"""The ASGI application every service builds: traced, logged, with problems for errors and no internals in answers."""

from collections.abc import Sequence
from typing import Any, Final

import litestar
import msgspec
from litestar import types
from litestar.openapi import OpenAPIConfig
from opentelemetry.trace import SpanKind

from sagapost_chassis import problems, telemetry

MAX_BODY_BYTES: Final = 64 * 1024
SECURE_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
)


def app(
    handlers: Sequence[Any],
    *,
    openapi: OpenAPIConfig | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
    middleware: Sequence[types.Middleware] = (),
) -> types.ASGIApp:
    """Build the application around the route handlers."""
    inner = litestar.Litestar(
        list(handlers),
        exception_handlers=problems.handlers(),
        openapi_config=openapi,
        request_max_body_size=max_body_bytes,
        logging_config=None,
        middleware=list(middleware),
    )
    return traced(inner)


def traced(inner: types.ASGIApp) -> types.ASGIApp:
    """Run each request in a span that continues the caller's traceparent, and log one line for it."""

    async def outer(scope: types.Scope, receive: types.Receive, send: types.Send) -> None:
        method = str(dict(scope).get("method", ""))
        if not method:  # lifespan and websocket scopes have none
            await inner(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        quiet = scope["path"].startswith("/health") or scope["path"] == "/"
        with telemetry.span(f"{method} {scope['path']}"[:200], SpanKind.SERVER, headers.get("traceparent")):
            if quiet:
                await inner(scope, receive, send)
                return
            with telemetry.canonical("request.handled", "http", method, path=scope["path"][:200]) as line:

                async def observed(message: types.Message) -> None:
                    if message["type"] == "http.response.start":
                        line["status"] = message["status"]
                        line["outcome"] = "ok" if message["status"] < 500 else "error"
                    await send(message)

                await inner(scope, receive, observed)

    return outer


def json(body: object, status: int = 200, headers: dict[str, str] | None = None) -> litestar.Response[bytes]:
    """Answer with a body that msgspec encodes."""
    return litestar.Response(msgspec.json.encode(body), status_code=status, media_type="application/json", headers=headers)
