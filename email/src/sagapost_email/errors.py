"""What email raises on purpose.

FailureError
├── TransientError
│   ├── MailServerUnavailableError   no conversation, or one that broke off
│   ├── MailDeferredError            the server said 4xx: not before minutes have passed
│   └── SendingNowError              another delivery of the same message is at it
└── PermanentError
    ├── MailRefusedError             the server said 5xx: this mail will never be taken
    └── UnknownTemplateError         a command asks for a mail that there is not
"""

from sagapost_chassis import errors

DEFERRED_DELAY_S = 60


class MailServerUnavailableError(errors.TransientError):
    """Nobody to talk to, or silence in the middle; whether the mail was taken is not known."""

    code = "unreachable"


class MailDeferredError(errors.TransientError):
    """The server will not take this mail now."""

    def __init__(self, reply_code: int, text: str) -> None:
        super().__init__(f"{reply_code} {text}", delay_s=DEFERRED_DELAY_S)
        self.code = f"smtp_{reply_code}"


class SendingNowError(errors.TransientError):
    """Another delivery of the same message is sending the mail."""


class MailRefusedError(errors.PermanentError):
    """The mail will never be taken; `code` says by whom or why."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code


class UnknownTemplateError(errors.PermanentError):
    """There is no mail of this name."""
