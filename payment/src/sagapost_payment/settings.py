"""What the payment process reads from its environment."""

from sagapost_chassis import ladder, retention, settings, steps
from sagapost_payment import consumer, domain, provider


class Settings(settings.Common, frozen=True, kw_only=True):
    """One field per SAGAPOST_ variable; `provider_attempts` is how many calls may stay unanswered before we give up.

    `look_s`: seconds after which a payment that should have moved on is looked at again. `retry_delays_s`: see ladder.parse.
    `max_clock_skew_s`: by how much the clocks of order and payment may differ before readiness shows it.
    `inbox_days`, `customer_days`: see retention.Terms.
    """

    port: int = 8002
    database_url: settings.DatabaseUrl
    amqp_url: settings.BrokerUrl
    provider_url: settings.HttpsUrl
    provider_timeout_s: float = 10
    provider_attempts: int = 3
    look_s: float = 60
    max_clock_skew_s: float = 10
    retry_delays_s: str = consumer.RETRY_DELAYS_S
    inbox_days: retention.Days = retention.INBOX_DAYS
    customer_days: retention.Days = 0

    def __post_init__(self) -> None:
        """Refuse limits that would never let a call through."""
        super().__post_init__()
        if self.provider_timeout_s <= 0 or self.provider_attempts < 1 or self.look_s <= 0:
            raise ValueError("PROVIDER_TIMEOUT_S and LOOK_S must be above 0 and PROVIDER_ATTEMPTS at least 1")
        if self.max_clock_skew_s <= 0:
            raise ValueError("MAX_CLOCK_SKEW_S must be above 0")
        ladder.parse(self.retry_delays_s)

    def terms(self) -> domain.Terms:
        """Give what the use cases need of it."""
        call_s = provider.longest_s(self.provider_timeout_s)
        return domain.Terms(max_unanswered=self.provider_attempts, look_s=self.look_s, call_s=call_s, seen=steps.Steps())
