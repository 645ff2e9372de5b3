"""What ends a relay's run.

FailureError
├── TransientError
│   └── FencedError     another relay owns the cursors now; start over as a standby
└── PermanentError
    └── RefusedError    this server's snapshots must not be trusted with these cursors; a person must look
"""

from sagapost_chassis import errors


class FencedError(errors.TransientError):
    """Another relay has taken the cursors."""


class RefusedError(errors.PermanentError):
    """Going on could lose messages."""
