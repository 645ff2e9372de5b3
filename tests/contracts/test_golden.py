"""Every message that was ever sent stays readable, and what we send today is what we sent then."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest

from sagapost_contracts import envelope, topology

SMALL = ("quantity", "saga_version", "payment_version", "attempt")
TIMES = ("pay_before", "captured_at")
GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.json"))


def _load(path: Path) -> dict[str, Any]:
    return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])


def test_every_message_type_has_a_golden_file() -> None:
    """No message type goes without a frozen example of each of its versions."""
    wanted = {f"{name}.v{version}" for name, cls in envelope.TYPES.items() for version in range(1, cls.version + 1)}

    assert {path.stem for path in GOLDEN} == wanted


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_a_golden_message_decodes_and_encodes_to_itself(path: Path) -> None:
    """A stored message decodes to its Struct, and the Struct encodes to the stored bytes' meaning."""
    stored = _load(path)

    message = envelope.decode(stored["type"], stored["headers"]["schema-version"], json.dumps(stored["body"]).encode())
    sealed = envelope.seal(
        message,
        message_id=UUID(stored["headers"]["cloudEvents:id"]),
        source=stored["headers"]["cloudEvents:source"],
        time=msgspec.convert(stored["headers"]["cloudEvents:time"], type=datetime),
        causation_id=None,
        traceparent=stored["headers"]["traceparent"],
    )

    assert json.loads(sealed.body) == stored["body"]
    assert sealed.headers() == stored["headers"]
    assert sealed.routing_key == stored["routing_key"]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_unknown_fields_are_ignored(path: Path) -> None:
    """A newer writer may add fields without breaking this reader."""
    stored = _load(path)

    body = json.dumps(stored["body"] | {"from_the_future": [1, 2]}).encode()

    assert envelope.decode(stored["type"], 1, body).order_id == stored["body"]["order_id"]


@pytest.mark.parametrize(
    ("kind", "version", "body"),
    [
        ("NoSuchEvent", 1, b"{}"),
        (None, 1, b"{}"),
        ("EmailSent", 2, b"{}"),
        ("EmailSent", None, b"{}"),
        ("EmailSent", "1", b"{}"),
        ("EmailSent", 1, b"{}"),
        ("EmailSent", 1, b"\xff\xfe"),
        ("EmailSent", 1, b"[" * 100_000),
        ("EmailSent", 1, b""),
    ],
)
def test_what_cannot_be_read_is_named_and_never_guessed(kind: str | None, version: object, body: bytes) -> None:
    """An unknown type, another version or a broken body is an UndecodableError, whatever the bytes."""
    with pytest.raises(envelope.UndecodableError):
        envelope.decode(kind, version, body)


@pytest.mark.parametrize("amount", ["NaN", "Infinity", "-1", "1e3", "1.999", "12345678901", "", "one"])
def test_an_amount_that_is_not_exact_is_refused(amount: str) -> None:
    """Money on the wire has at most ten digits and two places, no sign, no exponent."""
    stored = _load(next(path for path in GOLDEN if path.stem == "PaymentProcessed.v1"))

    body = json.dumps(stored["body"] | {"amount": amount}).encode()

    with pytest.raises(envelope.UndecodableError):
        envelope.decode("PaymentProcessed", 1, body)


def test_every_message_type_is_bound_to_a_queue() -> None:
    """No message is published that no queue takes."""

    def matches(pattern: str, key: str) -> bool:
        pairs = zip(pattern.split("."), key.split("."), strict=True)
        return all(wanted in ("*", word) for wanted, word in pairs)

    for cls in envelope.TYPES.values():
        bound = [queue for queue, patterns in topology.BINDINGS.items() for pattern in patterns if matches(pattern, cls.key)]
        assert bound, cls.key


def test_a_window_to_pay_is_optional() -> None:
    """An order without `pay_within_s` is written as before the field was there; one with it keeps it."""
    stored = _load(next(path for path in GOLDEN if path.stem == "OrderCreated.v1"))

    for extra in ({}, {"pay_within_s": 900.5}):
        body = stored["body"] | extra
        message = envelope.decode("OrderCreated", 1, json.dumps(body).encode())
        assert msgspec.to_builtins(message, str_keys=True)["currency"] == "USD"
        assert json.loads(msgspec.json.encode(message)) == body


def _spoilt(body: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Make a copy of a body for each value that no column takes, in each field that could hold it, lines included."""
    found: list[tuple[str, dict[str, Any]]] = []
    for name, value in body.items():
        bad: list[object] = []
        if type(value) is int:
            bad = [-(10**12) - 2**63, 2**63, 10**30, *([2**31, 10**12, -1] if name in SMALL else [])]
        elif isinstance(value, str) and name not in ("amount", "refunded", "price", "currency", "saga_id", *TIMES):
            bad = [f"{value}\0", "\0", "x" * 100_000]
        elif name in TIMES:
            bad = [str(value).removesuffix("Z"), "+10000-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00", "soon"]
        elif isinstance(value, list):
            bad = [[line] for item in value for _, line in _spoilt(item)]
        found += [(f"{name}: {str(one)[:40]!r}", body | {name: one}) for one in bad]
    return found


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_a_value_that_no_column_takes_is_refused_when_it_is_decoded(path: Path) -> None:
    """Numbers beyond the columns, NUL characters, endless strings and times without a zone are undecodable, in every message type."""
    stored = _load(path)
    spoilt = _spoilt(stored["body"])
    taken: list[str] = []

    for what, body in spoilt:
        try:
            envelope.decode(stored["type"], 1, json.dumps(body).encode())
        except envelope.UndecodableError:
            continue
        taken.append(what)

    assert spoilt
    assert taken == []


@pytest.mark.parametrize("seconds", ["NaN", "1e999", -1, 10**9, "900"])
def test_a_window_to_pay_that_is_no_duration_is_refused(seconds: object) -> None:
    """Less than nothing, more than a year or no number at all is no time to pay."""
    stored = _load(next(path for path in GOLDEN if path.stem == "OrderCreated.v1"))

    body = json.dumps(stored["body"] | {"pay_within_s": seconds}).replace('"1e999"', "1e999").replace('"NaN"', "NaN").encode()

    with pytest.raises(envelope.UndecodableError):
        envelope.decode("OrderCreated", 1, body)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (name, change)
        for name in ("OrderCancelled", "RequestNotification")
        for change in ({"amount": "NaN"}, {"amount": "1e9"}, {"currency": "EUR"}, {"amount": "-1.00"}, {"refunded": "NaN"})
        if "refunded" not in change or name == "OrderCancelled"
    ],
)
def test_money_in_what_email_reads_is_checked(name: str, change: dict[str, str]) -> None:
    """An amount that is not exact, or of another currency, never stands in a mail."""
    stored = _load(next(path for path in GOLDEN if path.stem == f"{name}.v1"))
    body = json.dumps(stored["body"] | change).encode()

    with pytest.raises(envelope.UndecodableError):
        envelope.decode(name, 1, body)
