"""The databases' roles: each does its work, and everything else is refused by the server."""

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Final, LiteralString

import httpx
import psycopg
import pytest
from psycopg import conninfo, errors, sql

from sagapost_chassis import db
from sagapost_ops import errors as refusals
from sagapost_ops import rights, roles
from sagapost_relay import ring
from sagapost_sandbox import packages
from sagapost_sandbox.testing import polling, servers, services

Start = Callable[[str, Mapping[str, str]], services.Service]
CART: Final = {"user_id": 1, "user_email": "roles@example.com", "items": [{"product_id": 1, "quantity": 1, "price": "1299.99"}]}
SERVICES: Final = ("order_service", "payment_service")
RELAYS: Final = ("order_relay", "payment_relay")
EVERYBODY: Final = (*SERVICES, *RELAYS)
# what no role may do, whatever its business
FORBIDDEN: Final[tuple[LiteralString, ...]] = (
    "CREATE TABLE mine (id bigint)",
    "CREATE TEMPORARY TABLE mine (id bigint)",
    "CREATE SCHEMA mine",
    "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE ROLE mine",
    "CREATE DATABASE mine",
    "ALTER TABLE outbox ADD COLUMN mine text",
    "DROP TABLE inbox",
    "CREATE INDEX mine ON outbox (type)",
    "TRUNCATE inbox",
    "TRUNCATE outbox",
    "UPDATE outbox SET payload = ''",
    "DELETE FROM outbox",
    "DELETE FROM inbox",
    "UPDATE inbox SET type = ''",
    "DELETE FROM outbox_cursor",
    "INSERT INTO outbox_bucket (bucket) VALUES (9)",
    "SELECT setval('outbox_id', 1)",
    "SELECT * FROM alembic_version",
    "SELECT lo_creat(-1)",
    "SELECT lo_create(0)",
    "SELECT lo_from_bytea(0, 'mine')",
    "SELECT lo_import('/etc/hostname')",
    "SELECT lo_put(1, 0, 'mine')",
    "SELECT lo_unlink(1)",
    "SELECT lo_open(1, 131072)",
    "SELECT lowrite(0, 'mine')",
    "SELECT lo_truncate(0, 0)",
    "SELECT * FROM pg_authid",
    "SELECT pg_read_file('/etc/passwd')",
    "COPY (SELECT 1) TO PROGRAM 'true'",
)
SERVICE_FORBIDDEN: Final[tuple[LiteralString, ...]] = (
    "SELECT * FROM outbox",
    "SELECT * FROM outbox_0",
    "INSERT INTO outbox_0 DEFAULT VALUES",
    "TRUNCATE outbox_1",
    "UPDATE outbox_cursor SET lo = '9:9:'",
    "DELETE FROM outbox_parked",
    "SELECT setval('outbox_ring', 1)",
)
RELAY_FORBIDDEN: Final[tuple[LiteralString, ...]] = (
    "SELECT * FROM inbox",
    "INSERT INTO outbox DEFAULT VALUES",
    "INSERT INTO outbox_2 DEFAULT VALUES",
    "DELETE FROM outbox_3",
    "SELECT nextval('outbox_id')",
    "INSERT INTO outbox_cursor (shard, system_identifier) VALUES (9, 1)",
)
OWN_FORBIDDEN: Final[dict[str, tuple[LiteralString, ...]]] = {
    "order_service": (
        "UPDATE saga_history SET actor = 'somebody else'",
        "DELETE FROM saga_history",
        "TRUNCATE saga_history",
        "ALTER TABLE saga_history DISABLE TRIGGER append_only",
        "INSERT INTO saga_transitions VALUES ('created', 'Anything', 'notified')",
        "DELETE FROM saga_transitions",
        "UPDATE orders SET total_amount = 0.01",
        "UPDATE orders SET user_email = user_email",
        "DELETE FROM orders",
        "UPDATE order_items SET price = 0.01",
        "DELETE FROM order_items",
        "DELETE FROM sagas",
        "UPDATE products SET price = 0.01",
        "UPDATE idempotency_keys SET body = ''",
        "INSERT INTO api_keys (client, env, scopes, sha256) VALUES ('demo', 'production', '{ops:write}', decode(repeat('00', 32), 'hex'))",
        "UPDATE api_keys SET revoked_at = NULL",
        "UPDATE clients SET rate_per_s = 1000000",
        "SELECT * FROM dlq_runs",
    ),
    "payment_service": (
        "UPDATE ledger SET amount = 0.01",
        "DELETE FROM ledger",
        "TRUNCATE ledger",
        "UPDATE duplicate_charges SET amount = 0.01",
        "DELETE FROM duplicate_charges",
        "DELETE FROM payments",
        "TRUNCATE payments",
    ),
    "order_relay": ("SELECT * FROM orders", "SELECT * FROM sagas", "SELECT * FROM idempotency_keys", "SELECT * FROM api_keys"),
    "payment_relay": ("SELECT * FROM payments", "SELECT * FROM ledger"),
}


def _as(url: str, role: str) -> str:
    """Name the same database for a role."""
    return conninfo.make_conninfo(url, user=role, password=roles.development_password(role))


@pytest.fixture
def urls(order_db: str, payment_db: str) -> dict[str, str]:
    """Make the roles in fresh databases and give each one's connection string."""
    found: dict[str, str] = {}
    for name, url in (("order", order_db), ("payment", payment_db)):
        rights.make(url, name, roles.passwords({}, name))
        assert rights.grant(url, name) == 2
        found |= {role.name: _as(url, role.name) for role in roles.of(name)}
    return found


_OUTBOX_ROW: Final = """
INSERT INTO outbox (shard, event_id, aggregate, type, routing_key, correlation_id, headers, payload, created_at)
VALUES (0, gen_random_uuid(), 'order-1', 'OrderCreated', 'order.order.created', 'c', '{}', 'true', now())
"""
_SET_ASIDE: Final = """
INSERT INTO outbox_parked (id, shard, event_id, aggregate, type, routing_key, correlation_id, headers, payload, created_at,
                           state, reason, detail, attempts, retry_at)
VALUES (%(id)s, 0, gen_random_uuid(), 'order-9', 'RequestNotification', 'order.notification.requested', 'c', '{}', 'forged', now(),
        'waiting', 'nacked', '', 1, now())
"""
_KEYS: Final = """
WITH placed AS (
    INSERT INTO orders (user_id, user_email, status, currency, total_amount, payment_method, processing_duration_ms, created_at, updated_at)
    VALUES (1, 'a@example.com', 'pending', 'USD', 1, 'pm_card_ok', 0, now(), now()) RETURNING id
)
INSERT INTO idempotency_keys (client, key, fingerprint, order_id, status, location, body, created_at)
SELECT 'demo', k, repeat('a', 32)::bytea, placed.id, 202, '/', '', now() - age
  FROM placed, (VALUES ('young', interval '6 days'), ('old', interval '8 days')) AS keys (k, age)
"""


@pytest.mark.parametrize("role", EVERYBODY)
def test_a_role_can_do_nothing_beyond_its_work(urls: Mapping[str, str], role: str) -> None:
    """Changing the schema, rewriting history, reading or emptying other tables, getting out of the database: each is refused."""
    kind = SERVICE_FORBIDDEN if role in SERVICES else RELAY_FORBIDDEN
    allowed: list[str] = []

    with psycopg.connect(urls[role], autocommit=True) as conn:
        for statement in (*FORBIDDEN, *kind, *OWN_FORBIDDEN[role]):
            try:
                conn.execute(statement)
            except errors.InsufficientPrivilege:
                continue
            except psycopg.Error as exc:
                allowed.append(f"{statement}: {exc}")
            else:
                allowed.append(statement)

    assert allowed == []


@pytest.mark.parametrize("role", EVERYBODY)
def test_a_role_enters_no_other_database_and_becomes_nobody_else(urls: Mapping[str, str], role: str) -> None:
    """The other service's database and the server's own do not let it in, and it can take no other role's rights."""
    other = "payment_service" if role.startswith("order") else "order_service"
    name = str(conninfo.conninfo_to_dict(urls[other])["dbname"])

    for closed in (name, "postgres", "template1"):
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            psycopg.connect(conninfo.make_conninfo(urls[role], dbname=closed))

    with psycopg.connect(urls[role], autocommit=True) as conn:
        for owner in ("order_user", "payment_user", "postgres", other):
            with pytest.raises(errors.InsufficientPrivilege):
                conn.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(owner)))


def test_services_and_relays_do_their_work_with_their_roles(urls: Mapping[str, str], vhost: str, start_service: Start) -> None:
    """A checkout, its event through the relay, payment's intent and the cancellation need no right that is missing."""
    broker = {"SAGAPOST_AMQP_URL": vhost, "SAGAPOST_PROVIDER_URL": "http://127.0.0.1:1"}
    names = {"order_service": "order", "payment_service": "payment", "order_relay": "relay", "payment_relay": "relay"}
    # the ring turns all the time: emptying partitions is the relay's widest right
    started = {
        role: start_service(name, broker | {"SAGAPOST_DATABASE_URL": urls[role], "SAGAPOST_ROTATE_S": "1"}) for role, name in names.items()
    }
    for service in started.values():
        service.wait_ready()
    order = started["order_service"].url

    placed = httpx.post(f"{order}/checkout", json=CART, headers={"Idempotency-Key": "one"}, timeout=20).json()
    again = httpx.post(f"{order}/checkout", json=CART, headers={"Idempotency-Key": "one"}, timeout=20)

    assert again.headers["Idempotent-Replayed"] == "true"
    with psycopg.connect(urls["payment_service"], autocommit=True) as conn:
        polling.eventually(lambda: conn.execute("SELECT FROM payments WHERE saga_id = %(saga_id)s", placed).fetchone() is not None)
    assert httpx.post(f"{order}/orders/{placed['id']}/cancel", timeout=20).status_code == 202
    with psycopg.connect(urls["order_relay"], autocommit=True) as conn:
        turned = "SELECT pg_sequence_last_value('outbox_ring') >= 2"
        polling.eventually(lambda: conn.execute(turned).fetchone() == (True,), 20)
    assert [service.logs() for service in started.values() if "permission denied" in service.logs()] == []


@pytest.mark.parametrize("role", EVERYBODY)
def test_a_service_may_forget_by_age_and_a_relay_may_not(urls: Mapping[str, str], role: str) -> None:
    """The functions that forget are the services' alone, and even they get at no row that is young."""
    with psycopg.connect(urls[role], autocommit=True) as conn:
        if role in RELAYS:
            with pytest.raises(errors.InsufficientPrivilege):
                conn.execute("SELECT forget_inbox(0, 10)")
            return
        conn.execute("INSERT INTO inbox (message_id, type, received_at) VALUES (gen_random_uuid(), 'T', now() - interval '29 days')")
        found = conn.execute("SELECT forget_inbox(0, 10), forget_customers(0, 10)").fetchone()

    assert found == (0, 0)


@pytest.mark.anyio
async def test_a_relay_turns_the_ring_with_its_role(urls: Mapping[str, str]) -> None:
    """LOCK, the look at what is settled, TRUNCATE, the sequence: the relay's role suffices."""
    async with await db.Connection.connect(urls["payment_relay"], autocommit=True) as conn:
        turned = await ring.rotate(conn, ring.Pace(0, 0))

    assert turned == ring.Turned(rotated=True)


def test_rights_are_exactly_those_named(urls: Mapping[str, str], order_db: str) -> None:
    """What somebody granted by hand is taken back by the next `migrate up`; calling it twice changes nothing."""
    with psycopg.connect(order_db, autocommit=True) as owner:
        owner.execute("GRANT ALL ON orders, saga_history, outbox TO order_service")
        owner.execute("GRANT UPDATE ON SEQUENCE outbox_id TO order_service")

    rights.make(order_db, "order", roles.passwords({}, "order"))
    assert (rights.grant(order_db, "order"), rights.grant(order_db, "order")) == (2, 2)

    with psycopg.connect(urls["order_service"], autocommit=True) as conn:
        for statement in OWN_FORBIDDEN["order_service"]:
            with pytest.raises(errors.InsufficientPrivilege):
                conn.execute(statement)


@pytest.mark.parametrize("database", ["order", "payment"])
def test_every_table_is_somebody_s_business(order_db: str, payment_db: str, database: str) -> None:
    """A new table is given to its service in ops/roles.py, or named there as the operators': otherwise production would miss a right."""
    with psycopg.connect(order_db if database == "order" else payment_db) as conn:
        listed = conn.execute("SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'").fetchall()
    granted = {table for role in roles.of(database) for table in role.tables}

    assert {name for (name,) in listed} - granted - roles.OPERATORS == set()


def test_the_owners_read_everything(order_db: str, payment_db: str) -> None:
    """order_user and payment_user, whom the documented queries are made with, still see every table."""
    for url in (order_db, payment_db):
        with psycopg.connect(url) as conn:
            for (name,) in conn.execute("SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'").fetchall():
                conn.execute(sql.SQL("SELECT * FROM {} LIMIT 1").format(sql.Identifier(name)))


def _migrate(url: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SAGAPOST_")}
    line = [sys.executable, "-P", "-m", "sagapost_ops", "migrate", "up", "--only", "order", *arguments]
    environ |= {"SAGAPOST_ORDER_DATABASE_URL": url} | more
    return subprocess.run(line, env=environ, capture_output=True, text=True, check=False, timeout=60)


def test_migrate_up_makes_the_roles_with_their_passwords(order_db: str) -> None:
    """`migrate up --roles` is harmless when repeated, and sets the passwords it is given."""
    done = [_migrate(order_db, "--roles", "--json", SAGAPOST_DATABASE_PASSWORD_ORDER_RELAY=word) for word in ("first-one", "second-one")]

    assert [json.loads(one.stdout)[0]["roles"] for one in done] == [2, 2]
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(conninfo.make_conninfo(order_db, user="order_relay", password="first-one"))
    psycopg.connect(conninfo.make_conninfo(order_db, user="order_relay", password="second-one")).close()


def test_production_makes_no_role_with_a_weak_password(order_db: str) -> None:
    """The unprotected connection is refused first, then each password that is missing or weak, by name; nothing is done."""
    environ = {"SAGAPOST_ENV": "production", "SAGAPOST_DATABASE_PASSWORD_ORDER_RELAY": "short"}
    done = _migrate(order_db, "--roles", **environ)
    with pytest.raises(refusals.UnfitError) as refused:
        roles.passwords(environ, "order")

    assert done.returncode == 2
    assert "refused in production: SAGAPOST_ORDER_DATABASE_URL" in done.stderr
    assert "SAGAPOST_DATABASE_PASSWORD_ORDER_SERVICE: its password is the development default" in str(refused.value)
    assert "SAGAPOST_DATABASE_PASSWORD_ORDER_RELAY: its password has fewer than 16 characters" in str(refused.value)


def test_a_relay_sets_aside_only_what_stands_in_the_outbox(urls: Mapping[str, str], order_db: str) -> None:
    """Whatever it writes beside a row's number, the text is the outbox's; a row that is not there is refused."""
    with psycopg.connect(order_db, autocommit=True) as owner:
        owner.execute(_OUTBOX_ROW)
        (number,) = owner.execute("SELECT id FROM outbox").fetchone() or (0,)
    with psycopg.connect(urls["order_relay"], autocommit=True) as relay:
        relay.execute(_SET_ASIDE, {"id": number})
        with pytest.raises(errors.InsufficientPrivilege):
            relay.execute(_SET_ASIDE, {"id": number + 1})
        with pytest.raises(errors.InsufficientPrivilege):
            relay.execute("UPDATE outbox_parked SET payload = 'mine', event_id = gen_random_uuid()")

        assert relay.execute("SELECT routing_key, payload, aggregate FROM outbox_parked").fetchall() == [
            ("order.order.created", b"true", "order-1")
        ]


def test_an_idempotency_key_is_kept_until_it_has_expired(urls: Mapping[str, str], order_db: str) -> None:
    """The service's role deletes one of eight days, not one of six, and cannot make one older than it is."""
    with psycopg.connect(order_db, autocommit=True) as owner:
        owner.execute(_KEYS)
    with psycopg.connect(urls["order_service"], autocommit=True) as service:
        for statement in ("DELETE FROM idempotency_keys WHERE key = 'young'", "UPDATE idempotency_keys SET created_at = '2020-01-01'"):
            with pytest.raises(errors.InsufficientPrivilege):
                service.execute(statement)
        service.execute("DELETE FROM idempotency_keys WHERE key = 'old'")

        assert service.execute("SELECT key FROM idempotency_keys").fetchall() == [("young",)]


def test_a_saga_moves_only_with_its_history(urls: Mapping[str, str], start_service: Start) -> None:
    """The order service's role cannot change a saga's state, version or money without the row that says so; with it, it can."""
    order = start_service(
        "order", {"SAGAPOST_DATABASE_URL": urls["order_service"], "SAGAPOST_AMQP_URL": "amqp://nobody:nothing@127.0.0.1:1/"}
    ).wait_ready()
    placed = httpx.post(f"{order.url}/checkout", json=CART, headers={"Idempotency-Key": "one"}, timeout=20).json()

    with psycopg.connect(urls["order_service"], autocommit=True) as conn:
        for change in (
            "state = 'compensating'",
            "version = version + 1",
            "state = 'paid', version = 2, captured = amount",
            "captured = amount",
        ):
            with pytest.raises(errors.InsufficientPrivilege, match="no row in its history"):
                conn.execute(sql.SQL("UPDATE sagas SET {}").format(sql.SQL(change)))
    cancelled = httpx.post(f"{order.url}/orders/{placed['id']}/cancel", timeout=20)

    assert cancelled.status_code == 202
    with psycopg.connect(urls["order_service"]) as conn:
        assert conn.execute("SELECT state, version FROM sagas").fetchall() == [("compensating", 2)]


def test_what_a_role_has_set_for_itself_is_reset(urls: Mapping[str, str], order_db: str) -> None:
    """A role may always do it, for itself and for one database; `migrate up --roles` ends it."""
    name = str(conninfo.conninfo_to_dict(order_db)["dbname"])
    with psycopg.connect(urls["order_service"], autocommit=True) as conn:
        conn.execute("ALTER ROLE order_service SET synchronous_commit = off")
        conn.execute(sql.SQL("ALTER ROLE order_service IN DATABASE {} SET statement_timeout = 1").format(sql.Identifier(name)))

    assert _migrate(order_db, "--roles").returncode == 0

    with psycopg.connect(urls["order_service"], autocommit=True) as conn:
        shown = [conn.execute(show).fetchone() for show in ("SHOW synchronous_commit", "SHOW statement_timeout")]
    assert shown == [("on",), ("0",)]


@pytest.mark.parametrize("is_superuser", [True, False])
def test_a_server_of_another_make_is_closed_or_named(private_databases: servers.Databases, *, is_superuser: bool) -> None:
    """A superuser's `migrate up --roles` takes large objects and the database postgres from everybody; another user's says what to do."""
    owner = private_databases.create("order_user", "order_password", "order_db")
    admin = conninfo.make_conninfo(private_databases.admin_dsn, dbname="order_db")
    with psycopg.connect(admin, autocommit=True) as conn:  # as a server is that is not the sandbox's
        conn.execute("GRANT EXECUTE ON FUNCTION lo_create, lo_from_bytea TO PUBLIC")
        conn.execute("GRANT CONNECT, TEMPORARY ON DATABASE postgres TO PUBLIC")

    done = _migrate(admin if is_superuser else owner, "--roles")

    assert done.returncode == 0, done.stderr
    order = _as(owner, "order_service")
    if is_superuser:
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            psycopg.connect(conninfo.make_conninfo(order, dbname="postgres"))
        with psycopg.connect(order, autocommit=True) as conn, pytest.raises(errors.InsufficientPrivilege):
            conn.execute("SELECT lo_create(0)")
        assert "left:" not in done.stdout
    else:
        assert "as a superuser: REVOKE EXECUTE ON FUNCTION lo_creat" in done.stdout
        assert "REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC" in done.stdout


def test_a_server_that_has_other_databases_keeps_postgres_open(private_databases: servers.Databases) -> None:
    """They may be of somebody who enters it."""
    private_databases.create("order_user", "order_password", "order_db")
    private_databases.create("somebody", "somebody_password", "theirs")
    with psycopg.connect(private_databases.admin_dsn, autocommit=True) as conn:
        conn.execute("GRANT CONNECT ON DATABASE postgres TO PUBLIC")

    assert _migrate(conninfo.make_conninfo(private_databases.admin_dsn, dbname="order_db"), "--roles").returncode == 0

    psycopg.connect(private_databases.dsn("somebody", "somebody_password", "postgres")).close()


def test_the_owner_dumps_a_database_and_restores_it(
    private_databases: servers.Databases, pytestconfig: pytest.Config, tmp_path: pathlib.Path
) -> None:
    """Rights that are taken from everybody stand in the dump, and stop no restore: into a new database, or one that is closed already."""
    found = packages.find_postgres()
    if found is None or pytestconfig.getoption("--infra") != "native":
        pytest.skip("a dump needs the programs of the server's version")
    url = private_databases.create("order_user", "order_password", "order_db")
    assert _migrate(url, "--roles").returncode == 0
    closed = private_databases.create("order_user", "order_password", "closed")
    with psycopg.connect(private_databases.admin_dsn, autocommit=True) as conn:
        conn.execute("CREATE DATABASE fresh OWNER order_user TEMPLATE template0")
    dump = tmp_path / "order.sql"

    subprocess.run([found.folder / "pg_dump", "--dbname", url, "--file", dump], check=True, timeout=60)

    for target in (closed, private_databases.dsn("order_user", "order_password", "fresh")):
        line: list[str | pathlib.Path] = [found.folder / "psql", "--dbname", target, "--set", "ON_ERROR_STOP=1", "--quiet", "--file", dump]
        assert subprocess.run(line, capture_output=True, text=True, check=False, timeout=60).returncode == 0
