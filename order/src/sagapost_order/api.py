"""The order service over HTTP: parse, call one handler, answer; it must not know SQL."""

import re
import time
from typing import Any, Final
from uuid import UUID

import litestar

from sagapost_chassis import db, problems, web
from sagapost_order import domain, errors, handlers, resources

_MEDIA_TYPE: Final = re.compile(r'\Aapplication/json[ \t]*(?:;[ \t]*charset[ \t]*=[ \t]*"?utf-8"?[ \t]*)?\Z', re.IGNORECASE)
# visible ASCII, bare or quoted, without the comma that would join two headers into one
_KEY: Final = re.compile(r'\A(?:"[!#-+\--~]{1,255}"|[!#-+\--~]{1,255})\Z')
_CLIENT: Final = "demo"  # whose keys these are, until the gateway tells one client from another
_ID: Final = re.compile(r"\A[1-9][0-9]{0,18}\Z")
_UUID: Final = re.compile(r"\A[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\Z")


def routes(pool: db.Pool, pay_window_s: int) -> list[Any]:
    """Give the route handlers; `pay_window_s` is how long an order may stay unpaid, in seconds."""

    @litestar.post("/checkout", status_code=202)
    async def checkout(request: problems.Request) -> litestar.Response[bytes]:
        """Place an order; payment and receipt follow by themselves."""
        started_s = time.perf_counter()
        body = await request.body()
        key = _check_headers(request, body)
        parsed = domain.parse_checkout(body)
        if key is None:
            order = await handlers.checkout(pool, parsed, pay_window_s=pay_window_s, started_s=started_s)
            return _answered(resources.accepted(order))
        once = domain.IdempotencyKey(client=_CLIENT, key=key, fingerprint=domain.fingerprint(parsed))
        return _answered(
            await handlers.checkout_once(pool, parsed, once, answer=resources.accepted, pay_window_s=pay_window_s, started_s=started_s)
        )

    @litestar.get("/orders/{order_id:str}")
    async def order(order_id: str) -> litestar.Response[bytes]:
        """Show an order."""
        return web.json(resources.order(await handlers.get_order(pool, _id(order_id))))

    @litestar.get("/orders/{order_id:str}/status")
    async def order_status(order_id: str) -> litestar.Response[bytes]:
        """Show where an order stands."""
        return web.json(resources.order_status(await handlers.get_order(pool, _id(order_id))))

    @litestar.get("/sagas/{saga_id:str}")
    async def saga(request: problems.Request, saga_id: str) -> litestar.Response[bytes]:
        """Show a saga with its steps and history; its ETag is its version."""
        row, order, history = await handlers.get_saga(pool, _uuid(saga_id))
        headers = {"ETag": f'"{row.version}"', "Cache-Control": "no-cache"}
        if _matches(request.headers.get("if-none-match", ""), headers["ETag"]):
            return litestar.Response(b"", status_code=304, headers=headers)
        return web.json(resources.saga(row, order, history), headers=headers)

    @litestar.get("/products")
    async def products() -> litestar.Response[bytes]:
        """Show the catalogue."""
        return web.json(await handlers.get_products(pool))

    @litestar.get("/products/{product_id:str}")
    async def product(product_id: str) -> litestar.Response[bytes]:
        """Show one product."""
        return web.json(await handlers.get_product(pool, _id(product_id)))

    return [checkout, order, order_status, saga, products, product]


def _answered(answer: domain.Answer) -> litestar.Response[bytes]:
    headers = {"Location": answer.location, "Retry-After": "1"}
    if answer.replayed:
        headers["Idempotent-Replayed"] = "true"
    return litestar.Response(answer.body, status_code=answer.status, media_type="application/json", headers=headers)


def _check_headers(request: problems.Request, body: bytes) -> str | None:
    """Refuse what cannot be read, and give the idempotency key without its quotes."""
    if not body:  # nothing has no media type
        raise errors.MalformedRequestError("The body is empty.")
    if not _MEDIA_TYPE.match(request.headers.get("content-type", "")):
        raise errors.MediaTypeError("Send Content-Type: application/json.")
    if "content-encoding" in request.headers:
        raise errors.MediaTypeError("Send the body without Content-Encoding.")
    keys = request.headers.getall("idempotency-key", [])
    if len(keys) > 1 or not all(_KEY.match(key) for key in keys):
        raise errors.IdempotencyKeyError("Send one key of at most 255 visible ASCII characters, without spaces and commas.")
    return keys[0].strip('"') if keys else None


def _id(text: str) -> int:
    if not _ID.match(text) or int(text) > domain.MAX_ID:
        raise errors.NotFoundError("There is nothing of this id.")
    return int(text)


def _uuid(text: str) -> UUID:
    if not _UUID.match(text):
        raise errors.NotFoundError("There is nothing of this id.")
    return UUID(text)


def _matches(if_none_match: str, etag: str) -> bool:
    # RFC 9110, 13.1.2: weak comparison
    return any(tag.strip().removeprefix("W/") == etag for tag in if_none_match.split(","))
