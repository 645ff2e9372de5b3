"""Which refusals of a mail server end a mail for good, and which only defer it or count as no conversation."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator, Callable, Generator, Mapping

import pytest
from integration import email_desk

from sagapost_chassis import amqp
from sagapost_contracts import topology
from sagapost_email import errors, handlers, recent, sender
from sagapost_sandbox.testing import services

pytestmark = pytest.mark.anyio
LAST = len(topology.RETRY_DELAYS_S) + 1


@pytest.fixture
def behave(mailbox: services.Service) -> Generator[Callable[..., None]]:
    """Return what makes the shared mailbox misbehave; it behaves again after the test."""
    yield functools.partial(email_desk.behave, mailbox)
    email_desk.behave(mailbox)


@contextlib.asynccontextmanager
async def opened(vhost: str, port: int, security: sender.Security | None = None) -> AsyncGenerator[handlers.Outlets]:
    """Open what the handlers need."""
    async with (
        sender.Sender("127.0.0.1", port, mail_from=email_desk.MAIL_FROM, size=2, timeout_s=5, security=security) as outbound,
        amqp.Publisher(vhost, "t") as publisher,
        recent.Recent() as memory,
    ):
        yield handlers.Outlets(sender=outbound, publisher=publisher, mail_from=email_desk.MAIL_FROM, recent=memory)


@contextlib.asynccontextmanager
async def answering(replies: Mapping[str, str]) -> AsyncGenerator[tuple[int, list[str]]]:
    """Run an SMTP server that answers each command as told, the others with 250; yields its port and the commands so far."""
    seen: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example\r\n")
        while line := await reader.readline():
            seen.append(line.decode().split()[0].upper())
            writer.write(f"{replies.get(seen[-1], '250 OK')}\r\n".encode())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], seen
    finally:
        server.close()


@pytest.mark.parametrize("code", [501, 550, 552, 553, 554])
@pytest.mark.parametrize("kept", [False, True], ids=["first mail", "kept conversation"])
async def test_a_refused_sender_defers_the_mail(
    code: int, *, kept: bool, behave: Callable[..., None], mailbox: services.Service, vhost: str
) -> None:
    """A 5xx to MAIL FROM is about the sender: it costs an attempt like a 4xx, nothing is published, and the mail goes out later."""
    event = email_desk.paid()
    async with opened(vhost, int(mailbox.env["SAGAPOST_SMTP_PORT"])) as outlets:
        if kept:
            assert await outlets.sender.check()
        behave(reject=code, reject_at="mail")
        with pytest.raises(errors.MailDeferredError) as caught:
            await handlers.on_payment_processed(outlets, email_desk.delivery_of(event), event)
        before = await email_desk.published(vhost)
        behave()
        await handlers.on_payment_processed(outlets, email_desk.delivery_of(event, attempt=2), event)

    assert (caught.value.counted, caught.value.delay_s, before) == (True, errors.DEFERRED_DELAY_S, [])
    assert len(email_desk.mails(mailbox, event.saga_id)) == 1
    assert [kind for kind, _ in await email_desk.published(vhost)] == ["EmailSent"]


async def test_a_sender_refused_to_the_end_is_no_permanent_failure(
    behave: Callable[..., None], mailbox: services.Service, vhost: str
) -> None:
    """The last delivery publishes EmailFailed that is not permanent, so that the order is neither parked nor refunded."""
    event = email_desk.paid()
    behave(reject=554, reject_at="mail")

    async with opened(vhost, int(mailbox.env["SAGAPOST_SMTP_PORT"])) as outlets:
        await handlers.on_payment_processed(outlets, email_desk.delivery_of(event, attempt=LAST), event)

    assert [(kind, body["code"], body["permanent"]) for kind, body in await email_desk.published(vhost)] == [
        ("EmailFailed", "smtp_554", False)
    ]


BEFORE_THE_MAIL: Mapping[str, Mapping[str, str]] = {
    "EHLO refused": {"EHLO": "554 no", "HELO": "554 no"},
    "STARTTLS refused": {"EHLO": "250-mail.example\r\n250 STARTTLS", "STARTTLS": "554 no"},
    "wrong password": {"EHLO": "250-mail.example\r\n250 AUTH PLAIN", "AUTH": "535 5.7.8 wrong"},
    "account closed": {"EHLO": "250-mail.example\r\n250 AUTH PLAIN", "AUTH": "554 5.7.1 closed"},
    "not authenticated": {"MAIL": "530 5.7.0 authentication required"},
}


@pytest.mark.parametrize("name", BEFORE_THE_MAIL)
async def test_a_refused_conversation_costs_no_attempt(name: str, vhost: str) -> None:
    """EHLO, STARTTLS or AUTH refused with 5xx, even at the last delivery: no attempt, no EmailFailed, and no recipient was named."""
    event = email_desk.paid()
    security = sender.Security(user="shop", password="s" * 20) if "AUTH" in BEFORE_THE_MAIL[name] else None

    async with answering(BEFORE_THE_MAIL[name]) as (port, seen), opened(vhost, port, security) as outlets:
        with pytest.raises(errors.MailServerUnavailableError) as caught:
            await handlers.on_payment_processed(outlets, email_desk.delivery_of(event, attempt=LAST), event)

    assert not caught.value.counted
    assert "RCPT" not in seen
    assert set(BEFORE_THE_MAIL[name]) - {"HELO"} <= set(seen)
    assert await email_desk.published(vhost) == []
