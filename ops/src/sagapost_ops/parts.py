"""Walks both databases in the order of the sagas' ids, a page at a time, and reads what both say of each page; it must not judge."""

import heapq
import itertools
from collections.abc import Iterable, Iterator
from decimal import Decimal
from functools import cached_property
from operator import itemgetter
from typing import Final, LiteralString, TypeVar
from uuid import UUID

import msgspec
from psycopg import sql

from sagapost_ops import database, evidence

T = TypeVar("T")

CANCEL_PAYMENT: Final = "CancelPayment"
ORDER_CANCELLED: Final = "OrderCancelled"
_ORDER_IDS: Final = sql.SQL("""
SELECT s.id FROM sagas AS s WHERE (%(after)s::uuid IS NULL OR s.id > %(after)s) AND {looked_at} ORDER BY s.id LIMIT %(limit)s
""").format(looked_at=evidence.LOOKED_AT)
_PAYMENT_IDS: Final = sql.SQL("""
SELECT p.saga_id FROM payments AS p
 WHERE (%(after)s::uuid IS NULL OR p.saga_id > %(after)s) AND {paid_since} ORDER BY p.saga_id LIMIT %(limit)s
""").format(paid_since=evidence.PAID_SINCE)
# the outbox has no index by saga: it is sorted once, by the server, as UUIDs are
_CANCELLATIONS: Final = """
SELECT DISTINCT correlation_id, type, correlation_id COLLATE "C" FROM outbox
 WHERE type IN ('CancelPayment', 'OrderCancelled') ORDER BY correlation_id COLLATE "C", type
"""
_SAGAS: Final = sql.SQL("""
SELECT s.id, s.order_id, s.state, s.captured, s.refunded, s.notified_at IS NOT NULL AS is_notified,
       s.cancellation_sent_at IS NOT NULL AS is_told, o.total_amount AS total, o.currency, o.user_email, o.status,
       {looked_at} AS is_looked_at
  FROM sagas AS s JOIN orders AS o ON o.id = s.order_id WHERE s.id = ANY(%(ids)s::uuid[]) ORDER BY s.id
""").format(looked_at=evidence.LOOKED_AT)
# what an operator says that he gave back is what the saga knows of refunds after his row and did not know before
_BY_HAND: Final = """
SELECT saga_id, sum(refunded - before) AS amount
  FROM (SELECT saga_id, event, (facts ->> 'refunded')::numeric AS refunded,
               lag((facts ->> 'refunded')::numeric, 1, 0) OVER (PARTITION BY saga_id ORDER BY seq) AS before
          FROM saga_history
         WHERE saga_id IN (SELECT saga_id FROM saga_history WHERE saga_id = ANY(%(ids)s::uuid[]) AND event = 'OperatorMarkRefunded')) AS h
 WHERE event = 'OperatorMarkRefunded' GROUP BY saga_id
"""
_PAYMENTS: Final = sql.SQL("""
SELECT p.order_id, p.saga_id, p.status, p.amount, p.currency, p.transaction_id, p.code,
       p.cancel_requested_at IS NOT NULL AS is_cancelled, {paid_since} AS is_looked_at
  FROM payments AS p WHERE p.saga_id = ANY(%(ids)s::uuid[]) ORDER BY p.id
""").format(paid_since=evidence.PAID_SINCE)
_DUPLICATES: Final = """
SELECT d.order_id, d.saga_id, d.transaction_id, d.amount, d.currency, d.refund_id,
       EXISTS (SELECT FROM payments AS p WHERE p.transaction_id = d.transaction_id) AS is_standing
  FROM duplicate_charges AS d WHERE d.saga_id = ANY(%(ids)s::uuid[]) ORDER BY d.transaction_id
"""
_LEDGER: Final = """
SELECT order_id, saga_id, kind, amount, currency, transaction_id FROM ledger WHERE saga_id = ANY(%(ids)s::uuid[]) ORDER BY id
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
    is_looked_at: bool


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
    is_looked_at: bool


class Duplicate(msgspec.Struct, frozen=True, kw_only=True):
    """A surplus charge that went back, as payment noted it; `is_standing` when a payment stands on it."""

    order_id: int
    saga_id: UUID
    transaction_id: str
    amount: Decimal
    currency: str
    refund_id: str
    is_standing: bool


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A line of our own ledger."""

    order_id: int
    saga_id: UUID
    kind: str
    amount: Decimal
    currency: str
    transaction_id: str


class Part:
    """What every source says of some sagas, by their ids; an id need not be that of a saga: a payment or a mail may have it alone."""

    def __init__(self, found: evidence.Evidence, ids: dict[str, set[str]]) -> None:
        self.order = found.order
        self.payment = found.payment
        self._found = found
        self._wanted = uuids(ids)
        self.sagas = {row.id: row for row in self._read(found.order, _SAGAS, Saga, self._wanted)}
        payments = self._read(found.payment, _PAYMENTS, Payment, self._wanted)
        old = {saga_id for saga_id, saga in self.sagas.items() if not saga.is_looked_at}
        old |= {payment.saga_id for payment in payments if payment.saga_id not in self.sagas and not payment.is_looked_at}
        old -= {payment.saga_id for payment in payments if payment.is_looked_at}
        self.payments = [payment for payment in payments if payment.saga_id not in old]
        self.sagas = {saga_id: saga for saga_id, saga in self.sagas.items() if saga_id not in old}
        self.ids = {one: kinds for one, kinds in ids.items() if _uuid(one) not in old}
        self.uuids = [one for one in self._wanted if one not in old]

    def _read(self, conn: database.Connection, query: LiteralString | sql.Composed, kind: type[T], ids: list[UUID]) -> list[T]:
        return database.rows(conn, query, kind, self._found.values(ids=ids))

    def sentences(self, conn: database.Connection, query: LiteralString | sql.Composed, **values: object) -> list[str]:
        """Run a query over `%(ids)s` whose rows are one sentence each."""
        return self._found.sentences(conn, query, **{"ids": self.uuids, **values})

    def count(self, conn: database.Connection, query: LiteralString | sql.Composed) -> int:
        """Run a query over `%(ids)s` that counts."""
        return self._found.count(conn, query, ids=self.uuids)

    @cached_property
    def by_hand(self) -> dict[UUID, Decimal]:
        """What operators gave back by hand, by saga."""
        return {row.saga_id: row.amount for row in self._read(self.order, _BY_HAND, Hand, self.uuids)}

    @cached_property
    def ledger(self) -> list[Entry]:
        """Our own ledger."""
        return self._read(self.payment, _LEDGER, Entry, self.uuids)

    @cached_property
    def duplicates(self) -> list[Duplicate]:
        """The charges that payment noted as surplus."""
        return self._read(self.payment, _DUPLICATES, Duplicate, self.uuids)

    @cached_property
    def movements(self) -> list[evidence.Movement] | None:
        """The provider's ledger; None when it is not the sandbox's."""
        known = self._found.movements
        return None if known is None else [movement for one in self.ids for movement in known.get(one, ())]

    @cached_property
    def mails(self) -> list[evidence.Mail] | None:
        """The accepted mails; None when the mail server cannot be asked."""
        known = self._found.mails
        return None if known is None else [mail for one in self.ids for mail in known.get(one, ())]

    def texts(self, mails: list[evidence.Mail]) -> Iterator[tuple[evidence.Mail, str]]:
        """Read the plain text of each mail."""
        return self._found.texts(mails)

    def announced(self, kind: str) -> set[str]:
        """Return the sagas of which the outbox holds a message of this kind, `CANCEL_PAYMENT` or `ORDER_CANCELLED`."""
        return {one for one, kinds in self.ids.items() if kind in kinds}


def walk(found: evidence.Evidence) -> Iterator[Part]:
    """Yield pages of saga ids, merged from all sources in their order; everything that is known of one id stands in one page."""
    outside = sorted({*(found.movements or ()), *(found.mails or ())})  # before the databases: a mail is reported after it was accepted
    with found.order.cursor("cancellations", withhold=True) as cancellations:
        cancellations.itersize = evidence.PAGE
        cancellations.execute(_CANCELLATIONS)
        streams = (
            _pages(found, found.order, _ORDER_IDS),
            _pages(found, found.payment, _PAYMENT_IDS),
            ((str(row[0]), str(row[1])) for row in cancellations),
            ((one, "") for one in outside),
        )
        known = itertools.groupby(heapq.merge(*streams), itemgetter(0))
        while page := {one: {kind for _, kind in group} for one, group in itertools.islice(known, evidence.PAGE)}:
            yield Part(found, page)


def _pages(found: evidence.Evidence, conn: database.Connection, query: sql.Composed) -> Iterator[tuple[str, str]]:
    after: UUID | None = None
    while page := conn.execute(query, found.values(after=after, limit=evidence.PAGE)).fetchall():
        for (after,) in page:
            yield str(after), ""


def uuids(texts: Iterable[str]) -> list[UUID]:
    """Return those that are the canonical text of a UUID."""
    return [found for found in map(_uuid, texts) if found is not None]


def _uuid(text: str) -> UUID | None:
    try:
        found = UUID(text)
    except ValueError:
        return None
    return found if str(found) == text else None
