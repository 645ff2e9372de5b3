"""Stacks of real processes: one that the tests of a module share, and one on a broker that a test may kill."""

import asyncio
import contextlib
import pathlib
import uuid
from collections.abc import Generator, Mapping, Sequence

import pytest
from faults import pairs
from faults import stack as stacks

from sagapost_chassis import topology
from sagapost_sandbox import databases
from sagapost_sandbox.testing import servers

IMPATIENT = {
    "order": {
        "SAGAPOST_PAY_WINDOW_S": "9",
        "SAGAPOST_NOTIFY_S": "1.5",
        "SAGAPOST_NOTIFY_MAX_S": "1.5",
        "SAGAPOST_NOTIFY_ATTEMPTS": "1",
        "SAGAPOST_NOTIFY_PARKED_S": "2",
        "SAGAPOST_COMPENSATE_S": "0.5",
        "SAGAPOST_COMPENSATE_MAX_S": "1",
        "SAGAPOST_COMPENSATE_ATTEMPTS": "4",
        "SAGAPOST_COMPENSATE_PARKED_S": "1",
    },
    "payment": {"SAGAPOST_PROVIDER_TIMEOUT_S": "1", "SAGAPOST_PROVIDER_ATTEMPTS": "50", "SAGAPOST_LOOK_S": "2"},
}


@pytest.fixture(scope="module")
def stack(
    tmp_path_factory: pytest.TempPathFactory, database_server: servers.Databases, broker: servers.Broker, templates: Mapping[str, str]
) -> Generator[stacks.Stack]:
    """Run every service, a provider and a mailbox of their own, on fresh databases and a fresh virtual host."""
    with running(tmp_path_factory.mktemp("stack"), database_server, broker, templates) as made:
        yield made


@pytest.fixture
def fragile_stack(
    tmp_path: pathlib.Path, database_server: servers.Databases, private_broker: servers.Broker, templates: Mapping[str, str]
) -> Generator[stacks.Stack]:
    """Run a stack on a broker of its own, `private_broker`, which the test may stop, kill and start."""
    with running(tmp_path, database_server, private_broker, templates) as made:
        yield made


@pytest.fixture(scope="module")
def impatient_stack(
    tmp_path_factory: pytest.TempPathFactory, database_server: servers.Databases, broker: servers.Broker, templates: Mapping[str, str]
) -> Generator[stacks.Stack]:
    """Run a stack whose sagas wait seconds where the usual ones wait minutes, for the tests of a module."""
    with running(tmp_path_factory.mktemp("impatient"), database_server, broker, templates, IMPATIENT) as made:
        yield made


@pytest.fixture
def pair(run_folder: pathlib.Path) -> Generator[pairs.Pair]:
    """Run a primary and its synchronous standby; not below tmp_path, which the servers' own user could not reach."""
    made = pairs.Pair(run_folder / f"pair-{uuid.uuid4().hex[:6]}")
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def paired_shop(
    tmp_path: pathlib.Path, pair: pairs.Pair, database_server: servers.Databases, broker: servers.Broker, templates: Mapping[str, str]
) -> Generator[stacks.Stack]:
    """Run every service on the pair."""
    with running(tmp_path, database_server, broker, templates, elsewhere={name: pair.url(name) for name in pairs.OWNERS}) as made:
        yield made


@contextlib.contextmanager
def running(
    folder: pathlib.Path,
    database_server: servers.Databases,
    broker: servers.Broker,
    templates: Mapping[str, str],
    changes: Mapping[str, Mapping[str, str]] | None = None,
    *,
    elsewhere: Mapping[str, str] | None = None,
    inside: Mapping[str, Sequence[str]] | None = None,
) -> Generator[stacks.Stack]:
    """Run a stack on fresh databases and a fresh virtual host for the length of a block.

    `changes` and `inside` as stack.make; `elsewhere`: the addresses of databases on other servers, by service.
    """
    given = elsewhere or {}
    with cloned(database_server, {name: template for name, template in templates.items() if name not in given}) as here:
        vhost = f"stack-{uuid.uuid4().hex[:8]}"
        amqp_url = broker.create_vhost(vhost)
        asyncio.run(topology.declare(amqp_url))
        made = stacks.make(folder, {**here, **given}, amqp_url, broker, changes, inside=inside)
        try:
            yield made.start_all()
        finally:
            made.stop()
            broker.delete_vhost(vhost)


@contextlib.contextmanager
def cloned(database_server: servers.Databases, templates: Mapping[str, str]) -> Generator[dict[str, str]]:
    """Give the addresses of fresh databases, by service, for the length of a block."""
    mark = uuid.uuid4().hex[:8]
    for service, template in templates.items():
        databases.clone(database_server.admin_dsn, template, f"{service}_{mark}", f"{service}_user")
    try:
        yield {name: database_server.dsn(f"{name}_user", f"{name}_password", f"{name}_{mark}") for name in templates}
    finally:
        for service in templates:
            databases.drop(database_server.admin_dsn, f"{service}_{mark}")
