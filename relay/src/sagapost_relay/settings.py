"""The relay's settings from the environment."""

from sagapost_chassis import settings


class Settings(settings.Common, frozen=True, kw_only=True):
    """One relay process tails one database's outbox."""

    database_url: str
    amqp_url: str
    batch: int = 256
    port: int = 8011
