"""`doctor` and `verify` say when clocks disagree, and `doctor` when order numbers would be given out again."""

import json
import sys
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import conninfo, sql

from sagapost_ops import cli, targets, verify
from sagapost_ops.invariants.outcome import Expectations

# a clock of the database's own, found before PostgreSQL's
SHIM = """
CREATE SCHEMA shim;
CREATE FUNCTION shim.clock_timestamp() RETURNS timestamptz LANGUAGE sql
AS $$ SELECT pg_catalog.clock_timestamp() + interval '16 minutes' $$;
"""
Doctor = Callable[[], dict[str, dict[str, Any]]]


@pytest.fixture
def doctor(order_db: str, payment_db: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Doctor:
    """Return what calls `./sagapost doctor` on this test's databases and returns its findings by name."""
    monkeypatch.setenv("SAGAPOST_ORDER_DATABASE_URL", order_db)
    monkeypatch.setenv("SAGAPOST_PAYMENT_DATABASE_URL", payment_db)
    monkeypatch.setattr(sys, "argv", ["./sagapost", "doctor", "--json"])

    def called() -> dict[str, dict[str, Any]]:
        cli.run()
        return {found["name"]: found for found in json.loads(capsys.readouterr().out)["findings"]}

    return called


def _set_ahead(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(SHIM.encode())
        name = sql.Identifier(str(conninfo.conninfo_to_dict(url)["dbname"]))
        conn.execute(sql.SQL("ALTER DATABASE {} SET search_path = shim, pg_catalog, public").format(name))


def test_clocks_that_agree_are_no_reason_to_look(doctor: Doctor, order_db: str, payment_db: str) -> None:
    """Two databases of one server: nothing is said of them."""
    found = doctor()

    assert (found["clocks"]["state"], found["order numbers"]["state"]) == ("ok", "ok")
    assert _verified(order_db, payment_db).notes == ()


@pytest.mark.parametrize(("service", "word"), [("order", "ahead"), ("payment", "behind")])
def test_a_clock_that_is_wrong_is_named(doctor: Doctor, order_db: str, payment_db: str, service: str, word: str) -> None:
    """Sixteen minutes: by how much, of which database, against the other one and against this machine; verify holds and says it too."""
    _set_ahead(order_db if service == "order" else payment_db)

    clocks, report = doctor()["clocks"], _verified(order_db, payment_db)

    assert clocks["state"] == "warning"
    assert f"s {word} of the payment database's" in clocks["advice"]
    assert f"the {service} database's clock is 960." in clocks["advice"] or f"the {service} database's clock is 959." in clocks["advice"]
    assert len(report.notes) == 2


def test_numbers_that_would_come_again_are_named(doctor: Doctor, payment_db: str) -> None:
    """Payment knows a higher number than the order database has given out: it went back in time."""
    with psycopg.connect(payment_db) as conn:
        conn.execute(
            """INSERT INTO payments (order_id, saga_id, status, amount, currency, payment_method, user_email, items, pay_before)
               VALUES (7, gen_random_uuid(), 'failed', 1, 'USD', '', '', '[]', now())"""
        )

    found = doctor()["order numbers"]

    assert (found["state"], "./sagapost restored --order" in found["advice"]) == ("warning", True)


def _verified(order_db: str, payment_db: str) -> verify.Report:
    where = targets.Targets(order_database_url=order_db, payment_database_url=payment_db)
    return verify.run(where, Expectations(consumers=False, strangers=True))
