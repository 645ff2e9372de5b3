"""Errors over HTTP: every failure becomes application/problem+json (RFC 9457) that carries nothing internal."""

from typing import Any, Final

import litestar
import msgspec
from litestar import exceptions

from sagapost_chassis import errors, telemetry
from sagapost_chassis.errors import FieldError

MEDIA_TYPE: Final = "application/problem+json"
_TITLES: Final = {
    400: ("malformed-request", "The request cannot be read"),
    401: ("unauthorized", "Credentials are missing or wrong"),
    403: ("insufficient-scope", "These credentials do not allow this"),
    404: ("not-found", "There is nothing here"),
    405: ("method-not-allowed", "This method is not allowed here"),
    413: ("payload-too-large", "The body is too large"),
    415: ("unsupported-media-type", "Only application/json without a content encoding is read"),
    422: ("validation-failed", "The request does not fit"),
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
    title: str,
    detail: str,
    *,
    fields: tuple[FieldError, ...] = (),
    headers: dict[str, str] | None = None,
) -> litestar.Response[bytes]:
    """Make the problem answer; `fields` are the wrong fields of a 422."""
    body = Problem(
        type=f"/problems/{slug}",
        title=title,
        status=status,
        detail=detail,
        instance=request.url.path[:200],
        trace_id=telemetry.current_trace_id(),
        errors=fields,
    )
    return litestar.Response(msgspec.json.encode(body), status_code=status, media_type=MEDIA_TYPE, headers=headers)


def _domain(request: Request, exc: errors.DomainError) -> litestar.Response[bytes]:
    return answer(request, exc.status, exc.slug, exc.title, exc.detail, fields=exc.errors, headers=exc.headers)


def _transient(request: Request, exc: errors.TransientError) -> litestar.Response[bytes]:
    telemetry.log.warning("request.unavailable", reason=str(exc))
    title = "The service cannot do this right now"
    return answer(request, 503, "temporarily-unavailable", title, "Try again in a moment.", headers={"Retry-After": "1"})


def _http(request: Request, exc: exceptions.HTTPException) -> litestar.Response[bytes]:
    if exc.status_code >= 500:
        return _unexpected(request, exc)
    status = exc.status_code if exc.status_code in _TITLES else 400
    slug, title = _TITLES[status]
    return answer(request, status, slug, title, title + ".", headers=exc.headers)


def _unexpected(request: Request, exc: Exception) -> litestar.Response[bytes]:
    telemetry.log.error("request.failed", exc_info=exc)
    return answer(request, 500, "internal-error", "Something went wrong here", "The failure is logged under this trace id.")


def handlers() -> dict[int | type[Exception], Any]:
    """Give the one mapping from failures to problems that every application uses."""
    return {
        errors.DomainError: _domain,
        errors.TransientError: _transient,
        exceptions.HTTPException: _http,
        Exception: _unexpected,
    }
