"""Books with one finished order, written by hand."""

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
INSERT INTO sagas
    (id, order_id, state, version, amount, captured, currency, payment_version, notified_at, pay_before, created_at, updated_at)
SELECT %(saga)s, id, 'notified', 3, %(total)s, %(total)s, 'USD', 2, '2026-11-22T10:00:00Z', now(), now(), now()
  FROM ordered RETURNING order_id
"""
KEY = """
INSERT INTO idempotency_keys (client, key, fingerprint, order_id, status, location, body)
VALUES ('demo', %(saga)s::text, sha256('cart'), %(order_id)s, 202, '/api/sagas/' || %(saga)s, %(reply)s)
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
# history and ledgers cannot be changed even by their owner, unless it says so
UNGUARDED = {
    "order": ("ALTER TABLE saga_history DISABLE TRIGGER USER", "GRANT UPDATE, DELETE ON saga_history TO CURRENT_USER"),
    "payment": ("GRANT DELETE ON ledger TO CURRENT_USER", "GRANT UPDATE ON duplicate_charges TO CURRENT_USER"),
}


class Books(msgspec.Struct, frozen=True, kw_only=True):
    """One finished order in all books, and where they are."""

    where: targets.Targets
    values: dict[str, Any]

    def change(self, database: str, *statements: str) -> None:
        """Write something wrong; what is in the outbox by then counts as published."""
        url = self.where.order_database_url if database == "order" else self.where.payment_database_url
        with psycopg.connect(str(url), autocommit=True) as conn:
            for statement in (*UNGUARDED[database], *statements):
                conn.execute(statement.encode(), self.values)

    def violations(self, expected: Expectations = STRANGERS) -> dict[int, tuple[str, ...]]:
        """Verify, and give what is violated by number."""
        report = verify.run(self.where, expected)
        assert report.ok == all(invariant.ok for invariant in report.invariants)
        return {invariant.id: invariant.violations for invariant in report.invariants if not invariant.ok}


def write(order_db: str, payment_db: str, provider: services.Service, mailbox: services.Service, *, has_receipt: bool = True) -> Books:
    """Write one order that was paid and notified into both databases, the provider's ledger and, unless told otherwise, the mailbox."""
    saga = ids.uuid7()
    messages = {name: ids.uuid7() for name in ("created", "processed", "sent", "other")}
    facts = {"captured": str(TOTAL), "refunded": "0.00", "payment_version": 2, "notified_at": None}
    values: dict[str, Any] = {"saga": saga, "total": TOTAL, "charge": charge(provider, saga), "surplus": f"ch_surplus_{saga}", **messages}
    values["nothing"] = json.dumps({**facts, "captured": "0.00", "payment_version": 0})
    values["paid"], values["told"] = json.dumps(facts), json.dumps({**facts, "notified_at": "2026-11-22T10:00:00Z"})
    created = {"id": messages["created"], "type": "OrderCreated", "key": "order.order.created", "saga": str(saga), "headers": "{}"}
    caused = json.dumps({"causation-id": str(messages["created"])})
    processed = {"id": messages["processed"], "type": "PaymentProcessed", "key": "payment.payment.processed", "saga": str(saga)}
    with psycopg.connect(order_db) as conn:
        row = conn.execute(ORDER, values).fetchone()
        values["order_id"] = row[0] if row else None
        reply = {"id": values["order_id"], "saga_id": str(saga), "total_amount": str(TOTAL)}
        conn.execute(KEY, {**values, "reply": json.dumps(reply).encode()})
        conn.execute(HISTORY, values)
        conn.execute(OUTBOX, created)
        conn.execute(INBOX, (messages["processed"], "PaymentProcessed"))
        conn.execute(INBOX, (messages["sent"], "EmailSent"))
    with psycopg.connect(payment_db) as conn:
        conn.execute(PAYMENT, values)
        conn.execute(LEDGER, values)
        conn.execute(OUTBOX, {**processed, "headers": caused})
        conn.execute(INBOX, (messages["created"], "OrderCreated"))
    if has_receipt:
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
    body = {"amount": str(amount), "currency": "USD", "reference": str(saga), "payment_method": "pm_card_ok"}
    return str(_post(provider, "/v1/charges", f"{key}:{saga}", body)["charge_id"])


def refund(provider: services.Service, saga: UUID, charge_id: str, amount: Decimal = TOTAL) -> str:
    """Give a charge back at the provider, and give the refund's id."""
    body = {"amount": str(amount), "currency": "USD", "reference": str(saga), "charge": charge_id}
    return str(_post(provider, "/v1/refunds", f"test:{charge_id}", body)["refund_id"])


def _post(provider: services.Service, path: str, key: str, body: dict[str, str]) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", provider.port, timeout=10)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json", "Idempotency-Key": key})
    answer: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    return answer


def mail(mailbox: services.Service, template: str, saga: UUID, text: str, to: str = "verify@example.com") -> None:
    """Send a mail as the email service would."""
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "no-reply@sagapost.example", to, template
    message["Message-ID"] = f"<{template}-{saga}@sagapost.example>"
    message.set_content(text)
    with smtplib.SMTP("127.0.0.1", int(mailbox.env["SAGAPOST_SMTP_PORT"]), timeout=10) as server:
        server.send_message(message)
