"""Email on a real mail server and a real broker: content, refusals, kept connections, kills between the steps."""

import asyncio
import base64
import contextlib
import http.client
import json
import pathlib
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from email import message_from_bytes
from typing import Any, Final
from uuid import UUID, uuid4

import aio_pika
import msgspec
import pytest

from sagapost_chassis import amqp, consuming, ids
from sagapost_contracts import envelope, events, topology
from sagapost_email import domain, errors, handlers, recent, sender
from sagapost_sandbox.testing import services

pytestmark = pytest.mark.anyio

MAIL_FROM: Final = "no-reply@sagapost.example"
TRACE_ID: Final = "4bf92f3577b34da6a3ce929d0e0e4736"
Start = Callable[[str, Mapping[str, str]], services.Service]


@pytest.fixture
def behave(mailbox: services.Service) -> Generator[Callable[..., None]]:
    """Give what makes the shared mailbox misbehave; it behaves again after the test."""

    def put(**behaviour: object) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", mailbox.port, timeout=5)
        try:
            connection.request("PUT", "/behaviour", json.dumps(behaviour), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            assert (answer.status, answer.read() != b"") == (200, True)
        finally:
            connection.close()

    yield put
    put()


@pytest.fixture
def timeout_s() -> float:
    """Give the seconds that the mail server may take; a test whose subject is its silence names its own."""
    return 10


@pytest.fixture
async def outlets(vhost: str, mailbox: services.Service, timeout_s: float) -> AsyncGenerator[handlers.Outlets]:
    """Open what the handlers need."""
    port = int(mailbox.env["SAGAPOST_SMTP_PORT"])
    async with (
        sender.Sender("127.0.0.1", port, mail_from=MAIL_FROM, size=4, timeout_s=timeout_s, dot_timeout_s=timeout_s) as outbound,
        amqp.Publisher(vhost, "t") as publisher,
        recent.Recent(doubt_s=0) as memory,
    ):
        yield handlers.Outlets(sender=outbound, publisher=publisher, mail_from=MAIL_FROM, recent=memory)


def paid() -> events.PaymentProcessed:
    """Make the event of a captured payment."""
    return events.PaymentProcessed(
        order_id=1042,
        saga_id=ids.uuid7(),
        payment_id=7,
        payment_version=2,
        amount=Decimal("1299.99"),
        transaction_id="ch_1",
        captured_at=datetime.now(UTC),
        user_email="test@example.com",
        items=(events.Line(product_id=1, name="Gaming Laptop", quantity=1, price=Decimal("1299.99")),),
    )


def delivery_of(message: events.Message, *, attempt: int = 1) -> consuming.Delivery:
    """Wrap a message as the broker would bring it."""
    return consuming.Delivery(message_id=uuid4(), type=type(message).__name__, message=message, attempt=attempt, time=datetime.now(UTC))


def mails(mailbox: services.Service, saga_id: UUID) -> list[dict[str, Any]]:
    """Give the accepted mails of one saga from the mailbox's own ledger, without a line that is being written."""
    whole = pathlib.Path(mailbox.env["SAGAPOST_MAILBOX_LEDGER"]).read_text(encoding="utf-8").rpartition("\n")[0]
    return [mail for mail in map(json.loads, whole.splitlines()) if str(saga_id) in mail["message_id"]]


async def told(vhost: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Take what email has published: message id, type, body."""
    found: list[tuple[str, str, dict[str, Any]]] = []
    async with await aio_pika.connect(vhost) as connection:
        queue = await (await connection.channel()).get_queue(topology.ORDER_QUEUE)
        while (message := await queue.get(fail=False)) is not None:
            await message.ack()
            found.append((message.message_id or "", message.type or "", json.loads(message.body)))
    return found


async def depth(vhost: str, queue: str) -> int:
    """Count the messages of a queue."""
    async with await aio_pika.connect(vhost) as connection:
        declared = await (await connection.channel()).declare_queue(queue, passive=True)
        return declared.declaration_result.message_count or 0


async def publish(vhost: str, message: events.Message) -> None:
    """Publish as the relay does."""
    async with amqp.Publisher(vhost, "test") as publisher:
        sealed = envelope.seal(
            message,
            message_id=uuid4(),
            source="payment",
            time=datetime.now(UTC),
            causation_id=None,
            traceparent=f"00-{TRACE_ID}-00f067aa0ba902b7-01",
        )
        await publisher.publish(amqp.message_of(sealed), exchange=topology.EXCHANGE, routing_key=sealed.routing_key)


async def test_a_payment_brings_one_receipt(outlets: handlers.Outlets, mailbox: services.Service, vhost: str) -> None:
    """The customer alone is addressed, the Message-ID follows from the saga, and EmailSent tells of it."""
    event = paid()

    await handlers.on_payment_processed(outlets, delivery_of(event), event)

    (mail,) = mails(mailbox, event.saga_id)
    assert (mail["from"], mail["to"]) == (MAIL_FROM, ["test@example.com"])
    message = message_from_bytes(base64.b64decode(mail["raw"]))
    assert message["Message-ID"] == f"<receipt-{event.saga_id}@sagapost.example>"
    ((_, kind, body),) = await told(vhost)
    assert (kind, body["template"], body["smtp_message_id"]) == ("EmailSent", "receipt", message["Message-ID"])


async def test_a_repeat_is_the_same_mail_and_the_same_event(outlets: handlers.Outlets, mailbox: services.Service, vhost: str) -> None:
    """Without a database a redelivery mails again, but under one Message-ID and one event id, which the order's inbox recognises."""
    event = paid()

    await handlers.on_payment_processed(outlets, delivery_of(event), event)
    await handlers.on_payment_processed(outlets, delivery_of(event), event)

    assert len({mail["message_id"] for mail in mails(mailbox, event.saga_id)}) == 1
    assert len({message_id for message_id, _, _ in await told(vhost)}) == 1


async def test_a_command_tells_anew_and_sends_what_nobody_sent(outlets: handlers.Outlets, mailbox: services.Service, vhost: str) -> None:
    """RequestNotification for a mail that went out is answered by an event of its own; a process that knows of none sends it."""
    event = paid()
    command = events.RequestNotification(
        order_id=1042, saga_id=event.saga_id, template=events.RECEIPT, user_email="test@example.com", attempt=2, amount=Decimal("1299.99")
    )

    await handlers.on_payment_processed(outlets, delivery_of(event), event)
    await handlers.on_request_notification(outlets, delivery_of(command), command)
    assert len(mails(mailbox, event.saga_id)) == 1
    async with recent.Recent() as empty:
        restarted = msgspec.structs.replace(outlets, recent=empty)
        await handlers.on_request_notification(restarted, delivery_of(command), command)

    assert len(mails(mailbox, event.saga_id)) == 2
    assert len({mail["message_id"] for mail in mails(mailbox, event.saga_id)}) == 1
    assert len({message_id for message_id, _, _ in await told(vhost)}) == 3


async def test_a_cancelled_order_brings_its_mail(outlets: handlers.Outlets, mailbox: services.Service, vhost: str) -> None:
    """OrderCancelled ends as one cancellation mail and its EmailSent."""
    event = events.OrderCancelled(
        order_id=1042,
        saga_id=ids.uuid7(),
        user_email="test@example.com",
        reason="declined",
        refunded=Decimal("0.00"),
        amount=Decimal("49.99"),
    )

    await handlers.on_order_cancelled(outlets, delivery_of(event), event)

    (mail,) = mails(mailbox, event.saga_id)
    assert mail["subject"] == "Your order 1042 was cancelled"
    assert [(kind, body["template"]) for _, kind, body in await told(vhost)] == [("EmailSent", "cancellation")]


@pytest.mark.parametrize("refusal", [(code, phase) for code in (421, 451) for phase in ("mail", "rcpt", "data", "dot")])
async def test_a_deferral_waits_for_minutes(
    refusal: tuple[int, str], outlets: handlers.Outlets, behave: Callable[..., None], mailbox: services.Service, vhost: str
) -> None:
    """A 4xx at any phase is tried again, not before a minute; nothing is told yet, and the next mail goes through."""
    event = paid()
    behave(reject=refusal[0], reject_at=refusal[1])

    with pytest.raises(errors.MailDeferredError) as caught:
        await handlers.on_payment_processed(outlets, delivery_of(event), event)

    assert caught.value.delay_s >= 60
    assert await told(vhost) == []
    behave()
    await handlers.on_payment_processed(outlets, delivery_of(event), event)
    assert len(mails(mailbox, event.saga_id)) == 1


@pytest.mark.parametrize("phase", ["rcpt", "data", "dot"])
async def test_a_refusal_is_told_at_once(
    phase: str, outlets: handlers.Outlets, behave: Callable[..., None], mailbox: services.Service, vhost: str
) -> None:
    """A 5xx to the recipient, to DATA or to the mail is permanent: EmailFailed with the code, no retry, no mail."""
    event = paid()
    behave(reject=550, reject_at=phase)

    await handlers.on_payment_processed(outlets, delivery_of(event), event)

    assert mails(mailbox, event.saga_id) == []
    assert [(kind, body["code"], body["permanent"]) for _, kind, body in await told(vhost)] == [("EmailFailed", "smtp_550", True)]


@pytest.mark.parametrize(("phase", "code"), [("connect", 554), ("connect", 421), ("helo", 550)])
async def test_a_server_that_does_not_let_us_in_says_nothing_about_the_mail(
    phase: str, code: int, outlets: handlers.Outlets, behave: Callable[..., None], vhost: str
) -> None:
    """Refused at the door is an outage, not a verdict on the recipient: the mail is tried again soon."""
    event = paid()
    behave(reject=code, reject_at=phase)

    with pytest.raises(errors.MailServerUnavailableError):
        await handlers.on_payment_processed(outlets, delivery_of(event), event)

    assert await told(vhost) == []


@pytest.mark.parametrize("timeout_s", [1])
@pytest.mark.parametrize("phase", ["connect", "helo", "mail", "rcpt", "data", "dot"])
async def test_a_server_that_falls_silent_is_left(
    phase: str, outlets: handlers.Outlets, behave: Callable[..., None], mailbox: services.Service
) -> None:
    """Silence at any phase ends after the time-out, and the next try takes another connection."""
    event = paid()
    behave(hang=phase)

    with pytest.raises(errors.MailInDoubtError if phase == "dot" else errors.MailServerUnavailableError):
        await handlers.on_payment_processed(outlets, delivery_of(event), event)

    behave()
    await handlers.on_payment_processed(outlets, delivery_of(event), event)
    assert len(mails(mailbox, event.saga_id)) >= 1


async def test_the_last_delivery_of_a_deferred_mail_is_told(outlets: handlers.Outlets, behave: Callable[..., None], vhost: str) -> None:
    """Out of deliveries, the saga is told that the mail was deferred, not refused, and no message waits in a dead-letter queue."""
    event = paid()
    behave(reject=451, reject_at="rcpt")

    await handlers.on_payment_processed(outlets, delivery_of(event, attempt=len(topology.RETRY_DELAYS_S) + 1), event)

    assert [(kind, body["code"], body["permanent"]) for _, kind, body in await told(vhost)] == [("EmailFailed", "smtp_451", False)]


@pytest.mark.parametrize("delays", ["1", "1,1,1,1,1,1,1,1"], ids=["short", "long"])
async def test_a_deferred_mail_ends_with_the_configured_ladder(
    delays: str,
    *,
    behave: Callable[..., None],
    vhost: str,
    mailbox: services.Service,
    start_service: Start,
    eventually: Callable[..., Any],
) -> None:
    """With one step or eight, the last delivery publishes EmailFailed (not permanent), and nothing is a dead letter."""
    event = paid()
    behave(reject=451, reject_at="rcpt")
    service = start_service("email", _env(vhost, mailbox) | {"SAGAPOST_RETRY_DELAYS_S": delays}).wait_ready()
    await publish(vhost, event)

    steps = len(delays.split(","))
    lines = eventually(lambda: [line for line in service.lines() if line["event"] == "message.handled"][steps:], 40)

    assert [line["outcome"] for line in lines] == ["ok"]
    failed = [(body["code"], body["permanent"]) for _, kind, body in await told(vhost) if kind == "EmailFailed"]
    assert failed == [("smtp_451", False)]
    assert await depth(vhost, topology.dead_letter_queue(topology.EMAIL_QUEUE)) == 0


async def test_a_connection_cut_after_the_final_dot_is_tried_again(
    outlets: handlers.Outlets, behave: Callable[..., None], mailbox: services.Service
) -> None:
    """Nobody knows whether that mail was taken: after the wait (none here) it is sent again under its one Message-ID."""
    event = paid()
    behave(cut_after_dot=True)

    with pytest.raises(errors.MailInDoubtError, match="behind the final dot"):
        await handlers.on_payment_processed(outlets, delivery_of(event), event)
    behave()
    await handlers.on_payment_processed(outlets, delivery_of(event), event)

    found = mails(mailbox, event.saga_id)
    assert len(found) == 2
    assert len({mail["message_id"] for mail in found}) == 1


async def test_a_bad_recipient_is_told_and_never_sent(outlets: handlers.Outlets, mailbox: services.Service, vhost: str) -> None:
    """An address with a line break ends as EmailFailed before any server hears of it."""
    event = events.PaymentProcessed(
        **{name: getattr(paid(), name) for name in paid().__struct_fields__ if name != "user_email"},
        user_email="a@example.com\r\nBcc: b@x.example",
    )

    await handlers.on_payment_processed(outlets, delivery_of(event), event)

    assert mails(mailbox, event.saga_id) == []
    assert [(kind, body["code"]) for _, kind, body in await told(vhost)] == [("EmailFailed", "bad_address")]


@contextlib.asynccontextmanager
async def counting_proxy(port: int) -> AsyncGenerator[tuple[int, list[asyncio.StreamWriter]]]:
    """Pass connections on to a port and note each; yields its own port and the connections so far."""
    accepted: list[asyncio.StreamWriter] = []
    pumps: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while chunk := await reader.read(65536):
                writer.write(chunk)
        finally:
            writer.close()
            await writer.wait_closed()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(writer)
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        pumps.update({asyncio.create_task(pump(reader, far_writer)), asyncio.create_task(pump(far_reader, writer))})

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], accepted
    finally:
        server.close()
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def test_connections_are_kept_bounded_and_replaced(mailbox: services.Service) -> None:
    """Mails one after another share a connection, twenty at once use four, and one that the server ended is replaced unseen."""
    message = sender.compose(
        domain.of_receipt(paid()), domain.Content(subject="s", text="t\n", html="<p>t</p>"), mail_from=MAIL_FROM, traceparent=None
    )
    async with (
        counting_proxy(int(mailbox.env["SAGAPOST_SMTP_PORT"])) as (port, accepted),
        sender.Sender("127.0.0.1", port, mail_from=MAIL_FROM, size=4, timeout_s=5) as outbound,
    ):
        for _ in range(5):
            await outbound.send(message, "test@example.com")
        after_five = len(accepted)
        await asyncio.gather(*(outbound.send(message, "test@example.com") for _ in range(20)))
        after_many = len(accepted)
        for writer in accepted:
            writer.close()
        await outbound.send(message, "test@example.com")

    assert (after_five, after_many, len(accepted)) == (1, 4, 5)


def _env(vhost: str, mailbox: services.Service) -> dict[str, str]:
    return {"SAGAPOST_AMQP_URL": vhost, "SAGAPOST_SMTP_HOST": "127.0.0.1", "SAGAPOST_SMTP_PORT": mailbox.env["SAGAPOST_SMTP_PORT"]}


async def test_the_process_mails_in_the_trace_of_the_message(
    vhost: str, mailbox: services.Service, start_service: Start, eventually: Callable[..., Any]
) -> None:
    """From the broker to the mail's header it is one trace; the log has no address in it; SIGTERM exits with 0."""
    event = paid()
    service = start_service("email", _env(vhost, mailbox)).wait_ready()

    await publish(vhost, event)
    (mail,) = eventually(lambda: mails(mailbox, event.saga_id))
    eventually(lambda: [line for line in service.lines() if line["event"] == "message.handled"])

    assert TRACE_ID in mail["headers"]["traceparent"][0]
    assert mail["headers"]["X-Saga-Id"] == [str(event.saga_id)]
    assert [kind for _, kind, _ in await told(vhost) if kind.startswith("Email")] == ["EmailSent"]
    assert "test@example.com" not in service.logs()
    assert service.terminate() == 0


@pytest.mark.parametrize("point", ["email.after_accept", "email.after_publish"])
async def test_a_kill_before_the_acknowledgement_is_at_worst_a_second_copy(
    point: str, vhost: str, mailbox: services.Service, start_service: Start, eventually: Callable[..., Any]
) -> None:
    """Killed after the server's 250, email mails once more at its restart: never none, at most one more per crash, one EmailSent id."""
    event = paid()
    doomed = start_service("email", _env(vhost, mailbox) | {"SAGAPOST_CRASH": point}).wait_ready()
    await publish(vhost, event)
    assert doomed.wait() == -9

    service = start_service("email", _env(vhost, mailbox)).wait_ready()
    eventually(lambda: [line for line in service.lines() if line["event"] == "message.handled"])

    found = mails(mailbox, event.saga_id)
    assert len(found) == 2
    assert len({mail["message_id"] for mail in found}) == 1
    assert len({message_id for message_id, kind, _ in await told(vhost) if kind == "EmailSent"}) == 1


async def test_a_mail_that_was_noted_is_not_repeated_after_a_kill(
    vhost: str, mailbox: services.Service, start_service: Start, eventually: Callable[..., Any], tmp_path: pathlib.Path
) -> None:
    """Killed behind the server's 250, with a memory on disk: the next process tells of the mail and does not send it again."""
    event = paid()
    lasting = _env(vhost, mailbox) | {"SAGAPOST_MAIL_MEMORY": str(tmp_path / "memory")}
    doomed = start_service("email", lasting | {"SAGAPOST_CRASH": "email.after_accept"}).wait_ready()
    await publish(vhost, event)
    assert doomed.wait() == -9

    service = start_service("email", lasting).wait_ready()
    eventually(lambda: [line for line in service.lines() if line["event"] == "message.handled"])

    assert len(mails(mailbox, event.saga_id)) == 1
    assert [kind for _, kind, _ in await told(vhost) if kind == "EmailSent"] == ["EmailSent"]


async def test_a_kill_repeats_no_more_mails_than_there_are_connections(
    vhost: str, mailbox: services.Service, start_service: Start, eventually: Callable[..., Any]
) -> None:
    """Two connections: of six receipts two are handed over and unacknowledged when the process dies, and those two come twice."""
    orders = [paid() for _ in range(6)]
    few = _env(vhost, mailbox) | {"SAGAPOST_SMTP_CONNECTIONS": "2"}
    for event in orders:
        await publish(vhost, event)

    def sent() -> int:
        return sum(len(mails(mailbox, event.saga_id)) for event in orders)

    doomed = start_service("email", few | {"SAGAPOST_CRASH": "email.after_accept:sleep=600"})
    eventually(lambda: sent() >= 2, 30)
    with pytest.raises(AssertionError, match="did not come true"):
        eventually(lambda: sent() > 2, 1)
    doomed.kill()
    service = start_service("email", few).wait_ready()
    eventually(lambda: len([line for line in service.lines() if line["event"] == "message.handled"]) == 6)

    assert sent() == 6 + 2


async def test_without_a_mail_server_email_is_ready_but_degraded(vhost: str, start_service: Start) -> None:
    """Mails can wait in the broker: a dead mail server shows in the answer and takes nothing out of service."""
    service = start_service(
        "email", {"SAGAPOST_AMQP_URL": vhost, "SAGAPOST_SMTP_HOST": "127.0.0.1", "SAGAPOST_SMTP_PORT": "1"}
    ).wait_ready()

    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=5)
    try:
        connection.request("GET", "/health/ready")
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["degraded"]) == (200, ["smtp"])
    finally:
        connection.close()
