"""When two bodies are the same request: what the fingerprint of an idempotency key sees, and what it does not."""

import json
from typing import Any

import pytest

from sagapost_order import domain

GOOD: dict[str, Any] = {
    "user_id": 1,
    "user_email": "test@example.com",
    "items": [{"product_id": 1, "quantity": 1, "price": "1299.99"}, {"product_id": 2, "quantity": 3, "price": "49.90"}],
}


def digest(body: bytes) -> str:
    """Fingerprint a body."""
    return domain.fingerprint(domain.parse_checkout(body)).hex()


def changed(**changes: object) -> bytes:
    """Write the body with these fields instead."""
    return json.dumps(GOOD | changes).encode()


def test_fingerprint_of_a_checkout_never_changes() -> None:
    """Keys outlive releases: a client that repeats a request after an upgrade must not hear that its key was reused."""
    assert digest(changed()) == "97440dc20529390c9e8095289adb6a8a9f5121cb2fb0782635fa202d6b99233c"


@pytest.mark.parametrize(
    "body",
    [
        json.dumps(GOOD, indent=4).encode(),
        json.dumps(dict(reversed(GOOD.items()))).encode(),
        changed(items=[dict(reversed(item.items())) for item in GOOD["items"]]),
        changed().replace(b'"1299.99"', b"1299.99"),
        changed().replace(b'"49.90"', b"49.9"),
        changed().replace(b'"49.90"', b'"49.9"'),
        changed().replace(b"test@", b"\\u0074est@"),
        changed(payment_method=domain.DEFAULT_PAYMENT_METHOD),
    ],
    ids=["spaces", "fields turned round", "fields of items turned round", "number", "short number", "short", "escape", "default"],
)
def test_the_same_request_in_another_spelling_has_the_same_fingerprint(body: bytes) -> None:
    """What was understood counts, not how it was written."""
    assert digest(body) == digest(changed())


@pytest.mark.parametrize(
    "body",
    [
        changed(user_id=2),
        changed(user_email="Test@example.com"),
        changed(items=GOOD["items"][:1]),
        changed(items=GOOD["items"][::-1]),
        changed(items=[GOOD["items"][0] | {"quantity": 2}, GOOD["items"][1]]),
        changed(items=[GOOD["items"][0] | {"product_id": 3}, GOOD["items"][1]]),
        changed(items=[GOOD["items"][0] | {"price": "1299.98"}, GOOD["items"][1]]),
        changed(payment_method="pm_card_declined"),
    ],
    ids=["user", "address", "fewer items", "items turned round", "quantity", "product", "price", "payment method"],
)
def test_another_request_has_another_fingerprint(body: bytes) -> None:
    """Every field counts."""
    assert digest(body) != digest(changed())
