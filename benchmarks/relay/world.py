"""The servers that every contender is measured on, and the figures they give: WAL, dead tuples; must not know a contender."""

import contextlib
import itertools
import pathlib
import time
from collections.abc import Generator, Iterator, Mapping
from typing import Any, Final, Literal

import msgspec
import pamqp.commands
import psycopg

from benchmarks.relay import stamps, wire
from sagapost_contracts import topology
from sagapost_sandbox import databases, packages, ports, postgres
from sagapost_sandbox.testing import containers, servers

Infra = Literal["native", "docker"]
LOGIN: Final = ("bench", "bench")
AGGREGATES: Final = 100
_VHOST: Final = "bench"
_SETTINGS: Final = ("fsync", "synchronous_commit", "full_page_writes", "shared_buffers", "max_wal_size", "autovacuum")
_BUSINESS: Final = """
CREATE TABLE bench_aggregate (id integer PRIMARY KEY, number integer NOT NULL) WITH (fillfactor = 50);
CREATE TABLE bench_order (id bigserial PRIMARY KEY, aggregate integer NOT NULL, number integer NOT NULL, note text NOT NULL);
CREATE TABLE bench_noise (id bigserial PRIMARY KEY, note text NOT NULL);
INSERT INTO bench_aggregate SELECT id, 0 FROM generate_series(0, 99) AS id;
"""
_TABLES: Final = """
SELECT relname AS name, n_dead_tup AS dead, n_tup_upd AS updated, n_tup_del AS deleted
  FROM pg_stat_user_tables WHERE relname LIKE 'outbox%' ORDER BY relname
"""


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """What the statistics say of one outbox table."""

    name: str
    dead: int
    updated: int
    deleted: int


class World:
    """One PostgreSQL server and one broker; a database and a queue per measurement."""

    def __init__(self, folder: pathlib.Path, server: servers.Databases, broker: servers.Broker) -> None:
        self.folder = folder
        self._server = server
        self._broker = broker
        self._numbers = itertools.count(1)
        self.amqp_url = broker.create_vhost(_VHOST)
        self._link = wire.Link(self.amqp_url)
        self._link.call(
            pamqp.commands.Exchange.Declare(exchange=topology.EXCHANGE, exchange_type="topic", durable=True),
            pamqp.commands.Exchange.DeclareOk,
        )
        databases.ensure_role(server.admin_dsn, *LOGIN)

    def close(self) -> None:
        """Hang up, and leave nothing in the broker; the servers stay."""
        self._link.close()
        self._broker.delete_vhost(_VHOST)

    def settings(self) -> dict[str, str]:
        """Read the servers' versions and what the figures depend on, from the servers themselves."""
        with connect(self._server.admin_dsn) as conn:
            found = conn.execute("SELECT name, current_setting(name) FROM unnest(%s::text[]) AS name", (list(_SETTINGS),)).fetchall()
            version = conn.execute("SHOW server_version").fetchone()
        return {"PostgreSQL": str(version[0]).split()[0] if version else "?"} | dict(found)

    def template(self, name: str, schema: str) -> str:
        """Make a database with the business tables and a contender's schema; give its connection string."""
        databases.ensure_database(self._server.admin_dsn, name, LOGIN[0])
        dsn = self._server.dsn(*LOGIN, name)
        run(dsn, _BUSINESS)
        if schema:
            run(dsn, schema)
        return dsn

    @contextlib.contextmanager
    def database(self, template: str) -> Generator[str]:
        """Give a fresh copy of a template for as long as the block takes."""
        name = f"run_{next(self._numbers)}"
        databases.clone(self._server.admin_dsn, template, name, LOGIN[0])
        try:
            yield self._server.dsn(*LOGIN, name)
        finally:
            databases.drop(self._server.admin_dsn, name)

    @contextlib.contextmanager
    def queue(self) -> Generator[str]:
        """Give an empty quorum queue, bound to the measured key, for as long as the block takes."""
        name = f"bench-{next(self._numbers)}"
        declare = pamqp.commands.Queue.Declare(queue=name, durable=True, arguments={"x-queue-type": "quorum"})
        self._link.call(declare, pamqp.commands.Queue.DeclareOk)
        bind = pamqp.commands.Queue.Bind(queue=name, exchange=topology.EXCHANGE, routing_key=stamps.ROUTED)
        self._link.call(bind, pamqp.commands.Queue.BindOk)
        try:
            yield name
        finally:
            self._link.call(pamqp.commands.Queue.Delete(queue=name), pamqp.commands.Queue.DeleteOk)

    def settle(self) -> None:
        """Write a checkpoint, so that none falls due in the middle of a measurement by what came before it."""
        with connect(self._server.admin_dsn) as conn:
            conn.execute("CHECKPOINT")

    def wal_bytes(self) -> int:
        """Read how much WAL was ever written."""
        with connect(self._server.admin_dsn) as conn:
            found = conn.execute("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint").fetchone()
        return int(found[0]) if found else 0


def run(dsn: str, statements: str, params: Mapping[str, object] | None = None) -> None:
    """Run SQL of this folder or of migrations/, as it is."""
    with connect(dsn) as conn:
        conn.execute(statements.encode(), params)


def number(dsn: str, query: str) -> int:
    """Ask for one number."""
    with connect(dsn) as conn:
        found = conn.execute(query.encode()).fetchone()
    return int(found[0] or 0) if found else 0


def connect(dsn: str) -> psycopg.Connection[tuple[Any, ...]]:
    """Open an autocommit connection."""
    return psycopg.connect(dsn, autocommit=True)


def tables(dsn: str) -> list[Table]:
    """Read the statistics of the outbox's tables once their writers have reported them."""
    time.sleep(1.1)  # a backend reports at most once a second, and at its end
    with connect(dsn) as conn:
        cursor = conn.execute(_TABLES)
        names = [column.name for column in cursor.description or ()]
        return [msgspec.convert(dict(zip(names, row, strict=True)), Table) for row in cursor]


@contextlib.contextmanager
def open_world(infra: Infra) -> Generator[World]:
    """Run the servers, in a folder that goes with them."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(servers.run_folder())
        if infra == "docker":
            server: servers.Databases = stack.enter_context(containers.container_databases(folder))
            broker: servers.Broker = stack.enter_context(containers.container_broker(folder))
        else:
            server = stack.enter_context(_durable_databases(folder / "postgres"))
            broker = stack.enter_context(servers.native_broker(folder / "rabbitmq"))
        yield stack.enter_context(contextlib.closing(World(folder, server, broker)))


@contextlib.contextmanager
def _durable_databases(folder: pathlib.Path) -> Iterator[postgres.Cluster]:
    """Run a cluster as in production: fsync and full_page_writes on."""
    packages.ensure()
    cluster = postgres.Cluster(folder, *ports.trial(1))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.kill()
