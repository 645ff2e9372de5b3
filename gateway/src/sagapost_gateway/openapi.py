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
    "not-found": 404,
    "request-timeout": 408,
    "idempotency-in-progress": 409,
    "order-not-cancellable": 409,
    "saga-action-not-possible": 409,
    "version-mismatch": 412,
    "payload-too-large": 413,
    "unsupported-media-type": 415,
    "validation-failed": 422,
    "price-changed": 422,
    "unknown-product": 422,
    "idempotency-key-reused": 422,
    "order-service-unavailable": 503,
    "overloaded": 503,
    "upstream-timeout": 504,
}
_RETRIED: Final = frozenset({"idempotency-in-progress", "order-service-unavailable", "overloaded"})
_HEADERS: Final[dict[str, Json]] = {
    "Location": {"description": "The saga of the order.", "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}},
    "Idempotent-Replayed": {"description": "There, and true, when this is the first answer again.", "schema": {"const": "true"}},
    "ETag": {"description": "The saga's version.", "schema": {"type": "string"}},
    "Preference-Applied": {"description": "There when the wish to wait was heard.", "schema": {"type": "string"}},
}


def encoded() -> bytes:
    """Give the whole document as JSON."""
    return msgspec.json.encode(_document(operations.OPERATIONS))


def _document(table: Sequence[Operation]) -> Json:
    types = [schemas.Problem, *(kind for operation in table for kind in (operation.answer, operation.body) if kind)]
    _, components = msgspec.json.schema_components(types, ref_template=_REF)
    paths: dict[str, Json] = {}
    for operation in table:
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
    described: Json = {
        "operationId": operation.name,
        "tags": [operation.tag],
        "summary": operation.summary,
        "description": operation.description,
        "responses": _answers(operation),
    }
    if operation.parameters:
        described["parameters"] = [_parameter(parameter) for parameter in operation.parameters]
    if operation.body:
        content = {"schema": _schema(operation.body), "example": operation.body_example}
        described["requestBody"] = {"required": True, "content": {"application/json": content}}
    return described


def _answers(operation: Operation) -> dict[str, Json]:
    answers = {str(operation.status): _answer(operation, operation.told, operation.example, operation.headers)}
    if operation.settled:
        answers["200"] = _answer(operation, "It is so already.", operation.settled, ("Location",))
    if operations.IF_NONE_MATCH in operation.parameters:
        headers = {name: _HEADERS[name] for name in operation.headers}
        answers["304"] = {"description": "Unchanged since the version in If-None-Match.", "headers": headers}
    if operation.unready:
        answers["503"] = _answer(operation, "Not ready.", examples.UNREADY, ())
    for status in sorted({_STATUSES[slug] for slug in operation.errors}):
        answers[str(status)] = _problem(status, [slug for slug in operation.errors if _STATUSES[slug] == status], operation)
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
    if _RETRIED.intersection(slugs):
        answer["headers"] = {"Retry-After": _HEADERS["Retry-After"]}
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
