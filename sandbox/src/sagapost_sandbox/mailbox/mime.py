"""Reads what is in a mail, however broken it is; nothing in here raises because of a mail's content."""

import email
import email.errors
import email.header
import email.message
import email.utils
import html
import re
from typing import Final

from sagapost_sandbox.mailbox import wire

SNIPPET_CHARACTERS: Final = 120
_MARKUP: Final = re.compile(r"<[^>]*>")


def headers(raw: bytes) -> dict[str, list[str]]:
    """Return every header with its decoded values."""
    found: dict[str, list[str]] = {}
    for name, value in email.message_from_bytes(raw).items():
        found.setdefault(name, []).append(_decoded(str(value)))
    return found


def first(entry: wire.Entry, name: str) -> str:
    """Return a header's first value, whatever the case of its name; empty when there is none."""
    return next((values[0] for header, values in entry.headers.items() if header.lower() == name.lower() and values), "")


def subject(found: dict[str, list[str]]) -> str:
    """Return the subject on one line."""
    return " ".join(next((values[0] for name, values in found.items() if name.lower() == "subject"), "").split())


def message_id(found: dict[str, list[str]]) -> str:
    """Return the Message-ID without its angle brackets."""
    return next((values[0] for name, values in found.items() if name.lower() == "message-id"), "").strip().strip("<>")


def summary(entry: wire.Entry) -> wire.Summary:
    """Show a mail as a line of the list."""
    text, markup = bodies(entry.raw)
    plain = text or html.unescape(_MARKUP.sub(" ", markup))
    to, cc, bcc = _recipients(entry)
    return wire.Summary(
        id=entry.id,
        message_id=entry.message_id,
        sender=_sender(entry),
        to=to,
        cc=cc,
        bcc=bcc,
        reply_to=_addresses(first(entry, "Reply-To")),
        subject=entry.subject,
        created=entry.at,
        size=entry.size,
        snippet=" ".join(plain.split())[:SNIPPET_CHARACTERS],
    )


def message(entry: wire.Entry) -> wire.Message:
    """Show a mail whole."""
    text, markup = bodies(entry.raw)
    to, cc, bcc = _recipients(entry)
    return wire.Message(
        id=entry.id,
        message_id=entry.message_id,
        sender=_sender(entry),
        to=to,
        cc=cc,
        bcc=bcc,
        reply_to=_addresses(first(entry, "Reply-To")),
        subject=entry.subject,
        created=entry.at,
        date=entry.at,
        return_path=entry.sender,
        size=entry.size,
        text=text,
        html=markup,
    )


def bodies(raw: bytes) -> tuple[str, str]:
    """Return the first plain text and the first HTML of a mail; empty when there is none."""
    found = {"text/plain": "", "text/html": ""}
    for part in email.message_from_bytes(raw).walk():
        kind = part.get_content_type()
        if kind in found and not found[kind] and part.get_content_disposition() != "attachment":
            found[kind] = _text(part)
    return found["text/plain"], found["text/html"]


def _text(part: email.message.Message) -> str:
    content = part.get_payload(decode=True)
    if not isinstance(content, bytes):
        return ""
    try:
        return content.decode(part.get_content_charset("utf-8"), "replace")
    except LookupError:  # a charset that does not exist
        return content.decode("utf-8", "replace")


def _decoded(value: str) -> str:
    try:
        return str(email.header.make_header(email.header.decode_header(value)))
    except (email.errors.HeaderParseError, LookupError, ValueError):
        return value


def _sender(entry: wire.Entry) -> wire.Address:
    return next(iter(_addresses(first(entry, "From"))), wire.Address(name="", address=entry.sender))


def _recipients(entry: wire.Entry) -> tuple[tuple[wire.Address, ...], tuple[wire.Address, ...], tuple[wire.Address, ...]]:
    """To and Cc as the headers say; Bcc are those of the envelope whom no header names."""
    to, cc = _addresses(first(entry, "To")), _addresses(first(entry, "Cc"))
    named = {person.address.lower() for person in (*to, *cc)}
    return to, cc, tuple(wire.Address(name="", address=address) for address in entry.to if address.lower() not in named)


def _addresses(value: str) -> tuple[wire.Address, ...]:
    return tuple(wire.Address(name=name, address=address) for name, address in email.utils.getaddresses([value]) if address)
