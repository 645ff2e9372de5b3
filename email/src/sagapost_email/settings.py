"""What the email process reads from its environment."""

from typing import Literal

from sagapost_chassis import ladder, settings
from sagapost_email import domain, recent, sender


class Settings(settings.Internal, frozen=True, kw_only=True):
    """One field per SAGAPOST_ variable.

    `smtp_connections` bounds the conversations with the mail server, and the mails that one death of this process sends a second time.
    `smtp_tls`: off, starttls (a server that offers none is refused) or tls from the first byte; `smtp_ca_file`: not the system's CAs.
    `smtp_dot_timeout_s`: what the server may take to answer the final dot; `smtp_doubt_s`: how long a mail that was probably taken waits
    before it is sent again, at the first break. `order_url`: the order service, asked before a receipt leaves; empty: nobody is asked.
    `retry_delays_s`: see ladder.parse. `mail_memory`: a folder for recent.Recent; empty: this process's own memory and no more.
    `mails_per_recipient_hour`: the most mails that one address gets in an hour, 0 for any number; further ones wait.
    """

    port: int = 8003
    amqp_url: settings.BrokerUrl
    smtp_host: str
    smtp_port: int
    smtp_connections: int = 16
    smtp_timeout_s: float = 30
    smtp_dot_timeout_s: float = 600
    smtp_doubt_s: float = recent.DOUBT_S
    smtp_tls: Literal["off", "starttls", "tls"] = "off"
    smtp_ca_file: str = ""
    smtp_user: str = ""
    smtp_password: settings.Secret = ""
    retry_delays_s: str = ladder.DEFAULT
    mail_memory: str = ""
    mails_per_recipient_hour: int = 0
    order_url: str = ""
    mail_from: str = "no-reply@sagapost.example"

    def __post_init__(self) -> None:
        """Refuse a sender that is no plain address, and limits that would let nothing through."""
        super().__post_init__()
        if not domain.is_address(self.mail_from):
            raise ValueError("MAIL_FROM must be one plain address, local@domain.tld")
        if self.smtp_connections < 1 or self.smtp_timeout_s <= 0:
            raise ValueError("SMTP_CONNECTIONS must be at least 1 and SMTP_TIMEOUT_S above 0")
        if self.smtp_dot_timeout_s <= 0 or self.smtp_doubt_s < 0 or self.mails_per_recipient_hour < 0:
            raise ValueError("SMTP_DOT_TIMEOUT_S must be above 0, SMTP_DOUBT_S and MAILS_PER_RECIPIENT_HOUR at least 0")
        if bool(self.smtp_user) != bool(self.smtp_password):
            raise ValueError("SMTP_USER and SMTP_PASSWORD belong together; set both or neither")
        if self.smtp_user and self.smtp_tls == "off":
            raise ValueError("SMTP_PASSWORD would travel in the clear; set SMTP_TLS to starttls or tls")
        ladder.parse(self.retry_delays_s)

    def weaknesses(self) -> list[str]:
        """Name a mail server that is spoken to in the clear, an order service that is not asked, and a missing secret."""
        in_clear = (
            "SAGAPOST_SMTP_TLS: mails travel in the clear; set it to starttls or tls, with SAGAPOST_SMTP_CA_FILE for a CA of your own"
        )
        unasked = "SAGAPOST_ORDER_URL: it is not set; without it customers of cancelled orders are told that they paid"
        return [
            *super().weaknesses(),
            *([in_clear] if self.smtp_tls == "off" else []),
            *([] if self.order_url else [unasked]),
        ]

    def security(self) -> sender.Security:
        """Give what the conversations with the mail server are secured by."""
        return sender.Security(mode=self.smtp_tls, ca_file=self.smtp_ca_file, user=self.smtp_user, password=self.smtp_password)
