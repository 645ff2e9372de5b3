"""`migrate` and `topology` as compose runs them: addresses from the environment, patience, one sentence when it does not work."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Generator

import aio_pika
import psycopg
import pytest

from sagapost_contracts import topology
from sagapost_ops import migrations
from sagapost_sandbox import databases, ports
from sagapost_sandbox.testing import servers


def _run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SAGAPOST_")}
    line = [sys.executable, "-P", "-m", "sagapost_ops", *arguments]
    return subprocess.run(line, env=environ | variables, capture_output=True, text=True, check=False, timeout=90)


@pytest.fixture
def empty_db(database_server: servers.Databases) -> Generator[str]:
    """Give the connection string of an empty database."""
    name = f"empty_{uuid.uuid4().hex}"
    try:
        yield database_server.create("order_user", "order_password", name)
    finally:
        databases.drop(database_server.admin_dsn, name)


@pytest.fixture
def empty_vhost(broker: servers.Broker) -> Generator[str]:
    """Give the AMQP URL of a virtual host without any queue."""
    name = f"empty-{uuid.uuid4().hex}"
    try:
        yield broker.create_vhost(name)
    finally:
        broker.delete_vhost(name)


def test_an_empty_database_is_brought_to_the_newest_revision(empty_db: str) -> None:
    """`migrate status` fails while a database is behind, `migrate up` mends that and may be repeated."""
    before = _run("migrate", "status", "--only", "order", "--json", SAGAPOST_ORDER_DATABASE_URL=empty_db)
    runs = [_run("migrate", "up", "--only", "order", SAGAPOST_ORDER_DATABASE_URL=empty_db) for _ in range(2)]
    after = _run("migrate", "status", "--only", "order", "--json", SAGAPOST_ORDER_DATABASE_URL=empty_db)

    assert before.returncode == 1
    assert json.loads(before.stdout)[0]["revision"] is None
    assert [run.returncode for run in runs] == [0, 0], runs
    assert after.returncode == 0
    assert json.loads(after.stdout)[0]["revision"] == json.loads(after.stdout)[0]["newest"]


@pytest.mark.parametrize("only", ["order", "payment"])
def test_a_database_with_other_tables_is_not_migrated(empty_db: str, only: str) -> None:
    """An address that leads to somebody else's database: exit code 2 names a table of it, and nothing is created there."""
    with psycopg.connect(empty_db, autocommit=True) as conn:
        conn.execute("CREATE TABLE customers (id bigint)")

    done = _run("migrate", "up", "--only", only, **{f"SAGAPOST_{only.upper()}_DATABASE_URL": empty_db})

    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "'customers'" in done.stderr
    with psycopg.connect(empty_db) as conn:
        assert conn.execute("SELECT array_agg(tablename::text) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (["customers"],)


def test_a_database_that_is_not_there_is_one_sentence() -> None:
    """Exit code 2, the address without its password, and what to do."""
    done = _run(
        "migrate", "up", "--only", "payment", SAGAPOST_PAYMENT_DATABASE_URL="postgresql://payment_user:secret@127.0.0.1:1/payment_db"
    )

    assert done.returncode == 2
    assert "the database at postgresql://127.0.0.1:1/payment_db cannot be used" in done.stderr
    assert "secret" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_one_address_without_the_other_is_named(empty_db: str) -> None:
    """Addresses of the environment are never mixed with those of a running stack."""
    done = _run("migrate", "up", SAGAPOST_ORDER_DATABASE_URL=empty_db)

    assert done.returncode == 2
    assert "SAGAPOST_PAYMENT_DATABASE_URL is not set" in done.stderr


def test_topology_is_declared_once_and_checked(empty_vhost: str) -> None:
    """`check` names what is missing, `declare` makes it and may be repeated."""
    before = _run("topology", "check", "--json", SAGAPOST_AMQP_URL=empty_vhost)
    runs = [_run("topology", "declare", SAGAPOST_AMQP_URL=empty_vhost) for _ in range(2)]
    after = _run("topology", "check", SAGAPOST_AMQP_URL=empty_vhost)

    assert before.returncode == 1
    assert {"kind": "missing", "name": topology.PAYMENT_QUEUE, "says": "payment_service_queue is not there"} in json.loads(before.stdout)[
        "drift"
    ]
    assert [run.returncode for run in runs] == [0, 0], runs
    assert after.returncode == 0, after.stderr


@pytest.mark.anyio
async def test_a_queue_with_other_arguments_is_named(empty_vhost: str) -> None:
    """Drift ends `declare` with exit code 1 and one sentence that names the queue."""
    connection = await aio_pika.connect(empty_vhost)
    async with connection:
        channel = await connection.channel()
        await channel.declare_queue(topology.EMAIL_QUEUE, durable=True)

    done = _run("topology", "declare", SAGAPOST_AMQP_URL=empty_vhost)

    assert done.returncode == 1
    assert topology.EMAIL_QUEUE in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_broker_that_is_not_there_is_one_sentence() -> None:
    """Exit code 2, the address without its password, and what to do."""
    done = _run("topology", "declare", SAGAPOST_AMQP_URL="amqp://user:secret@127.0.0.1:1/")

    assert done.returncode == 2
    assert "the broker at amqp://127.0.0.1:1/ does not answer" in done.stderr
    assert "secret" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_migrations_find_the_server_that_takes_writes(order_db: str) -> None:
    """Of several servers in an address the first may be dead, as after a promotion."""
    url = f"{order_db.replace('@', f'@127.0.0.1:{ports.trial(1)[0]},', 1)}?target_session_attrs=read-write"

    revision, newest = migrations.current(url, "order")

    assert revision == newest
    assert migrations.upgrade(url, "order") == newest
