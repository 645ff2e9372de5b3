"""The mailbox's answers, in the shape and spelling of Mailpit's API, and its ledger line; plain data."""

from typing import Final, Literal

import msgspec

Phase = Literal["connect", "helo", "mail", "rcpt", "data", "dot"]
REFUSALS: Final = range(400, 600)


class Behaviour(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How it misbehaves; a field that is left out goes back to what it was at the start.

    `reject` is the code to refuse with (4xx or 5xx) at phase `reject_at`; `cut_after_dot` accepts a mail and hangs up without a word;
    `mails_per_conversation` answers the next mail of a conversation with 421, as servers do that end kept conversations.
    """

    delay_s: float | None = None
    reject: int | None = None
    reject_at: Phase = "dot"
    hang: Phase | None = None
    cut_after_dot: bool = False
    mails_per_conversation: int | None = None

    def __post_init__(self) -> None:
        """Refuse codes that are no refusals."""
        if self.reject is not None and self.reject not in REFUSALS:
            raise ValueError("reject is an SMTP code from 400 to 599")


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One accepted mail: a line of the ledger; `to` are the envelope's recipients, `raw` is the whole mail (base64 in JSON)."""

    id: str
    message_id: str
    sender: str = msgspec.field(name="from")
    to: tuple[str, ...]
    subject: str
    headers: dict[str, list[str]]
    size: int
    at: str
    raw: bytes


class Address(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """A person in a header."""

    name: str
    address: str


class _Common(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """What a list line and a whole message share."""

    id: str = msgspec.field(name="ID")
    message_id: str = msgspec.field(name="MessageID")
    sender: Address = msgspec.field(name="From")
    to: tuple[Address, ...]
    cc: tuple[Address, ...]
    bcc: tuple[Address, ...]
    reply_to: tuple[Address, ...]
    subject: str
    created: str
    tags: tuple[str, ...] = ()
    size: int


class Summary(_Common, frozen=True, kw_only=True, rename="pascal"):
    """A line of the list."""

    read: bool = False
    attachments: int = 0
    snippet: str


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """A page of the list, newest first; `count` lines of `total`, from number `start`."""

    total: int
    unread: int
    count: int
    messages_count: int
    start: int
    tags: tuple[str, ...] = ()
    messages: tuple[Summary, ...]


class Message(_Common, frozen=True, kw_only=True, rename="pascal"):
    """A whole mail."""

    date: str
    return_path: str
    text: str
    html: str = msgspec.field(name="HTML")
    inline: tuple[str, ...] = ()
    attachments: tuple[str, ...] = ()
