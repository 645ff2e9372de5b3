"""`outbox repair` against real databases: cursors of another cluster are made to mean here what they meant there."""

import contextlib
import re
from collections.abc import Generator

import psycopg
import pytest
from integration import ops_box
from integration.ops_box import Box, Call
from psycopg import sql

from sagapost_ops import migrations
from sagapost_sandbox.testing import servers, services


@pytest.fixture
def box(order_db: str) -> Generator[Box]:
    """Give the order database's outbox."""
    with contextlib.closing(Box(order_db)) as made:
        yield made


@pytest.fixture
def other(payment_db: str) -> Generator[Box]:
    """Give the payment database's outbox."""
    with contextlib.closing(Box(payment_db)) as made:
        yield made


@pytest.fixture
def call(order_db: str, payment_db: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Give what calls the command line on both databases."""
    return ops_box.caller(order_db, payment_db, monkeypatch, capsys)


def _foreign(box: Box) -> None:
    """Let rows and cursors come from a cluster whose transaction ids were far ahead."""
    box.do("UPDATE outbox SET xid = (800000 + id)::text::xid8")
    box.do("UPDATE outbox_cursor SET system_identifier = 42, lo = '900000:900000:', updated_at = now()")


def test_a_repair_keeps_what_was_confirmed_and_what_was_not(box: Box, call: Call) -> None:
    """By the old numbers: below lo, not among its running ones, or in the window up to the last id; and the order stays."""
    rows = [box.add(shard=shard) for shard in (0, 0, 1, 1, 1, 2)]
    _foreign(box)
    running = 800_000 + rows[1]
    box.do("UPDATE outbox_cursor SET lo = %s WHERE shard = 0", f"{running}:900000:{running}")
    box.do("UPDATE outbox_cursor SET lo = '5:5:', hi = '900000:900000:', last_id = %s WHERE shard = 1", rows[3])
    box.do("UPDATE outbox_cursor SET lo = '5:5:', epoch = 41, strikes = 1, suspect = 7 WHERE shard = 2")
    confirmed = {rows[0], rows[2], rows[3]}

    look, still = call("repair", "--database", "order", "--json"), box.published()
    done = call("repair", "--database", "order", "--yes", "--json")

    expected = [(0, 1, 1), (1, 2, 1), (2, 0, 1), (3, 0, 0)]
    for run, dry in ((look, True), (done, False)):
        (found,) = run.json["databases"]
        assert (run.code, run.json["dry_run"]) == (0, dry)
        assert [(line["shard"], line["confirmed"], line["unconfirmed"]) for line in found["shards"]] == expected
    assert still == confirmed  # the old numbers still say the same: the look changed nothing
    assert box.published() == confirmed
    assert box.ask("SELECT DISTINCT system_identifier = (SELECT system_identifier FROM pg_control_system()) FROM outbox_cursor") == [
        (True,)
    ]
    assert box.ask("SELECT epoch, strikes, suspect, owner, lease_until, hi FROM outbox_cursor WHERE shard = 2") == [
        (42, 0, None, None, None, None)
    ]
    assert call("repair", "--database", "order").out.strip() == (
        "order: the cursors were written in this PostgreSQL cluster; there is nothing to repair."
    )


def test_a_row_made_after_the_restore_is_not_taken_for_published(box: Box, call: Call) -> None:
    """A new cluster's small transaction ids lie below the old cursor's; what is younger than its last checkpoint is published."""
    old = box.add(minutes_ago=5)
    _foreign(box)
    box.do("UPDATE outbox_cursor SET updated_at = now() - interval '2 minutes'")
    new = box.add()

    assert call("repair", "--database", "order", "--yes").code == 0
    assert box.published() == {old}
    assert new in {row[0] for row in box.ask("SELECT id FROM outbox")}


def test_a_row_whose_transaction_is_open_during_a_repair_is_not_lost(box: Box, order_db: str, call: Call) -> None:
    """What commits after the repair keeps its own transaction id, which the new cursors have not passed."""
    box.add()
    _foreign(box)
    with psycopg.connect(order_db) as writer:
        (late,) = writer.execute(
            ops_box.ADD, {"shard": 0, "order": 1, "type": "OrderCreated", "minutes_ago": 0, "times": 1}
        ).fetchone() or (0,)

        done = call("repair", "--database", "order", "--yes")

    assert done.code == 0
    assert late not in box.published()


def test_a_repair_is_refused_while_a_relay_holds_a_shard(box: Box, call: Call) -> None:
    """Exit code 1 and who it is, with and without --yes; nothing changes."""
    box.add()
    _foreign(box)
    box.do(ops_box.HOLD)

    runs = [call("repair", "--database", "order", *more) for more in ((), ("--yes",))]

    assert [run.code for run in runs] == [1, 1]
    assert re.search(r"relay-1 holds shard 0 of order for 3[56]\d\d s more; stop the relay if it runs, and call again", runs[1].err)
    assert box.ask("SELECT DISTINCT system_identifier FROM outbox_cursor") == [(42,)]


def test_the_right_cluster_is_left_alone_unless_forced(box: Box, other: Box, call: Call) -> None:
    """Where the cursors are at home there is nothing to do, even under a lease; --force does it all the same."""
    confirmed = box.add()
    box.do(ops_box.PASS)
    box.do("UPDATE outbox_cursor SET updated_at = now() - interval '1 hour'")  # the clock is no witness where the numbers are ours
    other.do(ops_box.HOLD)
    box.add()

    idle = call("repair", "--yes")
    forced = call("repair", "--database", "order", "--force", "--yes")

    assert (idle.code, idle.out.count("nothing to repair")) == (0, 2)
    assert forced.code == 0
    assert box.published() == {confirmed}
    assert box.ask("SELECT DISTINCT lo::text FROM outbox_cursor") == [("3:3:",)]


def test_a_cursor_ahead_of_its_own_cluster_is_repaired_too(box: Box, call: Call) -> None:
    """The identifier is right, the numbers are from a future that a restore took back: they mean as little."""
    row = box.add()
    _foreign(box)
    box.do("UPDATE outbox_cursor SET system_identifier = s.system_identifier FROM pg_control_system() AS s")

    assert "another PostgreSQL cluster" in call("stats", "--database", "order").out
    assert call("repair", "--database", "order", "--yes").code == 0
    assert box.published() == {row}
    assert "another PostgreSQL cluster" not in call("stats", "--database", "order").out


def test_a_missing_cursor_is_made_again(box: Box, call: Call) -> None:
    """A shard without a cursor has confirmed nothing: all its rows are published again, none is forgotten."""
    box.add(shard=1)
    kept = box.add(shard=2)
    box.do(ops_box.PASS)
    box.do("DELETE FROM outbox_cursor WHERE shard = 1")

    assert "no cursor for shard 1" in call("repair", "--database", "order").out
    assert call("repair", "--database", "order", "--yes").code == 0
    assert box.ask("SELECT shard FROM outbox_cursor ORDER BY shard") == [(0,), (1,), (2,), (3,)]
    assert box.published() == {kept}


def test_sequences_that_a_dump_left_behind_are_moved_on(box: Box, call: Call) -> None:
    """The next id is above every id there is, and new rows find the partition that is being filled."""
    highest = box.add(times=5)
    _foreign(box)
    box.do("UPDATE outbox_bucket SET opened_at = now() + (bucket - 1) * interval '1 hour' WHERE bucket < 2")
    box.do("ALTER SEQUENCE outbox_id RESTART; ALTER SEQUENCE outbox_ring RESTART")

    assert call("repair", "--database", "order", "--yes").code == 0
    assert box.add() == highest + 1
    assert box.ask("SELECT bucket FROM outbox WHERE id > %s", highest) == [(1,)]


@pytest.mark.anyio
async def test_a_real_restore_into_another_cluster_loses_nothing_and_repeats_nothing(
    *,
    box: Box,
    order_db: str,
    private_databases: servers.Databases,
    monkeypatch: pytest.MonkeyPatch,
    call: Call,
    vhost: str,
    start_service: ops_box.StartService,
    eventually: ops_box.Eventually,
) -> None:
    """Tables copied to a fresh cluster: the relay refuses, a repair is made, and exactly what was not confirmed is published."""
    box.add(times=20)
    box.do(ops_box.PASS)
    box.add(shard=0, times=3)
    box.add(shard=3, times=2)
    there = private_databases.create("order_user", "order_password", "restored")
    migrations.upgrade(there, "order")
    _copy(order_db, there)
    env = {"SAGAPOST_DATABASE_URL": there, "SAGAPOST_AMQP_URL": vhost}
    monkeypatch.setenv("SAGAPOST_ORDER_DATABASE_URL", there)
    relay: services.Service = start_service("relay", env)
    assert relay.wait() not in (0, None)

    await eventually(ops_box.holds(lambda: call("repair", "--database", "order", "--yes").code == 0), 30)  # its lease runs out

    with contextlib.closing(Box(there)) as restored:
        restored.add(shard=0)
        start_service("relay", env).wait_ready()
        await eventually(ops_box.holds(lambda: len(restored.published()) == 26), 30)
        expected = [str(row[0]) for row in restored.ask("SELECT event_id FROM outbox WHERE id > 20 AND shard = 0 ORDER BY id")]
        others = {str(row[0]) for row in restored.ask("SELECT event_id FROM outbox WHERE id > 20 AND shard = 3")}
    found = await ops_box.take(vhost, 6)
    assert [message_id for message_id in found if message_id in set(expected)] == expected
    assert set(found) == set(expected) | others


def _copy(source: str, target: str) -> None:
    with psycopg.connect(source) as here, psycopg.connect(target) as there:
        for name in ("outbox", "outbox_cursor", "outbox_bucket", "outbox_parked"):
            table = sql.Identifier(name)
            there.execute(sql.SQL("TRUNCATE {}").format(table))
            with (
                here.cursor().copy(sql.SQL("COPY (SELECT * FROM {}) TO STDOUT").format(table)) as rows,
                there.cursor().copy(sql.SQL("COPY {} FROM STDIN").format(table)) as into,
            ):
                for data in rows:
                    into.write(data)
