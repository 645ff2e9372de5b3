"""One PostgreSQL and one RabbitMQ per run, a clone and a virtual host per test, services as real processes; `--infra` says where from."""

import asyncio
import concurrent.futures
import contextlib
import itertools
import pathlib
import signal
import uuid
from collections.abc import Callable, Generator, Mapping
from typing import Any, Protocol

import hypothesis
import pytest
import soft_limit
from integration import leak_search

from sagapost_chassis import topology
from sagapost_ops import migrations
from sagapost_sandbox import databases, errors, ports
from sagapost_sandbox.testing import ahead, containers, polling, servers, services

# A slow machine is no failure. Here, before any test module is imported: settings take over what is loaded when they are made.
hypothesis.settings.register_profile("sagapost", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("sagapost")

ROLES = {"order": ("order_user", "order_password"), "payment": ("payment_user", "payment_password")}


class StartService(Protocol):
    """Starts `python -m sagapost_<name>` (a dotted name is taken as it is) with these variables; killed after the test."""

    def __call__(self, name: str, env: Mapping[str, str]) -> services.Service:
        """Start one; it is ready when `wait_ready()` returns."""
        ...


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --infra."""
    parser.addoption("--infra", choices=("native", "docker"), default="native", help="servers as child processes, or in containers")


def pytest_configure() -> None:
    """Let SIGTERM end a run as Ctrl-C does: fixtures are torn down, no server stays behind."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give each async test a limit below that of its process."""
    soft_limit.apply(items, float(config.getini("timeout")))


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """Run async tests on uvloop, as the services run."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="session")
def eventually() -> Callable[..., Any]:
    """Give `eventually(condition, deadline_s=10)`; see sagapost_sandbox.testing.polling."""
    return polling.eventually


@pytest.fixture(scope="session")
def run_folder() -> Generator[pathlib.Path]:
    """Make a folder outside the repository, gone after the run."""
    with servers.run_folder() as folder:
        yield folder


@pytest.fixture(scope="session", autouse=True)
def discreet_logs(run_folder: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[None]:
    """Hold, when all tests are over, that no log of any service or server of this run has an address or a card number in it."""
    yield
    assert leak_search.leaks(leak_search.files(run_folder, tmp_path_factory.getbasetemp())) == []


@pytest.fixture(scope="session")
def new_databases(
    run_folder: pathlib.Path, pytestconfig: pytest.Config
) -> Callable[[], contextlib.AbstractContextManager[servers.Databases]]:
    """Give what runs one more PostgreSQL server, from where `--infra` says."""
    make = containers.container_databases if pytestconfig.getoption("--infra") == "docker" else servers.native_databases
    return lambda: make(run_folder / f"postgres-{uuid.uuid4().hex[:8]}")


@pytest.fixture(scope="session")
def new_broker(run_folder: pathlib.Path, pytestconfig: pytest.Config) -> Callable[[], contextlib.AbstractContextManager[servers.Broker]]:
    """Give what runs one more RabbitMQ node, from where `--infra` says."""
    make = containers.container_broker if pytestconfig.getoption("--infra") == "docker" else servers.native_broker
    return lambda: make(run_folder / f"rabbitmq-{uuid.uuid4().hex[:8]}")


@pytest.fixture(scope="session")
def database_server(new_databases: Callable[[], contextlib.AbstractContextManager[servers.Databases]]) -> Generator[servers.Databases]:
    """Run the PostgreSQL server that all tests share; none may stop it."""
    with _or_exit(), new_databases() as server:
        yield server


@pytest.fixture(scope="session")
def broker(new_broker: Callable[[], contextlib.AbstractContextManager[servers.Broker]]) -> Generator[servers.Broker]:
    """Run the RabbitMQ node that all tests share; none may stop it."""
    with _or_exit(), new_broker() as node:
        yield node


@pytest.fixture
def private_databases(new_databases: Callable[[], contextlib.AbstractContextManager[servers.Databases]]) -> Generator[servers.Databases]:
    """Run a PostgreSQL server for one test, which may stop, kill and start it; empty."""
    with new_databases() as server:
        yield server


@pytest.fixture
def private_broker(new_broker: Callable[[], contextlib.AbstractContextManager[servers.Broker]]) -> Generator[servers.Broker]:
    """Run a RabbitMQ node for one test, which may stop, kill and start it; the topology is declared in `/`."""
    with new_broker() as node:
        declare_topology(node.amqp_url())
        yield node


@pytest.fixture(scope="session")
def templates(database_server: servers.Databases) -> Mapping[str, str]:
    """Migrate one template database per service, once, and name them."""
    names: dict[str, str] = {}
    for service, (user, password) in ROLES.items():
        names[service] = f"template_{service}"
        migrations.upgrade(database_server.create(user, password, names[service]), service)
        databases.freeze(database_server.admin_dsn, names[service])
    return names


@pytest.fixture(scope="session")
def order_clones(database_server: servers.Databases, templates: Mapping[str, str]) -> Generator[ahead.Ahead[str]]:
    """Clone order databases ahead of the tests."""
    with ahead.Ahead(lambda: _clone(database_server, templates["order"], "order")) as clones:
        yield clones


@pytest.fixture(scope="session")
def payment_clones(database_server: servers.Databases, templates: Mapping[str, str]) -> Generator[ahead.Ahead[str]]:
    """Clone payment databases ahead of the tests."""
    with ahead.Ahead(lambda: _clone(database_server, templates["payment"], "payment")) as clones:
        yield clones


@pytest.fixture(scope="session")
def vhosts(broker: servers.Broker) -> Generator[ahead.Ahead[str]]:
    """Make virtual hosts, with the topology declared, ahead of the tests."""
    with ahead.Ahead(lambda: _vhost(broker)) as made:
        yield made


@pytest.fixture
def order_db(database_server: servers.Databases, order_clones: ahead.Ahead[str]) -> Generator[str]:
    """Give the connection string of a fresh, migrated order database."""
    dsn = order_clones.take()
    yield dsn
    order_clones.clean(lambda: databases.drop(database_server.admin_dsn, dsn.rpartition("/")[2]))


@pytest.fixture
def payment_db(database_server: servers.Databases, payment_clones: ahead.Ahead[str]) -> Generator[str]:
    """Give the connection string of a fresh, migrated payment database."""
    dsn = payment_clones.take()
    yield dsn
    payment_clones.clean(lambda: databases.drop(database_server.admin_dsn, dsn.rpartition("/")[2]))


@pytest.fixture
def vhost(broker: servers.Broker, vhosts: ahead.Ahead[str]) -> Generator[str]:
    """Give the AMQP URL of a fresh virtual host with the topology declared."""
    url = vhosts.take()
    yield url
    vhosts.clean(lambda: broker.delete_vhost(url.rpartition("/")[2]))


@pytest.fixture
def start_service(tmp_path: pathlib.Path) -> Generator[StartService]:
    """Give what starts services for this test; all are killed after it."""
    started: list[services.Service] = []
    numbers = itertools.count(1)

    def start(name: str, env: Mapping[str, str]) -> services.Service:
        module = name if "." in name or name.startswith("sagapost_") else f"sagapost_{name}"
        service = services.Service(module, env, tmp_path / f"{next(numbers)}-{module}.log")
        started.append(service)
        return service

    yield start
    for service in started:
        service.kill()


@pytest.fixture(scope="session")
def provider(run_folder: pathlib.Path) -> Generator[services.Service]:
    """Run the payment provider that all tests share; find your own movements by reference."""
    env = {"SAGAPOST_PROVIDER_LEDGER": str(run_folder / "provider.jsonl")}
    with _running("sagapost_sandbox.provider", env, run_folder / "provider.log") as service:
        yield service


@pytest.fixture(scope="session")
def mailbox(run_folder: pathlib.Path) -> Generator[services.Service]:
    """Run the mailbox that all tests share: SMTP on `mailbox.env["SAGAPOST_SMTP_PORT"]`; find your own mails by recipient or Message-ID."""
    env = {"SAGAPOST_MAILBOX_LEDGER": str(run_folder / "mailbox.jsonl"), "SAGAPOST_SMTP_PORT": str(ports.trial(1)[0])}
    with _running("sagapost_sandbox.mailbox", env, run_folder / "mailbox.log") as service:
        yield service


def declare_topology(amqp_url: str) -> None:
    """Declare the topology from outside any event loop, in a thread, for a test may be inside one."""
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: asyncio.run(topology.declare(amqp_url))).result()


def _clone(server: servers.Databases, template: str, service: str) -> str:
    name = f"{service}_{uuid.uuid4().hex}"
    user, password = ROLES[service]
    databases.clone(server.admin_dsn, template, name, user)
    return server.dsn(user, password, name)


def _vhost(broker: servers.Broker) -> str:
    url = broker.create_vhost(f"test-{uuid.uuid4().hex}")
    asyncio.run(topology.declare(url))
    return url


@contextlib.contextmanager
def _running(module: str, env: Mapping[str, str], log: pathlib.Path) -> Generator[services.Service]:
    service = services.Service(module, env, log)
    try:
        yield service.wait_ready()
    finally:
        service.kill()


@contextlib.contextmanager
def _or_exit() -> Generator[None]:
    """End the whole run with one sentence when there is nothing to run the servers with: no test could pass."""
    try:
        yield
    except (errors.MissingPackagesError, errors.NoEngineError) as exc:
        pytest.exit(str(exc), returncode=2)
