"""The rules a request must pass before anything is forwarded; it knows headers and bytes, never what a checkout means."""

import asyncio
import re
import urllib.parse
from collections.abc import Iterable, Sequence
from typing import Any, Final

from litestar import connection, datastructures, handlers

from sagapost_chassis import problems, web
from sagapost_contracts import access, idempotency
from sagapost_gateway import errors

BODY_TIMEOUT_S: Final = 10.0
CHECKOUT_MAX_BYTES: Final = 8 * 1024  # the order service's own limit
WAIT_MAX_S: Final = 30
_QUERY_MAX: Final = 20
_WORD_MAX: Final = 100
_ACCEPT_MAX: Final = 1000  # browsers send some 150 characters; sorting thousands of media types costs much
_BIGINT_MAX: Final = 2**63 - 1

Headers = Iterable[tuple[bytes, bytes]]

_JSON: Final = re.compile(rb'\Aapplication/json(?:[ \t]*;[ \t]*charset=(?:utf-8|"utf-8"))?\Z', re.IGNORECASE)
_BEARER: Final = re.compile(rb"\Abearer +([!-~]{1,200})\Z", re.IGNORECASE)
_NUMBER: Final = re.compile(r"\A[1-9][0-9]{0,18}\Z", re.ASCII)
_UUID: Final = re.compile(r"\A[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
_SEQ: Final = re.compile(rb"\A[0-9]{1,9}\Z")
_ENTITY_TAGS: Final = re.compile(rb"\A[\x20-\x7e]{1,256}\Z")
_WAIT: Final = re.compile(rb"(?:\A|[,; \t])wait[ \t]*=[ \t]*([0-9]{1,6})(?:\Z|[,; \t])", re.IGNORECASE)


def values(headers: Headers, name: bytes) -> list[bytes]:
    """Give every value of a header, one for each time it was sent."""
    return [value.strip(b" \t") for key, value in headers if key == name]


def require_json(headers: Headers) -> None:
    """Let pass only plain application/json in UTF-8, said once.

    Raises:
        MediaTypeError: another type, a charset other than UTF-8, or any content encoding.

    """
    types = values(headers, b"content-type")
    if len(types) != 1 or not _JSON.match(types[0]):
        raise errors.MediaTypeError("Send the body as Content-Type: application/json.")
    if values(headers, b"content-encoding"):
        raise errors.MediaTypeError("Send the body without a Content-Encoding.")


def idempotency_key(headers: Headers) -> str | None:
    """Give the key without its quotes, so that both spellings name the same request; None when there is no header.

    Raises:
        KeyInvalidError: repeated, empty, over 255 characters, with anything but visible ASCII, with an e-mail address or a card number.

    """
    keys = values(headers, b"idempotency-key")
    if not keys:
        return None
    key = idempotency.bare(keys[0].decode("latin-1")) if len(keys) == 1 else None
    if key is None:
        raise errors.KeyInvalidError(idempotency.SENTENCE)
    return key


def key_digest(headers: Headers, env: str) -> str | None:
    """Give the SHA-256 of the API key in hexadecimal; None when there is no Authorization header.

    Raises:
        UnauthorizedError: repeated, another scheme, no key of ours, or one of another environment.

    """
    given = values(headers, b"authorization")
    if not given:
        return None
    found = _BEARER.match(given[0]) if len(given) == 1 else None
    key = found.group(1).decode("ascii") if found else ""
    if access.env_of(key) == env:
        return access.digest(key).hex()
    detail = "Send one API key, as Authorization: Bearer sp_…" if access.env_of(key) is None else f"This key is not for {env}."
    raise errors.UnauthorizedError(detail, headers={"WWW-Authenticate": 'Bearer error="invalid_token"'})


async def read_body(request: problems.Request, limit_bytes: int = web.MAX_BODY_BYTES, timeout_s: float = BODY_TIMEOUT_S) -> bytes:
    """Read the body, whether its length is announced or not.

    Raises:
        BodyTooLargeError: more than `limit_bytes`, before anything is read when the length says so.
        BodySlowError: not whole after `timeout_s`.
        BodyCutError: the client went away.

    """
    too_large = errors.BodyTooLargeError(f"A body may have at most {limit_bytes} bytes.")
    announced = values(request.scope["headers"], b"content-length")
    if announced and (not announced[0].isdigit() or int(announced[0][:20]) > limit_bytes):
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                event = await request.receive()
                if event["type"] != "http.request":
                    raise errors.BodyCutError("The body ended early.")
                body += event["body"]
                if len(body) > limit_bytes:
                    raise too_large
                if not event["more_body"]:
                    return bytes(body)
    except TimeoutError as exc:
        raise errors.BodySlowError(f"Send the whole body within {timeout_s:g} seconds.", headers={"Connection": "close"}) from exc


def number(text: str) -> str:
    """Pass an identifier that a bigint column can hold on as it is written.

    Raises:
        NothingHereError: anything else, so that it costs no call.

    """
    if not _NUMBER.match(text) or int(text) > _BIGINT_MAX:
        raise errors.NothingHereError("There is nothing with this identifier.")
    return text


def saga_id(text: str) -> str:
    """Pass a UUID on in lower case.

    Raises:
        NothingHereError: anything else, so that it costs no call.

    """
    lowered = text.lower()
    if not _UUID.match(lowered):
        raise errors.NothingHereError("There is no saga with this identifier.")
    return lowered


def entity_tags(headers: Headers) -> str | None:
    """Give If-None-Match when it is printable; what is not can match nothing and is left out."""
    found = values(headers, b"if-none-match")
    return found[0].decode("ascii") if len(found) == 1 and _ENTITY_TAGS.match(found[0]) else None


def last_event_id(headers: Headers) -> str | None:
    """Give the number of the last event that a client saw; anything else begins at the beginning."""
    found = values(headers, b"last-event-id")
    return found[0].decode("ascii") if len(found) == 1 and _SEQ.match(found[0]) else None


def if_match(headers: Headers) -> str:
    """Give If-Match when it is printable, otherwise nothing, which matches no version."""
    found = values(headers, b"if-match")
    return found[0].decode("ascii") if len(found) == 1 and _ENTITY_TAGS.match(found[0]) else ""


def query(request: problems.Request) -> str:
    """Write the first 20 query parameters anew, each as often as it was given; cut where none that means anything is as long."""
    given = list(request.query_params.multi_items())[:_QUERY_MAX]
    return urllib.parse.urlencode([(name[:_WORD_MAX], str(value)[:_WORD_MAX]) for name, value in given])


def preferred(headers: Headers, kinds: Sequence[str]) -> str | None:
    """Return which of these media types the client would rather have, the first where it does not mind.

    None when the client says nothing, wants none of them, or sends a list that is too long to be sorted for it.
    """
    accepted = b",".join(values(headers, b"accept")).decode("latin-1")
    if not accepted or len(accepted) > _ACCEPT_MAX:
        return None
    return datastructures.Accept(accepted).best_match(list(kinds))


def wait_s(headers: Headers) -> int:
    """Give how long the client would wait for a change (RFC 7240), 0 to 30 seconds."""
    for value in values(headers, b"prefer"):
        found = _WAIT.search(value)
        if found:
            return min(int(found.group(1)), WAIT_MAX_S)
    return 0


async def gone(request: problems.Request) -> None:
    """Return when the client has gone away; to be asked only when nobody reads the body any more."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def exact_path(request: connection.ASGIConnection[Any, Any, Any, Any], _: handlers.BaseRouteHandler) -> None:
    """Guard: litestar also routes `/api//x/` to `/api/x`; one resource has one spelling here.

    Raises:
        NothingHereError: the path only matched after slashes had been dropped.

    """
    raw = dict(request.scope).get("raw_path", b"")
    path = request.scope["path"]
    if isinstance(raw, bytes) and urllib.parse.unquote(raw.decode("ascii")) != path:
        raise errors.NothingHereError("There is nothing here; look for a doubled or trailing slash.")
