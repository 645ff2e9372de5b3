"""Reads what both databases, the broker, the provider and the mail server say happened; it must not judge."""

import asyncio
import concurrent.futures
import contextlib
from collections.abc import Generator
from decimal import Decimal
from functools import cached_property
from typing import Final, LiteralString
from urllib.parse import quote, unquote, urlsplit
from uuid import UUID

import msgspec
from aio_pika import exceptions
from psycopg import sql

from sagapost_chassis import amqp, settings
from sagapost_contracts import topology
from sagapost_ops import client, database, errors, targets
from sagapost_sandbox import errors as sandbox_errors
from sagapost_sandbox import management

_PAGE: Final = 1000
_SAGAS: Final = """
SELECT s.id, s.order_id, s.state, s.captured, s.refunded, s.notified_at IS NOT NULL AS is_notified,
       s.cancellation_sent_at IS NOT NULL AS is_told, o.total_amount AS total, o.currency, o.user_email, o.status
  FROM sagas AS s JOIN orders AS o ON o.id = s.order_id
"""
_KEYS: Final = "SELECT client, key, order_id, location, body FROM idempotency_keys"
# what an operator says that he gave back is what the saga knows of refunds after his row and did not know before
_BY_HAND: Final = """
SELECT saga_id, sum(refunded - before) AS amount
  FROM (SELECT saga_id, event, (facts ->> 'refunded')::numeric AS refunded,
               lag((facts ->> 'refunded')::numeric, 1, 0) OVER (PARTITION BY saga_id ORDER BY seq) AS before
          FROM saga_history WHERE saga_id IN (SELECT saga_id FROM saga_history WHERE event = 'OperatorMarkRefunded')) AS h
 WHERE event = 'OperatorMarkRefunded' GROUP BY saga_id
"""
_PAYMENTS: Final = """
SELECT order_id, saga_id, status, amount, currency, transaction_id, code, cancel_requested_at IS NOT NULL AS is_cancelled FROM payments
"""
_DUPLICATES: Final = """
SELECT order_id, saga_id, transaction_id, amount, currency, refund_id FROM duplicate_charges
"""
_LEDGER: Final = """
SELECT order_id, saga_id, kind, amount, currency, transaction_id FROM ledger
"""


class Saga(msgspec.Struct, frozen=True, kw_only=True):
    """A saga with what matters of its order; `is_notified` and `is_told` when its receipt or its cancellation mail was reported."""

    id: UUID
    order_id: int
    state: str
    captured: Decimal
    refunded: Decimal
    is_notified: bool
    is_told: bool
    total: Decimal
    currency: str
    user_email: str
    status: str


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """An idempotency key with the answer that is kept for it."""

    client: str
    key: str
    order_id: int
    location: str
    body: bytes


class Hand(msgspec.Struct, frozen=True, kw_only=True):
    """Money of a saga that an operator gave back by hand, outside the provider."""

    saga_id: UUID
    amount: Decimal


class Payment(msgspec.Struct, frozen=True, kw_only=True):
    """A payment's row; `is_cancelled` when a cancellation was noted while its call was under way."""

    order_id: int
    saga_id: UUID
    status: str
    amount: Decimal
    currency: str
    transaction_id: str | None
    code: str | None
    is_cancelled: bool


class Duplicate(msgspec.Struct, frozen=True, kw_only=True):
    """A charge that nobody asked for and that went back, as payment noted it."""

    order_id: int
    saga_id: UUID
    transaction_id: str
    amount: Decimal
    currency: str
    refund_id: str


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A line of our own ledger."""

    order_id: int
    saga_id: UUID
    kind: str
    amount: Decimal
    currency: str
    transaction_id: str


class Movement(msgspec.Struct, frozen=True, kw_only=True):
    """Money that really moved, as the provider's ledger has it; `reference` is the saga's id."""

    kind: str
    reference: str
    charge_id: str
    amount: Decimal
    currency: str


class Recipient(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """An address in a mail's header."""

    address: str


class Mail(msgspec.Struct, frozen=True, kw_only=True):
    """A mail that the mail server accepted."""

    id: str = msgspec.field(name="ID")
    message_id: str = msgspec.field(name="MessageID")
    to: tuple[Recipient, ...] = msgspec.field(name="To")

    @property
    def template(self) -> str:
        """What kind of mail it is."""
        return self.message_id.strip("<>").partition("-")[0]

    @property
    def saga_id(self) -> str:
        """Which saga it belongs to."""
        return self.message_id.strip("<>").partition("-")[2].partition("@")[0]


class Mails(msgspec.Struct, frozen=True, kw_only=True):
    """A page of the mail server's list, newest first."""

    total: int
    messages: tuple[Mail, ...]


class MailText(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """What the demo and the invariants read of a whole mail."""

    text: str


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """How many messages wait in a queue and how many consumers it has."""

    name: str
    ready: int
    consumers: int


class Evidence:
    """Everything one evaluation looks at; each source is read once, when it is first asked for."""

    def __init__(self, order: database.Connection, payment: database.Connection, where: targets.Targets) -> None:
        self.order = order
        self.payment = payment
        self._where = where

    @cached_property
    def sagas(self) -> dict[UUID, Saga]:
        """All sagas by id."""
        return {row.id: row for row in database.rows(self.order, _SAGAS, Saga)}

    @cached_property
    def keys(self) -> list[Key]:
        """All idempotency keys that have an answer."""
        return database.rows(self.order, _KEYS, Key)

    @cached_property
    def by_hand(self) -> dict[UUID, Decimal]:
        """Give what operators gave back by hand, by saga."""
        return {row.saga_id: row.amount for row in database.rows(self.order, _BY_HAND, Hand)}

    @cached_property
    def payments(self) -> list[Payment]:
        """All payments."""
        return database.rows(self.payment, _PAYMENTS, Payment)

    @cached_property
    def ledger(self) -> list[Entry]:
        """Our own ledger."""
        return database.rows(self.payment, _LEDGER, Entry)

    @cached_property
    def duplicates(self) -> list[Duplicate]:
        """Give the charges that payment noted as surplus."""
        return database.rows(self.payment, _DUPLICATES, Duplicate)

    @cached_property
    def movements(self) -> list[Movement] | None:
        """Give the provider's ledger; None when it is not the sandbox's."""
        if self._where.provider_url is None:
            return None
        with client.Client(self._where.provider_url) as provider:
            return provider.get("/v1/ledger", list[Movement])

    @cached_property
    def mails(self) -> list[Mail] | None:
        """All accepted mails; None when the mail server cannot be asked."""
        if self._where.mailbox_url is None:
            return None
        found: list[Mail] = []
        with client.Client(self._where.mailbox_url) as mailbox:
            while True:
                page = mailbox.get(f"/api/v1/messages?start={len(found)}&limit={_PAGE}", Mails)
                found.extend(page.messages)
                if not page.messages or len(found) >= page.total:
                    return found

    def texts(self, mails: list[Mail]) -> Generator[tuple[Mail, str]]:
        """Read the plain text of each mail."""
        if self._where.mailbox_url is not None:
            with client.Client(self._where.mailbox_url) as mailbox:
                for mail in mails:
                    yield mail, mailbox.get(f"/api/v1/message/{mail.id}", MailText).text

    @cached_property
    def queues(self) -> dict[str, Queue] | None:
        """Every queue of the topology, counted by the broker itself; None without a broker's address."""
        return None if self._where.amqp_url is None else depths(self._where.amqp_url)

    @cached_property
    def unacknowledged(self) -> int | None:
        """Count the deliveries that consumers hold; None without the management interface.

        Asked of the channels, which tell every second; a quorum queue's own count is up to five seconds old.
        """
        if self._where.management_url is None or self._where.amqp_url is None:
            return None
        vhost = unquote(urlsplit(self._where.amqp_url).path[1:]) or "/"
        parts = urlsplit(self._where.management_url)
        api = management.Management(
            host=parts.hostname or "127.0.0.1",
            port=parts.port or 15672,
            user=unquote(parts.username or "guest"),
            password=unquote(parts.password or "guest"),
        )
        try:
            answer = management.request(api, "GET", f"/api/vhosts/{quote(vhost, safe='')}/channels?columns=messages_unacknowledged")
        except (OSError, sandbox_errors.ManagementError) as exc:
            raise errors.UnfitError(f"the broker's management interface on port {api.port} cannot be asked: {exc}") from exc
        # a channel that is just closing is an empty list, not an empty object
        lines = msgspec.convert(answer, list[dict[str, int] | list[object]])
        return sum(line.get("messages_unacknowledged", 0) for line in lines if isinstance(line, dict))


def depths(url: str) -> dict[str, Queue]:
    """Count the messages and consumers of every queue of the topology.

    Raises:
        UnfitError: the broker does not answer.

    """
    with concurrent.futures.ThreadPoolExecutor(1) as thread:  # the caller may be inside an event loop
        return thread.submit(lambda: asyncio.run(_queues(url))).result()


async def _queues(url: str) -> dict[str, Queue]:
    try:
        connection = await amqp.connect(url, "sagapost-verify")
    except amqp.BrokerUnavailableError as exc:
        raise errors.UnfitError(f"the broker at {settings.without_password(url)} does not answer; see ./sagapost status") from exc
    found: dict[str, Queue] = {}
    try:
        for wanted in topology.queues():
            channel = await connection.channel()
            with contextlib.suppress(exceptions.ChannelNotFoundEntity):  # which closes the channel
                counted = (await channel.get_queue(wanted.name, ensure=True)).declaration_result
                found[wanted.name] = Queue(name=wanted.name, ready=counted.message_count or 0, consumers=counted.consumer_count or 0)
                await channel.close()
    finally:
        await amqp.close(connection)
    return found


def sentences(conn: database.Connection, query: LiteralString | sql.Composed) -> list[str]:
    """Run a query whose rows are one sentence each."""
    return [str(row[0]) for row in conn.execute(query)]


def count(conn: database.Connection, query: LiteralString | sql.Composed) -> int:
    """Run a query that counts."""
    row = conn.execute(query).fetchone()
    return int(row[0]) if row else 0


@contextlib.contextmanager
def gathered(where: targets.Targets) -> Generator[Evidence]:
    """Open both databases, read-only, for one evaluation.

    Raises:
        UnfitError: one cannot be used.

    """
    with contextlib.ExitStack() as stack:
        order, payment = (
            stack.enter_context(contextlib.closing(database.connect(targets.need(where, field), "sagapost-verify")))
            for field in ("order_database_url", "payment_database_url")
        )
        yield Evidence(order, payment, where)
