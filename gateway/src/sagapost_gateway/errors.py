"""What the edge refuses, and the two ways in which the order service can fail it.

FailureError
├── DomainError
│   ├── KeyInvalidError        400 idempotency-key-invalid
│   ├── BodyCutError           400 malformed-request
│   ├── NothingHereError       404 not-found
│   ├── BodySlowError          408 request-timeout
│   ├── BodyTooLargeError      413 payload-too-large
│   └── MediaTypeError         415 unsupported-media-type
└── TransientError
    ├── OrderUnavailableError  503 order-service-unavailable
    ├── TooManyError           503 overloaded
    └── OrderTimeoutError      504 upstream-timeout
"""

from sagapost_chassis import errors


class KeyInvalidError(errors.DomainError):
    """The Idempotency-Key header is malformed, too long or there twice."""

    slug = "idempotency-key-invalid"
    title = "The Idempotency-Key header cannot be used"
    status = 400


class BodyCutError(errors.DomainError):
    """The connection ended inside the body; nobody is left to read the answer."""

    title = "The request cannot be read"


class NothingHereError(errors.DomainError):
    """The path, or the identifier in it, names nothing."""

    slug = "not-found"
    title = "There is nothing here"
    status = 404


class BodySlowError(errors.DomainError):
    """The body did not arrive in time."""

    slug = "request-timeout"
    title = "The body took too long"
    status = 408


class BodyTooLargeError(errors.DomainError):
    """The body is over the limit, announced or not."""

    slug = "payload-too-large"
    title = "The body is too large"
    status = 413


class MediaTypeError(errors.DomainError):
    """The body is not plain application/json."""

    slug = "unsupported-media-type"
    title = "Only application/json without a content encoding is read"
    status = 415


class OrderUnavailableError(errors.TransientError):
    """The order service refused the connection, dropped it or failed."""


class TooManyError(errors.TransientError):
    """As many as may are waiting for news of their orders."""


class OrderTimeoutError(errors.TransientError):
    """The order service did not answer before the deadline."""
