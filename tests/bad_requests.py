"""Requests that the API must refuse, made from the contract in docs/http-api.md; knows no service and sends nothing.

Each case says by its name what is wrong with it; everything else about it is right. `.ci/bad-inputs` sends all of them.
"""

import base64
import json
from collections.abc import Iterator
from typing import Any

CHECKOUT = "/api/checkout"
JSON = {"content-type": "application/json"}
SAGA = "0193b1c2-7d4e-7a10-9f0e-5f2f6c1d8a11"
MALFORMED, TYPE, UNFIT = [400], [415], [422]

# what stands in a JSON document where an integer should: text, other kinds of numbers, other kinds of values
NO_INTEGERS = {
    "text": '"1"',
    "a decimal point": "1.0",
    "an exponent": "1e2",
    "a boolean": "true",
    "null": "null",
    "a list": "[1]",
    "an object": "{}",
    "zero": "0",
    "minus one": "-1",
    "beyond 64 bits": str(2**63),
    "four hundred digits": "9" * 400,
}
NO_PRICES = {
    "three places": '"1299.990"',
    "an exponent": '"1.29999E3"',
    "a bare exponent": "1.29999e3",
    "a comma": '"1299,99"',
    "a sign": '"+1299.99"',
    "minus": '"-1299.99"',
    "zero": '"0.00"',
    "a space": '" 1299.99"',
    "a line break behind it": '"1299.99\\n"',
    "a leading zero": '"01299.99"',
    "no digits before the point": '".99"',
    "no digits behind the point": '"1299."',
    "NaN": '"NaN"',
    "Infinity": '"Infinity"',
    "an underscore": '"1_299.99"',
    "Arabic digits": '"\u0661\u0662\u0669\u0669.\u0669\u0669"',
    "full-width digits": '"\uff11\uff12\uff19\uff19.\uff19\uff19"',
    "thirteen digits": '"1299999999999.99"',
    "hexadecimal": '"0x513"',
    "a currency": '"$1299.99"',
    "nothing": '""',
    "null": "null",
    "a boolean": "true",
}
NO_ADDRESSES = {
    "no at sign": "test.example.com",
    "two at signs": "a@b@example.com",
    "no domain": "test@",
    "no name": "@example.com",
    "no dot in the domain": "test@localhost",
    "a space": "te st@example.com",
    "a line break": "test@example.com\r\nBcc: all@example.com",
    "a comma": "a@example.com,b@example.com",
    "a semicolon": "a@example.com;b@example.com",
    "brackets": "Test <test@example.com>",
    "quotes": '"test"@example.com',
    "an address of a machine": "test@[127.0.0.1]",
    "a letter beyond ASCII": "josé@example.com",
    "a domain beyond ASCII": "test@bücher.example",
    "an invisible character": "test@exam\u200bple.com",
    "a direction mark": "test@example.com\u202e",
    "NUL": "test\u0000@example.com",
    "two dots": "a..b@example.com",
    "a dot at the end": "test@example.com.",
    "65 characters of name": f"{'a' * 65}@example.com",
    "300 characters": f"a@{'b' * 60}.{'c' * 60}.{'d' * 60}.{'e' * 60}.{'f' * 60}",
    "nothing": "",
}
CARDS = ("4242424242424242", "4242 4242 4242 4242", "4242-4242-4242-4242", "378282246310005", "5555555555554444", "6011111111111117")
NO_DOCUMENTS = {
    "nothing": b"",
    "words": b"buy one",
    "half a document": b'{"user_id": 1',
    "a comma too many": b'{"user_id": 1,}',
    "single quotes": b"{'user_id': 1}",
    "a comment": b'{"user_id": 1 /* one */}',
    "two documents": b"{}{}",
    "a bare NaN": b'{"user_id": NaN}',
    "Latin-1": '{"user_email": "é"}'.encode("latin-1"),
    "UTF-16": '{"user_id": 1}'.encode("utf-16"),
    "a byte order mark": '{"user_id": 1}'.encode("utf-8-sig"),
    "half a surrogate pair": b'{"user_email": "\\ud800"}',
    "a control character in a string": b'{"user_email": "a\x01b"}',
    "one name twice": b'{"user_id": 1, "user_id": 2}',
    "one name twice, once escaped": b'{"user_id": 1, "user_\\u0069d": 2}',
    "nine lists deep": b'{"items": ' + b"[" * 9 + b"]" * 9 + b"}",
    "a thousand lists deep": b"[" * 1000 + b"]" * 1000,
}


def cart(**changed: object) -> dict[str, Any]:
    """Return a checkout that is right but for what is changed."""
    return {"user_id": 1, "user_email": "test@example.com", "items": [item()], **changed}


def item(**changed: object) -> dict[str, Any]:
    """Return a line of a checkout that is right but for what is changed."""
    return {"product_id": 1, "quantity": 1, "price": "1299.99", **changed}


def cases() -> list[dict[str, Any]]:
    """Return all cases: name, method, path, headers, body in base64, and the statuses of which the answer must be one."""
    made = [*_documents(), *_types(), *_integers(), *_prices(), *_addresses(), *_shapes(), *_cards(), *_keys(), *_routes()]
    return [{**one, "body_b64": base64.b64encode(one["body_b64"]).decode()} for one in made]


def _case(
    name: str, body: bytes | object, expect: list[int], *, method: str = "POST", path: str = CHECKOUT, headers: dict[str, str] = JSON
) -> dict[str, Any]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return {"name": name, "method": method, "path": path, "headers": headers, "body_b64": content, "expect": expect}


def _documents() -> Iterator[dict[str, Any]]:
    for what, body in NO_DOCUMENTS.items():
        yield _case(f"not a JSON document: {what}", body, MALFORMED)
    for what, value in {"a list": [cart()], "text": "cart", "a number": 1, "null": None}.items():
        yield _case(f"the document is {what}", value, UNFIT)
    yield _case("more than 64 KiB", cart(note="x" * 70_000), [413])


def _types() -> Iterator[dict[str, Any]]:
    for kind in (
        "text/plain",
        "application/xml",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonp",
    ):
        yield _case(f"announced as {kind}", cart(), TYPE, headers={"content-type": kind})
    yield _case("announced as nothing", cart(), TYPE, headers={})
    for encoding in ("gzip", "br", "identity, gzip"):
        yield _case(f"announced as encoded: {encoding}", cart(), TYPE, headers={**JSON, "content-encoding": encoding})


def _raw(name: str, template: dict[str, Any], text: str) -> dict[str, Any]:
    return _case(name, json.dumps(template).replace('"HERE"', text).encode(), UNFIT)


def _integers() -> Iterator[dict[str, Any]]:
    for what, text in NO_INTEGERS.items():
        yield _raw(f"user_id is {what}", cart(user_id="HERE"), text)
        yield _raw(f"product_id is {what}", cart(items=[item(product_id="HERE")]), text)
        yield _raw(f"quantity is {what}", cart(items=[item(quantity="HERE")]), text)
    yield _case("quantity is 101", cart(items=[item(quantity=101)]), UNFIT)


def _prices() -> Iterator[dict[str, Any]]:
    for what, text in NO_PRICES.items():
        yield _raw(f"price: {what}", cart(items=[item(price="HERE")]), text)
    yield _case("price is not the catalogue's", cart(items=[item(price="1299.98")]), UNFIT)
    yield _case("price is the catalogue's of another product", cart(items=[item(price="49.99")]), UNFIT)


def _addresses() -> Iterator[dict[str, Any]]:
    for what, address in NO_ADDRESSES.items():
        yield _case(f"address: {what}", cart(user_email=address), UNFIT)
    for what, value in {"a number": 1, "null": None, "a list": ["test@example.com"]}.items():
        yield _case(f"address is {what}", cart(user_email=value), UNFIT)


def _shapes() -> Iterator[dict[str, Any]]:
    for name in ("user_id", "user_email", "items"):
        yield _case(f"without {name}", {key: value for key, value in cart().items() if key != name}, UNFIT)
    for name in ("product_id", "quantity", "price"):
        yield _case(f"a line without {name}", cart(items=[{key: value for key, value in item().items() if key != name}]), UNFIT)
    for name in ("total_amount", "currency", "status", "client", "__proto__", "User_id"):
        yield _case(f"an unknown field {name}", cart(**{name: "1"}), UNFIT)
    yield _case("an unknown field in a line", cart(items=[item(discount="100")]), UNFIT)
    yield _case("no line", cart(items=[]), UNFIT)
    yield _case("51 lines", cart(items=[item(product_id=number) for number in range(1, 52)]), UNFIT)
    yield _case("a product twice", cart(items=[item(), item()]), UNFIT)
    yield _case("a product that is not there", cart(items=[item(product_id=999_999)]), UNFIT)
    no_items: dict[str, object] = {"an object": {}, "text": "1", "null": None, "a list in a list": [[item()]]}
    for what, value in no_items.items():
        yield _case(f"items is {what}", cart(items=value), UNFIT)
    no_methods: dict[str, object] = {"a number": 1, "an object": {}, "nothing": "", "a line break": "pm_card_ok\n"}
    for what, value in no_methods.items():
        yield _case(f"payment_method is {what}", cart(payment_method=value), UNFIT)


def _cards() -> Iterator[dict[str, Any]]:
    for nth, number in enumerate(CARDS, 1):
        yield _case(f"card number {nth} as payment method", cart(payment_method=number), UNFIT)
        yield _case(f"card number {nth} as address", cart(user_email=f"{number}@example.com"), UNFIT)


def _keys() -> Iterator[dict[str, Any]]:
    for what, key in {
        "a space": "a b",
        "256 characters": "k" * 256,
        "half a quote": '"abc',
        "two in one": '"a","b"',
        "empty quotes": '""',
    }.items():
        yield _case(f"idempotency key: {what}", cart(), MALFORMED, headers={**JSON, "idempotency-key": key})


def _routes() -> Iterator[dict[str, Any]]:
    for method in ("PUT", "PATCH", "DELETE"):
        yield _case(f"{method} of a checkout", cart(), [405], method=method)
    paths = ("/api", "/api/", "/api/nothing", "/api/checkout/../../etc/passwd", "/api/orders/abc", "/api/orders/-1", f"/api/orders/{2**63}")
    for path in (*paths, f"/api/sagas/{SAGA}", "/api/sagas/1", f"/api/sagas/{SAGA}/events", "/api/products/0", "/api/products/one"):
        yield _case(f"nothing at {path}", b"", [404], method="GET", path=path, headers={})
    yield _case("cancel what is not there", b"", [404], path="/api/orders/999999/cancel", headers={})
