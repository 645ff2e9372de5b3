"""The routes under /api: check the edge's rules, make one call, pass the answer on; it decides nothing about orders."""

from typing import Any, Final

import litestar
import msgspec
from litestar import exceptions

from sagapost_chassis import problems, telemetry
from sagapost_gateway import edge, errors, upstream

PROBLEM_MAX_BYTES: Final = 4096
_Response = litestar.Response[bytes]

_decode_problem: Final = msgspec.json.Decoder(dict[str, object])


def routes(order: upstream.Order) -> litestar.Router:
    """Give the routes of the public API that are answered by the order service."""

    @litestar.post("/checkout", status_code=202)
    async def checkout(request: problems.Request) -> _Response:
        received = request.scope["headers"]
        edge.require_json(received)
        key = edge.idempotency_key(received)
        headers = {"Content-Type": "application/json"}
        if key:
            headers["Idempotency-Key"] = key
        body = await edge.read_body(request)
        return _pass_on(request, await order.call("POST", "/checkout", headers=headers, body=body))

    @litestar.get("/sagas/{saga_id:str}")
    async def saga(request: problems.Request, saga_id: str) -> _Response:
        path = f"/sagas/{edge.saga_id(saga_id)}"
        wait_s = edge.wait_s(request.scope["headers"])
        tags = edge.entity_tags(request.scope["headers"])
        headers = {"If-None-Match": tags} if tags else {}
        if wait_s:
            headers["Prefer"] = f"wait={wait_s}"
        return _pass_on(request, await order.call("GET", path, headers=headers, wait_s=wait_s))

    @litestar.get("/orders/{order_id:str}")
    async def one_order(request: problems.Request, order_id: str) -> _Response:
        return _pass_on(request, await order.call("GET", f"/orders/{edge.number(order_id)}"))

    @litestar.get("/orders/{order_id:str}/status")
    async def order_status(request: problems.Request, order_id: str) -> _Response:
        return _pass_on(request, await order.call("GET", f"/orders/{edge.number(order_id)}/status"))

    @litestar.get("/products")
    async def products(request: problems.Request) -> _Response:
        return _pass_on(request, await order.call("GET", "/products"))

    @litestar.get("/products/{product_id:str}")
    async def product(request: problems.Request, product_id: str) -> _Response:
        return _pass_on(request, await order.call("GET", f"/products/{edge.number(product_id)}"))

    return litestar.Router(
        "/api",
        route_handlers=[checkout, saga, one_order, order_status, products, product],
        guards=[edge.exact_path],
        exception_handlers={errors.OrderUnavailableError: _unavailable, errors.OrderTimeoutError: _timed_out},
    )


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


def _advice(request: problems.Request) -> str:
    if request.method == "GET":
        return "Try again in a moment."
    return "Whether the request took effect is not known; repeating it with the same Idempotency-Key is safe."
