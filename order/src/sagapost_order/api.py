"""The order service over HTTP: parse, call one handler, answer; it must not know SQL."""

import functools
import re
import time
from collections.abc import Callable
from typing import Any, Final

import litestar
import msgspec

from sagapost_chassis import db, problems, web
from sagapost_contracts import idempotency
from sagapost_order import domain, errors, handlers, moves, resources, saga_api, states

CHECKOUT_MAX_BYTES: Final = 8 * 1024  # about twice what the largest cart needs
STATUSES: Final = ("pending", "paid", "completed", "cancelling", "cancelled", "attention")
LIST_MAX: Final = 100
_LIST: Final = 20
_FILTERS: Final = ("status", "limit", "cursor")
_OURS: Final = " "  # begins a gateway's key: a client's holds no space
_ATTEMPT: Final = re.compile(r"\A[0-9a-f]{32}\Z")
_ID: Final = re.compile(r"\A[1-9][0-9]{0,18}\Z")


def routes(pool: db.Pool, policy: states.Policy, pay_window_s: float, behind_s: Callable[[], float]) -> list[Any]:
    """Give the route handlers; in seconds: how long an order may stay unpaid, and how long the oldest unpaid one has waited."""

    @litestar.post("/checkout", status_code=202, request_max_body_size=CHECKOUT_MAX_BYTES)
    async def checkout(request: problems.Request) -> litestar.Response[bytes]:
        """Place an order; payment and receipt follow by themselves."""
        started_s = time.perf_counter()
        body = await request.body()
        gone = functools.partial(web.is_gone, request.scope)
        key = _check_headers(request, body)
        parsed, client = domain.parse_checkout(body), saga_api.client_of(request)
        if key is None:
            order = await handlers.checkout(
                pool,
                parsed,
                pay_window_s=pay_window_s,
                started_s=started_s,
                client=client,
                behind_s=behind_s(),
                most_declines=policy.declines_per_user_hour,
                gone=gone,
            )
            return _answered(resources.accepted(order))
        once = domain.IdempotencyKey(client=client, key=key, fingerprint=domain.fingerprint(parsed))
        answer = await handlers.checkout_once(
            pool,
            parsed,
            once,
            answer=resources.accepted,
            pay_window_s=pay_window_s,
            started_s=started_s,
            behind_s=behind_s(),
            most_declines=policy.declines_per_user_hour,
            gone=gone,
        )
        return _answered(answer if key[0] != _OURS else msgspec.structs.replace(answer, replayed=False))

    @litestar.get("/orders")
    async def orders(request: problems.Request) -> litestar.Response[bytes]:
        """List the calling client's own orders, the newest first, filtered by status; `cursor` goes on."""
        return web.json(await _page(pool, request))

    @litestar.get("/orders/{order_id:str}")
    async def order(request: problems.Request, order_id: str) -> litestar.Response[bytes]:
        """Show an order."""
        found = await handlers.get_order(pool, _id(order_id), owner=saga_api.client_of(request))
        return web.json(resources.order(found))

    @litestar.get("/orders/{order_id:str}/status")
    async def order_status(request: problems.Request, order_id: str) -> litestar.Response[bytes]:
        """Show where an order stands."""
        found = await handlers.get_order(pool, _id(order_id), owner=saga_api.client_of(request))
        return web.json(resources.order_status(found))

    @litestar.post("/orders/{order_id:str}/cancel")
    async def cancel(request: problems.Request, order_id: str) -> litestar.Response[bytes]:
        """Cancel an order: 202 while its money may be on the way back, 200 when it is cancelled."""
        order = await moves.cancel(pool, policy, _id(order_id), saga_api.client_of(request))
        headers = {"Location": resources.saga_path(order.saga_id), "Retry-After": "1"}
        if order.saga_state == states.COMPENSATED:
            return web.json(resources.order(order), headers={"Location": headers["Location"]})
        return web.json(resources.order(order), status=202, headers=headers)

    @litestar.get("/products")
    async def products() -> litestar.Response[bytes]:
        """Show the catalogue."""
        return web.json(await handlers.get_products(pool))

    @litestar.get("/products/{product_id:str}")
    async def product(product_id: str) -> litestar.Response[bytes]:
        """Show one product."""
        return web.json(await handlers.get_product(pool, _id(product_id)))

    return [checkout, orders, order, order_status, cancel, products, product]


async def _page(pool: db.Pool, request: problems.Request) -> resources.Orders:
    query = saga_api.filters(request, _FILTERS)
    status = query.get("status")
    if status is not None and status not in STATUSES:
        raise saga_api.wrong("/status", f"A status is one of {', '.join(STATUSES)}.")
    limit = saga_api.number(query.get("limit", str(_LIST)), "limit", LIST_MAX)
    before = saga_api.number(query["cursor"], "cursor", domain.MAX_ID) if "cursor" in query else domain.MAX_ID
    found = await handlers.get_orders(pool, saga_api.client_of(request), status=status, before=before, limit=limit)
    is_full = sum(len(one.items) for one in found) >= domain.PAGE_LINES
    return resources.orders(found, more=is_full or len(found) == limit)


def _answered(answer: domain.Answer) -> litestar.Response[bytes]:
    headers = {"Location": answer.location, "Retry-After": "1"}
    if answer.replayed:
        headers["Idempotent-Replayed"] = "true"
    return litestar.Response(answer.body, status_code=answer.status, media_type="application/json", headers=headers)


def _check_headers(request: problems.Request, body: bytes) -> str | None:
    """Refuse what cannot be read, and give the idempotency key without its quotes: the client's, or else the gateway's own."""
    if web.is_gone(request.scope):
        raise errors.ClientGoneError("The client has gone away.")
    if not body:  # nothing has no media type
        raise errors.MalformedRequestError("The body is empty.")
    saga_api.require_json(request)
    keys = request.headers.getall("idempotency-key", [])
    if keys:
        key = idempotency.bare(keys[0]) if len(keys) == 1 else None
        if key is None:
            raise errors.IdempotencyKeyError(idempotency.SENTENCE)
        return key
    attempt = request.headers.get("sagapost-attempt", "")
    return _OURS + attempt if _ATTEMPT.match(attempt) else None


def _id(text: str) -> int:
    if not _ID.match(text) or int(text) > domain.MAX_ID:
        raise errors.NotFoundError("There is nothing of this id.")
    return int(text)
