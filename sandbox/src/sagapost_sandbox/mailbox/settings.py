"""The mailbox's settings from the environment; knows no default but development's."""

from typing import Literal

from sagapost_chassis import settings, sites


class Settings(settings.Common, frozen=True, kw_only=True):
    """`mailbox_ledger` is the file of the accepted mails; `mailbox_delay_s` what the server takes to accept one.

    `shop_url`: the address that its pages link back to; empty: no link.
    `smtp_tls` starttls demands it before any mail; both modes need `smtp_certificate` and `smtp_key`, PEM files.
    `allowed_hosts`: names that are answered beside those of loopback, see sites.guarding.
    """

    port: int = 8026
    smtp_port: int = 1025
    mailbox_ledger: str
    mailbox_delay_s: float = 0.0
    shop_url: str = ""
    smtp_tls: Literal["off", "starttls", "tls"] = "off"
    smtp_certificate: str = ""
    smtp_key: str = ""
    allowed_hosts: str = ""

    def __post_init__(self) -> None:
        """Refuse what is no list of host names."""
        super().__post_init__()
        self.hosts()

    def hosts(self) -> frozenset[str]:
        """Return the names under which it is called, beside those of loopback."""
        return sites.names(self.allowed_hosts)

    def weaknesses(self) -> list[str]:
        """Name itself."""
        return ["the sandbox's mailbox delivers no mail; it is for development and tests only"]
