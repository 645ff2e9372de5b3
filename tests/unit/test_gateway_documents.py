import base64
import hashlib
import re

import jsonschema_rs
import msgspec
import pytest
from litestar.routes import HTTPRoute

from sagapost_chassis import settings
from sagapost_gateway import admission, api, openapi, operations, pages, upstream
from sagapost_gateway.settings import Settings

DOCUMENT = msgspec.json.decode(openapi.encoded())
NAMESPACE = "http://www.w3.org/2000/svg"  # a name, never fetched


def test_every_route_is_documented_and_every_documented_route_exists() -> None:
    """The OpenAPI document and the application name the same methods and paths."""
    order = upstream.Order("http://127.0.0.1:1", deadline_s=1, max_connections=1, max_waiting=1)
    routes = api.routes(order, admission.Desk(order, env="production")).routes
    served = {(str(method), route.path_format) for route in routes for method in route.methods if method != "OPTIONS"}

    documented = {(method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods if path.startswith("/api/")}

    assert served == documented


def test_every_route_needs_the_scope_that_is_documented_or_says_that_it_is_public() -> None:
    """No operation is open by oversight: each route names its scope, and the document the same one."""
    order = upstream.Order("http://127.0.0.1:1", deadline_s=1, max_connections=1, max_waiting=1)
    documented = {(one.method.upper(), one.path): one.scope or admission.PUBLIC for one in operations.OPERATIONS if "/api/" in one.path}
    needed: dict[tuple[str, str], object] = {}
    for route in api.routes(order, admission.Desk(order, env="production")).routes:
        assert isinstance(route, HTTPRoute)
        for handler in route.route_handlers:
            needed |= {(str(method), route.path_format): handler.opt.get("scope") for method in handler.http_methods if method != "OPTIONS"}

    assert needed == documented
    assert {path for (_, path), scope in needed.items() if scope == admission.PUBLIC} == {"/api/products", "/api/products/{product_id}"}


@pytest.mark.parametrize("operation", operations.OPERATIONS, ids=lambda operation: operation.name)
def test_every_example_fits_its_schema(operation: operations.Operation) -> None:
    """An example that is copied from the documentation is a valid one."""
    described = DOCUMENT["paths"][operation.path][operation.method]
    contents = [content for answer in described["responses"].values() for content in answer.get("content", {}).values()]
    contents += described.get("requestBody", {}).get("content", {}).values()

    for content in contents:
        examples = [content["example"]] if "example" in content else [example["value"] for example in content["examples"].values()]
        validator = jsonschema_rs.validator_for({**content["schema"], "components": DOCUMENT["components"]})
        for example in examples:
            assert validator.is_valid(example), list(validator.iter_errors(example))


@pytest.mark.parametrize("name", ["shop", "docs"])
def test_a_page_says_what_it_is_without_javascript(name: str) -> None:
    """Nobody looks at an empty page: without JavaScript it says so, and where the same can be read."""
    text = pages.assemble(name, {"env": "development", "mailbox": ""}).body.decode()

    found = re.findall(r"<noscript>(.*?)</noscript>", text, re.DOTALL)
    assert len(found) == 1
    assert "/schema/openapi.json" in found[0]


def test_the_shops_field_names_where_its_fault_is_said() -> None:
    """Each described element exists, so that a fault beside a field is read out with it; the list says whether it is still being loaded."""
    text = pages.assemble("shop", {"env": "development", "mailbox": ""}).body.decode()
    ids = set(re.findall(r'\bid="([^"]+)"', text))

    described = re.findall(r'<input id="(\w+)"[^>]*aria-describedby="([^"]+)"', text)
    assert described == [("email", "email-fault")]
    assert ids >= {name for _, name in described}
    assert re.search(r'<ul id="products"[^>]*aria-busy="true"', text)
    assert {'setAttribute("aria-invalid", "true")', 'setAttribute("aria-busy", String(is))'} <= set(
        re.findall(r"setAttribute\([^;]*\)", text)
    )


@pytest.mark.parametrize("name", ["shop", "docs"])
def test_a_page_loads_nothing_from_elsewhere(name: str) -> None:
    """A page works without any network but the gateway's own: no address of another host stands in it."""
    text = pages.assemble(name, {"env": "development", "mailbox": ""}).body.decode().replace(NAMESPACE, "")

    assert not re.findall(r"//[a-zA-Z0-9][\w-]*\.\w+", text)
    assert not re.search(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=[\"'](?!data:)", text)
    assert "@import" not in text


@pytest.mark.parametrize("name", ["shop", "docs"])
def test_a_page_runs_only_the_script_it_came_with(name: str) -> None:
    """The policy allows exactly the one script and the one style of the page, by their digests."""
    page = pages.assemble(name, {"env": "development", "mailbox": ""})
    text = page.body.decode()

    for tag in ("script", "style"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in page.policy
    assert "unsafe" not in page.policy
    assert not re.search(r"<[^>]+ (?:style|on[a-z]+)=", text.split("<script>", maxsplit=1)[0])


def test_no_property_of_a_request_has_a_default() -> None:
    """Generators of clients, openapi-typescript among them, make a property with a default one that every caller must send."""
    document = msgspec.json.decode(openapi.encoded())
    schemas = document["components"]["schemas"]
    asked = [
        content["schema"]["$ref"].rpartition("/")[2]
        for methods in document["paths"].values()
        for operation in methods.values()
        for content in operation.get("requestBody", {}).get("content", {}).values()
    ]

    assert "CheckoutRequest" in asked
    assert "payment_method" not in schemas["CheckoutRequest"]["required"]
    assert [(name, field) for name in asked for field, schema in schemas[name]["properties"].items() if "default" in schema] == []


def test_a_fact_cannot_break_out_of_the_markup() -> None:
    """What the environment says is text on the page, never markup."""
    text = pages.assemble("shop", {"env": "development", "mailbox": 'http://x/"><script>alert(1)</script>'}).body.decode()

    assert "<script>alert(1)" not in text


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SAGAPOST_ORDER_URL", "order:8001"),
        ("SAGAPOST_ORDER_URL", "http://order:8001/base"),
        ("SAGAPOST_MAILBOX_URL", "javascript:alert(1)"),
        ("SAGAPOST_DEADLINE_S", "0"),
        ("SAGAPOST_DEADLINE_S", "soon"),
        ("SAGAPOST_MAX_CONNECTIONS", "0"),
        ("SAGAPOST_MAX_WAITING", "0"),
    ],
)
def test_a_wrong_variable_is_named_at_the_start(variable: str, value: str) -> None:
    """The gateway refuses to start on what would only fail at the first request, and says which variable it is."""
    with pytest.raises(settings.SettingsError, match=variable):
        settings.load(Settings, {variable: value})
