"""Errors over HTTP: every failure becomes application/problem+json (RFC 9457) that carries nothing internal."""

import http
from collections.abc import Sequence
from typing import Any, Final

import litestar
import msgspec
from litestar import exceptions, types

from sagapost_chassis import errors, telemetry, web_lines
from sagapost_chassis.errors import FieldError

_OTHER: Final = "The request cannot be processed"
MEDIA_TYPE: Final = "application/problem+json"
# One title for each type, whoever answers with it: RFC 9457, 3.1.3.
TITLES: Final = {
    "malformed-request": "The request cannot be read",
    "idempotency-key-invalid": "The Idempotency-Key header cannot be used",
    "unauthorized": "Credentials are missing or wrong",
    "insufficient-scope": "These credentials do not allow this",
    "cross-site-request": "A page of another site may not do this",
    "not-found": "There is nothing here",
    "method-not-allowed": "This method is not allowed here",
    "request-timeout": "The request took too long",
    "idempotency-in-progress": "The first request with this key is still running",
    "order-not-cancellable": "The order cannot be cancelled any more",
    "saga-action-not-possible": "The saga is in a state in which this does nothing",
    "version-mismatch": "The saga has another version",
    "payload-too-large": "The body is too large",
    "unsupported-media-type": "Only application/json without a content encoding is read",
    "misdirected-request": "This is not the host that was asked for",
    "validation-failed": "The request does not fit",
    "price-changed": "A price has changed",
    "unknown-product": "There is no such product",
    "idempotency-key-reused": "The idempotency key has been used for another request",
    "rate-limited": "Too many calls",
    "internal-error": "Something went wrong here",
    "temporarily-unavailable": "The service cannot do this right now",
    "order-service-unavailable": "The order service is unavailable",
    "circuit-open": "The order service is given time to recover",
    "overloaded": "Too much is being asked at once",
    "upstream-timeout": "The order service did not answer in time",
}
_SLUGS: Final = {
    400: "malformed-request",
    401: "unauthorized",
    403: "insufficient-scope",
    404: "not-found",
    405: "method-not-allowed",
    413: "payload-too-large",
    415: "unsupported-media-type",
    422: "validation-failed",
}


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of every error answer."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    trace_id: str | None = None
    errors: tuple[FieldError, ...] = ()


Request = litestar.Request[Any, Any, Any]


def answer(
    request: Request,
    status: int,
    slug: str,
    detail: str,
    *,
    fields: tuple[FieldError, ...] = (),
    headers: dict[str, str] | None = None,
) -> litestar.Response[bytes]:
    """Make the problem answer; `fields` are the wrong fields of a 422. Without a slug its type is about:blank, its title the status's."""
    web_lines.note(request.scope, problem=slug or str(status))
    body = Problem(
        type=f"/problems/{slug}" if slug else "about:blank",
        title=TITLES.get(slug, _OTHER) if slug else http.HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        instance=request.url.path[:200],
        trace_id=telemetry.current_trace_id(),
        errors=fields,
    )
    return litestar.Response(msgspec.json.encode(body), status_code=status, media_type=MEDIA_TYPE, headers=headers)


async def refuse(
    scope: types.HTTPScope,
    send: types.Send,
    status: int,
    slug: str,
    detail: str,
    *,
    headers: Sequence[tuple[bytes, bytes]] = (),
    trace_id: str | None = None,
) -> None:
    """Answer a request before it reaches a handler. `trace_id` defaults to that of the running span."""
    web_lines.note(scope, problem=slug)
    body = msgspec.json.encode(
        Problem(
            type=f"/problems/{slug}",
            title=TITLES[slug],
            status=status,
            detail=detail,
            instance=scope["path"][:200],
            trace_id=trace_id or telemetry.current_trace_id(),
        )
    )
    told = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": told})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body, "more_body": False})


def _domain(request: Request, exc: errors.DomainError) -> litestar.Response[bytes]:
    return answer(request, exc.status, exc.slug, exc.detail, fields=exc.errors, headers=exc.headers)


def _transient(request: Request, exc: errors.TransientError) -> litestar.Response[bytes]:
    telemetry.log.warning("request.unavailable", reason=str(exc))
    return answer(request, 503, "temporarily-unavailable", "Try again in a moment.", headers={"Retry-After": "1"})


def _http(request: Request, exc: exceptions.HTTPException) -> litestar.Response[bytes]:
    """Keep the status: a 405 becomes /problems/method-not-allowed, one without a type of ours about:blank."""
    if exc.status_code >= 500:
        return _unexpected(request, exc)
    slug = _SLUGS.get(exc.status_code, "")
    detail = TITLES[slug] if slug else http.HTTPStatus(exc.status_code).phrase  # a status without a type of ours stays what it is
    return answer(request, exc.status_code, slug, detail + ".", headers=exc.headers)


def _unexpected(request: Request, exc: Exception) -> litestar.Response[bytes]:
    telemetry.log.error("request.failed", exc_info=exc)
    return answer(request, 500, "internal-error", "The failure is logged under this trace id.")


def handlers() -> dict[int | type[Exception], Any]:
    """Give the one mapping from failures to problems that every application uses."""
    return {
        errors.DomainError: _domain,
        errors.TransientError: _transient,
        exceptions.HTTPException: _http,
        Exception: _unexpected,
    }
