"""One mail, as long as nobody dies: replicas on one memory, slow servers, broken and kept conversations, the order service's leave."""

import asyncio
import collections
import contextlib
import functools
import pathlib
import urllib.parse
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from typing import Any

import msgspec
import pytest
from integration import email_desk

from sagapost_chassis import amqp
from sagapost_contracts import events, topology
from sagapost_email import errors, handlers, orders, recent, sender
from sagapost_sandbox.testing import polling, proxy, services

pytestmark = pytest.mark.anyio
Start = Callable[[str, Mapping[str, str]], services.Service]
DEAD = topology.dead_letter_queue(topology.EMAIL_QUEUE)


@pytest.fixture
def behave(mailbox: services.Service) -> Generator[Callable[..., None]]:
    """Give what makes the shared mailbox misbehave; it behaves again after the test."""
    yield functools.partial(email_desk.behave, mailbox)
    email_desk.behave(mailbox)


@contextlib.asynccontextmanager
async def opened(vhost: str, mailbox: services.Service, doubt_s: float = 600) -> AsyncGenerator[handlers.Outlets]:
    """Open what the handlers need, with a second for each command of a conversation."""
    port = int(mailbox.env["SAGAPOST_SMTP_PORT"])
    async with (
        sender.Sender("127.0.0.1", port, mail_from=email_desk.MAIL_FROM, size=4, timeout_s=1, dot_timeout_s=20) as outbound,
        amqp.Publisher(vhost, "t") as publisher,
        recent.Recent(doubt_s=doubt_s) as memory,
    ):
        yield handlers.Outlets(sender=outbound, publisher=publisher, mail_from=email_desk.MAIL_FROM, recent=memory)


@contextlib.asynccontextmanager
async def asking(outlets: handlers.Outlets, order: email_desk.OrderService) -> AsyncGenerator[handlers.Outlets]:
    """Let the outlets ask that order service."""
    async with orders.Orders(f"http://127.0.0.1:{order.port}", secret="s" * 32, timeout_s=2) as asked:
        yield msgspec.structs.replace(outlets, order=asked)


def environment(vhost: str, mailbox: services.Service, **more: str) -> dict[str, str]:
    """Name a service's variables."""
    smtp = {"SAGAPOST_SMTP_HOST": "127.0.0.1", "SAGAPOST_SMTP_PORT": mailbox.env["SAGAPOST_SMTP_PORT"]}
    return {"SAGAPOST_AMQP_URL": vhost} | smtp | {f"SAGAPOST_{name}": value for name, value in more.items()}


async def test_two_processes_on_one_memory_mail_once_under_cut_connections(
    vhost: str, mailbox: services.Service, behave: Callable[..., None], start_service: Start, tmp_path: pathlib.Path
) -> None:
    """One process's connections are cut twenty times under load: each receipt comes once, nobody dies, nothing is a dead letter."""
    placed = [email_desk.paid() for _ in range(120)]
    behave(delay_s=0.5)
    memory = {"MAIL_MEMORY": str(tmp_path / "memory"), "SMTP_CONNECTIONS": "4", "RETRY_DELAYS_S": "1,1,1,1,1"}

    def copies() -> list[int]:
        found = collections.Counter(mail["message_id"].strip("<>") for mail in email_desk.ledger(mailbox))
        return [found[f"receipt-{event.saga_id}@sagapost.example"] for event in placed]

    async def grown(before: int) -> bool:
        return sum(copies()) > before or min(copies()) > 0

    parts = urllib.parse.urlsplit(vhost)
    with proxy.Proxy(parts.hostname or "", parts.port or 5672) as link:
        both = [start_service("email", environment(url, mailbox, **memory)).wait_ready() for url in (vhost, proxy.through(vhost, link))]
        await email_desk.publish(vhost, *placed)
        for event in placed[:20]:
            await polling.eventually(lambda: _is(link.connections > 0), 30)
            await polling.eventually(functools.partial(grown, sum(copies())), 30)
            link.cut()
            await email_desk.publish(vhost, event)  # once more, as a relay that lost its channel does
        await polling.eventually(lambda: _is(min(copies()) > 0), 60)
        await polling.eventually(lambda: _resting(vhost), 60)

        assert copies() == [1] * len(placed)
        assert [service.returncode for service in both] == [None, None]
        assert await email_desk.depth(vhost, DEAD) == 0


async def _resting(url: str) -> bool:
    queues = [topology.EMAIL_QUEUE, *(topology.retry_queue(topology.EMAIL_QUEUE, delay_s) for delay_s in topology.RETRY_DELAYS_S)]
    return [await email_desk.depth(url, queue) for queue in queues] == [0] * len(queues)


async def _is(value: object) -> bool:
    return bool(value)


async def test_a_server_that_is_slow_behind_the_dot_gets_one_copy(
    vhost: str, mailbox: services.Service, behave: Callable[..., None]
) -> None:
    """An answer to the final dot that takes longer than any other command may is waited for: one mail, one EmailSent."""
    event = email_desk.paid()
    behave(delay_s=2.5)

    async with opened(vhost, mailbox) as outlets:
        await handlers.on_payment_processed(outlets, email_desk.delivery_of(event), event)

    assert len(email_desk.mails(mailbox, event.saga_id)) == 1
    assert [kind for kind, _ in await email_desk.published(vhost)] == ["EmailSent"]


async def test_a_mail_that_was_probably_taken_waits(vhost: str, mailbox: services.Service, behave: Callable[..., None]) -> None:
    """After a break behind the dot neither the message nor another request for the mail makes a second copy before the wait is over."""
    event = email_desk.paid()
    command = events.RequestNotification(
        order_id=1042, saga_id=event.saga_id, template=events.RECEIPT, user_email="test@example.com", attempt=2, amount=event.amount
    )
    behave(cut_after_dot=True)

    async with opened(vhost, mailbox, doubt_s=300) as outlets:
        with pytest.raises(errors.MailInDoubtError) as broken:
            await handlers.on_payment_processed(outlets, email_desk.delivery_of(event), event)
        behave()
        with pytest.raises(errors.MailInDoubtError, match="was probably taken"):
            await handlers.on_request_notification(outlets, email_desk.delivery_of(command), command)

    assert (broken.value.counted, broken.value.delay_s) == (False, 300)
    assert len(email_desk.mails(mailbox, event.saga_id)) == 1


@pytest.mark.parametrize("behaviour", [{"mails_per_conversation": 2}, {"mails_per_conversation": 1}], ids=["two", "one"])
async def test_a_conversation_that_the_server_ends_costs_nothing(
    behaviour: dict[str, int], vhost: str, mailbox: services.Service, behave: Callable[..., None]
) -> None:
    """A server that answers 421 after so many mails of a conversation takes all of them: on new conversations, without a failure."""
    found = [email_desk.paid() for _ in range(6)]
    behave(**behaviour)

    async with opened(vhost, mailbox) as outlets:
        for event in found:
            await handlers.on_payment_processed(outlets, email_desk.delivery_of(event), event)

    assert [len(email_desk.mails(mailbox, event.saga_id)) for event in found] == [1] * 6


@pytest.mark.parametrize("phase", ["mail", "rcpt", "data", "dot"])
async def test_a_kept_conversation_that_answers_421_is_replaced(
    phase: str, vhost: str, mailbox: services.Service, behave: Callable[..., None]
) -> None:
    """421 in the middle of a kept conversation says nothing about the mail: the sender asks once more, on a new one, before it fails."""
    first, second = email_desk.paid(), email_desk.paid()
    counted: list[int] = []

    async with (
        opened(vhost, mailbox) as outlets,
        _counting(int(mailbox.env["SAGAPOST_SMTP_PORT"]), counted) as port,
        sender.Sender("127.0.0.1", port, mail_from=email_desk.MAIL_FROM, timeout_s=5) as through,
    ):
        counting = msgspec.structs.replace(outlets, sender=through)
        await handlers.on_payment_processed(counting, email_desk.delivery_of(first), first)
        behave(reject=421, reject_at=phase)
        with pytest.raises(errors.MailDeferredError, match="421"):
            await handlers.on_payment_processed(counting, email_desk.delivery_of(second), second)

    assert len(counted) == 2


@contextlib.asynccontextmanager
async def _counting(port: int, counted: list[int]) -> AsyncGenerator[int]:
    """Pass connections on to a port, and count them."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(65536):
                writer.write(chunk)
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        counted.append(1)
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def test_a_mail_server_that_is_away_costs_no_attempt(
    vhost: str, mailbox: services.Service, behave: Callable[..., None], start_service: Start
) -> None:
    """Away for longer than the ladder, then back: receipt and cancellation mail come once, and no dead letter."""
    receipt, cancellation = email_desk.paid(), email_desk.cancelled()
    behave(reject=421, reject_at="connect")
    service = start_service("email", environment(vhost, mailbox, RETRY_DELAYS_S="1")).wait_ready()
    await email_desk.publish(vhost, receipt, cancellation)

    def handled() -> list[dict[str, Any]]:
        return [line for line in service.lines() if line["event"] == "message.handled"]

    await polling.eventually(lambda: _is(len(handled()) >= 6), 40)
    assert await email_desk.published(vhost) == []
    behave()
    await polling.eventually(lambda: _is([line["outcome"] for line in handled()].count("ok") == 2), 40)

    assert [len(email_desk.mails(mailbox, event.saga_id)) for event in (receipt, cancellation)] == [1, 1]
    assert [kind for kind, _ in await email_desk.published(vhost)] == ["EmailSent", "EmailSent"]
    assert await email_desk.depth(vhost, DEAD) == 0


async def test_a_receipt_leaves_with_the_order_services_leave(vhost: str, mailbox: services.Service) -> None:
    """Asked with the secret, once, before the receipt; a cancellation mail needs no leave; a mail that is known is reported without it."""
    event, cancellation = email_desk.paid(), email_desk.cancelled()

    async with email_desk.order_service() as order, opened(vhost, mailbox) as outlets, asking(outlets, order) as outlets:
        await handlers.on_order_cancelled(outlets, email_desk.delivery_of(cancellation), cancellation)
        assert order.asked == []
        for _ in range(2):
            await handlers.on_payment_processed(outlets, email_desk.delivery_of(event), event)
        (head,) = order.asked

    assert head.startswith(f"POST /sagas/{event.saga_id}/receipt HTTP/1.1\r\n")
    assert f"Sagapost-Secret: {'s' * 32}\r\n" in head
    assert len(email_desk.mails(mailbox, event.saga_id)) == 1


async def test_a_receipt_that_is_not_wanted_is_not_sent(vhost: str, mailbox: services.Service) -> None:
    """The order no longer stands: nothing is sent, nothing reported; a saga that is not there costs attempts, as everywhere."""
    event = email_desk.paid()

    async with email_desk.order_service() as order, opened(vhost, mailbox) as outlets, asking(outlets, order) as outlets:
        order.answer = {"send": False, "state": "compensated"}
        await handlers.on_payment_processed(outlets, email_desk.delivery_of(event), event)
        order.status = 404
        with pytest.raises(errors.UnknownSagaError) as unknown:
            await handlers.on_payment_processed(outlets, email_desk.delivery_of(event), event)

    assert unknown.value.counted
    assert email_desk.mails(mailbox, event.saga_id) == []
    assert await email_desk.published(vhost) == []


async def test_an_order_service_of_an_earlier_version_lets_receipts_go(vhost: str, mailbox: services.Service) -> None:
    """It has the saga and does not know the question, as during an upgrade: the receipt leaves, as it did before."""
    event = email_desk.paid()

    async with email_desk.order_service() as order, opened(vhost, mailbox) as outlets, asking(outlets, order) as outlets:
        order.status, order.saga_status = 404, 200
        await handlers.on_payment_processed(outlets, email_desk.delivery_of(event), event)

    assert [head.split(" ")[1] for head in order.asked] == [f"/sagas/{event.saga_id}/receipt", f"/ops/sagas/{event.saga_id}"]
    assert len(email_desk.mails(mailbox, event.saga_id)) == 1


@pytest.mark.parametrize("status", [500, 503, 401])
async def test_without_the_order_services_answer_a_receipt_waits(status: int, vhost: str, mailbox: services.Service) -> None:
    """An order service that fails costs no attempt and lets no receipt out; its answer comes later, and the receipt leaves."""
    event = email_desk.paid()

    async with email_desk.order_service() as order, opened(vhost, mailbox) as outlets, asking(outlets, order) as outlets:
        order.status = status
        with pytest.raises(errors.OrderUnavailableError) as caught:
            await handlers.on_payment_processed(outlets, email_desk.delivery_of(event, attempt=6), event)
        assert email_desk.mails(mailbox, event.saga_id) == []
        order.status = 200
        await handlers.on_payment_processed(outlets, email_desk.delivery_of(event), event)

    assert not caught.value.counted
    assert len(email_desk.mails(mailbox, event.saga_id)) == 1


async def test_no_receipt_is_sent_behind_the_lease(vhost: str, mailbox: services.Service, behave: Callable[..., None]) -> None:
    """A conversation that outlives the granted time is cut: early, and nothing is sent; behind the dot, and the mail is in doubt."""
    early, late = email_desk.paid(), email_desk.paid()

    async with email_desk.order_service() as order, opened(vhost, mailbox) as outlets, asking(outlets, order) as outlets:
        order.answer = {"send": True, "lease_s": 0.4}
        behave(hang="rcpt")
        with pytest.raises(errors.MailServerUnavailableError):
            await handlers.on_payment_processed(outlets, email_desk.delivery_of(early), early)
        behave(hang="dot")
        with pytest.raises(errors.MailInDoubtError, match="granted"):
            await handlers.on_payment_processed(outlets, email_desk.delivery_of(late), late)

    assert email_desk.mails(mailbox, early.saga_id) == []
