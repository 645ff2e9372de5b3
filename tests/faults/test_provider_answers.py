"""Whatever the payment provider answers, or does not, the saga ends truthfully and nothing is charged twice."""

import re
import signal
from collections import defaultdict
from collections.abc import Generator, Mapping
from typing import Any, Final

import psycopg
import pytest
from faults.stack import Stack

from sagapost_sandbox.testing import polling, servers

MEASURED: Final = 20
PATIENT: Final = {
    "payment": {"SAGAPOST_PROVIDER_TIMEOUT_S": "10"},
    "relay-order": {"SAGAPOST_LEASE_S": "10"},
    "relay-payment": {"SAGAPOST_LEASE_S": "10"},
}
RELAYS_OWN: Final = ("outbox_cursor", "outbox_relay", "outbox_bucket")

CASES: Final = {
    "pm_card_ok": ("notified", ["charge"]),
    "pm_flaky": ("notified", ["charge"]),
    "pm_error_after_charge": ("notified", ["charge"]),
    "pm_late": ("notified", ["charge"]),
    "pm_card_declined": ("compensated", []),
    "pm_card_insufficient_funds": ("compensated", []),
    "pm_no_such_card": ("compensated", []),
    "pm_hang": ("compensated", []),
    "pm_poison": ("compensated", []),
}


@pytest.fixture
def patient_stack(stack: Stack) -> Generator[Stack]:
    """Let nothing be done twice because this machine was slow, for one test."""
    before = {name: {variable: stack.environment(name)[variable] for variable in changed} for name, changed in PATIENT.items()}
    _started_with(stack, PATIENT)
    yield stack
    _started_with(stack, before)


def test_a_checkout_alone_costs_six_write_commits(patient_stack: Stack, database_server: servers.Databases) -> None:
    """Order, intent, result, the lease of the receipt, paid, notified: counted in the server's own log, without the relays' own.

    One after the other, and each mail behind its payment: what comes together shares a commit.
    """
    known = patient_stack.known
    names = [str(url).rpartition("/")[2] for url in (known.order_database_url, known.payment_database_url)]
    _bought(patient_stack)  # whatever a first one costs more
    with psycopg.connect(database_server.admin_dsn, autocommit=True) as admin:
        admin.execute("CREATE EXTENSION IF NOT EXISTS pg_walinspect")
        start = _lsn(admin)
        for _ in range(MEASURED):
            _bought(patient_stack)
        commits = _write_commits(admin, database_server, names, start, _lsn(admin))

    assert commits == MEASURED * 6


@pytest.fixture(scope="module")
def checkouts(stack: Stack) -> dict[str, dict[str, Any]]:
    """Start one checkout per payment method at once: the slow ones climb the retry ladder side by side."""
    answers = {token: stack.checkout(token) for token in CASES}
    assert {status for status, _ in answers.values()} == {202}
    return {token: answer for token, (_, answer) in answers.items()}


@pytest.mark.parametrize("token", CASES)
def test_a_payment_ends_truthfully(token: str, checkouts: dict[str, dict[str, Any]], stack: Stack) -> None:
    """The state says what the provider's own ledger says, and the customer gets exactly one mail."""
    answer, (state, moved) = checkouts[token], CASES[token]

    saga = stack.ended(answer["saga_id"], 90)

    assert saga["state"] == state
    assert [entry["kind"] for entry in stack.movements(answer["saga_id"])] == moved
    assert saga["captured"] == ("1299.99" if moved else "0.00")
    (mail,) = polling.eventually(lambda: stack.mails(answer["user_email"]))
    assert mail["MessageID"].startswith("receipt-" if moved else "cancellation-")
    _, order = stack.call("GET", f"/api/orders/{answer['id']}")
    assert order["status"] == ("completed" if moved else "cancelled")


def test_every_invariant_holds_after_all_of_them(checkouts: dict[str, dict[str, Any]], stack: Stack) -> None:
    """Once all have ended, databases, broker, provider and mailbox agree."""
    for answer in checkouts.values():
        stack.ended(answer["saga_id"], 90)

    stack.verified()


def _started_with(stack: Stack, changes: Mapping[str, Mapping[str, str]]) -> None:
    for name, variables in changes.items():
        stack.change(name, variables)
        stack.replace(name).wait_ready()


def _bought(stack: Stack) -> None:
    """Buy, and let nobody mail before the order is known to be paid."""
    email = stack.running["email"]
    email.send(signal.SIGSTOP)
    try:
        saga_id = stack.checkout()[1]["saga_id"]
        stack.reached(saga_id, "paid")
    finally:
        email.send(signal.SIGCONT)
    stack.ended(saga_id)


def _lsn(admin: psycopg.Connection[Any]) -> str:
    found = admin.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
    assert found is not None
    return str(found[0])


def _files(server: servers.Databases, names: list[str]) -> tuple[set[str], set[str]]:
    """Give the files, as database/file, of what a relay writes for itself (cursors, leases), and of the system's tables; with indexes."""
    relays_own, systems = set[str](), set[str]()
    for name in names:
        with psycopg.connect(f"{server.admin_dsn.rpartition('/')[0]}/{name}") as conn:
            found = conn.execute(
                "SELECT c.relname, c.relnamespace = 'pg_catalog'::regnamespace, d.oid || '/' || pg_relation_filenode(c.oid)"
                "  FROM pg_class AS c, pg_database AS d WHERE d.datname = current_database() AND c.relkind IN ('r', 'i')"
            ).fetchall()
        relays_own |= {file for relation, _, file in found if relation.startswith(RELAYS_OWN)}
        systems |= {file for _, is_systems, file in found if is_systems}
    return relays_own, systems


def _write_commits(admin: psycopg.Connection[Any], server: servers.Databases, names: list[str], start: str, end: str) -> int:
    """Count the transactions that committed and wrote to these databases, other than to the relays' own tables alone.

    What writes to the system's tables is none of the services: ANALYZE, which the server begins by itself, or the relay's TRUNCATE.
    """
    relays_own, systems = _files(server, names)
    oids = {str(oid) for (oid,) in admin.execute("SELECT oid FROM pg_database WHERE datname = ANY(%s)", (names,))}
    records = admin.execute(
        "SELECT xid::text, resource_manager, record_type, coalesce(block_ref, '') FROM pg_get_wal_records_info(%s::pg_lsn, %s::pg_lsn)",
        (start, end),
    ).fetchall()
    committed = {xid for xid, manager, kind, _ in records if manager == "Transaction" and kind.startswith("COMMIT")}
    touched: dict[str, set[str]] = defaultdict(set)
    for xid, manager, _, blocks in records:
        if manager == "Heap":  # rows; whoever reads a page of any table may tidy it (Heap2)
            touched[xid] |= {f"{oid}/{file}" for oid, file in re.findall(r"rel \d+/(\d+)/(\d+)", blocks) if oid in oids}
    return sum(bool(touched[xid] - relays_own) and not touched[xid] & systems for xid in committed)
