"""Reads what both databases, the broker, the provider and the mail server say happened; it must not judge."""

import asyncio
import concurrent.futures
import contextlib
import itertools
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator
from datetime import datetime
from decimal import Decimal
from functools import cached_property
from typing import Final, LiteralString, TypeVar
from urllib.parse import quote, unquote, urlsplit
from uuid import UUID

import msgspec
import psycopg
from aio_pika import exceptions
from psycopg import sql

from sagapost_chassis import amqp, urls
from sagapost_contracts import topology
from sagapost_ops import client, database, errors, targets
from sagapost_sandbox import errors as sandbox_errors
from sagapost_sandbox import management

T = TypeVar("T")

PAGE: Final = 2000  # how many sagas, orders or messages are held at a time
PATIENCE_S: Final = 600  # for one statement
_PAGE: Final = 1000
# what is looked at: what changed then or later, and what has not ended, however old it is
LOOKED_AT: Final = sql.SQL(
    "(s.updated_at >= %(since)s::timestamptz OR s.deadline_at IS NOT NULL OR s.state NOT IN ('notified', 'compensated'))"
)
PAID_SINCE: Final = sql.SQL("(p.updated_at >= %(since)s::timestamptz OR p.status IN ('processing', 'refunding'))")
_SAGAS: Final = sql.SQL("SELECT count(*) FROM sagas AS s WHERE {looked_at}").format(looked_at=LOOKED_AT)
_PAYMENTS: Final = sql.SQL("SELECT count(*) FROM payments AS p WHERE {paid_since}").format(paid_since=PAID_SINCE)
_EXIST: Final = "SELECT id FROM sagas WHERE id = ANY(%(ids)s::uuid[])"


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
    created: datetime = msgspec.field(name="Created")

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
    """Where both databases, the broker, the provider and the mail server are, and since when an order must have changed to be looked at.

    Nothing here grows with the orders but what the sandbox's provider and mailbox say, each of which is read once.
    """

    def __init__(
        self, order: database.Connection, payment: database.Connection, where: targets.Targets, since: datetime | None = None
    ) -> None:
        self.order = order
        self.payment = payment
        self.since = since
        self._where = where

    def sentences(self, conn: database.Connection, query: LiteralString | sql.Composed, **values: object) -> list[str]:
        """Run a query whose rows are one sentence each; `%(since)s` is -infinity for everything."""
        return [str(row[0]) for row in conn.execute(query, self.values(**values))]

    def count(self, conn: database.Connection, query: LiteralString | sql.Composed, **values: object) -> int:
        """Run a query that counts."""
        row = conn.execute(query, self.values(**values)).fetchone()
        return int(row[0]) if row else 0

    def values(self, **values: object) -> dict[str, object]:
        """Return the parameters of a query, with `since`."""
        return {"since": self.since or "-infinity", **values}

    @cached_property
    def sagas(self) -> int:
        """Count the sagas that changed since, or have not ended."""
        return self.count(self.order, _SAGAS)

    @cached_property
    def payments(self) -> int:
        """Count the payments that changed since, or are under way."""
        return self.count(self.payment, _PAYMENTS)

    def existing(self, ids: Iterable[UUID]) -> set[UUID]:
        """Return those that are sagas, asked for a page at a time."""
        found: set[UUID] = set()
        for page in pages(ids):
            found.update(row[0] for row in self.order.execute(_EXIST, {"ids": page}))
        return found

    @cached_property
    def movements(self) -> dict[str, list[Movement]] | None:
        """The provider's ledger by saga; None when it is not the sandbox's."""
        if self._where.provider_url is None:
            return None
        found: dict[str, list[Movement]] = defaultdict(list)
        with client.Client(self._where.provider_url) as provider:
            for movement in provider.get("/v1/ledger", list[Movement]):
                found[movement.reference].append(movement)
        return dict(found)

    @cached_property
    def mails(self) -> dict[str, list[Mail]] | None:
        """All accepted mails by saga, the newest first; None when the mail server cannot be asked."""
        if self._where.mailbox_url is None:
            return None
        found: dict[str, list[Mail]] = defaultdict(list)
        read = 0
        with client.Client(self._where.mailbox_url) as mailbox:
            while True:
                page = mailbox.get(f"/api/v1/messages?start={read}&limit={_PAGE}", Mails)
                for mail in page.messages:
                    found[mail.saga_id].append(mail)
                read += len(page.messages)
                if not page.messages or read >= page.total:
                    return dict(found)

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
        raise errors.UnfitError(f"the broker at {urls.shown(url)} does not answer; see ./sagapost status") from exc
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


def pages(items: Iterable[T]) -> Iterator[list[T]]:
    """Return the items `PAGE` at a time."""
    left = iter(items)
    while page := list(itertools.islice(left, PAGE)):
        yield page


@contextlib.contextmanager
def gathered(where: targets.Targets, since: datetime | None = None) -> Generator[Evidence]:
    """Open both databases, read-only, for one evaluation.

    Raises:
        UnfitError: one cannot be used.
        FailedError: a statement took longer than `PATIENCE_S`, or a database went away in the middle.

    """
    with contextlib.ExitStack() as stack:
        order, payment = (
            stack.enter_context(contextlib.closing(database.connect(targets.need(where, field), "sagapost-verify", patience_s=PATIENCE_S)))
            for field in ("order_database_url", "payment_database_url")
        )
        try:
            yield Evidence(order, payment, where, since)
        except psycopg.OperationalError as exc:
            reason = next(iter(str(exc).splitlines()), type(exc).__name__)
            is_slow = isinstance(exc, psycopg.errors.QueryCanceled)
            what = "with --since less is looked at" if is_slow else "see ./sagapost status and call again"
            raise errors.FailedError(f"a database gave up ({reason}); {what}") from exc
