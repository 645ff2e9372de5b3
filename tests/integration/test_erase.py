"""`erase`: the address is gone from every table of both databases, the amounts and the rest stay."""

import asyncio
import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

import aio_pika
import httpx
import psycopg
import pytest
from integration import ops_books
from psycopg import sql

from sagapost_chassis import amqp, ids
from sagapost_contracts import envelope, events, topology
from sagapost_sandbox.testing import polling, services

Json = dict[str, Any]
Start = Callable[[str, Mapping[str, str]], services.Service]
SPELLINGS: Final = ("Jane.Doe+shop@Example.com", "jane.doe+shop@example.com")
OTHER: Final = "xjane.doe+shop@example.com"
PAYMENT: Final = """
INSERT INTO payments (order_id, saga_id, status, version, amount, currency, payment_method, transaction_id, user_email, items, pay_before)
VALUES (%(id)s, %(saga_id)s::uuid, 'captured', 2, %(total_amount)s, 'USD', 'pm_card_ok', %(saga_id)s::text, %(user_email)s, '[]', now())
"""
SAID: Final = """
INSERT INTO outbox (shard, event_id, aggregate, type, routing_key, correlation_id, headers, payload, created_at)
VALUES (0, gen_random_uuid(), 'order-' || %(id)s::text, 'PaymentProcessed', 'payment.payment.processed', %(saga_id)s::text, '{}',
        %(payload)s, now())
"""
ASIDE: Final = """
INSERT INTO outbox_parked (id, shard, event_id, aggregate, type, routing_key, correlation_id, headers, payload, created_at,
                           state, reason, detail, attempts, retry_at)
SELECT id, shard, event_id, aggregate, type, routing_key, correlation_id, headers, payload, created_at,
       'parked', 'unroutable', 'NO_ROUTE', 7, now() FROM outbox WHERE aggregate = 'order-' || %(id)s::text
"""
AMOUNTS: Final = """
SELECT o.total_amount, s.amount, s.captured, s.refunded, s.state, o.user_id FROM orders o JOIN sagas s ON s.order_id = o.id ORDER BY o.id
"""


class World:
    """A customer's two finished orders in all tables, another customer's order, and the command line."""

    def __init__(self, order_db: str, payment_db: str, vhost: str, service: services.Service) -> None:
        self.urls = (order_db, payment_db)
        self.environ = {"SAGAPOST_ORDER_DATABASE_URL": order_db, "SAGAPOST_PAYMENT_DATABASE_URL": payment_db, "SAGAPOST_AMQP_URL": vhost}
        self.service = service

    def buy(self, email: str) -> Json:
        """Check out."""
        cart = {"user_id": 7, "user_email": email, "items": [{"product_id": 1, "quantity": 1, "price": "1299.99"}]}
        answer = httpx.post(
            f"{self.service.url}/checkout", json=cart, headers={"Idempotency-Key": str(uuid.uuid5(uuid.NAMESPACE_URL, email))}, timeout=20
        )
        assert answer.status_code == 202
        placed: Json = answer.json()
        return placed

    def finish(self, order: Json) -> None:
        """Let payment and email say what they say, with what they store."""
        common: Json = {"order_id": order["id"], "saga_id": uuid.UUID(order["saga_id"])}
        paid = events.PaymentProcessed(
            **common,
            payment_id=1,
            payment_version=2,
            amount=Decimal(order["total_amount"]),
            transaction_id=order["saga_id"],
            captured_at=datetime.now(UTC),
            user_email=order["user_email"],
            items=(),
        )
        sent = events.EmailSent(**common, template=events.RECEIPT, smtp_message_id="<m>")
        for message in (paid, sent):
            sealed = envelope.seal(
                message, message_id=ids.uuid7(), source="test", time=datetime.now(UTC), causation_id=None, traceparent=None
            )
            self.say(amqp.message_of(sealed), topology.EXCHANGE, sealed.routing_key)
        saga = f"{self.service.url}/sagas/{order['saga_id']}"
        polling.eventually(lambda: httpx.get(saga, timeout=20).json()["state"] == "notified")
        payload = json.dumps({"user_email": order["user_email"], "amount": order["total_amount"]}).encode()
        with psycopg.connect(self.urls[1]) as payments, psycopg.connect(self.urls[0]) as orders:
            payments.execute(PAYMENT, order)
            for conn in (payments, orders):
                conn.execute(SAID, order | {"payload": payload})
                conn.execute(ASIDE, order)

    def say(self, message: aio_pika.Message, exchange: str, routing_key: str) -> None:
        """Publish one message."""

        async def publish() -> None:
            async with amqp.Publisher(self.environ["SAGAPOST_AMQP_URL"], "test") as publisher:
                await publisher.publish(message, exchange=exchange, routing_key=routing_key)

        asyncio.run(publish())

    def holding(self, email: str) -> set[str]:
        """Name every table of both databases that holds an address in any form and case."""
        found: set[str] = set()
        for url in self.urls:
            with psycopg.connect(url) as conn:
                for (name,) in conn.execute("SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'").fetchall():
                    rows = conn.execute(sql.SQL("SELECT lower(t::text) FROM {} AS t").format(sql.Identifier(name))).fetchall()
                    # not as the end of a longer address; in JSON that is kept as bytes it follows a quotation mark
                    forms = [rf"(?<![a-z0-9.+-]){re.escape(email.lower())}", *(f'"{word}'.encode().hex() for word in (*SPELLINGS, email))]
                    if any(re.search("|".join(forms), row) for (row,) in rows):
                        found.add(f"{conn.info.dbname.partition('_')[0]}.{name}")
        return found

    def amounts(self) -> list[tuple[Any, ...]]:
        """Give what must stay."""
        with psycopg.connect(self.urls[0]) as orders, psycopg.connect(self.urls[1]) as payments:
            kept = payments.execute("SELECT order_id, amount, status, version, transaction_id FROM payments ORDER BY 1").fetchall()
            return orders.execute(AMOUNTS).fetchall() + kept

    def erase(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run the command."""
        environ = {name: value for name, value in os.environ.items() if not name.startswith("SAGAPOST_")} | self.environ
        line = [sys.executable, "-P", "-m", "sagapost_ops", "erase", *arguments]
        return subprocess.run(line, env=environ, input=stdin, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def world(order_db: str, payment_db: str, vhost: str, start_service: Start) -> World:
    """Two orders of one customer, written in two ways, and one of another, all finished."""
    service = start_service("order", {"SAGAPOST_DATABASE_URL": order_db, "SAGAPOST_AMQP_URL": vhost}).wait_ready()
    made = World(order_db, payment_db, vhost, service)
    for email in (*SPELLINGS, OTHER):
        made.finish(made.buy(email))
    return made


def test_an_address_goes_from_every_table_and_the_amounts_stay(world: World) -> None:
    """Whatever its case: orders, stored answers, outbox, parked rows, payments; nobody else's rows change; a second call finds nothing."""
    before, others, tables = world.amounts(), world.holding(OTHER), world.holding(SPELLINGS[0])
    assert {name.partition(".")[2] for name in tables} >= {"orders", "idempotency_keys", "outbox", "outbox_parked", "payments"}

    dry = world.erase("--email", SPELLINGS[1], "--json")

    assert (dry.returncode, json.loads(dry.stdout)["applied"]) == (0, False)
    assert world.holding(SPELLINGS[0]) == tables
    done = world.erase("--email", "-", "--apply", "--json", stdin=f"{SPELLINGS[1]}\n")
    report = json.loads(done.stdout)
    assert (done.returncode, report["applied"]) == (0, True)
    assert report["tables"] == json.loads(dry.stdout)["tables"]
    assert {(count["database"], count["table"]): count["rows"] for count in report["tables"]} == {
        ("order", "orders"): 2,
        ("order", "idempotency_keys"): 2,
        ("order", "idempotency_keys.key"): 0,
        ("order", "outbox"): 4,
        ("order", "outbox_parked"): 4,
        ("payment", "payments"): 2,
        ("payment", "outbox"): 2,
        ("payment", "outbox_parked"): 2,
    }
    assert world.holding(SPELLINGS[0]) == set()
    assert world.holding(OTHER) == others
    assert world.amounts() == before


def test_a_key_of_an_earlier_version_goes_with_the_address_in_it(world: World) -> None:
    """Such a key is replaced and counted, in whatever form; the row stays, and no second order can be made with the old key."""
    old = {1: SPELLINGS[0], 2: f"cart:{SPELLINGS[1].replace('@', '%2540')}"}
    with psycopg.connect(world.urls[0]) as conn:
        for order_id, key in old.items():
            conn.execute("UPDATE idempotency_keys SET key = %s WHERE order_id = %s", (key, order_id))

    report = json.loads(world.erase("--email", SPELLINGS[1], "--apply", "--json").stdout)

    assert [count["rows"] for count in report["tables"] if count["table"] == "idempotency_keys.key"] == [2]
    assert world.holding(SPELLINGS[0]) == set()
    with psycopg.connect(world.urls[0]) as conn:
        kept = conn.execute("SELECT order_id, key LIKE 'erased-%' FROM idempotency_keys ORDER BY order_id").fetchall()
    assert kept == [(1, True), (2, True), (3, False)]
    cart = {"user_id": 7, "user_email": SPELLINGS[0], "items": [{"product_id": 1, "quantity": 1, "price": "1299.99"}]}
    for key in old.values():
        assert httpx.post(f"{world.service.url}/checkout", json=cart, headers={"Idempotency-Key": key}, timeout=20).status_code == 400


def test_an_order_number_that_came_again_is_somebody_elses_payment(world: World) -> None:
    """After a restore of the order database a number may stand for two payments: only the customer's own loses its address."""
    with psycopg.connect(world.urls[1]) as conn:
        number = "UPDATE payments SET order_id = (SELECT min(order_id) FROM payments) WHERE user_email = %(email)s"
        conn.execute(number, {"email": OTHER})
    others = world.holding(OTHER)

    done = world.erase("--email", SPELLINGS[0], "--apply")

    assert done.returncode == 0, done.stderr
    assert world.holding(SPELLINGS[0]) == set()
    assert "payment.payments" in others
    assert world.holding(OTHER) == others
    assert SPELLINGS[1] not in done.stdout + done.stderr
    assert world.erase("--email", SPELLINGS[0], "--apply").returncode == 3


def test_a_repeated_checkout_gets_the_first_answer_with_the_tombstone(world: World) -> None:
    """The idempotency key goes on protecting from a second order; of the first answer only the address is gone."""
    first = httpx.get(f"{world.service.url}/orders/1", timeout=20).json()
    tombstone = json.loads(world.erase("--email", SPELLINGS[0], "--apply", "--json").stdout)["tombstone"]

    again = world.buy(SPELLINGS[0])

    assert (again["user_email"], again["total_amount"]) == (tombstone, first["total_amount"])
    assert tombstone.endswith("@erased.invalid")
    assert len(world.amounts()) == 6


def test_an_order_under_way_keeps_its_address(world: World) -> None:
    """Its receipt is still to be sent: it is named, the finished ones are erased, and a call after its end erases it too."""
    late = world.buy(SPELLINGS[1].replace("shop", "SHOP"))

    done = world.erase("--email", SPELLINGS[0], "--apply", "--json")

    assert done.returncode == 1
    assert json.loads(done.stdout)["under_way"] == [late["id"]]
    assert f"under way and keep it: {late['id']};" in done.stderr
    with psycopg.connect(world.urls[0]) as conn:
        kept = conn.execute("SELECT id FROM orders WHERE lower(user_email) = %s", (SPELLINGS[1],)).fetchall()
    assert kept == [(late["id"],)]
    world.finish(late)
    assert world.erase("--email", SPELLINGS[0], "--apply").returncode == 0
    assert world.holding(SPELLINGS[0]) == set()


def test_what_is_not_reached_is_said(world: World) -> None:
    """Dead letters and the words of operators that hold the address are counted, with what to do about them."""
    with psycopg.connect(world.urls[0]) as conn:
        conn.execute(
            "INSERT INTO dlq_runs (id, kind, queue, actor, reason, choice) VALUES (gen_random_uuid(), 'discard', 'q', 'me', %s, '{}')",
            (f"{SPELLINGS[0]} asked for it",),
        )
    body = json.dumps({"user_email": SPELLINGS[1]}).encode()
    letter = amqp.make_message(
        body, message_id=str(uuid.uuid4()), type_name="PaymentProcessed", correlation_id="c", time=datetime.now(UTC), headers={}
    )
    world.say(letter, topology.DEAD_LETTER_EXCHANGE, topology.EMAIL_QUEUE)

    done = world.erase("--email", SPELLINGS[0])

    assert done.returncode == 0
    assert f"1 dead letters of {topology.EMAIL_QUEUE}" in done.stdout
    assert "1 rows of dlq_runs" in done.stdout
    assert "backups" in done.stdout


@pytest.mark.parametrize("email", ["nobody", "", "erased-0011@erased.invalid"])
def test_what_is_no_address_is_refused(email: str, order_db: str, payment_db: str) -> None:
    """A word that would match nothing, or the tombstones themselves, is a wrong call."""
    environ = {"SAGAPOST_ORDER_DATABASE_URL": order_db, "SAGAPOST_PAYMENT_DATABASE_URL": payment_db, "PATH": os.environ["PATH"]}
    line = [sys.executable, "-P", "-m", "sagapost_ops", "erase", "--email", email, "--apply"]

    done = subprocess.run(line, env=environ, capture_output=True, text=True, check=False, timeout=60)

    assert done.returncode == 2


def test_the_books_agree_after_an_erasure(order_db: str, payment_db: str, provider: services.Service, mailbox: services.Service) -> None:
    """The receipt's recipient is known to nobody any more, and `verify` does not take that for a mistake."""
    books = ops_books.write(order_db, payment_db, provider, mailbox)
    environ = {"SAGAPOST_ORDER_DATABASE_URL": order_db, "SAGAPOST_PAYMENT_DATABASE_URL": payment_db, "PATH": os.environ["PATH"]}
    line = [sys.executable, "-P", "-m", "sagapost_ops", "erase", "--email", "verify@example.com", "--apply"]

    done = subprocess.run(line, env=environ, capture_output=True, text=True, check=False, timeout=60)

    assert done.returncode == 0, done.stderr
    assert "1" in done.stdout
    assert books.violations() == {}
