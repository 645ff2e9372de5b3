"""The gateway's ASGI application: API, health, documents and pages behind one layer that every answer passes."""

import asyncio
import math
from collections.abc import Callable, Collection
from typing import Final

import litestar
from litestar import enums, handlers, types

from sagapost_chassis import health, ids, problems, sites, web, web_lines
from sagapost_gateway import admission, api, cors, edge, errors, gate, holding, openapi, pages, upstream

READY_S: Final = 1.0  # how long readiness is kept
_UNLESS_SET: Final = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
)
_JSON_OR_PAGE: Final = ("application/json", "text/html")
_FROM_MEMORY: Final = "/api/products"  # no call is made for it, so it neither waits for a place nor takes one
_READING: Final = ("GET", "HEAD", "OPTIONS")  # they may wait long for news, and have connections of their own for that
# A browser takes note of it over HTTPS only. Not for subdomains: they are not this service's to speak for.
_HTTPS_ONLY: Final = (b"strict-transport-security", b"max-age=31536000")


def build(
    order: upstream.Order, *, env: str, mailbox_url: str, origins: Collection[str] = (), hosts: Collection[str] = ()
) -> types.ASGIApp:
    """Put the application together around the order service's client; pages of `origins` may use it from browsers, under one of `hosts`."""
    secure = (*web.SECURE_HEADERS, _HTTPS_ONLY) if env == "production" else web.SECURE_HEADERS
    routed = fronted(
        web.app(
            [
                api.routes(order, admission.Desk(order, env=env)),
                *health.routes("gateway", {"order": _Kept(order.alive)}, mode=env),
                *pages.routes(env=env, mailbox_url=mailbox_url),
                _document(env),
            ],
            guard=sites.guarding(env, hosts, origins),
        ),
        shop=env == "development",
    )
    return secured(cors.allowing(holding.holding(shedding(routed, order.busy, order.room)), origins), secure)


class _Kept:
    """Asks at most once a second, for everybody who wants to know: readiness is public, and asking costs a call."""

    def __init__(self, check: health.Check) -> None:
        self._check = check
        self._asked_s = -math.inf
        self._asking: asyncio.Task[bool] | None = None

    async def __call__(self) -> bool:
        now_s = asyncio.get_running_loop().time()
        if self._asking is None or (self._asking.done() and now_s - self._asked_s >= READY_S):
            self._asked_s = now_s
            self._asking = asyncio.create_task(self._asked())
        return await asyncio.shield(self._asking)

    async def _asked(self) -> bool:
        return await self._check()


def _document(env: str) -> handlers.HTTPRouteHandler:
    body = openapi.encoded(env)

    @litestar.get("/schema/openapi.json", sync_to_thread=False)
    def document() -> litestar.Response[bytes]:
        return litestar.Response(body, media_type="application/json", headers={"Cache-Control": "no-cache"})

    return document


def secured(inner: types.ASGIApp, headers: Collection[tuple[bytes, bytes]]) -> types.ASGIApp:
    """Add the security headers to every answer, whoever makes it."""

    async def outer(scope: types.Scope, receive: types.Receive, send: types.Send) -> None:
        async def told(message: types.Message) -> None:
            if message["type"] == "http.response.start":
                given = list(message["headers"])
                present = {name for name, _ in given}
                message["headers"] = [*given, *headers, *(pair for pair in _UNLESS_SET if pair[0] not in present)]
            await send(message)

        await inner(scope, receive, told)

    return outer


def shedding(inner: types.ASGIApp, busy: Callable[[], bool], room: int) -> types.ASGIApp:
    """Refuse calls of the API while `busy`, before anything else is done for them: what is refused must cost next to nothing.

    At most `room` calls that change something are let in at once. `busy` alone would let in all who come while the first of them are still
    on their way to the order service, and those would be refused there, when most of their work is done. A call has no
    place while it waits for its body: who sends one slowly, or never to its end, keeps nobody out.

    The refusal comes a second late, see holding.Hold: what the accepted need must not be spent on refusals.
    """
    inside = 0
    hold = holding.Hold()

    async def refuse() -> None:
        gate.SHED.labels("door").inc()
        await hold.wait()

    async def counted(scope: types.Scope, receive: types.Receive, send: types.Send) -> None:
        nonlocal inside
        placed = True

        async def without_place() -> types.HTTPReceiveMessage | types.WebSocketReceiveMessage:
            nonlocal inside, placed
            inside, placed = inside - placed, False
            message = await receive()
            if message["type"] == "http.request" and not message["more_body"]:
                if busy() or inside >= room:
                    await refuse()
                    raise errors.OverloadedError("no place is left")
                inside, placed = inside + 1, True
            return message

        inside += 1
        try:
            await inner(scope, without_place, send)
        finally:
            inside -= placed

    async def outer(scope: types.Scope, receive: types.Receive, send: types.Send) -> None:
        path = scope["path"]
        if scope["type"] != enums.ScopeType.HTTP or not path.startswith("/api/") or path.startswith(_FROM_MEMORY):
            await inner(scope, receive, send)
            return
        reads = scope["method"] in _READING
        if busy() or (not reads and inside >= room):
            await refuse()
            await _refused(scope, send)
        else:
            await (inner if reads else counted)(scope, receive, send)

    return outer


async def _refused(scope: types.HTTPScope, send: types.Send) -> None:
    web_lines.REFUSALS.labels("overloaded").inc()
    await problems.refuse(scope, send, 503, "overloaded", gate.DETAIL, headers=[(b"retry-after", b"1")], trace_id=ids.uuid7().hex)


def fronted(inner: types.ASGIApp, *, shop: bool) -> types.ASGIApp:
    """Choose between page, where there is one, and health at `/`, and answer HEAD as GET without its body."""

    async def outer(scope: types.Scope, receive: types.Receive, send: types.Send) -> None:
        if scope["type"] != enums.ScopeType.HTTP:
            await inner(scope, receive, send)
            return

        async def varied(message: types.Message) -> None:
            if message["type"] == "http.response.start" and scope["path"] == "/":
                message["headers"] = [*message["headers"], (b"vary", b"Accept")]
            await told(message)

        told = _bodiless(send) if scope["method"] == "HEAD" else send
        await inner(_routed(scope, shop=shop), receive, varied)

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


def _routed(scope: types.HTTPScope, *, shop: bool) -> types.HTTPScope:
    changed = scope.copy()
    if scope["method"] == "HEAD":
        changed["method"] = "GET"
    if shop and scope["path"] == "/" and edge.preferred(scope["headers"], _JSON_OR_PAGE) == _JSON_OR_PAGE[1]:
        changed["path"] = pages.SHOP_PATH
        changed["raw_path"] = pages.SHOP_PATH.encode("ascii")
    return changed
