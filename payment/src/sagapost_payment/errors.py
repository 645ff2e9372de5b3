"""What payment raises on purpose.

FailureError
├── TransientError
│   ├── ProviderUnavailableError   nothing reached the provider
│   ├── OutcomeUnknownError        the provider may have acted; asked, it knows of nothing yet
│   └── StalePaymentError          somebody else moved the payment meanwhile
└── PermanentError
    └── ForeignSagaError           the saga's one payment belongs to another order
"""

from sagapost_chassis import errors


class ProviderUnavailableError(errors.TransientError):
    """The provider cannot be asked right now; nothing that it would act on has reached it.

    It costs no attempt, unless the request itself may be the cause of the answer (`counted`).
    """

    counted = False


class OutcomeUnknownError(errors.TransientError):
    """A call's outcome is not known; the same call with the same key follows.

    It costs no attempt (`counted=False`) when the provider was too slow, gone or busy: every other call would have met the same.
    """


class StalePaymentError(errors.TransientError):
    """The payment has another version than the one that was read."""


class ForeignSagaError(errors.PermanentError):
    """A message names a saga together with another order than the saga's; no order service sends that."""
