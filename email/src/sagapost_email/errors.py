"""What email raises on purpose.

FailureError
├── TransientError
│   ├── MailServerUnavailableError   no conversation with the mail server, or it broke off before the mail was handed over
│   ├── MailInDoubtError             the conversation broke behind the final dot: the mail was probably taken
│   ├── MailDeferredError            the server answered 4xx, or refused the sender with 5xx: not before a minute has passed
│   ├── SendingNowError              another delivery is sending the same mail
│   ├── MemoryUnavailableError       the memory of mails cannot be used
│   ├── OrderUnavailableError        the order service did not say whether the receipt may go out
│   ├── UnknownSagaError             the order service has no such saga
│   └── TooManyMailsError            the recipient had as many mails in this hour as one may have
├── DomainError
│   └── NotWantedError               the order service says that the receipt must not go out (never leaves the handler)
└── PermanentError
    ├── MailRefusedError             the server answered 5xx to the recipient, to DATA or to the mail: it will never be taken
    └── UnknownTemplateError         a command asks for a mail that there is not

Of the transient ones only MailDeferredError and UnknownSagaError cost the message an attempt.
"""

from sagapost_chassis import errors

DEFERRED_DELAY_S = 60


class MailServerUnavailableError(errors.TransientError):
    """There is no conversation, or it broke off before the server had the mail."""

    counted = False


class MailInDoubtError(errors.TransientError):
    """The conversation broke behind the final dot: the mail was probably taken, and a second copy has to wait `delay_s` seconds."""

    counted = False


class MailDeferredError(errors.TransientError):
    """The server will not take this mail now."""

    def __init__(self, reply_code: int, text: str) -> None:
        super().__init__(f"{reply_code} {text}", delay_s=DEFERRED_DELAY_S)
        self.reply_code = reply_code
        self.code = f"smtp_{reply_code}"


class SendingNowError(errors.TransientError):
    """Another delivery, in this process or in another, is sending the mail."""

    counted = False


class MemoryUnavailableError(errors.TransientError):
    """The memory of mails cannot be read or written now."""

    counted = False


class OrderUnavailableError(errors.TransientError):
    """The order service did not say whether the receipt may go out."""

    counted = False


class TooManyMailsError(errors.TransientError):
    """The recipient had as many mails in the last hour as one may have."""

    counted = False


class NotWantedError(errors.DomainError):
    """The receipt must not go out: the order no longer stands, or the receipt was reported already."""

    def __init__(self, state: str) -> None:
        super().__init__(f"the order service does not want it sent: the saga is {state}")
        self.state = state


class UnknownSagaError(errors.TransientError):
    """The order service has no such saga. It costs an attempt: after the last one the message is a dead letter."""


class MailRefusedError(errors.PermanentError):
    """The mail will never be taken; `code` says by whom or why."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code


class UnknownTemplateError(errors.PermanentError):
    """There is no mail of this name."""
