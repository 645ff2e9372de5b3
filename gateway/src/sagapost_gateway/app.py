"""The gateway's ASGI application: API, health, documents and pages behind one layer that every answer passes."""

from typing import Final

import litestar
from litestar import datastructures, enums, handlers, types

from sagapost_chassis import health, web
from sagapost_gateway import api, openapi, pages, upstream

_SECURE: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
_UNLESS_SET: Final = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)


def build(order: upstream.Order, *, env: str, mailbox_url: str) -> types.ASGIApp:
    """Put the application together around the order service's client."""
    return fronted(
        web.app(
            [
                api.routes(order),
                *health.routes("gateway", {"order": order.alive}),
                *pages.routes(env=env, mailbox_url=mailbox_url),
                _document(),
            ]
        )
    )


def _document() -> handlers.HTTPRouteHandler:
    body = openapi.encoded()

    @litestar.get("/schema/openapi.json", sync_to_thread=False)
    def document() -> litestar.Response[bytes]:
        return litestar.Response(body, media_type="application/json", headers={"Cache-Control": "no-cache"})

    return document


def fronted(inner: types.ASGIApp) -> types.ASGIApp:
    """Choose between page and health at `/`, answer HEAD as GET without its body, and add the security headers."""

    async def outer(scope: types.Scope, receive: types.Receive, send: types.Send) -> None:
        if scope["type"] != enums.ScopeType.HTTP:
            await inner(scope, receive, send)
            return

        async def secured(message: types.Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message["headers"])
                present = {name for name, _ in headers}
                headers.extend(_SECURE)
                headers.extend(pair for pair in _UNLESS_SET if pair[0] not in present)
                if scope["path"] == "/":
                    headers.append((b"vary", b"Accept"))
                message["headers"] = headers
            await told(message)

        told = _bodiless(send) if scope["method"] == "HEAD" else send
        await inner(_routed(scope), receive, secured)

    return outer


def _bodiless(send: types.Send) -> types.Send:
    """End the answer where its body would begin: a stream would keep the client of a HEAD waiting for nothing."""
    ended = False

    async def only_head(message: types.Message) -> None:
        nonlocal ended
        if message["type"] == "http.response.start":
            await send(message)
        elif not ended:
            ended = True
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    return only_head


def _routed(scope: types.HTTPScope) -> types.HTTPScope:
    changed = scope.copy()
    if scope["method"] == "HEAD":
        changed["method"] = "GET"
    if scope["path"] == "/" and _prefers_html(scope):
        changed["path"] = pages.SHOP_PATH
        changed["raw_path"] = pages.SHOP_PATH.encode("ascii")
    return changed


def _prefers_html(scope: types.HTTPScope) -> bool:
    accepted = b",".join(value for name, value in scope["headers"] if name == b"accept").decode("latin-1")
    return datastructures.Accept(accepted).best_match(["application/json", "text/html"]) == "text/html" if accepted else False
