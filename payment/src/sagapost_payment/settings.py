"""What the payment process reads from its environment."""

from sagapost_chassis import settings


class Settings(settings.Common, frozen=True, kw_only=True):
    """One field per SAGAPOST_ variable; `provider_attempts` is how many calls may stay unanswered before we give up."""

    port: int = 8002
    database_url: str
    amqp_url: str
    provider_url: str
    provider_timeout_s: float = 10
    provider_attempts: int = 3

    def __post_init__(self) -> None:
        """Refuse limits that would never let a call through."""
        super().__post_init__()
        if self.provider_timeout_s <= 0 or self.provider_attempts < 1:
            raise ValueError("PROVIDER_TIMEOUT_S must be above 0 and PROVIDER_ATTEMPTS at least 1")
