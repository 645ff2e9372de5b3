"""The routes under /api: check the edge's rules, make one call, pass the answer on; it decides nothing about orders."""

import functools
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Final

import litestar
import msgspec
from litestar import background_tasks, connection, exceptions, response
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler

from sagapost_chassis import problems, telemetry, web, web_lines
from sagapost_contracts import access
from sagapost_gateway import admission, catalogue, edge, errors, gate, upstream

PROBLEM_MAX_BYTES: Final = 4096
RECHECK_S: Final = 14  # comments come every 15 s
_SCOPE: Final = "scope"
_CALLER: Final = "caller"
ACTIONS: Final = ("retry", "compensate", "waive-notify", "mark-refunded")
_Response = litestar.Response[bytes]
_Connection = connection.ASGIConnection[Any, Any, Any, Any]

_decode_problem: Final = msgspec.json.Decoder(dict[str, object])


def routes(order: upstream.Order, desk: admission.Desk) -> litestar.Router:
    """Give the routes of the public API that are answered by the order service; `desk` lets calls to them pass, or not."""
    return litestar.Router(
        "/api",
        route_handlers=[*_orders(order), *_sagas(order, desk), *_operators(order, desk), *_catalogue(order)],
        guards=[edge.exact_path, _admitted(desk)],
        exception_handlers={
            errors.OrderUnavailableError: _unavailable,
            errors.OrderTimeoutError: _timed_out,
            errors.TooManyError: _overloaded,
            errors.OverloadedError: _shed,
            errors.CircuitOpenError: _circuit_open,
        },
    )


def _orders(order: upstream.Order) -> list[HTTPRouteHandler]:
    @litestar.post("/checkout", status_code=202, opt=_for(access.CHECKOUT_WRITE))
    async def checkout(request: problems.Request) -> _Response:
        received = request.scope["headers"]
        edge.require_json(received)
        key = edge.idempotency_key(received)
        headers = {**_as(request), "Content-Type": "application/json"}
        headers |= {"Idempotency-Key": key} if key else {"Sagapost-Attempt": uuid.uuid4().hex}
        body = await edge.read_body(request, edge.CHECKOUT_MAX_BYTES)
        gone = functools.partial(web.is_gone, request.scope)
        return _pass_on(request, await order.call("POST", "/checkout", headers=headers, body=body, again=True, gone=gone))

    @litestar.get("/orders", opt=_for(access.CHECKOUT_READ))
    async def orders(request: problems.Request) -> _Response:
        query = edge.query(request)
        return _pass_on(request, await order.call("GET", f"/orders?{query}" if query else "/orders", headers=_as(request)))

    @litestar.get("/orders/{order_id:str}", opt=_for(access.CHECKOUT_READ))
    async def one_order(request: problems.Request, order_id: str) -> _Response:
        return _pass_on(request, await order.call("GET", f"/orders/{edge.number(order_id)}", headers=_as(request)))

    @litestar.get("/orders/{order_id:str}/status", opt=_for(access.CHECKOUT_READ))
    async def order_status(request: problems.Request, order_id: str) -> _Response:
        return _pass_on(request, await order.call("GET", f"/orders/{edge.number(order_id)}/status", headers=_as(request)))

    @litestar.post("/orders/{order_id:str}/cancel", status_code=202, opt=_for(access.CHECKOUT_WRITE))
    async def cancel(request: problems.Request, order_id: str) -> _Response:
        await edge.read_body(request)  # nobody needs one, and none may be larger than others
        return _pass_on(request, await order.call("POST", f"/orders/{edge.number(order_id)}/cancel", headers=_as(request), again=True))

    return [checkout, orders, one_order, order_status, cancel]


def _sagas(order: upstream.Order, desk: admission.Desk) -> list[HTTPRouteHandler]:
    @litestar.get("/sagas/{saga_id:str}", opt=_for(access.CHECKOUT_READ))
    async def saga(request: problems.Request, saga_id: str) -> _Response:
        return await _shown(order, request, f"/sagas/{edge.saga_id(saga_id)}")

    @litestar.get("/sagas/{saga_id:str}/events", opt=_for(access.CHECKOUT_READ))
    async def saga_events(request: problems.Request, saga_id: str) -> response.Stream | _Response:
        return await _followed(order, desk, request, f"/sagas/{edge.saga_id(saga_id)}/events", access.CHECKOUT_READ)

    return [saga, saga_events]


def _operators(order: upstream.Order, desk: admission.Desk) -> list[HTTPRouteHandler]:
    @litestar.get("/ops/sagas", opt=_for(access.OPS_READ))
    async def sagas(request: problems.Request) -> _Response:
        query = edge.query(request)
        return _pass_on(request, await order.call("GET", f"/sagas?{query}" if query else "/sagas", headers=_as(request)))

    @litestar.get("/ops/sagas/{saga_id:str}", opt=_for(access.OPS_READ))
    async def saga(request: problems.Request, saga_id: str) -> _Response:
        return await _shown(order, request, f"/ops/sagas/{edge.saga_id(saga_id)}")

    @litestar.get("/ops/sagas/{saga_id:str}/events", opt=_for(access.OPS_READ))
    async def saga_events(request: problems.Request, saga_id: str) -> response.Stream | _Response:
        return await _followed(order, desk, request, f"/ops/sagas/{edge.saga_id(saga_id)}/events", access.OPS_READ)

    return [sagas, saga, saga_events, *(_action(order, name) for name in ACTIONS)]


async def _shown(order: upstream.Order, request: problems.Request, path: str) -> _Response:
    wait_s = edge.wait_s(request.scope["headers"])
    web_lines.note(request.scope, waits=wait_s > 0)
    tags = edge.entity_tags(request.scope["headers"])
    headers = {**_as(request), "If-None-Match": tags} if tags else _as(request)
    return _pass_on(request, await order.poll(path, headers=headers, wait_s=wait_s, gone=functools.partial(edge.gone, request)))


async def _followed(
    order: upstream.Order, desk: admission.Desk, request: problems.Request, path: str, scope: str
) -> response.Stream | _Response:
    last = edge.last_event_id(request.scope["headers"])
    opened = await order.stream(path, headers={**_as(request), "Last-Event-ID": last} if last else _as(request))
    if isinstance(opened, upstream.Answer):
        return _pass_on(request, opened)
    web_lines.note(request.scope, waits=True)
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"} | _limits(request)  # nginx would hold events back
    closing = background_tasks.BackgroundTask(opened.close)  # also when the client goes before the first event
    chunks = while_allowed(desk, request.scope["headers"], scope, opened)
    return response.Stream(chunks, media_type="text/event-stream", headers=headers, background=closing)


async def while_allowed(desk: admission.Desk, headers: edge.Headers, scope: str, opened: upstream.Stream) -> AsyncGenerator[bytes]:
    """Pass a stream on until its key is revoked; it is looked at no later than with the next comment after RECHECK_S."""
    looked_s = time.monotonic()
    async for chunk in opened.chunks():
        yield chunk
        if time.monotonic() - looked_s >= RECHECK_S:
            looked_s = time.monotonic()
            if not await desk.still_allows(headers, scope):
                opened.close()


def _action(order: upstream.Order, name: str) -> HTTPRouteHandler:
    @litestar.post(f"/ops/sagas/{{saga_id:str}}/{name}", status_code=202, opt=_for(access.OPS_WRITE))
    async def act(request: problems.Request, saga_id: str) -> _Response:
        path = f"/sagas/{edge.saga_id(saga_id)}/{name}"
        received = request.scope["headers"]
        body = await edge.read_body(request)
        if body or edge.values(received, b"content-type"):  # nothing at all has no media type: what it lacks is a reason
            edge.require_json(received)
        headers = {**_as(request), "Content-Type": "application/json", "If-Match": edge.if_match(received)}
        done = _pass_on(request, await order.call("POST", path, headers=headers, body=body))
        if "Location" in done.headers:  # the customer's address of the saga is not the operator's
            done.headers["Location"] = f"/api/ops/sagas/{edge.saga_id(saga_id)}"
        return done

    return act


def _catalogue(order: upstream.Order) -> list[HTTPRouteHandler]:
    kept = catalogue.Catalogue(order)
    headers = {"Cache-Control": f"public, max-age={catalogue.FRESH_S:g}"}

    @litestar.get("/products", opt=_for(admission.PUBLIC))
    async def products() -> _Response:
        return litestar.Response((await kept.get()).body, media_type="application/json", headers=headers)

    @litestar.get("/products/{product_id:str}", opt=_for(admission.PUBLIC))
    async def product(product_id: str) -> _Response:
        wanted = int(edge.number(product_id))
        found = (await kept.get()).products.get(wanted)
        if found is None:
            raise errors.NothingHereError("There is no such product.")
        return litestar.Response(bytes(found), media_type="application/json", headers=headers)

    return [products, product]


def _for(scope: str) -> dict[str, Any]:
    """Say which scope a route needs, or that it is public; one that says nothing is closed to everybody."""
    return {_SCOPE: scope}


def _admitted(desk: admission.Desk) -> Callable[[_Connection, BaseRouteHandler], Awaitable[None]]:
    """Make the guard that lets a call pass if its key has the route's scope and its client has not made too many."""

    async def guard(call: _Connection, handler: BaseRouteHandler) -> None:
        # the framework answers OPTIONS itself: which methods there are is in the public document too
        scope = admission.PUBLIC if call.scope.get("method") == "OPTIONS" else handler.opt[_SCOPE]
        if scope != admission.PUBLIC:
            caller = call.state[_CALLER] = await desk.admit(call.scope["headers"], scope)
            web_lines.note(call.scope, client=caller.client, key_id=caller.key_id)

    return guard  # not a partial: litestar copies those, and what they hold


def _limits(request: problems.Request) -> dict[str, str]:
    caller: admission.Caller | None = request.state.get(_CALLER)
    return caller.headers if caller else {}


def _as(request: problems.Request) -> dict[str, str]:
    """Tell the order service whose request this is; a client's own header of this name goes no further than here."""
    caller: admission.Caller = request.state[_CALLER]
    return {upstream.CLIENT: caller.client} | ({"Sagapost-Key-Id": str(caller.key_id)} if caller.key_id is not None else {})


def _pass_on(request: problems.Request, answer: upstream.Answer) -> _Response:
    headers = answer.headers | _limits(request)
    if answer.status < 300 or answer.status == 304:
        return litestar.Response(answer.body, status_code=answer.status, media_type=answer.content_type, headers=headers)
    if answer.status < 400:
        raise errors.OrderUnavailableError(f"the order service answered {answer.status}")
    if not answer.content_type.startswith(problems.MEDIA_TYPE):
        raise exceptions.HTTPException(status_code=answer.status, headers=headers)
    body = _restated(request, answer.body)
    return litestar.Response(body, status_code=answer.status, media_type=problems.MEDIA_TYPE, headers=headers)


def _restated(request: problems.Request, body: bytes) -> bytes:
    """Name the path that the client called, and keep the answer small: fifty wrong items need not all be told."""
    problem = _decode_problem.decode(body)
    problem["instance"] = request.url.path[:200]
    web_lines.note(request.scope, problem=str(problem.get("type", "")).removeprefix("/problems/")[:40])
    encoded = msgspec.json.encode(problem)
    faults = problem.get("errors")
    while len(encoded) > PROBLEM_MAX_BYTES and isinstance(faults, list) and faults:
        faults = faults[: len(faults) // 2]
        problem["errors"] = faults
        encoded = msgspec.json.encode(problem)
    return encoded


def _unavailable(request: problems.Request, exc: errors.OrderUnavailableError) -> litestar.Response[Any]:
    telemetry.log.warning("upstream.unavailable", reason=str(exc))
    detail = f"The order service cannot be reached or failed. {_advice(request)}"
    return problems.answer(request, 503, "order-service-unavailable", detail, headers={"Retry-After": "1"})


def _timed_out(request: problems.Request, exc: errors.OrderTimeoutError) -> litestar.Response[Any]:
    telemetry.log.warning("upstream.timeout", reason=str(exc))
    return problems.answer(request, 504, "upstream-timeout", _advice(request))


def _overloaded(request: problems.Request, exc: errors.TooManyError) -> litestar.Response[Any]:
    telemetry.log.warning("upstream.overloaded", reason=str(exc))
    detail = "Too many are waiting for news of their orders. Ask for the saga itself, now and then, or try again later."
    return problems.answer(request, 503, "overloaded", detail, headers={"Retry-After": "5"})


def _shed(request: problems.Request, _: errors.OverloadedError) -> litestar.Response[Any]:
    return problems.answer(request, 503, "overloaded", gate.DETAIL, headers={"Retry-After": "1"})


def _circuit_open(request: problems.Request, _: errors.CircuitOpenError) -> litestar.Response[Any]:
    return problems.answer(request, 503, "circuit-open", gate.DETAIL, headers={"Retry-After": "1"})


def _advice(request: problems.Request) -> str:
    if request.method == "GET":
        return "Try again in a moment."
    if request.url.path.endswith("/checkout"):
        return "Whether the request took effect is not known; repeating it with the same Idempotency-Key is safe."
    if request.url.path.endswith("/cancel"):
        return "Whether the request took effect is not known; repeating it is safe."
    return "Whether the request took effect is not known; look at the saga, then repeat it with the version that you see."
