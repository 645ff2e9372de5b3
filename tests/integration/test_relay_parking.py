"""Rows that the broker does not take: set aside with a reason, tried again, parked for a person; the others go on."""

import asyncio
import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import psycopg
import pytest
from integration import relay_kit, topology_kit
from integration.relay_kit import Start

from sagapost_chassis import db, outbox
from sagapost_contracts import events, topology
from sagapost_sandbox import management
from sagapost_sandbox.testing import servers

pytestmark = pytest.mark.anyio

ORDER = relay_kit.order_of(2)
QUICK = {"retry_base_s": "0.1", "retry_cap_s": "0.1"}
PATIENT = QUICK | {"retry_attempts": "1000"}
LARGE = 20 << 20
_WAIT = """
INSERT INTO outbox_parked (id, shard, event_id, aggregate, type, routing_key, correlation_id, headers, payload, created_at,
                           state, reason, detail, attempts, retry_at)
SELECT id, shard, event_id, aggregate, type, routing_key, correlation_id, headers, payload, created_at, 'waiting', 'nacked', '', 1, now()
  FROM outbox WHERE event_id = %(event_id)s
"""
_PARKED = "SELECT event_id, state, reason, attempts, detail FROM outbox_parked ORDER BY id"


def _retry(dsn: str) -> int:
    """Call the operator's command as a shell does."""
    command = [sys.executable, "-m", "sagapost_ops", "outbox", "retry", "--all", "--database", "payment"]
    return subprocess.run(command, env={**os.environ, "SAGAPOST_PAYMENT_DATABASE_URL": dsn}, check=False, timeout=60).returncode


async def _parked(dsn: str) -> list[tuple[Any, ...]]:
    return [row[:3] for row in await relay_kit.rows(dsn, _PARKED)]


async def _none_parked(dsn: str) -> bool:
    return await _parked(dsn) == []


async def test_one_unroutable_row_stops_no_other_of_its_shard(payment_db: str, vhost: str, start_service: Start) -> None:
    """Fifty rows behind it arrive while it waits; it arrives once there is a binding, under the same id, and is forgotten here."""
    start_service("relay", relay_kit.env(payment_db, vhost, **PATIENT))
    async with await db.Connection.connect(payment_db) as conn:
        lonely = await relay_kit.put(conn, ORDER, 0, key="nobody.listens")
        others = [await relay_kit.put(conn, ORDER, number) for number in range(1, 51)]

    found = await relay_kit.collect_all(vhost, others)
    await relay_kit.when(lambda: relay_kit.stored(payment_db))
    assert await _parked(payment_db) == [(lonely, "waiting", "unroutable")]
    async with relay_kit.channel(vhost) as channel:
        await (await channel.get_queue(topology.ORDER_QUEUE)).bind(topology.EXCHANGE, "nobody.listens")
    found += await relay_kit.collect(vhost, bool)

    assert [each.message_id for each in found] == [*others, lonely]
    await relay_kit.when(lambda: _none_parked(payment_db))


async def test_a_row_that_cannot_be_sent_waits_for_a_person(payment_db: str, vhost: str, start_service: Start) -> None:
    """It is parked and readiness says so; mended and put back by `outbox retry` it arrives, and readiness says nothing any more."""
    relay = start_service("relay", relay_kit.env(payment_db, vhost, **relay_kit.measured(**QUICK)))
    async with await db.Connection.connect(payment_db) as conn:
        odd = await relay_kit.put(conn, ORDER, 0, headers=f'{{"{"n" * 300}": "v"}}')

    async def degraded() -> bool:
        health = await relay_kit.ready(relay)
        return (health["status"], health["failing"], health["degraded"]) == ("ok", [], ["parked"])

    async def parked() -> bool:
        return await _parked(payment_db) == [(odd, "parked", "refused")]

    await relay_kit.when(parked)
    await relay_kit.when(degraded)
    assert await relay_kit.metric(relay, 'sagapost_relay_parked_rows{reason="refused",state="parked"}') == 1
    await relay_kit.run(payment_db, "UPDATE outbox_parked SET headers = '{}'")
    assert await asyncio.to_thread(_retry, payment_db) == 0

    assert [each.message_id for each in await relay_kit.collect(vhost, bool)] == [odd]
    await relay_kit.when(lambda: _none_parked(payment_db))

    async def well() -> bool:
        return not (await relay_kit.ready(relay))["degraded"]

    await relay_kit.when(well)


async def test_rows_that_a_full_queue_rejects_wait_until_it_has_room(payment_db: str, vhost: str, start_service: Start) -> None:
    """A queue with room for one nacks the rest: those are set aside, other rows go on, and each arrives when the queue is emptied."""
    start_service("relay", relay_kit.env(payment_db, vhost, **PATIENT))
    async with relay_kit.channel(vhost) as channel:
        await channel.declare_queue("narrow", durable=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
        await (await channel.get_queue("narrow")).bind(topology.EXCHANGE, "narrow")
    async with await db.Connection.connect(payment_db) as conn:
        tight = [await relay_kit.put(conn, ORDER, number, key="narrow") for number in range(3)]
        others = [await relay_kit.put(conn, ORDER, number) for number in range(3, 10)]

    found = await relay_kit.collect_all(vhost, others)
    await relay_kit.when(lambda: relay_kit.stored(payment_db))
    aside = await _parked(payment_db)
    late = await relay_kit.collect(vhost, lambda found: {each.message_id for each in found} >= set(tight), queue="narrow")

    assert [each.message_id for each in found] == others
    assert {event_id for event_id, _, _ in aside} <= set(tight)
    assert {row[1:] for row in aside} == {("waiting", "nacked")}
    assert late[0].message_id == tight[0]
    await relay_kit.when(lambda: _none_parked(payment_db))


async def test_hopeless_rows_are_parked_at_once(payment_db: str, vhost: str, start_service: Start) -> None:
    """What is too large to send is not even read, what cannot be a message is not tried; the rows around them arrive."""
    relay = start_service("relay", relay_kit.env(payment_db, vhost, **PATIENT))
    async with await db.Connection.connect(payment_db, autocommit=True) as conn:
        await conn.execute("ALTER TABLE outbox DROP CONSTRAINT outbox_payload_size")
        before = [await relay_kit.put(conn, ORDER, number) for number in range(100)]
        await relay_kit.collect_all(vhost, before)
        memory_kb = _peak_kb(relay.pid)
        async with conn.transaction():
            first = await relay_kit.put(conn, ORDER, 100)
            large = await relay_kit.put(conn, ORDER, 101, payload=bytes(LARGE))
            odd = await relay_kit.put(conn, ORDER, 102, headers=f'{{"{"n" * 300}": "v"}}')
            copied = await relay_kit.put(conn, ORDER, 103, headers='{"CC": "order.order.created"}')
            last = await relay_kit.put(conn, ORDER, 104)

    found = await relay_kit.collect_all(vhost, [first, last])
    await relay_kit.when(lambda: relay_kit.stored(payment_db))

    assert [each.message_id for each in found] == [first, last]
    assert await _parked(payment_db) == [(large, "parked", "too-large"), (odd, "parked", "refused"), (copied, "parked", "refused")]
    details = [row[4] for row in await relay_kit.rows(payment_db, _PARKED)]
    assert (str(LARGE) in details[0], "300 bytes" in details[1], "the header CC" in details[2]) == (True, True, True)
    grown_kb = _peak_kb(relay.pid) - memory_kb
    assert grown_kb < LARGE / 1024 / 2, f"the relay's memory grew by {grown_kb} KiB"


def _peak_kb(pid: int) -> int:
    found = re.search(r"^VmHWM:\s+(\d+) kB", pathlib.Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


async def test_the_row_that_ends_relays_is_found_and_set_aside(
    payment_db: str, vhost: str, broker: servers.Broker, start_service: Start
) -> None:
    """Three relays in a row die over the same rows; the fourth publishes all the others first, and the suspect last: nothing is lost."""
    async with await db.Connection.connect(payment_db) as conn:
        sent = [await relay_kit.put(conn, ORDER, number) for number in range(20)]
    for _ in range(3):
        doomed = start_service("relay", relay_kit.env(payment_db, vhost, crash="relay.before_confirm"))
        await relay_kit.killed(doomed, payment_db)
    noted = await relay_kit.rows(payment_db, "SELECT o.event_id FROM outbox_cursor AS c JOIN outbox AS o ON o.id = c.suspect")
    await relay_kit.when(lambda: _nobody_is_connected(broker, vhost))
    async with relay_kit.channel(vhost) as channel:  # what the doomed ones got through is not what this is about
        await (await channel.get_queue(topology.ORDER_QUEUE)).purge()
    start_service("relay", relay_kit.env(payment_db, vhost, retry_base_s="1000000"))

    found = await relay_kit.collect_all(vhost, sent[1:])
    await relay_kit.when(lambda: relay_kit.stored(payment_db))
    aside = await _parked(payment_db)
    await relay_kit.run(payment_db, "UPDATE outbox_parked SET retry_at = now()")
    found += await relay_kit.collect(vhost, bool)

    assert (noted, aside) == ([(sent[0],)], [(sent[0], "waiting", "crash-suspect")])
    assert [each.message_id for each in relay_kit.firsts(found)] == [*sent[1:], sent[0]]
    await relay_kit.when(lambda: _none_parked(payment_db))


async def test_a_row_that_waits_is_tried_in_time_when_the_clock_was_set_back(payment_db: str, vhost: str, start_service: Start) -> None:
    """Its next attempt is two hours ahead, which no wait is: it is tried now."""
    async with await db.Connection.connect(payment_db) as conn:
        event_id = await relay_kit.put(conn, ORDER, 0)
        await conn.execute(_WAIT, {"event_id": event_id})
    await relay_kit.run(payment_db, "UPDATE outbox_parked SET retry_at = now() + interval '2 hours'")
    start_service("relay", relay_kit.env(payment_db, vhost, **QUICK))

    await relay_kit.when(lambda: _none_parked(payment_db))


async def _nobody_is_connected(broker: servers.Broker, url: str) -> bool:
    """Tell whether the broker has read the last of every connection in this virtual host."""
    path = f"/api/vhosts/{url.rpartition('/')[2]}/connections"
    return await asyncio.to_thread(management.request, broker.management, "GET", path) == []


async def test_a_row_is_set_aside_by_the_checkpoint_that_passes_it_or_not_at_all(payment_db: str, vhost: str, start_service: Start) -> None:
    """While rows cannot be set aside no position passes them, and after kill -9 in between the row is still there."""
    await relay_kit.run(
        payment_db,
        """
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no space left' USING ERRCODE = 'disk_full'; END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON outbox_parked FOR EACH ROW EXECUTE FUNCTION refuse()
        """,
    )
    async with await db.Connection.connect(payment_db) as conn:
        lonely = await relay_kit.put(conn, ORDER, 0, key="nobody.listens")
        other = await relay_kit.put(conn, ORDER, 1)
    doomed = start_service("relay", relay_kit.env(payment_db, vhost, crash="relay.after_confirm:3"))
    await relay_kit.killed(doomed, payment_db)

    assert "no space left" in doomed.logs()
    assert not await relay_kit.stored(payment_db)
    await relay_kit.run(payment_db, "DROP TRIGGER refuse ON outbox_parked")
    start_service("relay", relay_kit.env(payment_db, vhost, **PATIENT))
    await relay_kit.when(lambda: relay_kit.stored(payment_db))

    assert await _parked(payment_db) == [(lonely, "waiting", "unroutable")]
    assert {each.message_id for each in await relay_kit.collect(vhost, bool)} == {other}


async def test_what_is_too_large_does_not_get_into_the_outbox(payment_db: str) -> None:
    """The writer's transaction fails with a sentence, and the table refuses what gets past that."""
    message = relay_kit.event(ORDER, 1)
    wordy = type(message)(order_id=ORDER, saga_id=message.saga_id, template="receipt", smtp_message_id="x" * outbox.MAX_PAYLOAD_BYTES)
    async with await db.Connection.connect(payment_db) as conn:
        with pytest.raises(outbox.PayloadTooLargeError, match=str(outbox.MAX_PAYLOAD_BYTES)):
            await outbox.add(conn, wordy, source="test")
        await relay_kit.put(conn, ORDER, 1, payload=bytes(outbox.MAX_PAYLOAD_BYTES))
        with pytest.raises(psycopg.errors.CheckViolation, match="outbox_payload_size"):
            await relay_kit.put(conn, ORDER, 2, payload=bytes(outbox.MAX_PAYLOAD_BYTES + 1))


async def test_a_foreign_routing_key_is_parked_before_it_costs_a_channel(
    payment_db: str, vhost: str, broker: servers.Broker, start_service: Start
) -> None:
    """The broker would close the channel over each; so would a row that somebody wrote among those that wait for another try."""
    url = topology_kit.make_users(broker, vhost)["relay-payment"]
    own, foreign = events.PaymentProcessed.key, ("order.order.created", "email.email.sent", "payments.payment.processed", "")
    async with await db.Connection.connect(payment_db) as conn:
        others = [await relay_kit.put(conn, ORDER, 0, key=key) for key in foreign]
        waiting = await relay_kit.put(conn, ORDER, 1, key="order.order.cancelled")
        await conn.execute(_WAIT, {"event_id": waiting})
        good = [await relay_kit.put(conn, ORDER, number, key=own) for number in range(2, 52)]
    relay = start_service("relay", relay_kit.env(payment_db, url, **QUICK))

    found = await relay_kit.collect_all(vhost, good)
    await relay_kit.when(lambda: relay_kit.stored(payment_db))
    expected = sorted((event_id, "parked", "foreign-key") for event_id in (*others, waiting))

    await relay_kit.when(lambda: _are_parked(payment_db, expected))
    assert [each.message_id for each in found] == good
    assert "relay.channel_lost" not in relay.logs()


async def _are_parked(dsn: str, expected: list[tuple[Any, ...]]) -> bool:
    return sorted(await _parked(dsn)) == expected
