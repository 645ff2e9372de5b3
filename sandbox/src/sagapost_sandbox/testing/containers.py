"""PostgreSQL and RabbitMQ in containers, with the interface of the native ones; knows no schema."""

import abc
import contextlib
import importlib
import os
import pathlib
import secrets
import time
import urllib.parse
from collections.abc import Callable, Generator
from typing import Any, Final

import psycopg
from testcontainers.core import container as containers

from sagapost_sandbox import databases, errors, management, ports, rabbitmq

POSTGRES_IMAGE: Final = "postgres:17"
RABBITMQ_IMAGE: Final = "rabbitmq:4-management"
START_TIMEOUT_S: Final = 120.0
STOP_TIMEOUT_S: Final = 30
# docker-py carries no types, this is all that is needed of it
_ENGINE_ERROR: Final[type[Exception]] = importlib.import_module("docker.errors").DockerException
_POLL_S: Final = 0.1


class Server(abc.ABC):
    """A container whose ports on this machine stay the same when it is started again."""

    def __init__(self, image: str, inner_ports: tuple[int, ...], environment: dict[str, str], arguments: list[str]) -> None:
        self.ports = ports.trial(len(inner_ports))
        try:
            self.container = containers.DockerContainer(image).with_kwargs(hostname="sagapost")
        except _ENGINE_ERROR as exc:
            raise errors.NoEngineError("no container engine answers; start one, or run the tests with --infra native") from exc
        for inner, outer in zip(inner_ports, self.ports, strict=True):
            self.container.with_bind_ports(inner, outer)
        for name, value in environment.items():
            self.container.with_env(name, value)
        if arguments:
            self.container.with_command(arguments)
        self._made = False

    @property
    def host(self) -> str:
        """Where the ports are."""
        # testcontainers asks the engine first and takes its bridge's address where a call on loopback would do
        return os.environ.get("TESTCONTAINERS_HOST_OVERRIDE") or self.container.get_container_host_ip()

    def start(self) -> None:
        """Run it, or run it again, and wait until it answers."""
        if self._made:
            self.container.get_wrapped_container().start()
        else:
            self.container.start()
            self._made = True
        self._wait(self.answers)

    def stop(self) -> None:
        """Stop it in order; it can be started again."""
        self.container.get_wrapped_container().stop(timeout=STOP_TIMEOUT_S)

    def kill(self) -> None:
        """SIGKILL; it can be started again."""
        self.container.get_wrapped_container().kill()

    def pause(self) -> None:
        """Stop every process of it where it stands: connections stay open, and nobody answers."""
        self.container.get_wrapped_container().pause()

    def resume(self) -> None:
        """Let it go on."""
        self.container.get_wrapped_container().unpause()

    def disconnect(self) -> None:
        """Take it off its networks; what the engine does with open connections is its own affair."""
        for network in self._networks():
            network.disconnect(self.container.get_wrapped_container())

    def reconnect(self) -> None:
        """Put it back on the network, and wait until it answers."""
        for network in self._networks():
            network.connect(self.container.get_wrapped_container())
        self._wait(self.answers)

    def _networks(self) -> list[Any]:
        wrapped = self.container.get_wrapped_container()
        names = wrapped.attrs["NetworkSettings"]["Networks"]  # as they were when it was made
        return [self.container.get_docker_client().client.networks.get(name) for name in names]

    def remove(self) -> None:
        """Throw it away with its data."""
        self.container.stop()
        self.container.get_docker_client().client.close()

    @abc.abstractmethod
    def answers(self) -> bool:
        """Whether it does its work."""

    def _wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not condition():
            if time.monotonic() > deadline:
                raise errors.StartError(f"{self.container.image} answered nobody for {START_TIMEOUT_S:.0f} s")
            time.sleep(_POLL_S)


class ContainerDatabases(Server):
    """postgres:17 in a container."""

    def __init__(self) -> None:
        self._password = secrets.token_urlsafe(16)
        arguments = ["postgres", "-c", "fsync=off", "-c", "full_page_writes=off", "-c", "max_connections=200"]
        super().__init__(
            POSTGRES_IMAGE, (5432,), {"POSTGRES_PASSWORD": self._password, "POSTGRES_INITDB_ARGS": "--encoding=UTF8"}, arguments
        )

    @property
    def admin_dsn(self) -> str:
        """The superuser's connection string."""
        return self.dsn("postgres", self._password, "postgres")

    def dsn(self, user: str, password: str, database: str) -> str:
        """Build a connection string."""
        return f"postgresql://{user}:{urllib.parse.quote(password, safe='')}@{self.host}:{self.ports[0]}/{database}"

    def create(self, user: str, password: str, database: str) -> str:
        """Make a role with a database of its own; return its connection string."""
        databases.ensure_role(self.admin_dsn, user, password)
        databases.ensure_database(self.admin_dsn, database, user)
        return self.dsn(user, password, database)

    def answers(self) -> bool:
        """Whether it accepts connections; the image's first start ends a temporary server that listens on no port."""
        try:
            psycopg.connect(self.admin_dsn, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


class ContainerBroker(Server):
    """rabbitmq:4-management in a container."""

    def __init__(self, credentials: tuple[str, str] = ("ecommerce", "ecommerce123")) -> None:
        environment = {
            "RABBITMQ_DEFAULT_USER": credentials[0],
            "RABBITMQ_DEFAULT_PASS": credentials[1],
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": rabbitmq.DISCREET,
        }
        super().__init__(RABBITMQ_IMAGE, (5672, 15672), environment, [])
        self.management = management.Management(host="127.0.0.1", port=self.ports[1], user=credentials[0], password=credentials[1])

    def start(self) -> None:
        """Run it, or run it again, and wait until it answers."""
        super().start()

    def amqp_url(self, vhost: str = "/") -> str:
        """Build the AMQP URL of a virtual host."""
        return management.amqp_url(self.host, self.ports[0], self.management.user, self.management.password, vhost)

    def create_vhost(self, name: str) -> str:
        """Make a virtual host; return its AMQP URL."""
        management.create_vhost(self.management, name)
        return self.amqp_url(name)

    def delete_vhost(self, name: str) -> None:
        """Remove a virtual host with all its queues."""
        management.delete_vhost(self.management, name)

    def answers(self) -> bool:
        """Whether AMQP and the management interface both answer."""
        return management.answers(self.management) and management.speaks_amqp(self.host, self.ports[0])


@contextlib.contextmanager
def container_databases(_folder: pathlib.Path) -> Generator[ContainerDatabases]:
    """Run a server for as long as the block takes."""
    server = ContainerDatabases()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@contextlib.contextmanager
def container_broker(_folder: pathlib.Path) -> Generator[ContainerBroker]:
    """Run a broker for as long as the block takes."""
    broker = ContainerBroker()
    try:
        broker.start()
        yield broker
    finally:
        broker.remove()
