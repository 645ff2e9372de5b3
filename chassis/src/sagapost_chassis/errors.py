"""The three kinds of failure every service sorts its own into.

FailureError
├── DomainError      the caller's doing: a 4xx over HTTP, a dead letter on the broker
├── TransientError   worth another try: 503 over HTTP, the retry ladder on the broker
└── PermanentError   no retry will help: 500 over HTTP, a dead letter on the broker
"""

from typing import ClassVar

import msgspec


class FieldError(msgspec.Struct, frozen=True, kw_only=True):
    """One wrong field of a request: a JSON pointer (RFC 6901) and a code."""

    pointer: str
    code: str


class FailureError(Exception):
    """Base of everything a service raises on purpose."""


class DomainError(FailureError):
    """An expected refusal; subclasses set slug and status (RFC 9457); the title is the type's."""

    slug: ClassVar[str] = "malformed-request"
    status: ClassVar[int] = 400

    def __init__(self, detail: str, *, errors: tuple[FieldError, ...] = (), headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = errors
        self.headers = headers or {}


class TransientError(FailureError):
    """Something is down or slow; the same call may succeed later, not before `delay_s` seconds.

    `counted=False`: the fault is not the message's, for instance a server is away. It costs no attempt and never makes a dead letter.
    A subclass sets its default; the argument overrides it for one error.
    """

    counted: bool = True

    def __init__(self, detail: str, *, delay_s: float = 0, counted: bool | None = None) -> None:
        super().__init__(detail)
        self.delay_s = delay_s
        if counted is not None:
            self.counted = counted


class PermanentError(FailureError):
    """The same call will fail for ever."""


class NotReadyError(FailureError):
    """A process cannot do its work; the sentence says why and what to do, and may be shown to anybody who asks for its health."""
