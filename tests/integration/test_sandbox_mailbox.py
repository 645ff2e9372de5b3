import concurrent.futures
import contextlib
import email.message
import pathlib
import smtplib
import time
import uuid
from collections.abc import Callable, Generator
from typing import Any

import httpx
import pytest

from sagapost_sandbox import ports
from sagapost_sandbox.testing import services

SCRIPT = "<script>alert(1)</script>"


@pytest.fixture
def client(mailbox: services.Service) -> Generator[httpx.Client]:
    """Talk to the shared mailbox over HTTP, and leave it well-behaved."""
    with httpx.Client(base_url=mailbox.url, timeout=20) as opened:
        yield opened
        opened.put("/behaviour", json={})


def compose(recipient: str, subject: str = "Your receipt") -> email.message.EmailMessage:
    """Write a receipt."""
    mail = email.message.EmailMessage()
    mail["From"] = "Sagapost <no-reply@sagapost.example>"
    mail["To"] = f"Ann Other <{recipient}>"
    mail["Subject"] = subject
    mail["Message-ID"] = f"<{uuid.uuid4()}@sagapost.example>"
    mail["traceparent"] = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    mail.set_content("Total 1299.99 USD")
    mail.add_alternative(f"<p>Total <b>1299.99 USD</b>{SCRIPT}</p>", subtype="html")
    return mail


def send(mailbox: services.Service, mail: email.message.EmailMessage, timeout_s: float = 20) -> None:
    """Hand a mail over as a mail program does."""
    with smtplib.SMTP("127.0.0.1", int(mailbox.env["SAGAPOST_SMTP_PORT"]), timeout=timeout_s) as connection:
        connection.send_message(mail)


def kept(client: httpx.Client, recipient: str) -> list[dict[str, Any]]:
    """List the mails to a recipient."""
    messages = client.get("/api/v1/messages", params={"limit": 1000}).json()["messages"]
    return [line for line in messages if recipient in {person["Address"] for person in line["To"]}]


def somebody() -> str:
    """Make up a recipient whom only one test knows."""
    return f"{uuid.uuid4().hex}@example.com"


def test_an_accepted_mail_is_listed_and_shown_in_mailpits_shape(mailbox: services.Service, client: httpx.Client) -> None:
    """List, message and headers have the fields that Mailpit's have."""
    recipient, mail = somebody(), compose("x@example.com")
    mail.replace_header("To", f"Ann Other <{recipient}>")

    send(mailbox, mail)

    (line,) = kept(client, recipient)
    message = client.get(f"/api/v1/message/{line['ID']}").json()
    headers = client.get(f"/api/v1/message/{line['ID']}/headers").json()
    assert line["MessageID"] == mail["Message-ID"].strip("<>")
    assert line["From"] == {"Name": "Sagapost", "Address": "no-reply@sagapost.example"}
    assert line["To"] == [{"Name": "Ann Other", "Address": recipient}]
    assert (line["Subject"], line["Snippet"]) == ("Your receipt", "Total 1299.99 USD")
    assert message["Text"].strip() == "Total 1299.99 USD"
    assert "<b>1299.99 USD</b>" in message["HTML"]
    assert message["Size"] == line["Size"] > 0
    assert headers["traceparent"] == [mail["traceparent"]]


def test_unknown_mail_is_not_found(client: httpx.Client) -> None:
    """A wrong id is a 404, no crash."""
    assert client.get("/api/v1/message/nothing").status_code == 404
    assert client.get("/mail/nothing").status_code == 404


def test_the_pages_escape_what_a_mail_says(mailbox: services.Service, client: httpx.Client) -> None:
    """A subject is text; the mail's own HTML appears only in a document that may run nothing."""
    recipient = somebody()

    send(mailbox, compose(recipient, f"Hello {SCRIPT}"))

    (line,) = kept(client, recipient)
    index, mail, view = (client.get(path) for path in ("/", f"/mail/{line['ID']}", f"/view/{line['ID']}.html"))
    assert SCRIPT not in index.text
    assert SCRIPT not in mail.text
    assert "&lt;script&gt;" in index.text
    assert "sandbox" in view.headers["Content-Security-Policy"]
    assert all("<main>" in page.text and "Sagapost" in page.text for page in (index, mail))
    assert "http-equiv" not in index.text  # a page that reloads itself takes away what somebody is reading


def test_the_list_can_be_searched(mailbox: services.Service, client: httpx.Client) -> None:
    """An order's number, an address or a part of the Message-ID finds the mail; what was searched for is text in the page."""
    first, second = somebody(), somebody()
    send(mailbox, compose(first, "Your receipt for order 777001"))
    send(mailbox, compose(second, "Your receipt for order 777002"))

    by_order, by_address, nothing = (client.get("/", params={"q": text}).text for text in ("order 777001", second.upper(), "<b>no"))

    assert (first in by_order, second in by_order) == (True, False)
    assert (first in by_address, second in by_address) == (False, True)
    assert "&lt;b&gt;no" in nothing


def test_accepting_takes_the_delay_without_holding_up_others(mailbox: services.Service, client: httpx.Client) -> None:
    """Five mails at once with a delay of two seconds take two seconds, not ten."""
    recipient = somebody()
    client.put("/behaviour", json={"delay_s": 2})
    started = time.monotonic()

    with concurrent.futures.ThreadPoolExecutor(5) as threads:
        list(threads.map(lambda _: send(mailbox, compose(recipient)), range(5)))

    assert 2 <= time.monotonic() - started < 9
    assert len(kept(client, recipient)) == 5


@pytest.mark.parametrize(
    ("phase", "error"),
    [
        ("connect", smtplib.SMTPConnectError),
        ("helo", smtplib.SMTPHeloError),
        ("mail", smtplib.SMTPSenderRefused),
        ("rcpt", smtplib.SMTPRecipientsRefused),
        ("data", smtplib.SMTPDataError),
        ("dot", smtplib.SMTPDataError),
    ],
)
@pytest.mark.parametrize("code", [451, 550])
def test_a_refusal_comes_at_its_phase_and_keeps_nothing(
    mailbox: services.Service, client: httpx.Client, phase: str, error: type[smtplib.SMTPException], code: int
) -> None:
    """Temporary or final, at any phase: the client is told, and no mail is kept."""
    recipient = somebody()
    client.put("/behaviour", json={"reject": code, "reject_at": phase})

    with pytest.raises(error, match=str(code)):
        send(mailbox, compose(recipient))

    assert kept(client, recipient) == []


@pytest.mark.parametrize("phase", ["connect", "helo", "mail", "rcpt", "data", "dot"])
def test_a_hang_at_any_phase_keeps_nothing(mailbox: services.Service, client: httpx.Client, phase: str) -> None:
    """A client that gives up has delivered nothing."""
    recipient = somebody()
    client.put("/behaviour", json={"hang": phase})

    with pytest.raises((TimeoutError, smtplib.SMTPServerDisconnected)):
        send(mailbox, compose(recipient), timeout_s=0.3)

    assert kept(client, recipient) == []


def test_a_cut_after_the_dot_keeps_the_mail_and_says_nothing(mailbox: services.Service, client: httpx.Client) -> None:
    """The nastiest case: delivered, and the client cannot know."""
    recipient = somebody()
    client.put("/behaviour", json={"cut_after_dot": True})

    with pytest.raises((smtplib.SMTPServerDisconnected, ConnectionError)):
        send(mailbox, compose(recipient))

    assert len(kept(client, recipient)) == 1


@pytest.mark.parametrize("behaviour", [{"reject": 250}, {"hang": "nowhere"}, {"nonsense": 1}, [], "x"])
def test_a_wrong_behaviour_is_refused(client: httpx.Client, behaviour: object) -> None:
    """What makes no sense changes nothing."""
    assert client.put("/behaviour", json=behaviour).status_code == 400


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"no header at all",
        b"Subject: =?utf-8?b?!!!?=\r\n\r\nx",
        b"Subject: =?no-such-charset?q?x?=\r\nContent-Type: text/plain; charset=none\r\n\r\n\xff",
        b"To: <<>>,,\r\nFrom: @\r\n\r\n",
        b"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\nContent-Type: text/html\r\n\r\n\xff\xfe",
        b"\x00\xff: \xff\r\n\r\n\xff",
    ],
)
def test_a_broken_mail_is_kept_and_shown_nevertheless(mailbox: services.Service, client: httpx.Client, raw: bytes) -> None:
    """Nothing in a mail can make the mailbox fail."""
    with smtplib.SMTP("127.0.0.1", int(mailbox.env["SAGAPOST_SMTP_PORT"]), timeout=8) as connection:
        connection.sendmail("a@example.com", ["b@example.com"], raw)

    (line,) = client.get("/api/v1/messages", params={"limit": 1}).json()["messages"]
    paths = [f"/api/v1/message/{line['ID']}{end}" for end in ("", "/headers", "/raw")]
    assert {client.get(path).status_code for path in [*paths, "/", f"/mail/{line['ID']}", f"/view/{line['ID']}.html"]} == {200}


def test_the_mails_survive_kill_9(start_service: Callable[..., services.Service], tmp_path: pathlib.Path) -> None:
    """What got its 250 is there after a restart; what was cleared stays out of sight but in the ledger."""
    ledger = tmp_path / "mails.jsonl"
    env = {"SAGAPOST_MAILBOX_LEDGER": str(ledger), "SAGAPOST_SMTP_PORT": str(ports.trial(1)[0])}
    first = start_service("sagapost_sandbox.mailbox", env).wait_ready()
    send(first, compose("early@example.com"))
    httpx.delete(f"{first.url}/api/v1/messages").raise_for_status()
    send(first, compose("late@example.com"))
    first.kill()

    second = start_service("sagapost_sandbox.mailbox", env).wait_ready()

    with httpx.Client(base_url=second.url) as client:
        page = client.get("/api/v1/messages").json()
    assert (page["total"], page["messages"][0]["To"][0]["Address"]) == (1, "late@example.com")
    assert len(ledger.read_text().splitlines()) == 2
    assert second.terminate() == 0


def test_a_hanging_conversation_does_not_hold_up_the_end(start_service: Callable[..., services.Service], tmp_path: pathlib.Path) -> None:
    """SIGTERM ends the mailbox with exit code 0 although a client waits."""
    env = {"SAGAPOST_MAILBOX_LEDGER": str(tmp_path / "mails.jsonl"), "SAGAPOST_SMTP_PORT": str(ports.trial(1)[0])}
    service = start_service("sagapost_sandbox.mailbox", env).wait_ready()
    httpx.put(f"{service.url}/behaviour", json={"hang": "helo"}).raise_for_status()
    with contextlib.closing(smtplib.SMTP("127.0.0.1", int(env["SAGAPOST_SMTP_PORT"]), timeout=20)) as connection:
        connection.putcmd("helo", "example.com")

        assert service.terminate(8) == 0


def test_logs_name_no_address(mailbox: services.Service, client: httpx.Client, eventually: Callable[..., Any]) -> None:
    """A line per mail with its Message-ID up to the @, and nobody's address."""
    recipient, mail = somebody(), compose("x@example.com")
    mail.replace_header("To", recipient)

    send(mailbox, mail)

    eventually(lambda: mail["Message-ID"].strip("<>").partition("@")[0] in mailbox.logs())
    assert len(kept(client, recipient)) == 1
    assert recipient not in mailbox.logs()
