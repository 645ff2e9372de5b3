"""The OpenAPI 3.1 document, written from the table of operations and the schemas; it must not know how a request is served."""

from collections.abc import Sequence
from importlib import metadata
from typing import Final

import msgspec

from sagapost_chassis import problems
from sagapost_gateway import examples, operations, schemas
from sagapost_gateway.operations import Json, Operation, Parameter

_REF: Final = "#/components/schemas/{name}"
_STATUSES: Final = {
    "malformed-request": 400,
    "idempotency-key-invalid": 400,
    "unauthorized": 401,
    "insufficient-scope": 403,
    "cross-site-request": 403,
    "not-found": 404,
    "request-timeout": 408,
    "idempotency-in-progress": 409,
    "order-not-cancellable": 409,
    "saga-action-not-possible": 409,
    "version-mismatch": 412,
    "payload-too-large": 413,
    "unsupported-media-type": 415,
    "misdirected-request": 421,
    "validation-failed": 422,
    "price-changed": 422,
    "unknown-product": 422,
    "idempotency-key-reused": 422,
    "rate-limited": 429,
    "order-service-unavailable": 503,
    "circuit-open": 503,
    "overloaded": 503,
    "upstream-timeout": 504,
}
_RETRIED: Final = frozenset({"idempotency-in-progress", "rate-limited", "order-service-unavailable", "circuit-open", "overloaded"})
_LIMITS: Final = ("RateLimit", "RateLimit-Policy")
_CHALLENGED: Final = {401: ("WWW-Authenticate",), 403: ("WWW-Authenticate",), 429: _LIMITS}
_SCHEME: Final[Json] = {
    "type": "http",
    "scheme": "bearer",
    "bearerFormat": "sp_<environment>_<32 letters and digits>",
    "description": (
        "An API key, made with `./sagapost keys create`. Each client sees its own orders only; another's are 404. In development a call "
        "without a key is the client `demo`, which has every scope."
    ),
}
_GUARDED: Final = ("unauthorized", "insufficient-scope", "rate-limited")
_BEARER: Final = "key"
_HEADERS: Final[dict[str, Json]] = {
    "Location": {"description": "The saga of the order.", "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}},
    "Idempotent-Replayed": {"description": "There, and true, when this is the first answer again.", "schema": {"const": "true"}},
    "RateLimit": {
        "description": "`r` calls may follow at once; in `t` seconds the whole quota is there again.",
        "schema": {"type": "string"},
        "example": '"client";r=99;t=1',
    },
    "RateLimit-Policy": {
        "description": "`q` calls in `w` seconds are never refused, shared by all keys of a client (draft-ietf-httpapi-ratelimit-headers).",
        "schema": {"type": "string"},
        "example": '"client";q=100;w=2',
    },
    "WWW-Authenticate": {
        "description": "Bearer (RFC 6750): `invalid_token`, or `insufficient_scope` with the scope that is missing.",
        "schema": {"type": "string"},
        "example": 'Bearer error="insufficient_scope", scope="ops:write"',
    },
    "ETag": {"description": "The saga's version.", "schema": {"type": "string"}},
    "Preference-Applied": {"description": "There when the wish to wait was heard.", "schema": {"type": "string"}},
}


def encoded(env: str = "development") -> bytes:
    """Give the whole document as JSON; in development calls may come without a key."""
    return msgspec.json.encode(_document(operations.OPERATIONS, keyless=env == "development"))


def _document(table: Sequence[Operation], *, keyless: bool) -> Json:
    types = [schemas.Problem, *(kind for operation in table for kind in (operation.answer, operation.body) if kind)]
    _, components = msgspec.json.schema_components(types, ref_template=_REF)
    paths: dict[str, Json] = {}
    for operation in table:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation, keyless=keyless)
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
        "components": {"schemas": components, "securitySchemes": {_BEARER: _SCHEME}},
    }


def _operation(operation: Operation, *, keyless: bool) -> Json:
    described: Json = {
        "operationId": operation.name,
        "tags": [operation.tag],
        "summary": operation.summary,
        "description": operation.description,
        "responses": _answers(operation),
        "security": [],
    }
    if operation.scope:
        described["security"] = [{_BEARER: [operation.scope]}, {}] if keyless else [{_BEARER: [operation.scope]}]
        described["description"] = f"{operation.description} Needs the scope `{operation.scope}`."
    if operation.parameters:
        described["parameters"] = [_parameter(parameter) for parameter in operation.parameters]
    if operation.body:
        content = {"schema": _schema(operation.body), "example": operation.body_example}
        described["requestBody"] = {"required": True, "content": {"application/json": content}}
    return described


def _answers(operation: Operation) -> dict[str, Json]:
    limits = _LIMITS if operation.scope else ()
    answers = {str(operation.status): _answer(operation, operation.told, operation.example, (*operation.headers, *limits))}
    if operation.settled:
        answers["200"] = _answer(operation, "It is so already.", operation.settled, ("Location", *limits))
    if operations.IF_NONE_MATCH in operation.parameters:
        headers = {name: _HEADERS[name] for name in (*operation.headers, *limits)}
        answers["304"] = {"description": "Unchanged since the version in If-None-Match.", "headers": headers}
    if operation.unready:
        answers["503"] = _answer(operation, "Not ready.", examples.UNREADY, ())
    slugs = (*_GUARDED, *operation.errors) if operation.scope else operation.errors
    if operation.method == "post":
        slugs = (*slugs, "cross-site-request")
    for status in sorted({_STATUSES[slug] for slug in slugs}):
        answers[str(status)] = _problem(status, [slug for slug in slugs if _STATUSES[slug] == status], operation)
    return answers


def _answer(operation: Operation, told: str, example: object, headers: Sequence[str]) -> Json:
    answer: Json = {"description": told, "content": {operation.media_type: {"schema": _schema(operation.answer), "example": example}}}
    if headers:
        answer["headers"] = {name: _HEADERS[name] for name in headers}
    return answer


def _problem(status: int, slugs: Sequence[str], operation: Operation) -> Json:
    shown: dict[str, Json] = {slug: {"value": examples.problem(slug, status, operation.path)} for slug in slugs}
    content = {"schema": {"$ref": _REF.format(name="Problem")}, "examples": shown}
    answer: Json = {"description": ", ".join(slugs), "content": {problems.MEDIA_TYPE: content}}
    named = _CHALLENGED.get(status, ())
    if _RETRIED.intersection(slugs):
        named = ("Retry-After", *named)
    if named:
        answer["headers"] = {name: _HEADERS[name] for name in named}
    return answer


def _schema(kind: object) -> Json:
    (schema,), _ = msgspec.json.schema_components([kind], ref_template=_REF)
    return dict(schema)


def _parameter(parameter: Parameter) -> Json:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "required": parameter.required,
        "description": parameter.description,
        "schema": parameter.schema,
        "example": parameter.example,
    }
