"""The examples of the OpenAPI document: one order followed through every operation."""

from typing import Final

from sagapost_chassis import problems
from sagapost_contracts import idempotency

SAGA_ID: Final = "0193b1c2-7d4e-7a10-9f0e-5f2f6c1d8a11"
_TRACE_ID: Final = "4bf92f3577b34da6a3ce929d0e0e4736"
_CREATED_AT: Final = "2026-11-22T10:41:07.412Z"
_PAID_AT: Final = "2026-11-22T10:41:08.447Z"
_DONE_AT: Final = "2026-11-22T10:41:10.502Z"

_DETAILS: Final = {
    "malformed-request": "The body is not JSON: it breaks at character 17.",
    "idempotency-key-invalid": idempotency.SENTENCE,
    "unauthorized": "Nobody has this key, or it was revoked.",
    "insufficient-scope": "This key does not have the scope ops:write.",
    "cross-site-request": "A page of another site may change something only when SAGAPOST_CORS_ORIGINS names its origin.",
    "rate-limited": "This client may make 50 calls a second, and 100 at once. Try again in 1 s.",
    "circuit-open": "Nothing was done. Try again in a second.",
    "not-found": "There is nothing with this identifier.",
    "idempotency-in-progress": "Repeat the request in a moment: it will get the first one's answer.",
    "order-not-cancellable": "The order is finished, and the time in which it could be cancelled is over.",
    "saga-action-not-possible": "A saga that is notified has no use for this action; the history says that it was tried.",
    "version-mismatch": "The saga has version 4, not 3: look again before you act.",
    "overloaded": "Nothing was done. Try again in a second.",
    "request-timeout": "Send the whole body within 10 seconds.",
    "payload-too-large": "A body may have at most 8192 bytes.",
    "unsupported-media-type": "Send the body as Content-Type: application/json.",
    "validation-failed": "`errors` points at what is wrong.",
    "price-changed": "The catalogue has another price: /items/0/price is now 1299.99.",
    "idempotency-key-reused": "Take a new key for a new cart; the same key repeats the same body.",
    "unknown-product": "The cart holds a product that is not in the catalogue.",
    "order-service-unavailable": "The order service cannot be reached or failed. Try again in a moment.",
    "upstream-timeout": "Whether the request took effect is not known; look before you repeat it.",
}
_WRONG: Final = {
    "/api/checkout": {"pointer": "/items/0/quantity", "code": "out_of_range"},
    "/api/ops/sagas": {"pointer": "/limit", "code": "out_of_range"},
}
_FAULTS: Final = {
    "price-changed": [{"pointer": "/items/0/price", "code": "price_changed", "current_price": "1299.99"}],
    "unknown-product": [{"pointer": "/items/0/product_id", "code": "unknown_product"}],
}

CHECKOUT: Final = {
    "user_id": 1,
    "user_email": "test@example.com",
    "items": [{"product_id": 1, "quantity": 1, "price": "1299.99"}],
}
PLACED: Final = {
    "id": 1042,
    "user_id": 1,
    "user_email": "test@example.com",
    "status": "pending",
    "currency": "USD",
    "total_amount": "1299.99",
    "items": [{"product_id": 1, "quantity": 1, "price": "1299.99"}],
    "processing_duration_ms": 14,
    "created_at": _CREATED_AT,
    "saga_id": SAGA_ID,
    "links": {
        "saga": f"/api/sagas/{SAGA_ID}",
        "events": f"/api/sagas/{SAGA_ID}/events",
        "order": "/api/orders/1042",
        "cancel": "/api/orders/1042/cancel",
    },
}
ORDER: Final = {**PLACED, "status": "completed", "updated_at": _DONE_AT}
ORDERS: Final = {"items": [ORDER], "next_cursor": None}
CANCELLING: Final = {**PLACED, "status": "cancelling", "updated_at": _PAID_AT}
CANCELLED: Final = {**PLACED, "status": "cancelled", "updated_at": _DONE_AT}
SAGA_STEPS: Final = (
    {"name": "order", "state": "done", "at": _CREATED_AT, "ms": 14},
    {"name": "payment", "state": "done", "at": _PAID_AT, "ms": 1035, "attempts": 1},
    {"name": "email", "state": "done", "at": _DONE_AT, "ms": 2055, "attempts": 1},
)
SAGA_HISTORY: Final = (
    {"seq": 1, "from": "none", "to": "created", "event": "OrderCreated", "at": _CREATED_AT, "outcome": "applied", "source": "http"},
    {"seq": 2, "from": "created", "to": "paid", "event": "PaymentProcessed", "at": _PAID_AT, "outcome": "applied", "source": "event"},
    {
        "seq": 3,
        "from": "paid",
        "to": "notified",
        "event": "EmailSent",
        "at": _DONE_AT,
        "outcome": "applied",
        "source": "event",
        "mail": "receipt",
    },
)
SAGA: Final = {
    "saga_id": SAGA_ID,
    "order_id": 1042,
    "state": "notified",
    "version": 3,
    "done": True,
    "attention": None,
    "reason": None,
    "captured": "1299.99",
    "refunded": "0.00",
    "currency": "USD",
    "deadline_at": None,
    "created_at": _CREATED_AT,
    "updated_at": _DONE_AT,
    "steps": SAGA_STEPS,
    "history": SAGA_HISTORY,
    "trace_id": _TRACE_ID,
}
EVENT: Final = {
    "id": "2",
    "event": "transition",
    "data": (
        '{"seq":2,"from":"created","to":"paid","event":"PaymentProcessed","at":"2026-11-22T10:41:08.447Z",'
        '"outcome":"applied","source":"event"}'
    ),
}
ACTION: Final = {"reason": "the mail server is back, ticket 4711"}
REFUND_ACTION: Final = {"reason": "the provider refused, the bank paid", "reference": "wire 2026-11-22/17"}
OPERATED: Final = {
    **SAGA,
    "state": "paid",
    "version": 4,
    "done": False,
    "deadline_at": "2026-11-22T11:02:00.000Z",
    "steps": [SAGA_STEPS[0], SAGA_STEPS[1], {"name": "email", "state": "running", "attempts": 2}],
    "history": [
        SAGA_HISTORY[0],
        SAGA_HISTORY[1],
        {
            "seq": 3,
            "from": "paid",
            "to": "notify_failed",
            "event": "EmailFailed",
            "at": _DONE_AT,
            "outcome": "applied",
            "source": "event",
            "reason": "mailbox_unavailable",
        },
        {
            "seq": 4,
            "from": "notify_failed",
            "to": "paid",
            "event": "OperatorRetry",
            "at": "2026-11-22T11:01:00.000Z",
            "outcome": "applied",
            "source": "operator",
            "actor": "demo",
            "reason": "the mail server is back, ticket 4711",
        },
    ],
}
SAGAS: Final = {
    "sagas": [
        {
            "saga_id": SAGA_ID,
            "order_id": 1042,
            "state": "notify_failed",
            "version": 3,
            "done": False,
            "stuck": True,
            "attention": "receipt_failed",
            "reason": None,
            "attempts": 0,
            "amount": "1299.99",
            "captured": "1299.99",
            "refunded": "0.00",
            "currency": "USD",
            "deadline_at": "2026-11-22T11:41:10.502Z",
            "created_at": _CREATED_AT,
            "updated_at": _DONE_AT,
        }
    ],
    "next_cursor": None,
}
STATUS: Final = {"id": 1042, "status": "completed", "saga_id": SAGA_ID, "saga_state": "notified"}
PRODUCT: Final = {"id": 1, "name": "Gaming Laptop", "description": "16 inch, 32 GB of memory", "price": "1299.99", "currency": "USD"}
PRODUCTS: Final = [PRODUCT]
HEALTH: Final = {"service": "gateway", "mode": "production", "status": "ok"}
UNREADY: Final = {"service": "gateway", "mode": "production", "status": "unready", "failing": ["order"]}


def problem(slug: str, status: int, path: str) -> dict[str, object]:
    """Give an example of one kind of error answer."""
    body: dict[str, object] = {
        "type": f"/problems/{slug}",
        "title": problems.TITLES[slug],
        "status": status,
        "detail": _DETAILS[slug],
        "instance": path.replace("{saga_id}", SAGA_ID).replace("{order_id}", "1042").replace("{product_id}", "1"),
        "trace_id": _TRACE_ID,
    }
    if slug == "validation-failed":
        body["errors"] = [_WRONG.get(path, {"pointer": "/reason", "code": "missing"})]
    elif slug in _FAULTS:
        body["errors"] = _FAULTS[slug]
    return body
