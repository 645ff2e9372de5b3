"""What the order service reads from the environment."""

from typing import Annotated

import msgspec

from sagapost_chassis import ladder, retention, settings
from sagapost_order import states

_Seconds = Annotated[float, msgspec.Meta(gt=0, le=7 * 24 * 3600)]
_Attempts = Annotated[int, msgspec.Meta(ge=0, le=1000)]


class Settings(settings.Internal, frozen=True, kw_only=True):
    """`pay_window_s`: seconds after which an unpaid order is given up; `retry_delays_s`: see ladder.parse.

    `internal_secret`: what callers must send. `inbox_days`, `customer_days`: see retention.Terms.
    The others are the saga's policy, see states.Policy.
    """

    database_url: settings.DatabaseUrl
    amqp_url: settings.BrokerUrl
    port: int = 8001
    retry_delays_s: str = ladder.DEFAULT
    pay_window_s: _Seconds = 900
    notify_s: _Seconds = states.POLICY.notify_s
    notify_max_s: _Seconds = states.POLICY.notify_max_s
    notify_attempts: _Attempts = states.POLICY.notify_attempts
    notify_parked_s: _Seconds = states.POLICY.notify_parked_s
    compensate_s: _Seconds = states.POLICY.compensate_s
    compensate_max_s: _Seconds = states.POLICY.compensate_max_s
    compensate_attempts: _Attempts = states.POLICY.compensate_attempts
    compensate_parked_s: _Seconds = states.POLICY.compensate_parked_s
    compensate_parked_max_s: _Seconds = states.POLICY.compensate_parked_max_s
    compensate_parked_attempts: _Attempts = states.POLICY.compensate_parked_attempts
    receipt_lease_s: _Seconds = states.POLICY.receipt_lease_s
    cancel_window_s: Annotated[float, msgspec.Meta(ge=0, le=365 * 24 * 3600)] = states.POLICY.cancel_window_s
    notify_failure: str = states.POLICY.notify_failure
    declines_per_user_hour: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    inbox_days: retention.Days = retention.INBOX_DAYS
    customer_days: retention.Days = 0

    def __post_init__(self) -> None:
        """Refuse a policy that does not exist."""
        super().__post_init__()
        if self.notify_failure not in {"park", "refund"}:
            raise ValueError("NOTIFY_FAILURE must be park or refund")
        ladder.parse(self.retry_delays_s)

    def policy(self) -> states.Policy:
        """Give the saga's policy."""
        return msgspec.convert(self, states.Policy, from_attributes=True)
