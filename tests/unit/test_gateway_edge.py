import asyncio
import contextlib
from collections.abc import Generator

import litestar
import pytest
from litestar.testing import RequestFactory
from litestar.types import HTTPDisconnectEvent, HTTPRequestEvent, Receive

from sagapost_chassis import problems
from sagapost_gateway import edge, errors

JSON = [(b"content-type", b"application/json")]


@pytest.mark.parametrize(
    ("sent", "key"),
    [
        (b"8e03978e-40d5-43e8-bc93-6894a57f9324", "8e03978e-40d5-43e8-bc93-6894a57f9324"),
        (b'"8e03978e-40d5-43e8-bc93-6894a57f9324"', "8e03978e-40d5-43e8-bc93-6894a57f9324"),
        (b"  k  ", "k"),
        (b"!#$%&'()*+-./09:;<=>?@AZ[]^_`az{|}~", "!#$%&'()*+-./09:;<=>?@AZ[]^_`az{|}~"),
        (b"a" * 255, "a" * 255),
        (b'"' + b"a" * 255 + b'"', "a" * 255),
    ],
)
def test_a_key_means_the_same_bare_or_quoted(sent: bytes, key: str) -> None:
    """Both spellings of a key give the same key, up to 255 characters without the quotes."""
    assert edge.idempotency_key([(b"idempotency-key", sent)]) == key


@pytest.mark.parametrize(
    "sent", [b"", b'""', b'"', b'"a', b'a"', b"a b", b'"a b"', b"a,b", b"a\\b", b"a\nb", b"a\n", "é".encode(), b"\x7f", b"a" * 256]
)
def test_a_malformed_key_is_refused(sent: bytes) -> None:
    """What is not 1 to 255 visible ASCII characters is no key, and no order is begun under it."""
    with pytest.raises(errors.KeyInvalidError):
        edge.idempotency_key([(b"idempotency-key", sent)])


def test_a_key_sent_twice_is_refused_even_when_both_agree() -> None:
    """Two headers are never resolved by guessing."""
    with pytest.raises(errors.KeyInvalidError):
        edge.idempotency_key([(b"idempotency-key", b"a"), (b"idempotency-key", b"a")])


def test_no_key_is_no_error() -> None:
    """The key is optional."""
    assert edge.idempotency_key(JSON) is None


@pytest.mark.parametrize(
    "sent", [b"application/json", b"Application/JSON", b"application/json; charset=utf-8", b'application/json;charset="UTF-8"']
)
def test_json_in_utf_8_is_read(sent: bytes) -> None:
    """The type and its charset are compared without regard to case."""
    edge.require_json([(b"content-type", sent)])


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"content-type", b"")],
        [(b"content-type", b"text/plain")],
        [(b"content-type", b"application/json; charset=utf-16")],
        [(b"content-type", b"application/jsonp")],
        [(b"content-type", b"application/json\n")],
        [(b"content-type", b"text/plain, application/json")],
        [*JSON, *JSON],
        [*JSON, (b"content-encoding", b"gzip")],
        [*JSON, (b"content-encoding", b"identity")],
        [*JSON, (b"content-encoding", b"")],
    ],
)
def test_anything_but_plain_json_is_refused(headers: list[tuple[bytes, bytes]]) -> None:
    """Another type, two types, another charset and every content encoding are refused before the body is read."""
    with pytest.raises(errors.MediaTypeError):
        edge.require_json(headers)


@pytest.mark.parametrize("text", ["0", "01", "-1", "+1", "1.0", "1e3", "1_000", "٣", "abc", "1\n", " 1", "9223372036854775808", "1" * 5000])
def test_a_number_that_no_row_can_have_is_not_found(text: str) -> None:
    """Only the plain decimal spelling of 1 to 2^63-1 is passed on."""
    with pytest.raises(errors.NothingHereError):
        edge.number(text)


def test_the_largest_number_is_passed_on() -> None:
    """The limit itself is still a number."""
    assert edge.number("9223372036854775807") == "9223372036854775807"


@pytest.mark.parametrize("text", ["", "x", "0193b1c27d4e7a109f0e5f2f6c1d8a11", "0193b1c2-7d4e-7a10-9f0e-5f2f6c1d8a11\n", "{0193b1c2}"])
def test_what_is_no_uuid_is_not_found(text: str) -> None:
    """Only the hyphenated spelling of a UUID is passed on."""
    with pytest.raises(errors.NothingHereError):
        edge.saga_id(text)


def test_a_uuid_is_passed_on_in_lower_case() -> None:
    """One saga has one spelling behind the edge."""
    assert edge.saga_id("0193B1C2-7D4E-7A10-9F0E-5F2F6C1D8A11") == "0193b1c2-7d4e-7a10-9f0e-5f2f6c1d8a11"


@pytest.mark.parametrize(
    ("sent", "seconds"),
    [(b"wait=10", 10), (b"respond-async, wait=7", 7), (b"Wait = 3", 3), (b"wait=99", 30), (b"wait=x", 0), (b"await=5", 0), (b"", 0)],
)
def test_a_wish_to_wait_is_bounded(sent: bytes, seconds: int) -> None:
    """Nobody waits longer than 30 seconds, and nonsense waits not at all."""
    assert edge.wait_s([(b"prefer", sent)]) == seconds


@pytest.mark.anyio
async def test_a_slow_body_is_given_up() -> None:
    """A client that stops in the middle of its body is cut off after the limit."""

    async def silent() -> HTTPRequestEvent:
        await asyncio.Event().wait()
        raise AssertionError

    with _request(silent) as request, pytest.raises(errors.BodySlowError):
        await edge.read_body(request, timeout_s=0.02)


@pytest.mark.anyio
@pytest.mark.parametrize("announced", ["65537", "9" * 30, "-1", "0x10"])
async def test_an_announced_length_over_the_limit_is_refused_unread(announced: str) -> None:
    """Nothing is read of a body that says it is too large, or that gives no number."""

    async def unread() -> HTTPRequestEvent:
        raise AssertionError

    with _request(unread, {"Content-Length": announced}) as request, pytest.raises(errors.BodyTooLargeError):
        await edge.read_body(request)


@pytest.mark.anyio
async def test_a_body_without_a_length_is_counted() -> None:
    """The limit holds for what arrives, not only for what is announced: reading stops in the middle of an endless body."""
    read = 0

    async def endless() -> HTTPRequestEvent:
        nonlocal read
        read += 1
        return {"type": "http.request", "body": b"x" * 100, "more_body": True}

    with _request(endless) as request, pytest.raises(errors.BodyTooLargeError):
        await edge.read_body(request, limit_bytes=1000)

    assert read == 11


@pytest.mark.anyio
async def test_a_client_that_goes_away_is_no_failure_of_ours() -> None:
    """A connection lost inside the body is the caller's doing, not a 5xx."""

    async def gone() -> HTTPDisconnectEvent:
        return {"type": "http.disconnect"}

    with _request(gone) as request, pytest.raises(errors.BodyCutError):
        await edge.read_body(request)


@contextlib.contextmanager
def _request(receive: Receive, headers: dict[str, str] | None = None) -> Generator[problems.Request]:
    made = RequestFactory().post("/api/checkout", headers=headers)
    yield litestar.Request(made.scope, receive)
