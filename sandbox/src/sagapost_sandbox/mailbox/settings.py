"""The mailbox's settings from the environment; knows no default but development's."""

from sagapost_chassis import settings


class Settings(settings.Common, frozen=True, kw_only=True):
    """`mailbox_ledger` is the file of the accepted mails; `mailbox_delay_s` what the server takes to accept one."""

    port: int = 8026
    smtp_port: int = 1025
    mailbox_ledger: str
    mailbox_delay_s: float = 0.0
