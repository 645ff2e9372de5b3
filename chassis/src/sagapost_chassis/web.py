"""The ASGI application every service builds: traced, logged, with problems for errors and no internals in answers."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, cast

import litestar
import msgspec
import prometheus_client
from litestar import types
from litestar.openapi import OpenAPIConfig
from opentelemetry.trace import SpanKind

from sagapost_chassis import internal, problems, sites, telemetry, web_lines

GONE: Final = "sagapost.gone"  # an extension of the ASGI scope: whether the client has closed the connection
MAX_BODY_BYTES: Final = 64 * 1024
SECURE_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
)


GONE_COUNT: Final = prometheus_client.Counter("sagapost_http_abandoned", "Requests dropped unread because their client had gone")


def app(
    handlers: Sequence[Any],
    *,
    openapi: OpenAPIConfig | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
    middleware: Sequence[types.Middleware] = (),
    named: Mapping[str, str] = {},
    secret: str = "",
    guard: sites.Guard | None = None,
) -> types.ASGIApp:
    """Build the application around the route handlers; `named` are fields of the log line and the request headers that they come from.

    With a `secret` only callers that send it reach the handlers, see internal.guarding; what `guard` refuses reaches none either.
    """
    inner = litestar.Litestar(
        list(handlers),
        exception_handlers=problems.handlers(),
        openapi_config=openapi,
        request_max_body_size=max_body_bytes,
        logging_config=None,
        middleware=list(middleware),
    )
    guarded = internal.guarding(inner, secret)
    return traced(guard(guarded) if guard else guarded, named)


def is_gone(scope: types.Scope) -> bool:
    """Return whether the client of a request has closed the connection: nobody would read the answer."""
    gone: Callable[[], bool] | None = (cast("dict[str, Any]", scope).get("extensions") or {}).get(GONE)
    return gone is not None and gone()


async def _client_gone(scope: types.Scope) -> bool:
    """Look whether the client has gone already; the end of its connection is read one turn of the event loop after its request."""
    for _ in range(2):
        await asyncio.sleep(0)
    return is_gone(scope)


def traced(inner: types.ASGIApp, named: Mapping[str, str] = {}) -> types.ASGIApp:
    """Run each request in a span that continues the caller's traceparent, and log one line for it.

    A request whose client has closed the connection meanwhile is dropped: a service that was busy for long does not work for nobody.
    """

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
            if await _client_gone(scope):
                GONE_COUNT.inc()
                return
            with web_lines.observed(cast("web_lines.Scope", scope)) as line:
                line |= {name: value for name, value in ((field, headers.get(header)) for field, header in named.items()) if value}

                async def observed(message: types.Message) -> None:
                    if message["type"] == "http.response.start":
                        line["status"] = message["status"]
                    await send(message)

                await inner(scope, receive, observed)

    return outer


def json(body: object, status: int = 200, headers: dict[str, str] | None = None) -> litestar.Response[bytes]:
    """Answer with a body that msgspec encodes."""
    return litestar.Response(msgspec.json.encode(body), status_code=status, media_type="application/json", headers=headers)
