"""Books with one finished order, written by hand, and every way in which one fact of them can be wrong."""

import http.client
import json
import smtplib
from decimal import Decimal
from email.message import EmailMessage
from typing import Any
from uuid import UUID

import msgspec
import psycopg

from sagapost_chassis import ids
from sagapost_ops import targets, verify
from sagapost_ops.invariants.outcome import Expectations
from sagapost_sandbox.testing import services

TOTAL = Decimal("1299.99")
STRANGERS = Expectations(strangers=True)  # provider and mailbox serve every test of the run

ORDER = """
WITH ordered AS (
    INSERT INTO orders (user_id, user_email, status, currency, total_amount, payment_method, processing_duration_ms, created_at, updated_at)
    VALUES (1, 'verify@example.com', 'completed', 'USD', %(total)s, 'pm_card_ok', 5, now(), now()) RETURNING id
), items AS (
    INSERT INTO order_items (order_id, line, product_id, name, quantity, price) SELECT id, 1, 1, 'Laptop', 1, %(total)s FROM ordered
)
INSERT INTO sagas (id, order_id, state, version, amount, captured, currency, payment_version, notified_at, created_at, updated_at)
SELECT %(saga)s, id, 'notified', 3, %(total)s, %(total)s, 'USD', 2, '2026-11-22T10:00:00Z', now(), now() FROM ordered RETURNING order_id
"""
HISTORY = """
INSERT INTO saga_history (saga_id, seq, from_state, to_state, event, outcome, message_id, source, facts, at) VALUES
    (%(saga)s, 1, 'none', 'created', 'OrderCreated', 'applied', %(created)s, 'http', %(nothing)s, now()),
    (%(saga)s, 2, 'created', 'paid', 'PaymentProcessed', 'applied', %(processed)s, 'event', %(paid)s, now()),
    (%(saga)s, 3, 'paid', 'notified', 'EmailSent', 'applied', %(sent)s, 'event', %(told)s, now())
"""
INBOX = "INSERT INTO inbox (message_id, type) VALUES (%s, %s)"
OUTBOX = """
INSERT INTO outbox (shard, event_id, aggregate, type, routing_key, correlation_id, headers, payload, created_at)
VALUES (0, %(id)s, 'order', %(type)s, %(key)s, %(saga)s, %(headers)s, '', now())
"""
PAYMENT = """
INSERT INTO payments (order_id, saga_id, status, version, amount, currency, payment_method, transaction_id, user_email, items, pay_before)
VALUES (%(order_id)s, %(saga)s, 'captured', 2, %(total)s, 'USD', 'pm_card_ok', %(charge)s, 'verify@example.com', '[]', now())
"""
LEDGER = (
    "INSERT INTO ledger (order_id, kind, amount, currency, transaction_id) VALUES (%(order_id)s, 'capture', %(total)s, 'USD', %(charge)s)"
)
PASSED = "UPDATE outbox_cursor SET lo = pg_current_snapshot()"
# history cannot be changed even by its owner, unless it says so
UNGUARDED = "ALTER TABLE saga_history DISABLE TRIGGER USER"


class Books(msgspec.Struct, frozen=True, kw_only=True):
    """One finished order in all books, and where they are."""

    where: targets.Targets
    values: dict[str, Any]

    def change(self, database: str, *statements: str) -> None:
        """Write something wrong; what is in the outbox by then counts as published."""
        url = self.where.order_database_url if database == "order" else self.where.payment_database_url
        with psycopg.connect(str(url), autocommit=True) as conn:
            for statement in (UNGUARDED, *statements) if database == "order" else statements:
                conn.execute(statement.encode(), self.values)

    def violations(self, expected: Expectations = STRANGERS) -> dict[int, tuple[str, ...]]:
        """Verify, and give what is violated by number."""
        report = verify.run(self.where, expected)
        assert report.ok == all(invariant.ok for invariant in report.invariants)
        return {invariant.id: invariant.violations for invariant in report.invariants if not invariant.ok}


def write(order_db: str, payment_db: str, provider: services.Service, mailbox: services.Service) -> Books:
    """Write one order that was paid and notified into both databases, the provider's ledger and the mailbox."""
    saga = ids.uuid7()
    messages = {name: ids.uuid7() for name in ("created", "processed", "sent", "other")}
    facts = {"captured": str(TOTAL), "refunded": "0.00", "payment_version": 2, "notified_at": None}
    values: dict[str, Any] = {"saga": saga, "total": TOTAL, "charge": charge(provider, saga), **messages}
    values["nothing"] = json.dumps({**facts, "captured": "0.00", "payment_version": 0})
    values["paid"], values["told"] = json.dumps(facts), json.dumps({**facts, "notified_at": "2026-11-22T10:00:00Z"})
    created = {"id": messages["created"], "type": "OrderCreated", "key": "order.order.created", "saga": str(saga), "headers": "{}"}
    caused = json.dumps({"causation-id": str(messages["created"])})
    processed = {"id": messages["processed"], "type": "PaymentProcessed", "key": "payment.payment.processed", "saga": str(saga)}
    with psycopg.connect(order_db) as conn:
        row = conn.execute(ORDER, values).fetchone()
        values["order_id"] = row[0] if row else None
        conn.execute(HISTORY, values)
        conn.execute(OUTBOX, created)
        conn.execute(INBOX, (messages["processed"], "PaymentProcessed"))
        conn.execute(INBOX, (messages["sent"], "EmailSent"))
    with psycopg.connect(payment_db) as conn:
        conn.execute(PAYMENT, values)
        conn.execute(LEDGER, values)
        conn.execute(OUTBOX, {**processed, "headers": caused})
        conn.execute(INBOX, (messages["created"], "OrderCreated"))
    mail(mailbox, "receipt", saga, f"You paid {TOTAL:,} USD.")
    where = targets.Targets(
        order_database_url=order_db, payment_database_url=payment_db, provider_url=provider.url, mailbox_url=mailbox.url
    )
    made = Books(where=where, values=values)
    for database in ("order", "payment"):
        made.change(database, PASSED)
    return made


def charge(provider: services.Service, saga: UUID, key: str = "cap", amount: Decimal = TOTAL) -> str:
    """Charge at the provider, and give the charge's id."""
    connection = http.client.HTTPConnection("127.0.0.1", provider.port, timeout=10)
    body = {"amount": str(amount), "currency": "USD", "reference": str(saga), "payment_method": "pm_card_ok"}
    headers = {"Content-Type": "application/json", "Idempotency-Key": f"{key}:{saga}"}
    connection.request("POST", "/v1/charges", json.dumps(body), headers)
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return str(answer["charge_id"])


def mail(mailbox: services.Service, template: str, saga: UUID, text: str, to: str = "verify@example.com") -> None:
    """Send a mail as the email service would."""
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "no-reply@sagapost.example", to, template
    message["Message-ID"] = f"<{template}-{saga}@sagapost.example>"
    message.set_content(text)
    with smtplib.SMTP("127.0.0.1", int(mailbox.env["SAGAPOST_SMTP_PORT"]), timeout=10) as server:
        server.send_message(message)


AGAIN = """
INSERT INTO outbox (shard, event_id, aggregate, type, routing_key, correlation_id, headers, payload, created_at)
SELECT shard, gen_random_uuid(), aggregate, type, routing_key, correlation_id, headers, payload, created_at
  FROM outbox WHERE correlation_id = %(saga)s::text
"""
AGAIN_FOR_NO_REASON = """
INSERT INTO outbox (shard, event_id, aggregate, type, routing_key, correlation_id, headers, payload, created_at)
SELECT shard, gen_random_uuid(), aggregate, type, routing_key, correlation_id, '{}', payload, created_at
  FROM outbox WHERE correlation_id = %(saga)s::text
"""
CANCELLED = """
INSERT INTO outbox (shard, event_id, aggregate, type, routing_key, correlation_id, headers, payload, created_at)
VALUES (0, gen_random_uuid(), 'order', 'OrderCancelled', 'order.order.cancelled', %(saga)s::text, '{}', '', now())
"""
# what is wrong, where, the invariant that must say so, what it must say, and how it is made wrong
WRONG: dict[str, tuple[str, int, str, tuple[str, ...]]] = {
    "an order without a saga": (
        "order",
        1,
        "order {order_id} has 0 sagas",
        ("DELETE FROM saga_history WHERE saga_id = %(saga)s", "DELETE FROM sagas WHERE id = %(saga)s"),
    ),
    "an order that was never announced": (
        "order",
        1,
        "{saga} has told of its order under 0 ids",
        ("DELETE FROM outbox WHERE event_id = %(created)s",),
    ),
    "an order announced twice": ("order", 1, "{saga} has told of its order under 2 ids", (AGAIN,)),
    "an order whose status lags behind": (
        "order",
        1,
        "order {order_id} is pending, its saga notified",
        ("UPDATE orders SET status = 'pending' WHERE id = %(order_id)s",),
    ),
    "a saga that is still under way": (
        "order",
        2,
        "saga {saga} is paid",
        (
            "UPDATE sagas SET state = 'paid', version = 2, deadline_at = now(), deadline_kind = 'notify' WHERE id = %(saga)s",
            "DELETE FROM saga_history WHERE saga_id = %(saga)s AND seq = 3",
        ),
    ),
    "a payment for another order": (
        "payment",
        3,
        "payment of order 999 has no such order",
        (
            (
                "INSERT INTO payments (order_id, saga_id, status, amount, currency, payment_method, user_email, items, pay_before) "
                "VALUES (999, gen_random_uuid(), 'voided', 0, 'USD', '', '', '[]', now())"
            ),
        ),
    ),
    "a payment of another amount": (
        "payment",
        3,
        "order {order_id} costs 1299.99 USD, its payment 1.00 USD",
        ("UPDATE payments SET amount = 1 WHERE saga_id = %(saga)s",),
    ),
    "a payment that payment forgot": (
        "payment",
        3,
        "saga {saga} is notified and payment has never heard of it",
        ("DELETE FROM ledger WHERE order_id = %(order_id)s", "DELETE FROM payments WHERE saga_id = %(saga)s"),
    ),
    "a payment that is not finished": (
        "payment",
        3,
        "payment of order {order_id} is processing with 1 captures",
        ("UPDATE payments SET status = 'processing' WHERE saga_id = %(saga)s",),
    ),
    "a capture that the ledger lacks": (
        "payment",
        3,
        "payment of order {order_id} is captured with 0 captures",
        ("DELETE FROM ledger WHERE order_id = %(order_id)s",),
    ),
    "money that our books do not have": (
        "payment",
        3,
        "saga {saga} has a charge of 1299.99 at the provider, and our ledger has none",
        ("DELETE FROM ledger WHERE order_id = %(order_id)s",),
    ),
    "money that the provider does not have": (
        "payment",
        3,
        "saga {saga} has a refund of 1299.99 in our ledger, and the provider has none",
        (
            "INSERT INTO ledger (order_id, kind, amount, currency, transaction_id) VALUES (%(order_id)s, 'refund', %(total)s, 'USD', 're')",
            "UPDATE payments SET status = 'refunded' WHERE saga_id = %(saga)s",
        ),
    ),
    "a refund nobody told the saga of": (
        "payment",
        3,
        "saga {saga} knows of 1299.99 captured, 0.00 refunded; the ledger has 1299.99, 1299.99",
        ("INSERT INTO ledger (order_id, kind, amount, currency, transaction_id) VALUES (%(order_id)s, 'refund', %(total)s, 'USD', 're')",),
    ),
    "another amount at the provider": (
        "payment",
        3,
        "saga {saga}: a charge of 5.00 in our ledger, of 1299.99 at the provider",
        ("UPDATE ledger SET amount = 5 WHERE order_id = %(order_id)s",),
    ),
    "another charge at the provider": (
        "payment",
        3,
        "saga {saga}: charge other in our ledger",
        ("UPDATE ledger SET transaction_id = 'other' WHERE order_id = %(order_id)s",),
    ),
    "a capture after a tombstone": (
        "payment",
        3,
        "saga {saga} was charged after PaymentVoided",
        (
            (
                "INSERT INTO outbox (id, shard, event_id, aggregate, type, routing_key, correlation_id, headers, payload, created_at) "
                "VALUES (0, 0, gen_random_uuid(), 'order', 'PaymentVoided', 'payment.payment.voided', %(saga)s::text, '{}', '', now())"
            ),
        ),
    ),
    "two results of one payment": ("payment", 3, "saga {saga} has 2 results of its payment", (AGAIN_FOR_NO_REASON,)),
    "lines that cost something else": (
        "order",
        4,
        "order {order_id} costs 1299.99, its lines add up to 1.00",
        ("UPDATE order_items SET price = 1 WHERE order_id = %(order_id)s",),
    ),
    "a saga of another amount": (
        "order",
        4,
        "order {order_id} costs 1299.99 USD, its saga says 1.00 USD",
        ("UPDATE sagas SET amount = 1 WHERE id = %(saga)s",),
    ),
    "a receipt to somebody else": (
        "order",
        5,
        "receipt-{saga}@sagapost.example went to somebody else",
        ("UPDATE orders SET user_email = 'other@example.com' WHERE id = %(order_id)s",),
    ),
    "a receipt for nothing": (
        "payment",
        5,
        "receipt-{saga}@sagapost.example was sent for an order that was never paid",
        ("DELETE FROM ledger WHERE order_id = %(order_id)s",),
    ),
    "a cancellation nobody was told of": (
        "order",
        5,
        "saga {saga} was cancelled and no mail of it was accepted",
        (CANCELLED,),
    ),
    "a gap in a history": (
        "order",
        6,
        "saga {saga} has version 3 and 2 history rows, from 1 to 3",
        ("DELETE FROM saga_history WHERE saga_id = %(saga)s AND seq = 2",),
    ),
    "a history that jumps": (
        "order",
        6,
        "saga {saga}, row 2: starts at paid, the row before it ended at created",
        (
            "DELETE FROM saga_history WHERE saga_id = %(saga)s AND seq = 2",
            "UPDATE saga_history SET seq = 2 WHERE saga_id = %(saga)s AND seq = 3",
            "UPDATE sagas SET version = 2 WHERE id = %(saga)s",
        ),
    ),
    "a row that was ignored and moved the saga": (
        "order",
        6,
        "saga {saga}, row 3: paid -EmailSent-> notified is no legal edge",
        ("UPDATE saga_history SET outcome = 'ignored' WHERE saga_id = %(saga)s AND seq = 3",),
    ),
    "a saga that its history does not lead to": (
        "order",
        6,
        "saga {saga} is notified (captured 2000.00, refunded 0.00), its history ends at notified (1299.99, 0.00)",
        ("UPDATE sagas SET captured = 2000 WHERE id = %(saga)s",),
    ),
    "a sum that shrinks": (
        "order",
        6,
        "saga {saga}, row 3 takes back what an earlier row knew",
        ("""UPDATE saga_history SET facts = facts || '{"captured": "5000.00"}' WHERE saga_id = %(saga)s AND seq = 2""",),
    ),
    "a message applied twice": (
        "order",
        6,
        "saga {saga} has applied PaymentProcessed {processed} 2 times",
        (
            (
                "INSERT INTO saga_history (saga_id, seq, from_state, to_state, event, outcome, message_id, source, facts, at) "
                "SELECT saga_id, 4, 'notified', 'notified', event, 'ignored', message_id, source, facts, at "
                "FROM saga_history WHERE saga_id = %(saga)s AND seq = 2"
            ),
        ),
    ),
    "an event that payment never saw": (
        "payment",
        7,
        "message {created} was published and payment_service_queue never processed it",
        ("DELETE FROM inbox WHERE message_id = %(created)s",),
    ),
    "an event that the saga never saw": (
        "order",
        7,
        "message {processed} was published and order_updates_queue never processed it",
        ("DELETE FROM inbox WHERE message_id = %(processed)s",),
    ),
    "an effect without its inbox row": (
        "order",
        7,
        "saga {saga} shows EmailSent {sent}, which was not taken in",
        ("DELETE FROM inbox WHERE message_id = %(sent)s",),
    ),
    "an inbox row without its effect": (
        "order",
        7,
        "EmailSent {other} was taken in, and no saga shows it",
        ("INSERT INTO inbox VALUES (%(other)s, 'EmailSent')",),
    ),
    "a message answered twice": (
        "payment",
        7,
        "message {created} was answered 2 times with PaymentProcessed",
        (AGAIN,),
    ),
    "a lease in the far future": (
        "order",
        8,
        "relay holds shard 3",
        ("UPDATE outbox_cursor SET owner = 'relay', lease_until = now() + interval '1 day' WHERE shard = 3",),
    ),
}
