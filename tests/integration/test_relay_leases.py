"""Several relays on one database: who holds which shard, when one changes hands, and what keeps a relay from working at all."""

import asyncio
import pathlib
import re
import signal
import sys
import time
from collections.abc import Sequence
from typing import Final, NamedTuple
from uuid import UUID

import psycopg
import pytest
from integration import relay_kit
from integration.relay_kit import Start
from psycopg import sql

from sagapost_chassis import db, outbox
from sagapost_ops import migrations
from sagapost_relay import keeper, queries
from sagapost_sandbox.testing import servers, services

pytestmark = pytest.mark.anyio

LONG_S: Final = 10
SHORT_S: Final = 2
# every change of hands with what was true just before, by the database's own clock
_WATCH: Final = """
CREATE TABLE handover (n serial, shard int, was text, became text, epoch bigint, strikes int, ended boolean);
CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO handover (shard, was, became, epoch, strikes, ended)
  VALUES (NEW.shard, OLD.owner, NEW.owner, NEW.epoch, NEW.strikes, OLD.lease_until < now());
  RETURN NULL;
END $$;
CREATE TRIGGER watch AFTER UPDATE ON outbox_cursor FOR EACH ROW WHEN (OLD.owner IS DISTINCT FROM NEW.owner) EXECUTE FUNCTION watch()
"""
# the checkpoints of one relay take their time: no other statement of its loops stores `lo`
_SLOW: Final = sql.SQL("""
CREATE FUNCTION sleep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.3); RETURN NULL; END $$;
CREATE TRIGGER slow AFTER UPDATE OF lo ON outbox_cursor FOR EACH STATEMENT
  WHEN (current_setting('application_name') LIKE {}) EXECUTE FUNCTION sleep()
""")
_ASLEEP: Final = "SELECT FROM pg_stat_activity WHERE application_name LIKE %(who)s AND wait_event = 'PgSleep'"
_ENDED: Final = """
CREATE FUNCTION ended() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'ended' USING ERRCODE = '25P03'; END $$;
CREATE TRIGGER ended AFTER UPDATE OF lo ON outbox_cursor FOR EACH STATEMENT EXECUTE FUNCTION ended()
"""
_HELD: Final = "SELECT shard, owner FROM outbox_cursor WHERE owner IS NOT NULL ORDER BY shard"
_POSITIONS: Final = "SELECT shard, lo::text, hi::text, last_id FROM outbox_cursor ORDER BY shard"


class Handover(NamedTuple):
    """A shard changed hands; `ended`: by then its lease had run out."""

    shard: int
    was: int | None
    became: int | None
    epoch: int
    strikes: int
    ended: bool | None


async def _handovers(dsn: str) -> list[Handover]:
    found = await relay_kit.rows(dsn, "SELECT shard, was, became, epoch, strikes, ended FROM handover ORDER BY n")
    return [Handover(row[0], _pid(row[1]), _pid(row[2]), *row[3:]) for row in found]


def _pid(owner: str | None) -> int | None:
    return None if owner is None else int(owner.rsplit("-", 2)[1])


async def _held(dsn: str) -> dict[int, int]:
    """Give the shards with the process ids of their owners."""
    return {shard: _pid(owner) or 0 for shard, owner in await relay_kit.rows(dsn, _HELD)}


async def _shares(dsn: str, relays: Sequence[services.Service], wanted: Sequence[int]) -> bool:
    held = list((await _held(dsn)).values())
    return sorted((held.count(relay.pid) for relay in relays), reverse=True) == list(wanted)


async def test_shards_are_shared_fairly_and_change_hands_in_order(payment_db: str, vhost: str, start_service: Start) -> None:
    """Each that joins gets its share, two too many stand by; one told to stop is replaced at once, one killed not before its lease ends."""
    await relay_kit.run(payment_db, _WATCH)
    env = relay_kit.env(payment_db, vhost, lease_s=str(LONG_S))
    relays = [start_service("relay", env) for _ in range(3)]
    await relay_kit.when(lambda: _shares(payment_db, relays, (2, 1, 1)))
    relays.append(start_service("relay", env))
    await relay_kit.when(lambda: _shares(payment_db, relays, (1, 1, 1, 1)))
    relays += [start_service("relay", env) for _ in range(2)]
    await relay_kit.when(lambda: _stand_by(payment_db, relays))

    held = await _held(payment_db)
    leaving = next(relay for relay in relays[:3] if relay.pid in held.values())
    began = time.monotonic()
    leaving.send(signal.SIGTERM)
    others = [relay for relay in relays if relay is not leaving]
    await relay_kit.when(lambda: _shares(payment_db, others, (1, 1, 1, 1, 0)))
    took_s = time.monotonic() - began
    in_order = await _handovers(payment_db)
    sent = await relay_kit.add(payment_db, *(relay_kit.event(order, 1) for order in range(40)))
    await relay_kit.collect_all(vhost, sent)
    await relay_kit.when(lambda: relay_kit.stored(payment_db))
    held = await _held(payment_db)
    doomed = next(relay for relay in relays[3:] if relay.pid in held.values())
    doomed.kill()
    survivors = [relay for relay in others if relay is not doomed]
    await relay_kit.when(lambda: _shares(payment_db, survivors, (1, 1, 1, 1)))

    sys.stdout.write(f"a shard changes hands {took_s * 1000:.0f} ms after SIGTERM, under a lease of {LONG_S} s\n")
    assert took_s < LONG_S / 2
    assert all(each.was is None or each.became is None for each in in_order)
    assert {each.strikes for each in in_order} == {0}
    (last,) = (await _handovers(payment_db))[len(in_order) :]
    assert (last.was, last.ended, last.strikes) == (doomed.pid, True, 1)
    for shard in range(outbox.SHARDS):
        epochs = [each.epoch for each in await _handovers(payment_db) if each.shard == shard and each.became is not None]
        assert epochs == list(range(1, len(epochs) + 1))


async def _stand_by(dsn: str, relays: Sequence[services.Service]) -> bool:
    seen = await relay_kit.rows(dsn, "SELECT count(*) FROM outbox_relay")
    return seen == [(len(relays),)] and await _shares(dsn, relays, (1, 1, 1, 1, 0, 0))


async def test_a_relay_that_wakes_after_its_lease_changes_nothing(payment_db: str, vhost: str, start_service: Start) -> None:
    """Stopped before its checkpoint and past its lease: the checkpoint touches no row, it says so and joins again, and nothing is lost."""
    await relay_kit.run(payment_db, _WATCH)
    sent = await relay_kit.add(payment_db, *(relay_kit.event(order, 1) for order in range(20)))
    more = relay_kit.measured(crash="relay.after_confirm:stop", lease_s=str(SHORT_S))
    zombie = start_service("relay", relay_kit.env(payment_db, vhost, **more))
    await relay_kit.when(lambda: _stopped(zombie))
    other = start_service("relay", relay_kit.env(payment_db, vhost))
    sent += await relay_kit.add(payment_db, *(relay_kit.event(order, 2) for order in range(20)))
    found = await relay_kit.collect_all(vhost, sent)
    await relay_kit.when(lambda: relay_kit.stored(payment_db))
    taken = await _handovers(payment_db)
    before = await _lasting_positions(payment_db)

    zombie.send(signal.SIGCONT)

    async def fenced() -> bool:  # it counts first and says so when its session has ended
        counted = await relay_kit.metric(zombie, "sagapost_relay_fenced_total")
        named = re.search(r"shards \[([\d, ]+)\] belong to another relay", zombie.logs())
        return named is not None and counted == len(named[1].split(","))

    await relay_kit.when(fenced)
    assert await relay_kit.rows(payment_db, _POSITIONS) == before
    assert [(each.was, each.became, each.ended) for each in taken] == [(None, zombie.pid, None)] * 4 + [(zombie.pid, other.pid, True)] * 4
    await relay_kit.when(lambda: _shares(payment_db, (zombie, other), (2, 2)))
    sent += await relay_kit.add(payment_db, *(relay_kit.event(order, 3) for order in range(20)))
    found += await relay_kit.collect_all(vhost, sent[40:])
    assert relay_kit.in_order(found)
    assert {each.message_id for each in found} == set(sent)


async def _lasting_positions(dsn: str) -> list[tuple[object, ...]]:
    """Give the positions once they stay: an empty window that was passed during a checkpoint is stored by another one."""
    since, found = time.monotonic(), await relay_kit.rows(dsn, _POSITIONS)

    async def last() -> bool:
        nonlocal since, found
        asked_at, now = time.monotonic(), await relay_kit.rows(dsn, _POSITIONS)
        if now != found:
            since, found = time.monotonic(), now
        return asked_at - since > 3 * keeper.CHECKPOINT_S

    await relay_kit.when(last)
    return found


async def test_a_relay_stopped_inside_a_transaction_keeps_no_shard_locked(payment_db: str, vhost: str, start_service: Start) -> None:
    """Its rows are free when its lease is: others take its shards, and when it goes on its session begins anew, and nothing is lost."""
    env = relay_kit.env(payment_db, vhost, lease_s=str(SHORT_S))
    relays = first, second = [start_service("relay", env) for _ in range(2)]
    await relay_kit.when(lambda: _shares(payment_db, relays, (2, 2)))
    async with await psycopg.AsyncConnection.connect(payment_db, autocommit=True) as conn:
        await conn.execute(_SLOW.format(sql.Literal(_name(first))))
    sent: list[UUID] = []

    async def stopped_inside() -> bool:
        sent.extend(await relay_kit.add(payment_db, *(relay_kit.event(order, len(sent)) for order in range(20))))
        await relay_kit.when(lambda: _asleep(payment_db, first))
        first.send(signal.SIGSTOP)
        await relay_kit.when(lambda: _stopped(first))
        if await _asleep(payment_db, first):
            return True
        first.send(signal.SIGCONT)
        return False

    await relay_kit.when(stopped_inside)
    await relay_kit.when(lambda: _shares(payment_db, (second,), (4,)), 20)  # any session is ended after 30 s
    await relay_kit.run(payment_db, "DROP TRIGGER slow ON outbox_cursor")
    first.send(signal.SIGCONT)

    await relay_kit.when(lambda: _shares(payment_db, relays, (2, 2)))
    sent += await relay_kit.add(payment_db, *(relay_kit.event(order, len(sent)) for order in range(20)))
    found = await relay_kit.collect_all(vhost, sent)
    assert first.running()
    assert relay_kit.in_order(found)


def _name(relay: services.Service) -> str:
    """Give the pattern of what a relay calls itself in the database."""
    return f"relay-%-{relay.pid}-%"


async def _asleep(dsn: str, relay: services.Service) -> bool:
    """Tell whether a relay's checkpoint waits in its trigger: if the relay is stopped, its session will stay in the transaction."""
    return await relay_kit.rows(dsn, _ASLEEP, who=_name(relay)) != []


async def test_a_relay_whose_session_was_ended_in_a_transaction_begins_anew(payment_db: str, vhost: str, start_service: Start) -> None:
    """Told so by the server when it uses the session again, it does not end: it says so, and stores its positions in another one."""
    relay = start_service("relay", relay_kit.env(payment_db, vhost)).wait_ready()
    await relay_kit.run(payment_db, _ENDED)
    sent = await relay_kit.add(payment_db, relay_kit.event(1, 1))
    await relay_kit.when(lambda: _says(relay, "IdleInTransactionSessionTimeout"))

    await relay_kit.run(payment_db, "DROP TRIGGER ended ON outbox_cursor")

    await relay_kit.when(lambda: relay_kit.stored(payment_db))
    assert {each.message_id for each in await relay_kit.collect_all(vhost, sent)} == set(sent)
    assert relay.running()


async def _says(relay: services.Service, words: str) -> bool:
    return words in relay.logs()


async def _stopped(relay: services.Service) -> bool:
    return _state(relay.pid) == "T"


def _state(pid: int) -> str:
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


async def test_a_server_that_may_forget_commits_is_refused(payment_db: str, vhost: str, start_service: Start) -> None:
    """With synchronous_commit off a confirmed message could tell of a transaction that a crash takes back: a person must look."""
    name = psycopg.conninfo.conninfo_to_dict(payment_db)["dbname"]
    async with await psycopg.AsyncConnection.connect(payment_db, autocommit=True) as conn:
        await conn.execute(sql.SQL("ALTER DATABASE {} SET synchronous_commit = off").format(sql.Identifier(str(name))))

    relay = start_service("relay", relay_kit.env(payment_db, vhost))

    assert await asyncio.to_thread(relay.wait) not in (0, None)
    assert "synchronous_commit is off" in relay.logs()


async def test_a_relay_waits_for_a_standby_to_be_promoted(private_databases: servers.Databases, vhost: str, start_service: Start) -> None:
    """A standby's snapshots list no running transactions, and rows would be lost: nothing is read from one, until it is the primary."""
    dsn = private_databases.create("relay_user", "relay_password", "relayed")
    await asyncio.to_thread(migrations.upgrade, dsn, "payment")
    sent = await relay_kit.add(dsn, relay_kit.event(1, 1))
    with psycopg.connect(private_databases.admin_dsn, autocommit=True) as conn:
        (folder,) = conn.execute("SHOW data_directory").fetchone() or ("",)
        conn.execute(sql.SQL("COPY (SELECT '') TO {}").format(sql.Literal(f"{folder}/standby.signal")))
    private_databases.stop()
    private_databases.start()
    relay = start_service("relay", relay_kit.env(dsn, vhost))

    async def waits() -> bool:
        return "the database is a standby" in relay.logs() and "relay.interrupted" in relay.logs()

    await relay_kit.when(waits)
    assert await relay_kit.rows(dsn, "SELECT owner FROM outbox_cursor WHERE owner IS NOT NULL") == []
    with psycopg.connect(private_databases.admin_dsn, autocommit=True) as conn:
        assert conn.execute("SELECT pg_promote()").fetchone() == (True,)
    found = await relay_kit.collect(vhost, bool)

    assert [each.message_id for each in found] == sent


@pytest.mark.parametrize("tuples", [0, 1, 4, 100])
async def test_a_claim_takes_as_many_shards_as_it_asks_for(tuples: int, payment_db: str, database_server: servers.Databases) -> None:
    """Whatever the planner believes of the table, and so whichever side of the join it reads first."""
    statistics = "UPDATE pg_class SET reltuples = %s, relpages = 1 WHERE relname = 'outbox_cursor'"
    with psycopg.connect(f"{database_server.admin_dsn.rpartition('/')[0]}/{payment_db.rpartition('/')[2]}") as admin:
        admin.execute(statistics, (tuples,))
    claimed = []
    async with await db.Connection.connect(payment_db, autocommit=True) as conn:
        await queries.pin(conn)
        for held in ([], [0]):
            async with conn.transaction():
                claimed.append(await queries.claim(conn, "me", held, 1, LONG_S))

    assert [[cursor.shard for cursor in cursors] for cursors in claimed] == [[0], [1]]
