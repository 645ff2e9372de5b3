"""The words of the mails, and the messages they are put into."""

from decimal import Decimal
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import SMTP
from html.parser import HTMLParser
from uuid import UUID

import msgspec
import pytest

from sagapost_contracts import events
from sagapost_email import domain, errors, sender, templates

SAGA = UUID("0193b1c2-7d4e-7a10-9f0e-5f2f6c1d8a11")
RECEIPT = domain.Request(
    template=events.RECEIPT,
    order_id=1042,
    saga_id=SAGA,
    recipient="test@example.com",
    items=(
        events.Line(product_id=1, name="Gaming Laptop", quantity=1, price=Decimal("1299.99")),
        events.Line(product_id=2, name="Wireless Mouse", quantity=2, price=Decimal("49.99")),
    ),
    amount=Decimal("1399.97"),
    currency="USD",
    transaction_id="ch_1",
)
CANCELLATION = msgspec.structs.replace(RECEIPT, template=events.CANCELLATION, reason="declined", refunded=Decimal("0.00"))


class Words(HTMLParser):
    """Collects what a reader sees, and every tag with what it would load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.seen = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag and its references."""
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in {"src", "href", "background", "srcset"}]

    def handle_data(self, data: str) -> None:
        """Note text."""
        self.seen += data


def compose(request: domain.Request) -> EmailMessage:
    """Write a mail and read it back from its bytes, as a reader does."""
    built = sender.compose(request, templates.render(request), mail_from="no-reply@sagapost.example", traceparent="00-a-b-01")
    found = message_from_bytes(built.as_bytes(), policy=SMTP)
    assert isinstance(found, EmailMessage)
    return found


def part(message: EmailMessage, kind: str) -> str:
    """Read one of the two forms."""
    body = message.get_body((kind,))
    assert body is not None
    return str(body.get_content())


@pytest.mark.parametrize("kind", ["plain", "html"])
def test_a_receipt_shows_every_line_and_the_total(kind: str) -> None:
    """Name, quantity, price and sum of each line, the total with its currency, the order and the transaction stand in both forms."""
    text = part(compose(RECEIPT), kind)

    for expected in ("Gaming Laptop", "Wireless Mouse", "1,299.99 USD", "49.99 USD", "99.98 USD", "1,399.97 USD", "1042", "ch_1"):
        assert expected in text


@pytest.mark.parametrize(
    ("reason", "refunded", "expected"),
    [
        ("declined", Decimal("0.00"), ("declined the payment", "Nothing was charged.")),
        ("insufficient_funds", Decimal("0.00"), ("not enough money", "Nothing was charged.")),
        ("expired", Decimal("0.00"), ("in time", "Nothing was charged.")),
        ("customer", Decimal("1399.97"), ("You asked us", "1,399.97 USD goes back")),
        ("something-new", None, ("could not be completed", "whatever was charged goes back")),
    ],
)
def test_a_cancellation_says_why_and_what_became_of_the_money(reason: str, refunded: Decimal | None, expected: tuple[str, str]) -> None:
    """Plain words for every reason, known or not; nothing charged, or what is given back."""
    message = compose(msgspec.structs.replace(CANCELLATION, reason=reason, refunded=refunded))

    for kind in ("plain", "html"):
        assert all(words in part(message, kind) for words in expected)


def test_markup_in_a_name_stays_text() -> None:
    """A product's name cannot bring markup into the HTML form: the reader sees it as it is written."""
    nasty = '<script src="//evil.example/x"></script>&<img src=x onerror=y>"\''
    plain = Words(templates.render(RECEIPT).html)

    shown = Words(templates.render(msgspec.structs.replace(RECEIPT, items=(msgspec.structs.replace(RECEIPT.items[0], name=nasty),))).html)

    assert nasty in shown.seen
    assert set(shown.tags) == set(plain.tags)


def test_markup_in_a_reference_stays_text() -> None:
    """Likewise what the provider calls its transaction."""
    html = templates.render(msgspec.structs.replace(RECEIPT, transaction_id="<b>ch</b>")).html

    assert "<b>" not in html


def test_nothing_is_loaded_from_anywhere() -> None:
    """A mail has no picture, style sheet or link: opening it tells nobody."""
    for request in (RECEIPT, CANCELLATION):
        shown = Words(templates.render(request).html)
        assert shown.loads == []
        assert "url(" not in templates.render(request).html


def test_a_name_with_line_breaks_stays_on_its_line() -> None:
    """The plain text keeps one line per item."""
    item = msgspec.structs.replace(RECEIPT.items[0], name="a\r\nTotal paid: 0.00\tb")

    text = templates.render(msgspec.structs.replace(RECEIPT, items=(item,))).text

    assert "  1 x a Total paid: 0.00 b at" in text


def test_an_unknown_template_is_never_sent() -> None:
    """A command for a mail that there is not is a mistake of ours, not a mail."""
    with pytest.raises(errors.UnknownTemplateError):
        templates.render(msgspec.structs.replace(RECEIPT, template="newsletter"))


def test_a_mail_without_lines_has_no_empty_table() -> None:
    """A command may come without lines and amount; the mail then says what it knows."""
    text = templates.render(msgspec.structs.replace(CANCELLATION, items=(), amount=Decimal("0.00"))).text

    assert "0.00 USD" not in text
    assert "\n\n\n" not in text


def test_headers_are_what_readers_and_checks_rely_on() -> None:
    """Identifiers, trace, sender, date and the mark of an automatic mail are there, once, unfolded."""
    message = compose(CANCELLATION)

    assert message["Message-ID"] == f"<cancellation-{SAGA}@sagapost.example>"
    assert f"Message-ID: <cancellation-{SAGA}@sagapost.example>\r\n".encode() in message.as_bytes(
        policy=message.policy.clone(max_line_length=998)
    )
    assert (message["To"], message["X-Saga-Id"], message["traceparent"]) == ("test@example.com", str(SAGA), "00-a-b-01")
    assert (message["From"], message["Auto-Submitted"]) == ("Sagapost <no-reply@sagapost.example>", "auto-generated")
    assert message["Date"].datetime.tzinfo is not None
    assert message.get_content_type() == "multipart/alternative"
    assert len(message.keys()) == len(set(message.keys()))


@pytest.mark.parametrize("name", ["Bücherregal für 雑誌", "ü" * 2000])
def test_every_line_on_the_wire_is_short_ascii(name: str) -> None:
    """A foreign name travels through a server that knows seven bits and 998 characters per line, and arrives whole."""
    request = msgspec.structs.replace(RECEIPT, items=(msgspec.structs.replace(RECEIPT.items[0], name=name),))

    built = sender.compose(request, templates.render(request), mail_from="no-reply@sagapost.example", traceparent=None)

    assert all(len(line) <= 998 and line.isascii() for line in built.as_bytes().split(b"\r\n"))
    assert name in part(compose(request), "plain")


@pytest.mark.parametrize("recipient", ["a@example.com\r\nBcc: b@example.com", "a@example.com, b@example.com", "A <a@example.com>"])
def test_a_recipient_cannot_bring_headers(recipient: str) -> None:
    """Line breaks, lists and display names in the recipient are refused before there is a message."""
    with pytest.raises(errors.MailRefusedError):
        compose(msgspec.structs.replace(RECEIPT, recipient=recipient))
