"""Measure what `verify` needs for many orders: fill both databases by SQL, then look, and read the time and the memory of this process.

    .venv/bin/python benchmarks/verify.py 300000
    .venv/bin/python benchmarks/verify.py 300000 --since 1h

A private PostgreSQL is started for it. One order in ten is cancelled and refunded. A day of orders: those of the last four hours are in
the outboxes.
"""

import argparse
import resource
import sys
import time
from datetime import UTC, datetime
from typing import Final

import psycopg

from sagapost_ops import migrations, targets, verify
from sagapost_ops.invariants.outcome import Expectations
from sagapost_ops.outbox import times
from sagapost_sandbox.testing import servers

ROLES: Final = {"order": ("order_user", "order_password"), "payment": ("payment_user", "payment_password")}
# number n: its saga, whether it is cancelled, and when it was placed, spread over a day
SHOP: Final = """
CREATE TEMP TABLE shop AS
SELECT n, (lpad(to_hex(1790000000000 + n), 12, '0') || '70008000' || lpad(to_hex(n), 12, '0'))::uuid AS saga, n %% 10 = 0 AS cancelled,
       now() - interval '1 day' * (%(orders)s::integer - n) / %(orders)s::integer AS at,
       md5('created' || n)::uuid AS created, md5('processed' || n)::uuid AS processed, md5('sent' || n)::uuid AS sent,
       md5('asked' || n)::uuid AS asked, md5('refunded' || n)::uuid AS refunded, md5('told' || n)::uuid AS told
  FROM generate_series(%(first)s::integer, %(orders)s::integer) AS n
"""
ORDER: Final = (
    """
    INSERT INTO orders (user_id, user_email, status, currency, total_amount, payment_method, processing_duration_ms, created_at, updated_at)
    SELECT 1, 'bench' || n || '@example.com', CASE WHEN cancelled THEN 'cancelled' ELSE 'completed' END, 'USD', 49.99, 'pm_card_ok', 5,
           at, at FROM shop ORDER BY n
    """,
    "INSERT INTO order_items (order_id, line, product_id, name, quantity, price) SELECT n, 1, 2, 'Wireless Mouse', 1, 49.99 FROM shop",
    """
    INSERT INTO idempotency_keys (client, key, fingerprint, order_id, status, location, body, created_at)
    SELECT 'demo', saga::text, sha256('cart'), n, 202, '/api/sagas/' || saga,
           convert_to(format('{"id": %s, "saga_id": "%s", "total_amount": "49.99"}', n, saga), 'UTF8'), at FROM shop
    """,
    """
    INSERT INTO sagas (id, order_id, state, version, amount, captured, refunded, currency, payment_version, notified_at,
                       cancellation_sent_at, pay_before, created_at, updated_at)
    SELECT saga, n, CASE WHEN cancelled THEN 'compensated' ELSE 'notified' END, CASE WHEN cancelled THEN 5 ELSE 3 END, 49.99, 49.99,
           CASE WHEN cancelled THEN 49.99 ELSE 0 END, 'USD', CASE WHEN cancelled THEN 4 ELSE 2 END,
           CASE WHEN NOT cancelled THEN at END, CASE WHEN cancelled THEN at END, at, at, at FROM shop
    """,
    """
    INSERT INTO saga_history (saga_id, seq, from_state, to_state, event, outcome, message_id, source, facts, at)
    SELECT saga, h.seq, h.from_state, h.to_state, h.event, 'applied', h.message_id, h.source,
           jsonb_build_object('captured', h.captured, 'refunded', h.refunded, 'payment_version', h.version, 'notified_at', h.notified_at),
           at FROM shop CROSS JOIN LATERAL (VALUES
           (1, 'none', 'created', 'OrderCreated', created, 'http', '0.00', '0.00', 0, NULL),
           (2, 'created', 'paid', 'PaymentProcessed', processed, 'event', '49.99', '0.00', 2, NULL),
           (3, 'paid', 'notified', 'EmailSent', sent, 'event', '49.99', '0.00', 2, at)
      ) AS h (seq, from_state, to_state, event, message_id, source, captured, refunded, version, notified_at) WHERE NOT cancelled
    """,
    """
    INSERT INTO saga_history (saga_id, seq, from_state, to_state, event, outcome, message_id, source, facts, at)
    SELECT saga, h.seq, h.from_state, h.to_state, h.event, 'applied', h.message_id, h.source,
           jsonb_build_object('captured', h.captured, 'refunded', h.refunded, 'payment_version', h.version, 'notified_at', NULL), at
      FROM shop CROSS JOIN LATERAL (VALUES
           (1, 'none', 'created', 'OrderCreated', created, 'http', '0.00', '0.00', 0),
           (2, 'created', 'paid', 'PaymentProcessed', processed, 'event', '49.99', '0.00', 2),
           (3, 'paid', 'compensating', 'CancelRequested', NULL, 'http', '49.99', '0.00', 2),
           (4, 'compensating', 'compensated', 'PaymentRefunded', refunded, 'event', '49.99', '49.99', 4),
           (5, 'compensated', 'compensated', 'EmailSent', told, 'event', '49.99', '49.99', 4)
      ) AS h (seq, from_state, to_state, event, message_id, source, captured, refunded, version) WHERE cancelled
    """,
    "INSERT INTO inbox (message_id, type, received_at) SELECT processed, 'PaymentProcessed', at FROM shop",
    "INSERT INTO inbox (message_id, type, received_at) SELECT sent, 'EmailSent', at FROM shop WHERE NOT cancelled",
    """
    INSERT INTO inbox (message_id, type, received_at)
    SELECT m.id, m.type, at FROM shop, LATERAL (VALUES (refunded, 'PaymentRefunded'), (told, 'EmailSent')) AS m (id, type) WHERE cancelled
    """,
    """
    INSERT INTO outbox (shard, event_id, aggregate, type, routing_key, correlation_id, headers, payload, created_at)
    SELECT n % 4, o.id, n::text, o.type, o.key, saga::text, '{}', '', at
      FROM shop, LATERAL (VALUES
           (created, 'OrderCreated', 'order.order.created', true),
           (asked, 'CancelPayment', 'order.payment.cancel_requested', cancelled),
           (md5('cancelled' || n)::uuid, 'OrderCancelled', 'order.order.cancelled', cancelled)
      ) AS o (id, type, key, is_there) WHERE o.is_there AND at > now() - interval '4 hours'
    """,
)
PAYMENT: Final = (
    """
    INSERT INTO payments (order_id, saga_id, status, version, amount, currency, payment_method, transaction_id, user_email, items,
                          pay_before, look_at, created_at, updated_at)
    SELECT n, saga, CASE WHEN cancelled THEN 'refunded' ELSE 'captured' END, 2, 49.99, 'USD', 'pm_card_ok', 'ch_' || n,
           'bench@example.com', '[]', at, NULL, at, at FROM shop
    """,
    """
    INSERT INTO ledger (order_id, saga_id, kind, amount, currency, transaction_id, at)
    SELECT n, saga, l.kind, 49.99, 'USD', l.id, at
      FROM shop, LATERAL (VALUES ('capture', 'ch_' || n), ('refund', 're_' || n)) AS l (kind, id)
     WHERE cancelled OR l.kind = 'capture'
    """,
    "INSERT INTO inbox (message_id, type, received_at) SELECT created, 'OrderCreated', at FROM shop",
    "INSERT INTO inbox (message_id, type, received_at) SELECT asked, 'CancelPayment', at FROM shop WHERE cancelled",
    """
    INSERT INTO outbox (shard, event_id, aggregate, type, routing_key, correlation_id, headers, payload, created_at)
    SELECT n % 4, o.id, n::text, o.type, o.key, saga::text, jsonb_build_object('causation-id', o.cause), '', at
      FROM shop, LATERAL (VALUES
           (processed, 'PaymentProcessed', 'payment.payment.processed', created, true),
           (refunded, 'PaymentRefunded', 'payment.payment.refunded', asked, cancelled)
      ) AS o (id, type, key, cause, is_there) WHERE o.is_there AND at > now() - interval '4 hours'
    """,
)
# as a ring that has come round: what is older than its oldest partition is gone
RING: Final = (
    "UPDATE outbox_cursor SET lo = pg_current_snapshot()",
    "UPDATE outbox_bucket SET opened_at = now() - interval '1 hour' * (4 - bucket)",
    "SELECT setval('outbox_ring', 7)",
    "ANALYZE",
)


def main() -> None:
    """Fill, verify, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("orders", type=int)
    parser.add_argument("--since")
    given = parser.parse_args()
    with servers.run_folder() as folder, servers.native_databases(folder / "postgres") as server:
        urls = {name: server.create(user, password, f"{name}_db") for name, (user, password) in ROLES.items()}
        for name, statements in (("order", ORDER), ("payment", PAYMENT)):
            migrations.upgrade(urls[name], name)
            fill(urls[name], statements, given.orders)
        where = targets.Targets(order_database_url=urls["order"], payment_database_url=urls["payment"])
        _verify(where, moment(given.since) if given.since else None)


def moment(text: str) -> datetime:
    """Return a span before now, or a time, as `--since` reads it."""
    return times.moment(text, datetime.now(UTC))


def fill(url: str, statements: tuple[str, ...], orders: int, first: int = 1) -> None:
    """Write finished orders with the numbers from `first` to `orders` into one database."""
    with psycopg.connect(url, autocommit=True) as conn:
        for statement in (SHOP, *statements, *RING):
            conn.execute(statement.encode(), {"orders": orders, "first": first} if statement is SHOP else None)


def _verify(where: targets.Targets, since: datetime | None) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF)
    began = time.monotonic()
    report = verify.run(where, Expectations(consumers=False), since=since)
    seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF)
    for one in report.invariants:
        sys.stdout.write(f"{one.id} {'holds ' if one.ok else 'BROKEN'} {one.checked} checked {one.violations[:2]}\n")
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    sys.stdout.write(f"{seconds:.1f} s, {used:.1f} s of CPU in this process\n")
    sys.stdout.write(f"{before.ru_maxrss / 1024:.0f} MiB before, {after.ru_maxrss / 1024:.0f} MiB at most\n")


if __name__ == "__main__":
    main()
