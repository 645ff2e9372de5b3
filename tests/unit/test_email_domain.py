"""Addresses, identifiers and settings of email."""

from decimal import Decimal
from uuid import UUID

import pytest

from sagapost_chassis import settings as environment
from sagapost_email import domain, errors
from sagapost_email.settings import Settings

SAGA = UUID("0193b1c2-7d4e-7a10-9f0e-5f2f6c1d8a11")
COMMAND = UUID("0193b1c2-7d4e-7a10-9f0e-5f2f6c1d8a12")


@pytest.mark.parametrize(
    "text",
    [
        "test@example.com",
        "a.b+c@sub.example.org",
        "x@xn--bcher-kva.example",
        "u@example.xn--p1ai",
        "a`b@example.com",
        f"{'l' * 64}@example.com",
    ],
)
def test_a_plain_address_passes(text: str) -> None:
    """What an ordinary customer has is an address."""
    assert domain.require_address(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "test",
        "test@localhost",
        "test@example.com\n",
        "test@example.com\r\nBcc: all@example.com",
        "test@example.com, other@example.com",
        "test@example.com;other@example.com",
        "<test@example.com>",
        '"a b"@example.com',
        "a b@example.com",
        "té@example.com",
        "test@exämple.com",
        "te\u200bst@example.com",
        ".test@example.com",
        "test.@example.com",
        "te..st@example.com",
        "test@-example.com",
        "test@example..com",
        "test@[127.0.0.1]",
        "test@127.0.0.1",
        "test@example.c0m",
        f"{'l' * 65}@example.com",
        f"test@{'a.' * 130}com",
    ],
)
def test_anything_else_is_refused_for_good(text: str) -> None:
    """Lists, brackets, quotes, control, invisible and foreign characters never reach a header or a server."""
    with pytest.raises(errors.MailRefusedError, match="bad_address"):
        domain.require_address(text)


def test_a_mail_has_one_message_id() -> None:
    """Every copy of one mail carries the same Message-ID, made of template and saga."""
    first = domain.smtp_message_id("receipt", SAGA, "no-reply@sagapost.example")

    assert first == f"<receipt-{SAGA}@sagapost.example>"
    assert first != domain.smtp_message_id("cancellation", SAGA, "no-reply@sagapost.example")


def test_a_repeat_has_the_event_id_of_the_first() -> None:
    """Kind, template, saga and the command that asked decide the id; nothing else does."""
    first = domain.event_id("EmailSent", "receipt", SAGA, None)

    assert first == domain.event_id("EmailSent", "receipt", SAGA, None)
    others = {
        domain.event_id("EmailFailed", "receipt", SAGA, None),
        domain.event_id("EmailSent", "cancellation", SAGA, None),
        domain.event_id("EmailSent", "receipt", COMMAND, None),
        domain.event_id("EmailSent", "receipt", SAGA, COMMAND),
    }
    assert first not in others
    assert len(others) == 4


def test_a_refusal_after_a_deferral_is_news() -> None:
    """EmailFailed that is not permanent has another id than the permanent one: neither is taken for a repeat of the other."""
    request = domain.Request(
        template="receipt", order_id=7, saga_id=SAGA, recipient="a@b.example", items=(), amount=Decimal("1.00"), currency="USD"
    )
    names = [domain.outcome(domain.failed(request, "smtp_451", permanent=permanent)) for permanent in (False, True)]

    assert names == ["EmailDeferred", "EmailFailed"]
    assert domain.outcome(domain.sent(request, "<id>")) == "EmailSent"


@pytest.mark.parametrize("sender", ["nobody", "a@b.example\r\nX: y", "Shop <a@b.example>"])
def test_a_sender_that_is_no_address_ends_the_start(sender: str) -> None:
    """SAGAPOST_MAIL_FROM is one plain address, or the process does not start."""
    environ = {"SAGAPOST_AMQP_URL": "amqp://", "SAGAPOST_SMTP_HOST": "h", "SAGAPOST_SMTP_PORT": "25", "SAGAPOST_MAIL_FROM": sender}

    with pytest.raises(environment.SettingsError, match="MAIL_FROM"):
        environment.load(Settings, environ)
