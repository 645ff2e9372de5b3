"""What the edge refuses, and the two ways in which the order service can fail it.

FailureError
├── DomainError
│   ├── KeyInvalidError        400 idempotency-key-invalid
│   ├── BodyCutError           400 malformed-request
│   ├── UnauthorizedError      401 unauthorized
│   ├── ScopeError             403 insufficient-scope
│   ├── NothingHereError       404 not-found
│   ├── BodySlowError          408 request-timeout
│   ├── BodyTooLargeError      413 payload-too-large
│   ├── MediaTypeError         415 unsupported-media-type
│   └── LimitedError           429 rate-limited
└── TransientError
    ├── OrderUnavailableError  503 order-service-unavailable
    │   └── OrderBrokenError       the connection broke before an answer
    ├── CircuitOpenError       503 circuit-open
    ├── OverloadedError        503 overloaded
    ├── TooManyError           503 overloaded
    └── OrderTimeoutError      504 upstream-timeout
"""

from sagapost_chassis import errors


class KeyInvalidError(errors.DomainError):
    """The Idempotency-Key header is malformed, too long, there twice, or holds an e-mail address or a card number."""

    slug = "idempotency-key-invalid"
    status = 400


class BodyCutError(errors.DomainError):
    """The client has gone, inside the body or behind it; nobody is left to read the answer."""


class UnauthorizedError(errors.DomainError):
    """There is no key, or one that cannot be used."""

    slug = "unauthorized"
    status = 401


class ScopeError(errors.DomainError):
    """The key is good, but not for this."""

    slug = "insufficient-scope"
    status = 403


class NothingHereError(errors.DomainError):
    """The path, or the identifier in it, names nothing."""

    slug = "not-found"
    status = 404


class BodySlowError(errors.DomainError):
    """The body did not arrive in time."""

    slug = "request-timeout"
    status = 408


class BodyTooLargeError(errors.DomainError):
    """The body is over the limit, announced or not."""

    slug = "payload-too-large"
    status = 413


class MediaTypeError(errors.DomainError):
    """The body is not plain application/json."""

    slug = "unsupported-media-type"
    status = 415


class LimitedError(errors.DomainError):
    """The client has made as many calls as it may."""

    slug = "rate-limited"
    status = 429


class OrderUnavailableError(errors.TransientError):
    """The order service refused the connection, dropped it or failed."""


class OrderBrokenError(OrderUnavailableError):
    """The connection broke before the answer was whole; `sent` unless it could not even be opened."""

    def __init__(self, detail: str, *, sent: bool) -> None:
        super().__init__(detail)
        self.sent = sent


class CircuitOpenError(errors.TransientError):
    """The order service has failed so often that it is left alone until it is ready; nothing was sent."""


class OverloadedError(errors.TransientError):
    """More calls are under way than the order service can answer in good time; nothing was sent."""


class TooManyError(errors.TransientError):
    """As many as may are waiting for news of their orders."""


class OrderTimeoutError(errors.TransientError):
    """The order service did not answer before the deadline."""
