"""What can go wrong in the order service, sorted into the chassis' three kinds; it must not know HTTP or SQL.

FailureError
├── DomainError                      the caller's doing
│   ├── MalformedRequestError        400 malformed-request
│   ├── ClientGoneError              400 malformed-request, which nobody reads
│   ├── IdempotencyKeyError          400 idempotency-key-invalid
│   ├── NotFoundError                404 not-found
│   ├── KeyInProgressError           409 idempotency-in-progress
│   ├── NotCancellableError          409 order-not-cancellable
│   ├── NoSuchActionError            409 saga-action-not-possible
│   ├── VersionMismatchError         412 version-mismatch
│   ├── MediaTypeError               415 unsupported-media-type
│   ├── RequestInvalidError          422 validation-failed
│   ├── KeyReusedError               422 idempotency-key-reused
│   ├── PriceChangedError            422 price-changed
│   ├── UnknownProductError          422 unknown-product
│   ├── TooManyDeclinesError         429 rate-limited
│   └── UserBusyError                429 rate-limited
├── TransientError                   worth another try
│   ├── NotStoredError               the commit broke, and the order is not there
│   ├── SagaMissingError             a message came before its saga could be seen
│   └── SagaMovedError               somebody else moved the saga: the optimistic fence held
└── PermanentError                   no retry will help
    ├── IllegalEventError            the table has no cell for this event in this state
    └── ForeignOrderError            a message names a saga and another saga's order
"""

from typing import ClassVar

from sagapost_chassis import errors


class MalformedRequestError(errors.DomainError):
    """The body is not one JSON document as this service reads it."""

    slug: ClassVar[str] = "malformed-request"
    status: ClassVar[int] = 400


class ClientGoneError(errors.DomainError):
    """The client has gone away before anything was done for it."""

    slug: ClassVar[str] = "malformed-request"
    status: ClassVar[int] = 400


class IdempotencyKeyError(errors.DomainError):
    """The Idempotency-Key header is empty, too long, repeated, or holds what a key may not hold: an e-mail address, for one."""

    slug: ClassVar[str] = "idempotency-key-invalid"
    status: ClassVar[int] = 400


class KeyInProgressError(errors.DomainError):
    """The first request with this key has no answer yet."""

    slug: ClassVar[str] = "idempotency-in-progress"
    status: ClassVar[int] = 409

    def __init__(self) -> None:
        super().__init__("Repeat the request in a moment: it will get the first one's answer.", headers={"Retry-After": "1"})


class KeyReusedError(errors.DomainError):
    """The key has been used for another body."""

    slug: ClassVar[str] = "idempotency-key-reused"
    status: ClassVar[int] = 422


class NotCancellableError(errors.DomainError):
    """The order is finished, and its customer comes too late."""

    slug: ClassVar[str] = "order-not-cancellable"
    status: ClassVar[int] = 409


class NoSuchActionError(errors.DomainError):
    """The saga's state has no use for what the operator wants."""

    slug: ClassVar[str] = "saga-action-not-possible"
    status: ClassVar[int] = 409


class VersionMismatchError(errors.DomainError):
    """The saga has another version than the one that the operator looked at."""

    slug: ClassVar[str] = "version-mismatch"
    status: ClassVar[int] = 412


class NotFoundError(errors.DomainError):
    """There is nothing of this id."""

    slug: ClassVar[str] = "not-found"
    status: ClassVar[int] = 404


class MediaTypeError(errors.DomainError):
    """The body is announced as something else than plain JSON."""

    slug: ClassVar[str] = "unsupported-media-type"
    status: ClassVar[int] = 415


class RequestInvalidError(errors.DomainError):
    """The document is JSON, but not a checkout; `errors` points at what is wrong."""

    slug: ClassVar[str] = "validation-failed"
    status: ClassVar[int] = 422


class CurrentPrice(errors.FieldError, frozen=True, kw_only=True):
    """A price that is not the catalogue's, with the one that is."""

    current_price: str


class PriceChangedError(errors.DomainError):
    """The customer saw another price than the catalogue's."""

    slug: ClassVar[str] = "price-changed"
    status: ClassVar[int] = 422


class UnknownProductError(errors.DomainError):
    """The cart holds something that is not in the catalogue."""

    slug: ClassVar[str] = "unknown-product"
    status: ClassVar[int] = 422


class TooManyDeclinesError(errors.DomainError):
    """Too many payments of this user were declined within the last hour, or are open."""

    slug: ClassVar[str] = "rate-limited"
    status: ClassVar[int] = 429

    def __init__(self, wait_s: int) -> None:
        detail = "Too many payments of this user were declined within the last hour, or are open. Nothing was ordered."
        super().__init__(detail, headers={"Retry-After": str(wait_s)})


class UserBusyError(errors.DomainError):
    """Another checkout of this user is being placed, so that its declined payments cannot be counted yet."""

    slug: ClassVar[str] = "rate-limited"
    status: ClassVar[int] = 429

    def __init__(self) -> None:
        super().__init__("Another checkout of this user is being placed. Nothing was ordered; try again.", headers={"Retry-After": "1"})


class NotStoredError(errors.TransientError):
    """The connection broke during COMMIT and the order is not there: nothing happened. It costs no attempt."""

    counted = False


class SagaMissingError(errors.TransientError):
    """No saga of this id can be seen yet."""


class SagaMovedError(errors.TransientError):
    """The saga has another version than the one that was read."""


class IllegalEventError(errors.PermanentError):
    """The transition table has no cell for this."""


class ForeignOrderError(errors.PermanentError):
    """The order in the message is not the saga's."""
