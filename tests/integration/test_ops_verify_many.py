"""`verify` over many orders: page by page, with memory that does not grow, and with `--since` only over what changed."""

import importlib
import pathlib
import sys
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from sagapost_ops import cli, targets, verify
from sagapost_ops.invariants.outcome import Expectations

ROOT = pathlib.Path(__file__).parents[2]
PAGE = 2000  # as evidence.PAGE, which a test of memory must not follow
DOWN = Expectations(consumers=False)
LONG_AGO = (
    "UPDATE sagas SET updated_at = '2020-01-01Z', created_at = '2020-01-01Z' WHERE order_id <= 3",
    "UPDATE orders SET updated_at = '2020-01-01Z', created_at = '2020-01-01Z' WHERE id <= 3",
)
UNBOOKED = "DELETE FROM ledger WHERE order_id = ANY(%(numbers)s)"
UNHEARD = "DELETE FROM inbox WHERE message_id IN (SELECT md5('created' || n)::uuid FROM unnest(%(numbers)s::int[]) AS n)"
Fill = Callable[[int, int], targets.Targets]


@pytest.fixture
def fill(order_db: str, payment_db: str, monkeypatch: pytest.MonkeyPatch) -> Fill:
    """Return what writes finished orders with these numbers into both databases."""
    monkeypatch.syspath_prepend(str(ROOT))
    many = importlib.import_module("benchmarks.verify")

    def filled(first: int, last: int) -> targets.Targets:
        many.fill(order_db, many.ORDER, last, first)
        many.fill(payment_db, many.PAYMENT, last, first)
        return targets.Targets(order_database_url=order_db, payment_database_url=payment_db)

    return filled


def _do(url: str | None, *statements: str, numbers: list[int] | None = None) -> None:
    with psycopg.connect(str(url), autocommit=True) as conn:
        for statement in statements:
            conn.execute(statement.encode(), {"numbers": numbers})


def test_faults_on_every_page_are_found(fill: Fill) -> None:
    """Orders at the ends of pages are looked at once each: every fault is named, and nothing else."""
    wrong = [1, PAGE, PAGE + 1, 2 * PAGE, 2 * PAGE + 7]
    where = fill(1, 2 * PAGE + 7)
    right = verify.run(where, DOWN)
    _do(where.order_database_url, "UPDATE orders SET total_amount = 1, status = 'pending' WHERE id = ANY(%(numbers)s)", numbers=wrong)
    _do(where.payment_database_url, "GRANT DELETE ON ledger TO CURRENT_USER", UNBOOKED, UNHEARD, numbers=wrong)

    report = verify.run(where, DOWN, shown=1000)

    assert right.ok, right
    said = {invariant.id: set(invariant.violations) for invariant in report.invariants}
    for number in wrong:
        assert any(f"order {number} is pending, its saga " in one for one in said[1])
        assert any(one.startswith(f"payment of order {number} is ") for one in said[3])
        assert f"order {number} costs 1.00, its lines add up to 49.99" in said[4]
    assert [one.checked for one in report.invariants] == [one.checked for one in right.invariants]
    assert len([one for one in said[4] if "its lines add up" in one]) == len(wrong)


def test_memory_does_not_grow_with_the_orders(fill: Fill) -> None:
    """Twice as many orders, and no more than a third more memory at the highest: what is held is a page, and no table."""
    few = _highest(fill(1, 2 * PAGE))
    many_more = _highest(fill(2 * PAGE + 1, 4 * PAGE))

    assert many_more < few * 4 / 3, (few, many_more)


def _highest(where: targets.Targets) -> int:
    tracemalloc.start()
    try:
        report = verify.run(where, DOWN)
        assert report.ok, report
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_since_leaves_out_what_ended_before_and_says_so(
    fill: Fill, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An old order that has ended is not looked at and is counted as left out; one that has not ended is looked at, however old."""
    where = fill(1, 20)
    _do(where.order_database_url, *LONG_AGO)
    _do(where.payment_database_url, "GRANT DELETE ON ledger TO CURRENT_USER", UNBOOKED, numbers=[1, 2])
    _do(where.payment_database_url, "UPDATE payments SET updated_at = '2020-01-01Z' WHERE order_id <= 3")
    under_way = "UPDATE sagas SET state = 'paid', deadline_at = now() + interval '1 day', deadline_kind = 'notify' WHERE order_id = 3"
    _do(where.order_database_url, under_way)
    monkeypatch.setenv("SAGAPOST_ORDER_DATABASE_URL", str(where.order_database_url))
    monkeypatch.setenv("SAGAPOST_PAYMENT_DATABASE_URL", str(where.payment_database_url))

    everything, since = (_said(monkeypatch, capsys, *arguments) for arguments in ((), ("--since", "2d")))

    assert "payment of order 1 is captured with 0 captures" in everything
    assert "not looked at" not in everything
    assert "payment of order 1 " not in since
    assert " is paid" in since
    assert "not looked at (--since): 2 orders that ended before " in since
    assert "not looked at (--since): 2 payments of such orders" in since
    assert "not looked at (--since): idempotency keys, messages and inbox rows of before " in since


def test_since_looks_at_a_payment_that_changed_although_its_order_did_not(fill: Fill) -> None:
    """A refund that the saga never heard of is found by the payment alone."""
    where = fill(1, 20)
    _do(where.order_database_url, *LONG_AGO)
    _do(where.payment_database_url, "GRANT DELETE ON ledger TO CURRENT_USER", UNBOOKED, numbers=[1])

    report = verify.run(where, DOWN, since=datetime.now(UTC) - timedelta(days=2))

    assert any("payment of order 1 is captured with 0 captures" in one for one in report.invariants[2].violations)


def test_since_counts_late_messages_of_before_for_nothing(fill: Fill) -> None:
    """Three late messages of long ago stand in no history, as they should; they hide none that came now and left no trace."""
    where = fill(1, 20)
    _do(
        where.order_database_url,
        *LONG_AGO,
        "UPDATE sagas SET late_messages = 3 WHERE order_id = 1",
        "INSERT INTO inbox SELECT gen_random_uuid(), 'PaymentProcessed', '2020-01-01Z' FROM generate_series(1, 3)",
        "INSERT INTO inbox VALUES ('00000000-0000-4000-8000-000000000001', 'EmailSent')",
    )
    since = datetime.now(UTC) - timedelta(days=2)

    reports = [verify.run(where, DOWN), verify.run(where, DOWN, since=since)]

    untraced = "EmailSent 00000000-0000-4000-8000-000000000001 was taken in, and no saga shows it"
    assert [untraced in report.invariants[6].violations for report in reports] == [True, True]


def _said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["./sagapost", "verify", "--settle", "0", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.run()
    assert ended.value.code == 1
    return capsys.readouterr().out
