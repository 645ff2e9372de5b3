"""Every refusal of the provider.

ProviderError          becomes {"error": {"code", "message"}} with its status
├── RefusedError       the caller's doing, 4xx
└── UnavailableError   the provider's own trouble, 503; no money moved
"""


class ProviderError(Exception):
    """A refusal with an HTTP status and a code; `replayed`: the answer that is kept under the key."""

    def __init__(self, status: int, code: str, message: str, *, replayed: bool = False) -> None:
        super().__init__(message)
        self.replayed = replayed
        self.status = status
        self.code = code
        self.message = message


class RefusedError(ProviderError):
    """The request is wrong, or the answer is a final no."""


class UnavailableError(ProviderError):
    """Another try may succeed."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(503, code, message)
