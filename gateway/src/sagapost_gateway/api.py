"""The routes under /api: check the edge's rules, make one call, pass the answer on; it decides nothing about orders."""

import functools
from typing import Any, Final

import litestar
import msgspec
from litestar import background_tasks, exceptions, response
from litestar.handlers import HTTPRouteHandler

from sagapost_chassis import problems, telemetry
from sagapost_gateway import edge, errors, upstream

PROBLEM_MAX_BYTES: Final = 4096
CLIENT: Final = "demo"  # until keys tell one client from another
ACTIONS: Final = ("retry", "compensate", "waive-notify", "mark-refunded")
_Response = litestar.Response[bytes]

_decode_problem: Final = msgspec.json.Decoder(dict[str, object])


def routes(order: upstream.Order) -> litestar.Router:
    """Give the routes of the public API that are answered by the order service."""
    return litestar.Router(
        "/api",
        route_handlers=[*_orders(order), *_sagas(order), *_operators(order), *_catalogue(order)],
        guards=[edge.exact_path],
        exception_handlers={
            errors.OrderUnavailableError: _unavailable,
            errors.OrderTimeoutError: _timed_out,
            errors.TooManyError: _overloaded,
        },
    )


def _orders(order: upstream.Order) -> list[HTTPRouteHandler]:
    @litestar.post("/checkout", status_code=202)
    async def checkout(request: problems.Request) -> _Response:
        received = request.scope["headers"]
        edge.require_json(received)
        key = edge.idempotency_key(received)
        headers = {**_as(request), "Content-Type": "application/json"}
        if key:
            headers["Idempotency-Key"] = key
        body = await edge.read_body(request)
        return _pass_on(request, await order.call("POST", "/checkout", headers=headers, body=body))

    @litestar.get("/orders/{order_id:str}")
    async def one_order(request: problems.Request, order_id: str) -> _Response:
        return _pass_on(request, await order.call("GET", f"/orders/{edge.number(order_id)}"))

    @litestar.get("/orders/{order_id:str}/status")
    async def order_status(request: problems.Request, order_id: str) -> _Response:
        return _pass_on(request, await order.call("GET", f"/orders/{edge.number(order_id)}/status"))

    @litestar.post("/orders/{order_id:str}/cancel", status_code=202)
    async def cancel(request: problems.Request, order_id: str) -> _Response:
        await edge.read_body(request)  # nobody needs one, and none may be larger than others
        return _pass_on(request, await order.call("POST", f"/orders/{edge.number(order_id)}/cancel", headers=_as(request)))

    return [checkout, one_order, order_status, cancel]


def _sagas(order: upstream.Order) -> list[HTTPRouteHandler]:
    @litestar.get("/sagas/{saga_id:str}")
    async def saga(request: problems.Request, saga_id: str) -> _Response:
        path = f"/sagas/{edge.saga_id(saga_id)}"
        wait_s = edge.wait_s(request.scope["headers"])
        tags = edge.entity_tags(request.scope["headers"])
        headers = {"If-None-Match": tags} if tags else {}
        return _pass_on(request, await order.poll(path, headers=headers, wait_s=wait_s, gone=functools.partial(edge.gone, request)))

    @litestar.get("/sagas/{saga_id:str}/events")
    async def saga_events(request: problems.Request, saga_id: str) -> response.Stream | _Response:
        path = f"/sagas/{edge.saga_id(saga_id)}/events"
        last = edge.last_event_id(request.scope["headers"])
        opened = await order.stream(path, headers={"Last-Event-ID": last} if last else {})
        if isinstance(opened, upstream.Answer):
            return _pass_on(request, opened)
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # the second one for nginx, which would hold events back
        closing = background_tasks.BackgroundTask(opened.close)  # also when the client goes before the first event
        return response.Stream(opened.chunks(), media_type="text/event-stream", headers=headers, background=closing)

    return [saga, saga_events]


def _operators(order: upstream.Order) -> list[HTTPRouteHandler]:
    @litestar.get("/ops/sagas")
    async def sagas(request: problems.Request) -> _Response:
        query = edge.query(request)
        return _pass_on(request, await order.call("GET", f"/sagas?{query}" if query else "/sagas", headers=_as(request)))

    return [sagas, *(_action(order, name) for name in ACTIONS)]


def _action(order: upstream.Order, name: str) -> HTTPRouteHandler:
    @litestar.post(f"/ops/sagas/{{saga_id:str}}/{name}", status_code=202)
    async def act(request: problems.Request, saga_id: str) -> _Response:
        path = f"/sagas/{edge.saga_id(saga_id)}/{name}"
        received = request.scope["headers"]
        body = await edge.read_body(request)
        if body or edge.values(received, b"content-type"):  # nothing at all has no media type: what it lacks is a reason
            edge.require_json(received)
        headers = {**_as(request), "Content-Type": "application/json", "If-Match": edge.if_match(received)}
        return _pass_on(request, await order.call("POST", path, headers=headers, body=body))

    return act


def _catalogue(order: upstream.Order) -> list[HTTPRouteHandler]:
    @litestar.get("/products")
    async def products(request: problems.Request) -> _Response:
        return _pass_on(request, await order.call("GET", "/products"))

    @litestar.get("/products/{product_id:str}")
    async def product(request: problems.Request, product_id: str) -> _Response:
        return _pass_on(request, await order.call("GET", f"/products/{edge.number(product_id)}"))

    return [products, product]


def _as(_: problems.Request) -> dict[str, str]:
    """Tell the order service whose request this is; a client's own header of this name goes no further than here."""
    return {"Sagapost-Client": CLIENT}


def _pass_on(request: problems.Request, answer: upstream.Answer) -> _Response:
    if answer.status < 300 or answer.status == 304:
        return litestar.Response(answer.body, status_code=answer.status, media_type=answer.content_type, headers=answer.headers)
    if answer.status < 400:
        raise errors.OrderUnavailableError(f"the order service answered {answer.status}")
    if not answer.content_type.startswith(problems.MEDIA_TYPE):
        raise exceptions.HTTPException(status_code=answer.status, headers=answer.headers)
    body = _restated(answer.body, request.url.path)
    return litestar.Response(body, status_code=answer.status, media_type=problems.MEDIA_TYPE, headers=answer.headers)


def _restated(body: bytes, path: str) -> bytes:
    """Name the path that the client called, and keep the answer small: fifty wrong items need not all be told."""
    problem = _decode_problem.decode(body)
    problem["instance"] = path[:200]
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
    title = "The order service is unavailable"
    return problems.answer(request, 503, "order-service-unavailable", title, detail, headers={"Retry-After": "1"})


def _timed_out(request: problems.Request, exc: errors.OrderTimeoutError) -> litestar.Response[Any]:
    telemetry.log.warning("upstream.timeout", reason=str(exc))
    title = "The order service did not answer in time"
    return problems.answer(request, 504, "upstream-timeout", title, _advice(request))


def _overloaded(request: problems.Request, exc: errors.TooManyError) -> litestar.Response[Any]:
    telemetry.log.warning("upstream.overloaded", reason=str(exc))
    detail = "Too many are waiting for news of their orders. Ask for the saga itself, now and then, or try again later."
    return problems.answer(request, 503, "overloaded", "Too many are waiting", detail, headers={"Retry-After": "5"})


def _advice(request: problems.Request) -> str:
    if request.method == "GET":
        return "Try again in a moment."
    if request.url.path.endswith("/checkout"):
        return "Whether the request took effect is not known; repeating it with the same Idempotency-Key is safe."
    if request.url.path.endswith("/cancel"):
        return "Whether the request took effect is not known; repeating it is safe."
    return "Whether the request took effect is not known; look at the saga, then repeat it with the version that you see."
