import contextlib
import http.client
import re
from collections.abc import Callable
from typing import Any

import hypothesis
import jsonschema_rs
import msgspec
import pytest
import schemathesis
from hypothesis import strategies
from schemathesis.core.result import Ok
from schemathesis.specs.openapi import checks

from sagapost_sandbox import ports
from sagapost_sandbox.testing import polling, services

CART = b'{"user_id": 1, "user_email": "test@example.com", "items": [{"product_id": 1, "quantity": 1, "price": "1299.99"}]}'
JSON = {"Content-Type": "application/json"}
OPS = "/api/ops/sagas/{saga_id}"
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"

# any 4xx refuses, 412 too, which is not among the defaults
CONFIG = schemathesis.config.SchemathesisConfig.from_dict({"checks": {"negative_data_rejection": {"expected-statuses": ["4xx"]}}})

Start = Callable[[str, dict[str, str]], services.Service]


@pytest.fixture
def pair(start_service: Start, order_db: str) -> tuple[services.Service, services.Service]:
    """Start the gateway in front of an order service whose broker is away, which no answer of the gateway needs."""
    broker = f"amqp://nobody:nothing@127.0.0.1:{ports.trial(1)[0]}/"
    order = start_service("order", {"SAGAPOST_DATABASE_URL": order_db, "SAGAPOST_AMQP_URL": broker}).wait_ready()
    gateway = start_service("gateway", {"SAGAPOST_ORDER_URL": order.url, "SAGAPOST_PAGE_PORT": "0"}).wait_ready()
    return gateway, order


def call(
    gateway: services.Service, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Make one request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)
    with contextlib.closing(connection):
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()


def test_a_checkout_is_answered_and_can_be_followed(pair: tuple[services.Service, services.Service]) -> None:
    """202 with Location and Retry-After; the saga carries the caller's trace, has an ETag, and is 304 while it stays the same."""
    gateway, _ = pair

    status, headers, body = call(gateway, "POST", "/api/checkout", CART, {**JSON, "traceparent": f"00-{TRACE_ID}-00f067aa0ba902b7-01"})
    placed = msgspec.json.decode(body)
    saga_status, saga_headers, saga = call(gateway, "GET", headers["location"])
    again, again_headers, nothing = call(gateway, "GET", headers["location"], headers={"If-None-Match": saga_headers["etag"]})

    assert (status, headers["retry-after"], headers["content-type"]) == (202, "1", "application/json")
    assert headers["location"] == f"/api/sagas/{placed['saga_id']}" == placed["links"]["saga"]
    assert (saga_status, msgspec.json.decode(saga)["trace_id"]) == (200, TRACE_ID)
    assert (again, again_headers["etag"], nothing) == (304, saga_headers["etag"], b"")
    assert "server" not in headers


def test_every_answer_has_the_documented_shape(pair: tuple[services.Service, services.Service]) -> None:
    """What the order service really answers through the gateway fits the schemas of the OpenAPI document, with no field besides."""
    gateway, _ = pair
    document = msgspec.json.decode(call(gateway, "GET", "/schema/openapi.json")[2])
    placed = msgspec.json.decode(call(gateway, "POST", "/api/checkout", CART, JSON)[2])
    acted = f"/api/ops/sagas/{placed['saga_id']}"
    calls = [
        ("post", "/api/checkout", "/api/checkout", CART, 202),
        ("post", "/api/checkout", "/api/checkout", b"{", 400),
        ("post", "/api/checkout", "/api/checkout", b"{}", 422),
        ("post", "/api/checkout", "/api/checkout", CART.replace(b"1299.99", b"1299.98"), 422),
        ("get", "/api/sagas/{saga_id}", f"/api/sagas/{placed['saga_id']}", None, 200),
        ("get", "/api/orders/{order_id}", f"/api/orders/{placed['id']}", None, 200),
        ("get", "/api/orders/{order_id}", "/api/orders/999", None, 404),
        ("get", "/api/orders/{order_id}/status", f"/api/orders/{placed['id']}/status", None, 200),
        ("get", "/api/ops/sagas", "/api/ops/sagas?limit=1", None, 200),
        ("get", "/api/ops/sagas", "/api/ops/sagas?limit=0", None, 422),
        ("post", f"{OPS}/retry", f"{acted}/retry", b'{"reason": "x"}', 202),
        ("post", f"{OPS}/waive-notify", f"{acted}/waive-notify", b'{"reason": "x"}', 409),
        ("post", f"{OPS}/retry", f"{acted}/retry", b"{}", 422),
        ("post", "/api/orders/{order_id}/cancel", f"/api/orders/{placed['id']}/cancel", None, 202),
        ("post", f"{OPS}/compensate", f"{acted}/compensate", b'{"reason": "x"}', 202),
        ("post", f"{OPS}/mark-refunded", f"{acted}/mark-refunded", b'{"reason": "x", "reference": "y"}', 202),
        ("post", "/api/orders/{order_id}/cancel", f"/api/orders/{placed['id']}/cancel", None, 200),
        ("get", "/api/sagas/{saga_id}", f"/api/sagas/{placed['saga_id']}", None, 200),
        ("get", "/api/products", "/api/products", None, 200),
        ("get", "/api/products/{product_id}", "/api/products/1", None, 200),
        ("get", "/health/live", "/health/live", None, 200),
        ("get", "/health/ready", "/health/ready", None, 200),
    ]

    for method, template, path, sent, expected in calls:
        status, headers, body = call(gateway, method.upper(), path, sent, {**JSON, "If-Match": "*"} if sent else None)
        assert status == expected, (path, body)
        content = document["paths"][template][method]["responses"][str(status)]["content"][headers["content-type"]]
        validator = jsonschema_rs.validator_for({**content["schema"], "components": _closed(document["components"])})
        decoded = msgspec.json.decode(body)
        assert validator.is_valid(decoded), [str(fault) for fault in validator.iter_errors(decoded)]


def test_nothing_that_the_document_allows_or_forbids_breaks_a_promise_of_it(pair: tuple[services.Service, services.Service]) -> None:
    """Generated requests, right and wrong, get only documented statuses, types and shapes, and never a 5xx."""
    document = schemathesis.openapi.from_dict(msgspec.json.decode(call(pair[0], "GET", "/schema/openapi.json")[2]), config=CONFIG)
    for found in document.get_all_operations():
        assert isinstance(found, Ok)
        _fuzz(found.ok(), pair[0].url)


def test_a_refusal_of_the_order_service_names_the_path_that_was_called(pair: tuple[services.Service, services.Service]) -> None:
    """A 422 comes through as a problem, with the faulty fields, as an answer of the gateway's own path and trace."""
    gateway, _ = pair

    status, headers, body = call(gateway, "POST", "/api/checkout", CART.replace(b'"quantity": 1', b'"quantity": 101'), JSON)

    problem = msgspec.json.decode(body)
    assert (status, headers["content-type"]) == (422, "application/problem+json")
    assert problem["instance"] == "/api/checkout"
    assert problem["errors"] == [{"pointer": "/items/0/quantity", "code": "out_of_range"}]
    assert re.fullmatch(r"[0-9a-f]{32}", problem["trace_id"])


def test_an_order_service_that_stopped_is_503_and_one_that_is_back_is_used_again(
    pair: tuple[services.Service, services.Service], start_service: Start
) -> None:
    """While it is away every call that needs it says when to try again; after its return calls are answered without anybody's doing."""
    gateway, order = pair
    assert call(gateway, "GET", "/api/products")[0] == 200

    order.terminate()
    gone = [call(gateway, "POST", "/api/checkout", CART, JSON), call(gateway, "GET", "/api/orders/1")]
    assert call(gateway, "GET", "/api/products")[0] == 200
    ready = call(gateway, "GET", "/health/ready")
    start_service("order", order.env).wait_ready()

    assert [(status, headers["retry-after"]) for status, headers, _ in gone] == [(503, "1")] * 2
    assert {msgspec.json.decode(body)["type"] for _, _, body in gone} == {"/problems/circuit-open"}
    assert ready[0] == 503
    polling.eventually(lambda: call(gateway, "GET", "/api/orders/1")[0] in {200, 404})
    assert call(gateway, "POST", "/api/checkout", CART, JSON)[0] == 202
    polling.eventually(lambda: call(gateway, "GET", "/health/ready")[0] == 200)


def test_sigterm_ends_the_gateway_with_0(pair: tuple[services.Service, services.Service]) -> None:
    """A deployment stops it without an error."""
    gateway, _ = pair

    assert gateway.terminate() == 0


def _fuzz(operation: schemathesis.schemas.APIOperation[Any, Any, Any, Any], base_url: str) -> None:
    @hypothesis.given(case=strategies.one_of(*(operation.as_strategy(generation_mode=mode) for mode in schemathesis.GenerationMode)))
    @hypothesis.settings(max_examples=15, deadline=None, derandomize=True, database=None)
    def check(case: schemathesis.Case[Any]) -> None:
        # a right shape can still hold an old price or a product that is not there
        case.call_and_validate(base_url=base_url, excluded_checks=[checks.positive_data_acceptance])

    check()


def _closed(components: dict[str, dict[str, dict[str, object]]]) -> dict[str, object]:
    """Forbid what is not documented; clients may not, so the document itself leaves it open."""
    schemas = components["schemas"].items()
    return {"schemas": {name: {**schema, "additionalProperties": False} if "properties" in schema else schema for name, schema in schemas}}
