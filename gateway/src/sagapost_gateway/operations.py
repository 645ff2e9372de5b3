"""The table of the API's operations, as the OpenAPI document tells of them; it must not know how a request is served."""

from typing import Final

import msgspec

from sagapost_contracts import access, idempotency
from sagapost_gateway import examples, schemas

Json = dict[str, object]

EVENT_STREAM: Final = "text/event-stream"
NUMBER: Final[Json] = {"type": "integer", "minimum": 1, "maximum": 2**63 - 1}
_UPSTREAM: Final = ("order-service-unavailable", "circuit-open", "overloaded", "upstream-timeout")
PUBLIC: Final = ""
_KEY_PATTERN: Final = f"{idempotency.CHARACTERS}{{1,{idempotency.LENGTH_MAX}}}"
_BODY: Final = ("malformed-request", "request-timeout", "payload-too-large", "unsupported-media-type", "validation-failed")


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    """One path, query or header parameter."""

    name: str
    place: str
    description: str
    schema: Json
    example: object
    required: bool = False


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One method of one path; `errors` are the slugs of its problems beside those of its scope, `settled` the example of another 200."""

    method: str
    path: str
    name: str
    tag: str
    summary: str
    description: str
    answer: object
    example: object
    status: int = 200
    told: str = "Found."
    media_type: str = "application/json"
    errors: tuple[str, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    headers: tuple[str, ...] = ()
    body: object = None
    body_example: object = None
    settled: object = None
    unready: bool = False
    scope: str = PUBLIC


_SAGA_ID: Final = Parameter(
    name="saga_id",
    place="path",
    description="The saga of an order, from the checkout's Location.",
    schema={"type": "string", "format": "uuid"},
    example=examples.SAGA_ID,
    required=True,
)
_ORDER_ID: Final = Parameter(name="order_id", place="path", description="The order's number.", schema=NUMBER, example=1042, required=True)
_ORDER_STATUS: Final = Parameter(
    name="status",
    place="query",
    description="Only orders of this status.",
    schema={"type": "string", "enum": ["pending", "paid", "completed", "cancelling", "cancelled", "attention"]},
    example="paid",
)
_ORDERS_LIMIT: Final = Parameter(
    name="limit",
    place="query",
    description="At most so many orders; 20 unless given.",
    schema={"type": "integer", "minimum": 1, "maximum": 100},
    example=20,
)
_ORDERS_CURSOR: Final = Parameter(
    name="cursor", place="query", description="The `next_cursor` of the page before.", schema=NUMBER, example=1042
)
_PRODUCT_ID: Final = Parameter(
    name="product_id", place="path", description="The product's number.", schema=NUMBER, example=1, required=True
)
_KEY: Final = Parameter(
    name="Idempotency-Key",
    place="header",
    description=(
        "Names this attempt, bare or in double quotes: make it when the checkout page opens, not when the button is pressed. Repeated "
        "with the same body, it gets the first answer again, for 7 days, and no second order; an answer that began no order is not kept."
    ),
    schema={"type": "string", "pattern": f'^({_KEY_PATTERN}|"{_KEY_PATTERN}")$'},
    example="8e03978e-40d5-43e8-bc93-6894a57f9324",
)
IF_NONE_MATCH: Final = Parameter(
    name="If-None-Match", place="header", description="An ETag seen before.", schema={"type": "string"}, example='"3"'
)
_PREFER: Final = Parameter(
    name="Prefer",
    place="header",
    description=(
        "`wait=N` waits up to N seconds, 30 at most, for the next version (RFC 7240): for one after that in If-None-Match, or after "
        "the present one. A saga that is done is answered at once."
    ),
    schema={"type": "string"},
    example="wait=20",
)
_LAST_EVENT_ID: Final = Parameter(
    name="Last-Event-ID",
    place="header",
    description="The `id` of the last event that arrived; the stream goes on behind it. Browsers send it by themselves.",
    schema={"type": "string"},
    example="2",
)
_IF_MATCH: Final = Parameter(
    name="If-Match",
    place="header",
    description="The version of the saga that was looked at, its ETag; or `*` for whatever it is.",
    schema={"type": "string", "pattern": '^("[1-9][0-9]{0,8}"|[1-9][0-9]{0,8}|\\*)$'},
    example='"3"',
    required=True,
)
_FLAG: Final[Json] = {"type": "string", "enum": ["true", "false", "1", "0", ""]}
_FILTERS: Final = (
    Parameter(
        name="state",
        place="query",
        description="Only sagas in this state.",
        schema={"type": "string", "enum": list(schemas.SAGA_STATES)},
        example="compensating",
    ),
    Parameter(name="stuck", place="query", description="Only those that nothing will move in time.", schema=_FLAG, example="true"),
    Parameter(name="attention", place="query", description="Only those that call an operator.", schema=_FLAG, example="true"),
    Parameter(
        name="limit",
        place="query",
        description="How many at most, 50 if not said.",
        schema={"type": "integer", "minimum": 1, "maximum": 200},
        example=50,
    ),
    Parameter(name="cursor", place="query", description="`next_cursor` of the page before.", schema=NUMBER, example=1042),
)


def _action(name: str, summary: str, description: str, *, body: object, example: object) -> Operation:
    return Operation(
        method="post",
        path=f"/api/ops/sagas/{{saga_id}}/{name}",
        name=name.replace("-", "_"),
        scope=access.OPS_WRITE,
        tag="Operators",
        summary=summary,
        description=f"{description} The reason and who gave it stay in the saga's history.",
        status=202,
        told="Done: the saga as it is now.",
        answer=schemas.Saga,
        example=examples.OPERATED,
        headers=("Location", "ETag"),
        errors=(*_BODY, "not-found", "saga-action-not-possible", "version-mismatch", *_UPSTREAM),
        parameters=(_SAGA_ID, _IF_MATCH),
        body=body,
        body_example=example,
    )


OPERATIONS: Final = (
    Operation(
        method="post",
        path="/api/checkout",
        name="checkout",
        scope=access.CHECKOUT_WRITE,
        tag="Checkout",
        summary="Buy a cart",
        description=(
            "Stores the order and answers at once; payment and receipt follow. The answer's Location is where to watch. "
            "Prices are compared with the catalogue and never taken from the client. A body may have 8 KiB."
        ),
        status=202,
        told="Accepted: the order is stored and will be paid and confirmed by e-mail, or cancelled.",
        answer=schemas.Placed,
        example=examples.PLACED,
        headers=("Location", "Retry-After", "Idempotent-Replayed"),
        errors=(
            *("malformed-request", "idempotency-key-invalid", "request-timeout", "idempotency-in-progress", "payload-too-large"),
            *("unsupported-media-type", "validation-failed", "price-changed", "unknown-product", "idempotency-key-reused"),
            *_UPSTREAM,
        ),
        parameters=(_KEY,),
        body=schemas.CheckoutRequest,
        body_example=examples.CHECKOUT,
    ),
    Operation(
        method="get",
        path="/api/sagas/{saga_id}",
        name="saga",
        scope=access.CHECKOUT_READ,
        tag="Checkout",
        summary="Watch an order's saga",
        description=(
            "Where the order stands, its steps, and every change so far. `done` says that nothing more will happen by itself. "
            "With `Prefer: wait=20` and If-None-Match the answer comes with the next change: no polling."
        ),
        answer=schemas.Saga,
        example=examples.SAGA,
        headers=("ETag", "Preference-Applied"),
        errors=("not-found", *_UPSTREAM),
        parameters=(_SAGA_ID, IF_NONE_MATCH, _PREFER),
    ),
    Operation(
        method="get",
        path="/api/sagas/{saga_id}/events",
        name="saga_events",
        scope=access.CHECKOUT_READ,
        tag="Checkout",
        summary="Follow an order's saga",
        description=(
            "Server-sent events: one `transition` for each row of the history, its `id` the row's `seq`, as it is written; a comment "
            "where nothing happens for 15 s; `end` when the saga is done, then the stream ends. A broken stream goes on with "
            "Last-Event-ID."
        ),
        told="The history so far, then each change as it happens.",
        media_type=EVENT_STREAM,
        answer=schemas.Event,
        example=examples.EVENT,
        errors=("not-found", *_UPSTREAM),
        parameters=(_SAGA_ID, _LAST_EVENT_ID),
    ),
    Operation(
        method="get",
        path="/api/orders",
        name="orders",
        scope=access.CHECKOUT_READ,
        tag="Orders",
        summary="List your orders",
        description="The calling client's own orders, the newest first; `cursor` goes on where the page before ended.",
        answer=schemas.Orders,
        example=examples.ORDERS,
        errors=("validation-failed", *_UPSTREAM),
        parameters=(_ORDER_STATUS, _ORDERS_LIMIT, _ORDERS_CURSOR),
    ),
    Operation(
        method="get",
        path="/api/orders/{order_id}",
        name="order",
        scope=access.CHECKOUT_READ,
        tag="Orders",
        summary="Read an order",
        description="The order with its lines, as it is now.",
        answer=schemas.Order,
        example=examples.ORDER,
        errors=("not-found", *_UPSTREAM),
        parameters=(_ORDER_ID,),
    ),
    Operation(
        method="get",
        path="/api/orders/{order_id}/status",
        name="order_status",
        scope=access.CHECKOUT_READ,
        tag="Orders",
        summary="Read an order's status",
        description="The short answer, for polling.",
        answer=schemas.Status,
        example=examples.STATUS,
        errors=("not-found", *_UPSTREAM),
        parameters=(_ORDER_ID,),
    ),
    Operation(
        method="post",
        path="/api/orders/{order_id}/cancel",
        name="cancel",
        scope=access.CHECKOUT_WRITE,
        tag="Orders",
        summary="Cancel an order",
        description=(
            "What was paid goes back. An order that is not finished can always be cancelled, a finished one for 30 minutes after the "
            "checkout. Needs no body; asking again does no harm."
        ),
        status=202,
        told="The order is being cancelled; its saga, at Location, tells when it is.",
        answer=schemas.Order,
        example=examples.CANCELLING,
        settled=examples.CANCELLED,
        headers=("Location", "Retry-After"),
        errors=("not-found", "request-timeout", "payload-too-large", "order-not-cancellable", *_UPSTREAM),
        parameters=(_ORDER_ID,),
    ),
    Operation(
        method="get",
        path="/api/products",
        name="products",
        tag="Catalogue",
        summary="List the products",
        description="The whole catalogue.",
        answer=list[schemas.Product],
        example=examples.PRODUCTS,
        errors=_UPSTREAM,
    ),
    Operation(
        method="get",
        path="/api/products/{product_id}",
        name="product",
        tag="Catalogue",
        summary="Read a product",
        description="One product with the price that is charged.",
        answer=schemas.Product,
        example=examples.PRODUCT,
        errors=("not-found", *_UPSTREAM),
        parameters=(_PRODUCT_ID,),
    ),
    Operation(
        method="get",
        path="/api/ops/sagas",
        name="sagas",
        scope=access.OPS_READ,
        tag="Operators",
        summary="List the sagas",
        description="The newest order first. Filters narrow it down together; `next_cursor` is the next page's `cursor`.",
        answer=schemas.Sagas,
        example=examples.SAGAS,
        errors=("validation-failed", *_UPSTREAM),
        parameters=_FILTERS,
    ),
    Operation(
        method="get",
        path="/api/ops/sagas/{saga_id}",
        name="any_saga",
        scope=access.OPS_READ,
        tag="Operators",
        summary="Watch anybody's saga",
        description="As `/api/sagas/{saga_id}`, whosever the order is.",
        answer=schemas.Saga,
        example=examples.SAGA,
        headers=("ETag", "Preference-Applied"),
        errors=("not-found", *_UPSTREAM),
        parameters=(_SAGA_ID, IF_NONE_MATCH, _PREFER),
    ),
    Operation(
        method="get",
        path="/api/ops/sagas/{saga_id}/events",
        name="any_saga_events",
        scope=access.OPS_READ,
        tag="Operators",
        summary="Follow anybody's saga",
        description="As `/api/sagas/{saga_id}/events`, whosever the order is.",
        told="The history so far, then each change as it happens.",
        media_type=EVENT_STREAM,
        answer=schemas.Event,
        example=examples.EVENT,
        errors=("not-found", *_UPSTREAM),
        parameters=(_SAGA_ID, _LAST_EVENT_ID),
    ),
    _action(
        "retry",
        "Try again",
        "Repeats the step that the saga waits for; a parked one begins its attempts anew.",
        body=schemas.Action,
        example=examples.ACTION,
    ),
    _action("compensate", "Give the order up", "Cancels the order and gives the money back.", body=schemas.Action, example=examples.ACTION),
    _action(
        "waive-notify",
        "Do without the receipt",
        "Ends a paid order although its receipt could not be delivered.",
        body=schemas.Action,
        example=examples.ACTION,
    ),
    _action(
        "mark-refunded",
        "Note a refund made by hand",
        "Ends a cancelled order whose money was given back outside of the provider; `reference` says where to find that.",
        body=schemas.RefundAction,
        example=examples.REFUND_ACTION,
    ),
    Operation(
        method="get",
        path="/health/live",
        name="live",
        tag="Health",
        summary="Does the process run",
        description="Touches no dependency. `GET /` answers the same, or the shop when text/html is preferred.",
        answer=schemas.Health,
        example=examples.HEALTH,
    ),
    Operation(
        method="get",
        path="/health/ready",
        name="ready",
        tag="Health",
        summary="Can it work",
        description="Asks the order service whether it lives. `GET /health` answers the same.",
        answer=schemas.Health,
        example=examples.HEALTH,
        unready=True,
    ),
)
