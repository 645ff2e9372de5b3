"""The requests that cost the most CPU that anybody could think of: bodies, headers, paths, queries; sends nothing.

A worse one is added here: test_gateway_cpu.py compares each with a large cart, test_gateway_hostile.py sends all of them at once.
"""

import json

BODY_BYTES = 8 * 1024
JSON = b"Content-Type: application/json\r\n"
SAGA = b"/api/sagas/0193b1c2-7d4e-7a10-9f0e-5f2f6c1d8a11"
KEY = b"sp_development_" + b"a" * 32


def filled(unit: bytes, size_bytes: int, head: bytes = b"", tail: bytes = b"") -> bytes:
    """Repeat a unit between head and tail until so many bytes are full."""
    return head + unit * ((size_bytes - len(head) - len(tail)) // len(unit)) + tail


def cart(**changes: object) -> bytes:
    """Write the largest legal cart, with these fields instead."""
    address = f"{'a' * 64}@{'b' * 63}.{'c' * 63}.{'d' * 57}.com"
    items = [{"product_id": 2**63 - 1 - at, "quantity": 100, "price": "9999999999.99"} for at in range(50)]
    whole = {"user_id": 2**63 - 1, "user_email": address, "payment_method": "p" * 64, "items": items}
    return json.dumps(whole | changes).encode()


BODIES = {
    "single digits": filled(b"1 ", BODY_BYTES, b'"', b'"'),
    "empty strings": filled(b',""', BODY_BYTES, b'[""', b"]"),
    "empty strings behind an escape": filled(b',""', BODY_BYTES, b'["\\u0041"', b"]"),
    "numbers": filled(b",0.1", BODY_BYTES, b"[0.1", b"]"),
    "whole numbers": filled(b",1", BODY_BYTES, b"[1", b"]"),
    "empty lists": filled(b",[]", BODY_BYTES, b"[[]", b"]"),
    "empty objects": filled(b",{}", BODY_BYTES, b"[{}", b"]"),
    "opening brackets": b"[" * BODY_BYTES,
    "opening objects": filled(b'{"":', BODY_BYTES),
    "a string that does not end": filled(b'\\"', BODY_BYTES, b'"'),
    "unknown fields": b"{" + b",".join(b'"%d":1' % at for at in range(1000)) + b"}",
    "a long name": filled(b"1 ", BODY_BYTES, b'{"', b'":1}'),
    "a name like an error's end": filled(b" - at `$", BODY_BYTES, b'{"', b'":1}'),
    "a long address": cart(user_email="1 " * 1800),
    "an address of dots": cart(user_email="a." * 1800 + "@x"),
    "digits in an address": cart(user_email="1-" * 31 + "1@" + "1-1." * 47 + "com"),
    "fifty wrong prices": cart(items=[{"product_id": 1, "quantity": 1, "price": "1 " * 50}] * 50),
    "exponents": filled(b",1e400", BODY_BYTES, b"[1e400", b"]"),
    "integers of 4,000 digits": b"[" + b"9" * 4000 + b"," + b"9" * 4000 + b"]",
    "integers of 19 digits": filled(b",9223372036854775807", BODY_BYTES, b"[1", b"]"),
    "a user of 3,000 digits": cart().replace(b'"user_id": 9223372036854775807', b'"user_id": ' + b"9" * 3000),
    "a price of 3,000 decimals": cart().replace(b'"price": "9999999999.99"', b'"price": 0.' + b"0" * 3000, 1),
    "a price with a large exponent": cart().replace(b'"9999999999.99"', b"1e999999999"),
    "one name many times": filled(b',"a":1', BODY_BYTES, b'{"a":1', b"}"),
    "one name twice, behind a thousand others": b"{" + b",".join(b'"%d":1' % at for at in range(900)) + b',"0":1}',
    "escaped names": filled(b',"\\u0061":1', BODY_BYTES, b'{"a":1', b"}"),
    "escapes that grow": filled(b"\\ufdfa", BODY_BYTES, b'"', b'"'),
    "escaped pairs": filled(b"\\ud83d\\ude00", BODY_BYTES, b'"', b'"'),
    "half a pair behind a thousand": filled(b"\\ud83d\\ude00", BODY_BYTES, b'"', b'\\ud800"'),
    "letters that grow": filled("\ufdfa".encode(), BODY_BYTES, b'"', b'"'),
    "bytes that are no text": filled(b"\xe9", BODY_BYTES, b'"', b'"'),
    "eight levels, side by side": filled(b",[[[[[[[]]]]]]]", BODY_BYTES, b"[[]", b"]"),
    "eight levels of objects": filled(b',{"":{"":{"":{"":{"":{}}}}}}', BODY_BYTES, b"[{}", b"]"),
    "brackets of both kinds": filled(b"[{", BODY_BYTES),
    "quotes": b'"' * BODY_BYTES,
    "escapes": filled(b"\\\\", BODY_BYTES, b'"', b'"'),
    "spaces between": filled(b" ", BODY_BYTES, b"[", b"]"),
    "three thousand lines": b'{"user_id":1,"user_email":"a@b.example","items":[' + b",".join([b"{}"] * 2700) + b"]}",
    "an address of labels": cart(user_email="a" * 64 + "@" + "-".join(["a" * 60] * 50) + ".com"),
    "addresses one behind the other": cart(user_email="a@" * 1800),
    "numbers that are nearly a card's": cart(user_email="4242424242424241 " * 200),
    "a long payment method": cart(payment_method="p" * 3600),
    "a price of digits": cart(items=[], user_id=1).replace(b"[]", b'[{"product_id":1,"quantity":1,"price":"' + b"1" * 7000 + b'"}]'),
}
LARGER = {
    "single digits": filled(b"1 ", 64 * 1024, b'"', b'"'),
    "empty strings": filled(b',""', 64 * 1024, b'[""', b"]"),
    "a reason of digits": filled(b"1 ", 64 * 1024, b'{"reason":"', b'"}'),
    "unknown fields": b"{" + b",".join(b'"%d":1' % at for at in range(5000)) + b"}",
}
HEADS = {
    "Prefer": (b"GET", SAGA, b"Prefer: " + filled(b"wait ", 12_000) + b"\r\n"),
    "If-None-Match": (b"GET", SAGA, b"If-None-Match: " + filled(b'"1",', 12_000) + b"\r\n"),
    "Accept of the page": (b"GET", b"/", b"Accept: " + filled(b"a/b;q=0.1,", 12_000) + b"\r\n"),
    "Accept of a problem's page": (b"GET", b"/problems/not-found", b"Accept: " + filled(b"a/b,", 12_000) + b"\r\n"),
    "cookies": (b"GET", SAGA, b"Cookie: " + filled(b"a=b; ", 12_000) + b"\r\n"),
    "a hundred headers": (b"GET", SAGA, b"".join(b"X-%d: 1\r\n" % at for at in range(90))),
    "traceparent": (b"GET", SAGA, b"traceparent: " + filled(b"0-", 12_000) + b"\r\n"),
    "Idempotency-Key": (b"POST", b"/api/checkout", JSON + b"Idempotency-Key: " + filled(b"1", 12_000) + b"\r\n"),
    "Authorization": (b"GET", SAGA, b"Authorization: Bearer " + filled(b"  a", 12_000) + b"\r\n"),
    "Content-Type": (b"POST", b"/api/checkout", b"Content-Type: application/json" + filled(b" ;", 12_000) + b"\r\n"),
    "query of the list": (b"GET", b"/api/ops/sagas?" + filled(b"state=1&", 12_000), b""),
    "escaped query of the list": (b"GET", b"/api/ops/sagas?cursor=" + filled(b"%41", 12_000), b""),
    "query where none is read": (b"GET", SAGA + b"?" + filled(b"a=1&", 12_000), b""),
    "many slashes": (b"GET", filled(b"/a", 12_000), b""),
    "empty segments": (b"GET", b"/api" + filled(b"/", 12_000), b""),
    "an escaped path": (b"GET", b"/api/orders/" + filled(b"%31", 12_000), b""),
    "a long number": (b"GET", b"/api/orders/" + filled(b"1", 12_000), b""),
    "Connection": (b"GET", SAGA, b"Connection: " + filled(b"a,", 12_000) + b"\r\n"),
    "an origin": (b"GET", SAGA, b"Origin: " + filled(b"https://a.", 12_000) + b"\r\n"),
    "filters of the orders": (b"GET", b"/api/orders?" + filled(b"status=paid&", 12_000), b""),
    "a cursor of digits": (b"GET", b"/api/orders?cursor=" + filled(b"9", 12_000), b""),
    "ninety cookies": (b"GET", SAGA, b"".join(b"Cookie: a%d=%s\r\n" % (at, b"x" * 120) for at in range(90))),
    "ninety Accepts": (b"GET", b"/", b"Accept: text/html;q=0.5,a/b;q=0.1\r\n" * 90),
    "ninety Content-Types": (b"POST", b"/api/checkout", JSON * 90),
    "a path of four-byte letters": (b"GET", b"/api/" + filled(b"%F0%9F%98%80", 12_000), b""),
    "If-Match": (b"POST", SAGA.replace(b"/api/", b"/api/ops/") + b"/retry", b"If-Match: " + filled(b'"1",', 12_000) + b"\r\n"),
    "Last-Event-ID": (b"GET", SAGA + b"/events", b"Last-Event-ID: " + filled(b"1", 12_000) + b"\r\n"),
}


def request(method: bytes, path: bytes, head: bytes = b"", body: bytes | None = None) -> bytes:
    """Write a request; its headers may be as wrong as it likes."""
    length = b"Content-Length: %d\r\n" % len(body) if body is not None else b""
    return method + b" " + path + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + head + length + b"\r\n" + (body or b"")
