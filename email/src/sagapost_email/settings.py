"""What the email process reads from its environment."""

from sagapost_chassis import ladder, settings
from sagapost_email import domain


class Settings(settings.Common, frozen=True, kw_only=True):
    """One field per SAGAPOST_ variable; `smtp_connections` bounds the conversations with the mail server.

    `retry_delays_s`: see ladder.parse.
    """

    port: int = 8003
    amqp_url: str
    smtp_host: str
    smtp_port: int
    smtp_connections: int = 16
    smtp_timeout_s: float = 30
    retry_delays_s: str = ladder.DEFAULT
    mail_from: str = "no-reply@sagapost.example"

    def __post_init__(self) -> None:
        """Refuse a sender that is no plain address, and limits that would let nothing through."""
        super().__post_init__()
        if not domain.is_address(self.mail_from):
            raise ValueError("MAIL_FROM must be one plain address, local@domain.tld")
        if self.smtp_connections < 1 or self.smtp_timeout_s <= 0:
            raise ValueError("SMTP_CONNECTIONS must be at least 1 and SMTP_TIMEOUT_S above 0")
        ladder.parse(self.retry_delays_s)
