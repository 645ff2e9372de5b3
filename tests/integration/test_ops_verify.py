"""`verify` against real books: silent when they are right, and loud, under the right number, for everything that can be wrong."""

import json
import smtplib
import urllib.request
from decimal import Decimal
from email.message import EmailMessage
from typing import Any
from uuid import UUID, uuid5

import msgspec
import psycopg
import pytest

from sagapost_chassis import ids
from sagapost_ops import errors, evidence, targets, verify
from sagapost_ops.invariants.outcome import Expectations
from sagapost_sandbox.testing import services

NAMESPACE = UUID("6f2d6a0e-5c33-4c0e-9a55-2f7f3a8c1f10")
TOTAL = Decimal("1299.99")
EMAIL = "verify@example.com"

Connection = psycopg.Connection[tuple[Any, ...]]

ORDER = """
INSERT INTO orders (user_id, user_email, status, currency, total_amount, payment_method, processing_duration_ms, created_at, updated_at)
VALUES (1, %(email)s, %(status)s, 'USD', %(total)s, 'pm_card_ok', 5, now(), now()) RETURNING id
"""
ITEM = "INSERT INTO order_items (order_id, line, product_id, name, quantity, price) VALUES (%(order_id)s, 1, 1, 'Laptop', 1, %(total)s)"
SAGA = """
INSERT INTO sagas (id, order_id, state, version, amount, captured, currency, payment_version, notified_at, created_at, updated_at)
VALUES (%(saga_id)s, %(order_id)s, %(state)s, %(version)s, %(total)s, %(captured)s, 'USD', 2, %(notified_at)s, now(), now())
"""
HISTORY = """
INSERT INTO saga_history (saga_id, seq, from_state, to_state, event, outcome, message_id, source, facts, at)
VALUES (%(saga_id)s, %(seq)s, %(start)s, %(end)s, %(event)s, 'applied', %(message_id)s, %(source)s, %(facts)s, now())
"""
INBOX = "INSERT INTO inbox (message_id, type) VALUES (%(message_id)s, %(event)s)"
OUTBOX = """
INSERT INTO outbox (shard, event_id, aggregate, type, routing_key, correlation_id, headers, payload, created_at)
VALUES (0, %(event_id)s, 'order', %(event)s, %(key)s, %(saga_id)s, %(headers)s, '', now())
"""
PAYMENT = """
INSERT INTO payments (order_id, saga_id, status, version, amount, currency, payment_method, transaction_id, user_email, items, pay_before)
VALUES (%(order_id)s, %(saga_id)s, %(status)s, 2, %(total)s, 'USD', 'pm_card_ok', %(charge)s, %(email)s, '[]', now())
"""
LEDGER = """
INSERT INTO ledger (order_id, kind, amount, currency, transaction_id) VALUES (%(order_id)s, 'capture', %(total)s, 'USD', %(charge)s)
"""
PASSED = "UPDATE outbox_cursor SET lo = pg_current_snapshot()"
