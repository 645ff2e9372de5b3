"""What tests may ask of a database server and a broker, and the private native ones of one test run; knows no schema."""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Generator
from typing import Final, Protocol

from sagapost_sandbox import management, packages, ports, postgres, processes, rabbitmq

PREFIX: Final = "sagapost-tests-"
_MADE_BY: Final = "made-by.pid"


class Databases(Protocol):
    """A PostgreSQL server; postgres.Cluster is one."""

    @property
    def admin_dsn(self) -> str:
        """The superuser's connection string."""
        ...

    def dsn(self, user: str, password: str, database: str) -> str:
        """Build a connection string."""
        ...

    def create(self, user: str, password: str, database: str) -> str:
        """Make a role with a database of its own; return its connection string."""
        ...

    def start(self) -> None:
        """Start it and wait until it accepts; it keeps its port."""
        ...

    def stop(self) -> None:
        """Shut down in order."""
        ...

    def kill(self) -> None:
        """SIGKILL."""
        ...

    def pause(self) -> None:
        """Stop every process of it where it stands: connections stay open, and nobody answers."""
        ...

    def resume(self) -> None:
        """Let it go on."""
        ...


class Broker(Protocol):
    """A RabbitMQ node; rabbitmq.Node is one."""

    management: management.Management

    def amqp_url(self, vhost: str = "/") -> str:
        """Build the AMQP URL of a virtual host."""
        ...

    def create_vhost(self, name: str) -> str:
        """Make a virtual host; return its AMQP URL."""
        ...

    def delete_vhost(self, name: str) -> None:
        """Remove a virtual host with all its queues."""
        ...

    def start(self) -> None:
        """Start it and wait until it answers; it keeps its ports."""
        ...

    def stop(self) -> None:
        """Shut down in order."""
        ...

    def kill(self) -> None:
        """SIGKILL."""
        ...

    def pause(self) -> None:
        """Stop every process of it where it stands: connections stay open, and nobody answers."""
        ...

    def resume(self) -> None:
        """Let it go on."""
        ...


@contextlib.contextmanager
def run_folder() -> Generator[pathlib.Path]:
    """Make a folder for one test run outside the repository; sweep up after runs that were killed before they could."""
    for left in pathlib.Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if (left / _MADE_BY).exists() and processes.load(left / _MADE_BY) is None:
            _sweep(left)
    folder = pathlib.Path(tempfile.mkdtemp(prefix=PREFIX))
    folder.chmod(0o711)
    if record := processes.identify(os.getpid()):
        processes.save(processes.Process(record), folder / _MADE_BY)
    try:
        yield folder
    finally:
        _sweep(folder)


@contextlib.contextmanager
def native_databases(folder: pathlib.Path) -> Generator[postgres.Cluster]:
    """Run a cluster for as long as the block takes."""
    packages.ensure()
    cluster = postgres.Cluster(folder, *ports.trial(1), fast=True)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.kill()  # the data are thrown away: an orderly end would only take longer


@contextlib.contextmanager
def native_broker(folder: pathlib.Path) -> Generator[rabbitmq.Node]:
    """Run a node for as long as the block takes."""
    packages.ensure()
    node = rabbitmq.Node(folder, *ports.trial(4))
    try:
        node.start()
        yield node
    finally:
        node.kill()
        node.stop()


def _sweep(folder: pathlib.Path) -> None:
    for pid in processes.below(folder):  # first who would start the others again: a stack's supervisor works in its folder
        if (record := processes.identify(pid)) is not None:
            processes.Process(record).kill()
    for saved in folder.rglob("*.pid"):
        if saved.name != _MADE_BY and (process := processes.load(saved)) is not None:
            process.kill()
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)  # whose it is goes last: a sweep that is interrupted can be taken up again
