"""The OpenAPI 3.1 document: a table of operations and the schemas of schemas.py; it must not know how a request is served."""

from collections.abc import Sequence
from importlib import metadata
from typing import Final

import msgspec

from sagapost_chassis import problems
from sagapost_gateway import examples, schemas

Json = dict[str, object]

_REF: Final = "#/components/schemas/{name}"
_TITLES: Final[dict[int, tuple[str, ...]]] = {
    400: ("malformed-request", "idempotency-key-invalid"),
    404: ("not-found",),
    408: ("request-timeout",),
    409: ("idempotency-in-progress",),
    413: ("payload-too-large",),
    415: ("unsupported-media-type",),
    422: ("validation-failed", "price-changed", "unknown-product", "idempotency-key-reused"),
    503: ("order-service-unavailable",),
    504: ("upstream-timeout",),
}
_UPSTREAM: Final = (503, 504)
_RETRIED: Final = (409, 503)
_DESCRIPTIONS: Final = {
    200: "Found.",
    202: "Accepted: the order is stored and will be paid and confirmed by e-mail, or cancelled.",
    304: "Unchanged since the version in If-None-Match.",
    503: "Not ready.",
}


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    """One path or header parameter."""

    name: str
    place: str
    description: str
    schema: Json
    example: object


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One method of one path; `errors` are the statuses that answer with a problem."""

    method: str
    path: str
    name: str
    tag: str
    summary: str
    description: str
    answer: object
    example: object
    status: int = 200
    errors: tuple[int, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    headers: tuple[str, ...] = ()
    body: object = None
    body_example: object = None
    unready: bool = False


_SAGA_ID: Final = Parameter(
    name="saga_id",
    place="path",
    description="The saga of an order, from the checkout's Location.",
    schema={"type": "string", "format": "uuid"},
    example=examples.SAGA_ID,
)
_NUMBER: Final[Json] = {"type": "integer", "minimum": 1, "maximum": 2**63 - 1}
_ORDER_ID: Final = Parameter(name="order_id", place="path", description="The order's number.", schema=_NUMBER, example=1042)
_PRODUCT_ID: Final = Parameter(name="product_id", place="path", description="The product's number.", schema=_NUMBER, example=1)
_KEY: Final = Parameter(
    name="Idempotency-Key",
    place="header",
    description=(
        "Names this attempt, bare or in double quotes. Repeated with the same body, it gets the first answer again, for 7 days, "
        "and no second order; an answer that began no order is not kept."
    ),
    schema={"type": "string", "pattern": '^"?[!#-+\\--\\[\\]-~]{1,255}"?$'},
    example="8e03978e-40d5-43e8-bc93-6894a57f9324",
)
_IF_NONE_MATCH: Final = Parameter(
    name="If-None-Match", place="header", description="An ETag seen before.", schema={"type": "string"}, example='"3"'
)
_HEADERS: Final[dict[str, Json]] = {
    "Location": {"description": "The saga of the order.", "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}},
    "Idempotent-Replayed": {"description": "There, and true, when this is the first answer again.", "schema": {"const": "true"}},
    "ETag": {"description": "The saga's version.", "schema": {"type": "string"}},
}

OPERATIONS: Final = (
    Operation(
        method="post",
        path="/api/checkout",
        name="checkout",
        tag="Checkout",
        summary="Buy a cart",
        description=(
            "Stores the order and answers at once; payment and receipt follow. The answer's Location is where to watch. "
            "Prices are compared with the catalogue and never taken from the client. A body may have 64 KiB."
        ),
        status=202,
        answer=schemas.Placed,
        example=examples.PLACED,
        headers=("Location", "Retry-After", "Idempotent-Replayed"),
        errors=(400, 408, 409, 413, 415, 422, *_UPSTREAM),
        parameters=(_KEY,),
        body=schemas.CheckoutRequest,
        body_example=examples.CHECKOUT,
    ),
    Operation(
        method="get",
        path="/api/sagas/{saga_id}",
        name="saga",
        tag="Checkout",
        summary="Watch an order's saga",
        description="Where the order stands, its three steps, and every change so far. `done` says that nothing more will happen.",
        answer=schemas.Saga,
        example=examples.SAGA,
        headers=("ETag",),
        errors=(404, *_UPSTREAM),
        parameters=(_SAGA_ID, _IF_NONE_MATCH),
    ),
    Operation(
        method="get",
        path="/api/orders/{order_id}",
        name="order",
        tag="Orders",
        summary="Read an order",
        description="The order with its lines, as it is now.",
        answer=schemas.Order,
        example=examples.ORDER,
        errors=(404, *_UPSTREAM),
        parameters=(_ORDER_ID,),
    ),
    Operation(
        method="get",
        path="/api/orders/{order_id}/status",
        name="order_status",
        tag="Orders",
        summary="Read an order's status",
        description="The short answer, for polling.",
        answer=schemas.Status,
        example=examples.STATUS,
        errors=(404, *_UPSTREAM),
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
        errors=(404, *_UPSTREAM),
        parameters=(_PRODUCT_ID,),
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


def encoded() -> bytes:
    """Give the whole document as JSON."""
    return msgspec.json.encode(_document(OPERATIONS))


def _document(operations: Sequence[Operation]) -> Json:
    types = [schemas.Problem, *(kind for operation in operations for kind in (operation.answer, operation.body) if kind)]
    _, components = msgspec.json.schema_components(types, ref_template=_REF)
    paths: dict[str, Json] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Sagapost",
            "version": metadata.version("sagapost-gateway"),
            "summary": "A checkout that answers in milliseconds and never loses an order.",
            "description": "Errors are application/problem+json (RFC 9457). Money is a decimal string.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"schemas": components},
    }


def _operation(operation: Operation) -> Json:
    answers: dict[str, Json] = {str(operation.status): _answer(operation.status, operation.answer, operation.example, operation.headers)}
    if _IF_NONE_MATCH in operation.parameters:
        answers["304"] = {"description": _DESCRIPTIONS[304], "headers": {"ETag": _HEADERS["ETag"]}}
    if operation.unready:
        answers["503"] = _answer(503, operation.answer, examples.UNREADY, ())
    for status in operation.errors:
        answers[str(status)] = _problem(status, operation.path)
    described: Json = {
        "operationId": operation.name,
        "tags": [operation.tag],
        "summary": operation.summary,
        "description": operation.description,
        "responses": answers,
    }
    if operation.parameters:
        described["parameters"] = [_parameter(parameter) for parameter in operation.parameters]
    if operation.body:
        content = {"schema": _schema(operation.body), "example": operation.body_example}
        described["requestBody"] = {"required": True, "content": {"application/json": content}}
    return described


def _answer(status: int, kind: object, example: object, headers: tuple[str, ...]) -> Json:
    answer: Json = {
        "description": _DESCRIPTIONS[status],
        "content": {"application/json": {"schema": _schema(kind), "example": example}},
    }
    if headers:
        answer["headers"] = {name: _HEADERS[name] for name in headers}
    return answer


def _problem(status: int, path: str) -> Json:
    shown: dict[str, Json] = {slug: {"value": examples.problem(slug, status, path)} for slug in _TITLES[status]}
    content = {"schema": {"$ref": _REF.format(name="Problem")}, "examples": shown}
    answer: Json = {"description": ", ".join(_TITLES[status]), "content": {problems.MEDIA_TYPE: content}}
    if status in _RETRIED:
        answer["headers"] = {"Retry-After": _HEADERS["Retry-After"]}
    return answer


def _schema(kind: object) -> Json:
    (schema,), _ = msgspec.json.schema_components([kind], ref_template=_REF)
    return dict(schema)


def _parameter(parameter: Parameter) -> Json:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "required": parameter.place == "path",
        "description": parameter.description,
        "schema": parameter.schema,
        "example": parameter.example,
    }
