"""What is forgotten by age: old rows of the inbox, and addresses of customers whose orders ended long ago; nothing that is young."""

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import psycopg
import pytest
from integration import ops_books, order_walk, pool_kit
from integration.ops_books import Books

from sagapost_ops import cli
from sagapost_order import states
from sagapost_sandbox.testing import services

Start = Callable[[str, Mapping[str, str]], services.Service]
# its messages have left the ring of the outbox long ago
TURNED = (
    "TRUNCATE outbox",
    "SELECT setval('outbox_ring', 7)",
    "UPDATE outbox_bucket SET opened_at = now() - interval '1 hour'",
)
CUSTOMERS = {"order": "SELECT user_email FROM orders", "payment": "SELECT user_email FROM payments"}
AGED = {
    "order": (
        *TURNED,
        "UPDATE orders SET created_at = now() - interval '100 days'",
        "UPDATE sagas SET created_at = now() - interval '100 days', updated_at = now() - interval '90 days'",
        "ALTER TABLE saga_history DISABLE TRIGGER USER",
        "GRANT UPDATE ON saga_history TO CURRENT_USER",
        "UPDATE saga_history SET at = now() - interval '90 days'",
        "UPDATE inbox SET received_at = now() - interval '90 days'",
    ),
    "payment": (
        *TURNED,
        "UPDATE payments SET created_at = now() - interval '100 days', updated_at = now() - interval '90 days'",
        "UPDATE inbox SET received_at = now() - interval '90 days'",
    ),
}


class Run(NamedTuple):
    """How a call of the command line ended; `rows` by database and what."""

    code: int
    rows: dict[tuple[str, str], int]


Call = Callable[..., Run]


@pytest.fixture
def call(order_db: str, payment_db: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Return what calls `./sagapost retain` on this test's databases."""
    monkeypatch.setenv("SAGAPOST_ORDER_DATABASE_URL", order_db)
    monkeypatch.setenv("SAGAPOST_PAYMENT_DATABASE_URL", payment_db)

    def called(*arguments: str) -> Run:
        monkeypatch.setattr(sys, "argv", ["./sagapost", "retain", *arguments, "--json"])
        code = cli.run()
        printed = capsys.readouterr().out
        tables: list[dict[str, Any]] = json.loads(printed)["tables"] if printed else []
        return Run(code, {(one["database"], one["what"]): one["rows"] for one in tables})

    return called


def _do(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as conn:
        for statement in statements:
            conn.execute(statement.encode())


def _ask(url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as conn:
        return conn.execute(query.encode()).fetchall()


def test_an_old_order_loses_its_address_and_keeps_its_amounts(
    call: Call, order_db: str, payment_db: str, provider: services.Service, mailbox: services.Service
) -> None:
    """A dry run counts and changes nothing; then the address is gone from both databases, the inboxes are empty, and verify holds."""
    books: Books = ops_books.write(order_db, payment_db, provider, mailbox)
    young = call("--customer-days", "30")
    _do(order_db, *AGED["order"])
    _do(payment_db, *AGED["payment"])

    dry = call("--customer-days", "60", "--dry-run")
    kept = _ask(order_db, "SELECT user_email FROM orders")
    done = call("--customer-days", "60")
    again = call("--customer-days", "60")

    counted = {("order", "inbox"): 2, ("order", "customers"): 1, ("payment", "inbox"): 1, ("payment", "customers"): 1}
    assert (young.code, set(young.rows.values())) == (3, {0})
    assert (dry, kept) == (Run(0, counted), [("verify@example.com",)])
    assert done == Run(0, counted)
    assert (again.code, set(again.rows.values())) == (3, {0})
    for url, query in ((order_db, CUSTOMERS["order"]), (payment_db, CUSTOMERS["payment"])):
        ((email,),) = _ask(url, query)
        assert email.endswith("@erased.invalid")
        assert _ask(url, "SELECT count(*) FROM inbox") == [(0,)]
    assert _ask(order_db, "SELECT total_amount FROM orders") == [(ops_books.TOTAL,)]
    assert books.violations() == {}
    assert _ask(order_db, "SELECT count(*) FROM operator_actions WHERE command = 'retain'") == [(3,)]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE sagas SET state = 'paid', deadline_at = now() + interval '1 hour', deadline_kind = 'notify'",
        "UPDATE sagas SET updated_at = now() - interval '59 days'",
        "UPDATE orders SET created_at = now() - interval '59 days'",
    ],
)
def test_an_order_under_way_or_young_keeps_its_address(
    *, call: Call, order_db: str, payment_db: str, provider: services.Service, mailbox: services.Service, statement: str
) -> None:
    """Its mail may have to be sent yet; the age counts from the order's end."""
    ops_books.write(order_db, payment_db, provider, mailbox)
    _do(order_db, *AGED["order"], statement)

    done = call("--customer-days", "60", "--database", "order")

    assert done.rows["order", "customers"] == 0
    assert _ask(order_db, "SELECT user_email FROM orders") == [("verify@example.com",)]


@pytest.mark.parametrize("service", ["order", "payment"])
def test_nothing_younger_than_thirty_days_is_forgotten_whoever_calls(
    order_db: str, payment_db: str, provider: services.Service, mailbox: services.Service, service: str
) -> None:
    """The functions of the database have the rule: a caller that wants less gets thirty days, and a batch has a limit."""
    ops_books.write(order_db, payment_db, provider, mailbox)
    url = order_db if service == "order" else payment_db
    _do(url, "UPDATE inbox SET received_at = now() - interval '29 days'")
    before = _ask(url, "SELECT count(*) FROM inbox")

    found = _ask(url, "SELECT forget_inbox(0, 100000), forget_inbox(-9, 5), forget_customers(0, 100000), forget_customers(-9, 5)")

    assert found == [(0, 0, 0, 0)]
    assert _ask(url, "SELECT count(*) FROM inbox") == before


@pytest.mark.parametrize("name", ["order", "payment"])
def test_a_service_forgets_by_itself(
    *,
    order_db: str,
    payment_db: str,
    vhost: str,
    provider: services.Service,
    mailbox: services.Service,
    start_service: Start,
    eventually: Callable[..., Any],
    name: str,
) -> None:
    """From its start on, by its own settings: rows of the inbox always, addresses when SAGAPOST_CUSTOMER_DAYS says so."""
    ops_books.write(order_db, payment_db, provider, mailbox)
    url = order_db if name == "order" else payment_db
    _do(url, *AGED[name])
    env = {"SAGAPOST_DATABASE_URL": url, "SAGAPOST_AMQP_URL": vhost, "SAGAPOST_PROVIDER_URL": provider.url}

    start_service(name, env).wait_ready()
    eventually(lambda: _ask(url, "SELECT count(*) FROM inbox") == [(0,)])
    kept = _ask(url, CUSTOMERS[name])
    start_service(name, env | {"SAGAPOST_CUSTOMER_DAYS": "60"}).wait_ready()
    eventually(lambda: str(_ask(url, CUSTOMERS[name])[0][0]).endswith("@erased.invalid"))

    assert kept == [("verify@example.com",)]


@pytest.mark.anyio
async def test_what_comes_again_after_the_inbox_forgot_changes_nothing(order_db: str) -> None:
    """Facts only grow: a payment, a receipt and a refund that are heard a second time as if they were new leave state and sums alone."""
    async with pool_kit.opened(order_db) as pool:
        order = await order_walk.place(pool, states.COMPENSATED)
        paid = await order_walk.place(pool, states.NOTIFIED)
        facts = "SELECT state, captured, refunded, notified_at IS NULL, attention FROM sagas ORDER BY order_id"
        before = _ask(order_db, facts)
        sent = _ask(order_db, "SELECT count(*) FROM outbox")
        _do(order_db, "UPDATE inbox SET received_at = now() - interval '31 days'")
        assert _ask(order_db, "SELECT forget_inbox(30, 1000)") == [(4,)]  # one of payment and one of email for each order

        for one, steps in ((order, (states.PAYMENT_VOIDED,)), (paid, (states.PAYMENT_PROCESSED, states.EMAIL_SENT, states.EMAIL_SENT))):
            for step in steps:
                await order_walk.happen(pool, one, step)

    assert _ask(order_db, facts) == before
    assert _ask(order_db, "SELECT count(*) FROM outbox") == sent
