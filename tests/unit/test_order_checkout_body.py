"""What a checkout's body may be: every way of being wrong gets its answer, none becomes an exception that nobody expects."""

import json
import time
from decimal import Decimal
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies

from sagapost_chassis.errors import DomainError
from sagapost_order import domain, errors

GOOD: dict[str, Any] = {
    "user_id": 1,
    "user_email": "test@example.com",
    "items": [{"product_id": 1, "quantity": 1, "price": "1299.99"}],
}
CARD = "4111111111111111"  # the test number every payment provider publishes


def body(**changes: object) -> bytes:
    """Write a body with these fields instead."""
    return json.dumps(GOOD | changes).encode()


def item(**changes: object) -> bytes:
    """Write a body whose only item has these fields instead."""
    return body(items=[GOOD["items"][0] | changes])


def literal(field: str, text: str) -> bytes:
    """Write a body in which a field has this text as it stands."""
    return json.dumps(GOOD).replace(f'"{field}": 1', f'"{field}": {text}').encode()


MALFORMED = {
    "nothing": b"",
    "spaces": b"  ",
    "truncated": body()[:-1],
    "garbage after it": body() + b"x",
    "two documents": body() + body(),
    "guarded": b")]}'," + body(),
    "byte order mark": b"\xef\xbb\xbf" + body(),
    "utf-16": body().decode().encode("utf-16"),
    "not utf-8": body().replace(b"test@", b"te\xff@"),
    "overlong utf-8": body().replace(b"test@", b"te\xc0\xaf@"),
    "half a surrogate pair": body().replace(b"test@", b"te\\ud800@"),
    "half a surrogate pair in a key": body().replace(b'"user_id"', b'"\\udfff"'),
    "raw nul": body().replace(b"test@", b"te\x00@"),
    "raw newline in a string": body().replace(b"test@", b"te\n@"),
    "nine deep": b'{"user_id": ' + b"[" * 8 + b"]" * 8 + b"}",
    "20,000 deep": b'{"user_id": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    "20,000 objects deep": b'{"a":' * 20_000,
    "the same key twice": body().replace(b'"quantity": 1', b'"quantity": 1, "quantity": 99'),
    "the same key twice, once escaped": body().replace(b'"quantity": 1', b'"quantity": 1, "\\u0071uantity": 99'),
    "NaN": literal("quantity", "NaN"),
    "Infinity": literal("user_id", "-Infinity"),
    "underscore": literal("user_id", "1_0"),
    "leading zero": literal("user_id", "01"),
    "hexadecimal": literal("user_id", "0x1"),
    "plus": literal("user_id", "+1"),
    "single quotes": b"{'user_id': 1}",
    "open string": b'{"user_id": "' + b'\\"' * 30_000,
}

INVALID = {
    "a string": (b'"x"', "", "wrong_type"),
    "a number": (b"0", "", "wrong_type"),
    "null": (b"null", "", "wrong_type"),
    "a list": (b"[]", "", "wrong_type"),
    "eight deep": (b'{"user_id": ' + b"[" * 7 + b"]" * 7 + b"}", "/user_id", "wrong_type"),
    "user_id as text": (literal("user_id", '"1"'), "/user_id", "wrong_type"),
    "user_id with a point": (literal("user_id", "1.0"), "/user_id", "wrong_type"),
    "user_id with an exponent": (literal("user_id", "1e2"), "/user_id", "wrong_type"),
    "user_id true": (literal("user_id", "true"), "/user_id", "wrong_type"),
    "user_id zero": (literal("user_id", "0"), "/user_id", "out_of_range"),
    "user_id minus zero": (literal("user_id", "-0"), "/user_id", "out_of_range"),
    "user_id 2^63": (literal("user_id", "9223372036854775808"), "/user_id", "out_of_range"),
    "user_id of 20 digits": (literal("user_id", "9" * 20), "/user_id", "wrong_type"),
    "quantity zero": (item(quantity=0), "/items/0/quantity", "out_of_range"),
    "quantity 101": (item(quantity=101), "/items/0/quantity", "out_of_range"),
    "quantity half": (item(quantity=1.5), "/items/0/quantity", "wrong_type"),
    "quantity of 5,000 digits": (literal("quantity", "9" * 5000), "/items/0/quantity", "wrong_type"),
    "quantity null": (item(quantity=None), "/items/0/quantity", "wrong_type"),
    "quantity list": (item(quantity=[]), "/items/0/quantity", "wrong_type"),
    "product_id true": (item(product_id=True), "/items/0/product_id", "wrong_type"),
    "no items": (body(items=[]), "/items", "out_of_range"),
    "51 items": (body(items=GOOD["items"] * 51), "/items", "out_of_range"),
    "items null": (body(items=None), "/items", "wrong_type"),
    "null as an item": (body(items=[None]), "/items/0", "wrong_type"),
    "list as an item": (body(items=[[]]), "/items/0", "wrong_type"),
    "an item twice": (body(items=GOOD["items"] * 2), "/items/1/product_id", "duplicate_product"),
    "items missing": (json.dumps({"user_id": 1, "user_email": "a@example.com"}).encode(), "/items", "missing"),
    "quantity missing": (body(items=[{"product_id": 1, "price": "1.00"}]), "/items/0/quantity", "missing"),
    "unknown field": (body(is_admin=True), "/is_admin", "unknown_field"),
    "unknown field of an item": (item(discount="1.00"), "/items/0/discount", "unknown_field"),
    "unknown field with a strange name": (body(**{"a`b/c\n": 1}), "", "unknown_field"),
    "unknown field called missing": (body(missing=1), "/missing", "unknown_field"),
    "payment_method number": (body(payment_method=1), "/payment_method", "wrong_type"),
    "payment_method null": (body(payment_method=None), "/payment_method", "wrong_type"),
    "payment_method empty": (body(payment_method=""), "/payment_method", "wrong_format"),
    "payment_method long": (body(payment_method="a" * 65), "/payment_method", "wrong_format"),
    "payment_method with a newline": (body(payment_method="pm_card_ok\n"), "/payment_method", "wrong_format"),
    "payment_method not ASCII": (body(payment_method="pm_cärd"), "/payment_method", "wrong_format"),
    "e-mail number": (body(user_email=5), "/user_email", "wrong_type"),
}

BAD_EMAILS = (
    "",
    "a",
    "a@b",
    "@example.com",
    "a@",
    "a b@example.com",
    "a@example.com\n",
    "a@example.com\r",
    "a@example.com\r\nBcc: x@evil.example",
    "X <a@example.com>",
    "<a@example.com>",
    "a\u202e@example.com",
    "a\u2028@example.com",
    "a\u200b@example.com",
    "ä@example.com",
    "a@exämple.com",
    '"a b"@example.com',
    '"a"@example.com',
    "a@[127.0.0.1]",
    "a@127.0.0.1",
    ".a@example.com",
    "a.@example.com",
    "a..b@example.com",
    "a@-example.com",
    "a@example-.com",
    "a@example.com.",
    "a@.example.com",
    "a@example..com",
    "a@example.c0m",
    "a\\@example.com",
    "a(c)@example.com",
    "a,b@example.com",
    "a;b@example.com",
    "a@b@example.com",
    "a\x00@example.com",
    "a\t@example.com",
    "a" * 65 + "@example.com",
    "a@" + "b" * 64 + ".com",
    "a@" + "b." * 130 + "com",
)
GOOD_EMAILS = (
    "user@example.xn--p1ai",
    "a`{|}~b@example.com",
    "test@example.com",
    "a@b.co",
    "o'brien+tag@mail.example.co.uk",
    "first.last@xn--exmple-cua.com",
    "a" * 64 + "@example.com",
    "a@" + "b" * 63 + ".com",
)
BAD_PRICES: tuple[object, ...] = (
    *("NaN", "sNaN", "Infinity", "-1299.99", "+1", "-0", "1.29999E+3", "1E+1000000", "1e-400", "1_299.99", " 1299.99 ", "1299.99\n"),
    *("\u0661\u0662\u0669\u0669.99", "1,299.99", "0", "0.00", ".", "", "1.", ".5", "01.00", "1.999", "1299.990", "12345678901.00", "0x10"),
    *(None, True, [], {}, 1e20, -1, 0, 1.999),
)


@pytest.mark.parametrize("raw", MALFORMED.values(), ids=MALFORMED.keys())
def test_body_that_is_not_one_strict_document_is_malformed(raw: bytes) -> None:
    """Not UTF-8, not JSON, too deep, a key twice: 400 malformed-request."""
    with pytest.raises(errors.MalformedRequestError) as caught:
        domain.parse_checkout(raw)

    assert (caught.value.status, caught.value.slug) == (400, "malformed-request")


@pytest.mark.parametrize(("raw", "pointer", "code"), INVALID.values(), ids=INVALID.keys())
def test_document_that_is_no_checkout_is_refused_by_pointer(raw: bytes, pointer: str, code: str) -> None:
    """A wrong field is 422 validation-failed, with a pointer to it and a code."""
    with pytest.raises(errors.RequestInvalidError) as caught:
        domain.parse_checkout(raw)

    assert (caught.value.status, caught.value.slug) == (422, "validation-failed")
    assert [(error.pointer, error.code) for error in caught.value.errors] == [(pointer, code)]


@pytest.mark.parametrize("address", BAD_EMAILS)
def test_address_that_is_not_plain_is_refused(address: str) -> None:
    """Nothing that could become a second header, a second recipient or a route gets through as an address."""
    with pytest.raises(errors.RequestInvalidError) as caught:
        domain.parse_checkout(body(user_email=address))

    assert [error.pointer for error in caught.value.errors] == ["/user_email"]


@pytest.mark.parametrize("address", GOOD_EMAILS)
def test_plain_address_is_taken_as_it_is(address: str) -> None:
    """Ordinary addresses, up to the sizes of the standard, are accepted unchanged."""
    assert domain.parse_checkout(body(user_email=address)).user_email == address


@pytest.mark.parametrize("price", BAD_PRICES)
def test_price_that_is_not_exact_is_refused(price: object) -> None:
    """A price is a decimal with at most two places, above zero, and nothing that merely looks like one."""
    with pytest.raises(errors.RequestInvalidError) as caught:
        domain.parse_checkout(item(price=price))

    assert [(error.pointer, error.code) for error in caught.value.errors] == [("/items/0/price", "not_a_price")]


@pytest.mark.parametrize(
    ("text", "amount"), [('"1299.99"', "1299.99"), ("1299.99", "1299.99"), ("1300", "1300.00"), ('"0.5"', "0.50"), ("9999999999.99",) * 2]
)
def test_price_as_text_or_number_is_read_exactly(text: str, amount: str) -> None:
    """A price may be a string or a number; no float comes near it."""
    raw = json.dumps(GOOD).replace('"1299.99"', text).encode()

    assert str(domain.parse_checkout(raw).items[0].price) == amount


@pytest.mark.parametrize("text", ["1e2", "1E0", "-1", "0.0", "1.000", "1" * 400])
def test_number_that_is_no_price_is_refused(text: str) -> None:
    """Exponents, signs, a third place or too many digits are refused in a number as in a string."""
    with pytest.raises(errors.RequestInvalidError):
        domain.parse_checkout(json.dumps(GOOD).replace('"1299.99"', text).encode())


def test_several_wrong_fields_are_all_named() -> None:
    """A client learns about every wrong value at once."""
    wrong = body(user_email="a", items=[{"product_id": 1, "quantity": 1, "price": "x"}] * 2)

    with pytest.raises(errors.RequestInvalidError) as caught:
        domain.parse_checkout(wrong)

    assert [error.pointer for error in caught.value.errors] == ["/user_email", "/items/0/price", "/items/1/price", "/items/1/product_id"]


def test_largest_values_are_accepted() -> None:
    """The limits themselves are inside."""
    many = [{"product_id": number, "quantity": 100, "price": "0.01"} for number in range(2**63 - 50, 2**63)]

    parsed = domain.parse_checkout(body(user_id=2**63 - 1, items=many))

    assert (parsed.user_id, len(parsed.items), parsed.items[-1].product_id) == (2**63 - 1, 50, 2**63 - 1)


def test_payment_method_has_a_default() -> None:
    """A checkout without a payment method uses the one that works in the sandbox."""
    assert domain.parse_checkout(body()).payment_method == "pm_card_ok"


@pytest.mark.parametrize(
    "raw",
    [
        body(payment_method=CARD),
        body(payment_method=f"pm-{CARD}"),
        body(payment_method="4111 1111 1111 1111"),
        body(payment_method="12 4111-1111-1111-1111"),
        body(payment_method="4111_1111_1111_1111"),
        body(payment_method="pm_4111_1111_1111-1111"),
        body(user_email=f"{CARD}@example.com"),
        body(user_email="4222222222222@example.com"),
        body(card_number=CARD),
        body(**{CARD: 1}),
        body(note=[{"deep": CARD}]),
        item(price=CARD),
    ],
)
def test_card_number_is_refused_and_not_repeated(raw: bytes) -> None:
    """A card number anywhere is 422, and no word of the answer contains it."""
    with pytest.raises(errors.RequestInvalidError) as caught:
        domain.parse_checkout(raw)

    assert [error.code for error in caught.value.errors] == ["card_number"]
    assert "1111" not in f"{caught.value.detail}{caught.value.errors}"


@pytest.mark.parametrize("before", ["1 ", "12-", "x", "00 0 - ", ""])
@pytest.mark.parametrize("after", [" 1", "-12", "y", "  3", ""])
def test_a_card_number_is_found_whatever_stands_beside_it(before: str, after: str) -> None:
    """A short group of digits or a letter beside a number does not hide it, nor do spaces and dashes in it."""
    for card in (CARD, "4111 1111 1111 1111", "4111-1111-1111-1111", "4111 - 1111  1111 -1111", "4222222222222", "6304 0000 0000 0000 000"):
        assert domain.holds_card_number(f"{before}{card}{after}")


BODY_BYTES = 8 * 1024
WORST = {
    "single digits": b'"' + b"1 " * 4000 + b'"',
    "a name of digits": b'{"' + b"1 " * 4000 + b'": 1}',
    "an address of digits": body(user_email="1 " * 4000),
    "empty strings": b"[" + b'"",' * 2700 + b'""]',
    "empty objects": b"[" + b"{}," * 2700 + b"{}]",
    "whole numbers": b"[" + b"1," * 4000 + b"1]",
    "brackets": b"[" * BODY_BYTES,
}


def cpu_s(raw: bytes) -> float:
    """Measure the CPU time of this thread for one body: the least of many, so that neighbours on the machine do not count."""
    costs = []
    for _ in range(20):
        begun = time.thread_time()
        with pytest.raises(DomainError):
            domain.parse_checkout(raw)
        costs.append(time.thread_time() - begun)
    return min(costs)


@pytest.mark.parametrize("raw", WORST.values(), ids=WORST)
def test_no_body_costs_many_times_what_the_largest_cart_costs(raw: bytes) -> None:
    """Reading grows with the body and with nothing else: 8 KiB of anything cost at most 12 times a wrong cart of 50 lines (4 KiB)."""
    many = [{"product_id": 2**63 - 1, "quantity": 100, "price": "9999999999.99"}] * 50
    cart = body(user_id=2**63 - 1, user_email="a" * 64 + "@" + "b" * 63 + ".example.com", items=many, payment_method="p" * 64)

    assert len(raw) <= BODY_BYTES
    assert cpu_s(raw) <= 12 * cpu_s(cart)


@pytest.mark.parametrize("text", ["4111111111111112", "411111111111", "41111111111111111111", "2026-11-22", "1299.99"])
def test_other_digits_are_no_card_number(text: str) -> None:
    """Digits that fail the check sum, or are too few or too many, are just digits."""
    assert not domain.holds_card_number(text)


@hypothesis.given(strategies.binary(max_size=200) | strategies.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_get_an_answer(raw: bytes) -> None:
    """No bytes raise anything but a refusal."""
    with pytest.raises(DomainError):
        domain.parse_checkout(raw)


JSON_VALUES = strategies.recursive(
    strategies.none() | strategies.booleans() | strategies.integers() | strategies.floats() | strategies.text(),
    lambda inner: strategies.lists(inner, max_size=3) | strategies.dictionaries(strategies.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)


@hypothesis.given(strategies.sampled_from(("user_id", "user_email", "items", "payment_method", "more")), JSON_VALUES)
def test_any_value_in_any_field_gets_an_answer(field: str, value: object) -> None:
    """Any JSON value in any field is accepted or refused, never an error of ours."""
    try:
        parsed = domain.parse_checkout(body(**{field: value}))
    except DomainError:
        return
    assert domain.is_email(parsed.user_email)


@hypothesis.given(JSON_VALUES, strategies.sampled_from(("product_id", "quantity", "price", "more")))
def test_any_value_in_any_field_of_an_item_gets_an_answer(value: object, field: str) -> None:
    """Likewise in an item."""
    try:
        parsed = domain.parse_checkout(item(**{field: value}))
    except DomainError:
        return
    assert parsed.items[0].price > 0


CATALOGUE = {
    1: domain.Product(id=1, name="Lamp", description="Warm", price=Decimal("1299.99"), currency="USD"),
    2: domain.Product(id=2, name="Gold", description="Heavy", price=Decimal("9999999999.99"), currency="USD"),
}


def cart(*lines: tuple[int, int, str]) -> tuple[domain.CheckoutItem, ...]:
    """Make the items of a cart."""
    return tuple(domain.CheckoutItem(product_id=number, quantity=count, price=Decimal(price)) for number, count, price in lines)


def test_order_is_priced_from_the_catalogue() -> None:
    """Lines carry the catalogue's names and prices, and the total is exact."""
    lines, total = domain.price_order(cart((1, 3, "1299.99")), CATALOGUE)

    assert [(line.name, str(line.price), line.quantity) for line in lines] == [("Lamp", "1299.99", 3)]
    assert str(total) == "3899.97"


def test_another_price_is_refused_with_the_current_one() -> None:
    """The price the customer saw is compared, never charged."""
    with pytest.raises(errors.PriceChangedError) as caught:
        domain.price_order(cart((1, 1, "0.01")), CATALOGUE)

    assert caught.value.errors == (errors.CurrentPrice(pointer="/items/0/price", code="price_changed", current_price="1299.99"),)


def test_unknown_product_is_refused_by_pointer() -> None:
    """A product that is not in the catalogue is named by its place in the cart."""
    with pytest.raises(errors.UnknownProductError) as caught:
        domain.price_order(cart((1, 1, "1299.99"), (9, 1, "1.00")), CATALOGUE)

    assert [(error.pointer, error.code) for error in caught.value.errors] == [("/items/1/product_id", "unknown_product")]


def test_total_beyond_the_column_is_refused() -> None:
    """A total that NUMERIC(12,2) cannot hold is the caller's error, not the database's."""
    with pytest.raises(errors.RequestInvalidError) as caught:
        domain.price_order(cart((2, 2, "9999999999.99")), CATALOGUE)

    assert [(error.pointer, error.code) for error in caught.value.errors] == [("/items", "total_too_large")]
