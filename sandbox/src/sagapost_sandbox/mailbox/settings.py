"""The mailbox's settings from the environment; knows no default but development's."""

from typing import Literal

from sagapost_sandbox import guarded


class Settings(guarded.Settings, frozen=True, kw_only=True):
    """`mailbox_ledger` is the file of the accepted mails; `mailbox_delay_s` what the server takes to accept one.

    `shop_url`: the address that its pages link back to; empty: no link.
    `smtp_tls` starttls demands it before any mail; both modes need `smtp_certificate` and `smtp_key`, PEM files.
    """

    port: int = 8026
    smtp_port: int = 1025
    mailbox_ledger: str
    mailbox_delay_s: float = 0.0
    shop_url: str = ""
    smtp_tls: Literal["off", "starttls", "tls"] = "off"
    smtp_certificate: str = ""
    smtp_key: str = ""

    def weaknesses(self) -> list[str]:
        """Name itself."""
        return ["the sandbox's mailbox delivers no mail; it is for development and tests only"]
