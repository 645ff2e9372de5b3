"""One of the two databases goes back in time under a running shop: new orders go on, and one command brings both together again."""

import contextlib
import json
import pathlib
import sys
from collections.abc import Callable, Generator, Mapping
from typing import Any

import psycopg
import pytest
from faults import conftest
from faults.stack import Stack

from sagapost_ops import cli, targets, verify
from sagapost_sandbox import databases
from sagapost_sandbox.testing import servers

LOST = 10
Call = Callable[..., dict[str, Any]]


@pytest.fixture
def shop(
    tmp_path: pathlib.Path, database_server: servers.Databases, broker: servers.Broker, templates: Mapping[str, str]
) -> Generator[Stack]:
    """Run every service on databases that this test may put back."""
    with conftest.running(tmp_path, database_server, broker, templates) as made:
        yield made


@pytest.fixture
def call(shop: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Return what calls `./sagapost …` with the shop's addresses and returns its JSON."""
    for field, variable in targets.VARIABLES.items():
        if url := getattr(shop.known, field):
            monkeypatch.setenv(variable, url)

    def called(*arguments: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["./sagapost", *arguments, "--json"])
        code = cli.run()
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return dict(json.loads(printed.out))

    return called


@contextlib.contextmanager
def _alone(shop: Stack, service: str) -> Generator[None]:
    """Stop who uses a database, and start them again behind the block."""
    for name in (service, f"relay-{service}"):
        shop.running[name].terminate()
    yield
    for name in (service, f"relay-{service}"):
        shop.start(name)
    for name in (service, f"relay-{service}"):
        shop.running[name].wait_ready(60)


def _name(url: str | None) -> str:
    return str(url).rpartition("/")[2]


@contextlib.contextmanager
def _backed_up(shop: Stack, service: str, server: servers.Databases) -> Generator[Callable[[], None]]:
    """Copy a database as it is now, and return what puts the copy in its place."""
    live = _name(getattr(shop.known, f"{service}_database_url"))
    copy = f"{live}_backup"
    with _alone(shop, service):
        databases.clone(server.admin_dsn, live, copy, f"{service}_user")

    def put_back() -> None:
        with _alone(shop, service):
            databases.drop(server.admin_dsn, live)
            databases.clone(server.admin_dsn, copy, live, f"{service}_user")

    try:
        yield put_back
    finally:
        databases.drop(server.admin_dsn, copy)


def _bought(shop: Stack, count: int, payment_method: str = "pm_card_ok") -> list[dict[str, Any]]:
    placed = [shop.checkout(payment_method) for _ in range(count)]
    assert [status for status, _ in placed] == [202] * count
    for _, answer in placed:
        shop.ended(str(answer["saga_id"]))
    return [answer for _, answer in placed]


def _kinds(shop: Stack, answer: Mapping[str, object]) -> list[str]:
    return sorted(str(movement["kind"]) for movement in shop.movements(str(answer["saga_id"])))


@pytest.mark.timeout(240)
@pytest.mark.parametrize("when", ["before new orders", "after new orders"])
def test_the_order_database_goes_back(shop: Stack, call: Call, database_server: servers.Databases, when: str) -> None:
    """Ten orders are lost: the next twenty are notified, the lost ones are listed, refunded once each, and every invariant holds.

    The command is called before the first of the twenty, or after them, when ten of them have the numbers of lost orders.
    """
    _bought(shop, 2)
    with _backed_up(shop, "order", database_server) as put_back:
        lost = _bought(shop, LOST)
        put_back()

    early = call("restored", "--order", "--refund", "--yes", "--reason", "restored") if when == "before new orders" else None
    new = _bought(shop, 20)
    states = {shop.ended(str(one["saga_id"]))["state"] for one in new}
    dry = call("restored", "--order", "--refund")
    done = early or call("restored", "--order", "--refund", "--yes", "--reason", "restored")

    assert states == {"notified"}
    assert {one["saga_id"] for one in done["found"]["orphans"]} == {one["saga_id"] for one in lost}
    assert len(dry["found"]["orphans"]) == (0 if early else LOST)
    numbers = [one["id"] for one in new]
    assert len(set(numbers) & {one["id"] for one in lost}) == (0 if early else LOST)
    for one in lost:
        saga = shop.reached(str(one["saga_id"]), "compensated")
        assert (saga["captured"], saga["refunded"]) == ("1299.99", "1299.99")
        assert _kinds(shop, one) == ["charge", "refund"]
    shop.verified()
    again = call("restored", "--order", "--refund", "--yes", "--reason", "once more")
    assert (again["found"]["orphans"], again["done"]["refunding"]) == ([], 0)
    with psycopg.connect(str(shop.known.order_database_url)) as conn:
        rows = conn.execute("SELECT DISTINCT actor <> '', reason FROM saga_history WHERE event = 'OperatorCompensate'").fetchall()
        assert rows == [(True, "restored")]
        assert conn.execute("SELECT count(*) FROM operator_actions WHERE command = 'restored --order'").fetchone() == (2,)


def test_numbers_that_would_come_again_are_found_and_lifted(shop: Stack, call: Call, database_server: servers.Databases) -> None:
    """Verify names them, a dry run changes nothing, and afterwards no number is given out twice."""
    with _backed_up(shop, "order", database_server) as put_back:
        lost = _bought(shop, 3)
        put_back()

    found = call("restored", "--order")
    with psycopg.connect(str(shop.known.order_database_url)) as conn:
        before = conn.execute("SELECT coalesce(pg_sequence_last_value('orders_id_seq'), 0)").fetchone()
    report = verify.run(shop.known)
    call("restored", "--order", "--refund", "--yes", "--reason", "restored")
    (new,) = _bought(shop, 1)

    assert found["found"]["lift_to"] >= 1003
    assert before == (0,)
    assert any("./sagapost restored --order" in sentence for sentence in report.invariants[0].violations)
    assert int(str(new["id"])) > max(int(str(one["id"])) for one in lost) + 1000
    for one in lost:
        shop.reached(str(one["saga_id"]), "compensated")
    shop.verified()


@pytest.mark.timeout(240)
def test_a_refund_that_the_order_database_lost_is_found_without_its_message(
    shop: Stack, call: Call, database_server: servers.Databases
) -> None:
    """Two orders were cancelled and refunded, and payment's messages about it are gone: both end cancelled, a third one stays as it is.

    The backup has one of them as notified and one as paid; that one was cancelled before its receipt.
    """
    shop.change("order", {"SAGAPOST_NOTIFY_S": "600"})  # nothing asks for the receipt meanwhile
    shop.replace("order").wait_ready(60)
    kept, notified = _bought(shop, 2)
    shop.running["email"].terminate()
    _, paid = shop.checkout()
    shop.reached(str(paid["saga_id"]), "paid")
    undone = [notified, paid]
    with _backed_up(shop, "order", database_server) as put_back:
        for one in undone:
            assert shop.cancel(int(str(one["id"]))) == 202
            shop.reached(str(one["saga_id"]), "compensated")
        shop.start("email").wait_ready(60)
        shop.verified()
        put_back()
    _forget_messages(shop, [str(one["saga_id"]) for one in undone])

    dry = call("restored", "--order")
    done = call("restored", "--order", "--yes", "--reason", "restored")
    sagas = [shop.reached(str(one["saga_id"]), "compensated") for one in undone]
    shop.verified()
    again = call("restored", "--order", "--yes", "--reason", "once more")

    expected = [(str(one["saga_id"]), state, "refunded") for one, state in zip(undone, ("notified", "paid"), strict=True)]
    for report in (dry, done):
        assert [(one["saga_id"], one["state"], one["status"]) for one in report["found"]["unaware"]] == expected
        assert (report["found"]["messages"], report["found"]["orphans"]) == ([], [])
    assert (dry["done"], done["done"]["asked"]) == (None, 2)
    assert [(saga["captured"], saga["refunded"]) for saga in sagas] == [("1299.99", "1299.99")] * 2
    assert [_kinds(shop, one) for one in (kept, *undone)] == [["charge"], ["charge", "refund"], ["charge", "refund"]]
    assert shop.ended(str(kept["saga_id"]))["state"] == "notified"
    assert (again["found"]["unaware"], again["done"]["asked"]) == ([], 0)


def _forget_messages(shop: Stack, saga_ids: list[str]) -> None:
    """Delete what payment published about these sagas, as its ring does after some hours."""
    with psycopg.connect(str(shop.known.payment_database_url)) as conn:
        assert conn.execute("DELETE FROM outbox WHERE correlation_id = ANY(%s)", [saga_ids]).rowcount >= 4


@pytest.mark.timeout(240)
def test_the_payment_database_goes_back(shop: Stack, call: Call, database_server: servers.Databases) -> None:
    """It lost charges, a decline, a refund and a cancellation: told again, it finds everything at the provider and takes nothing twice."""
    (undone,) = _bought(shop, 1)
    with _backed_up(shop, "payment", database_server) as put_back:
        lost = _bought(shop, 4)
        (declined,) = _bought(shop, 1, "pm_card_declined")
        cancelled = lost.pop()
        for one in (cancelled, undone):
            assert shop.cancel(int(str(one["id"]))) == 202
            shop.reached(str(one["saga_id"]), "compensated")
        put_back()

    dry = call("restored", "--payment")
    done = call("restored", "--payment", "--yes", "--reason", "restored")

    assert dry["done"] is None
    assert done["done"]["replayed"] >= 6
    shop.verified()
    assert [_kinds(shop, one) for one in lost] == [["charge"]] * 3
    assert [_kinds(shop, one) for one in (cancelled, undone)] == [["charge", "refund"]] * 2
    assert _kinds(shop, declined) == []
    assert shop.cancel(int(str(lost[0]["id"]))) == 202
    shop.reached(str(lost[0]["saga_id"]), "compensated")
    assert _kinds(shop, lost[0]) == ["charge", "refund"]
    shop.verified()
