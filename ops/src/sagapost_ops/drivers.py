"""Starts and stops one unit of a stack, waiting until it is ready; it must not know the other units or when to restart.

Every driver has the same four operations; `start` blocks until the unit is ready and raises SandboxError when it is not.
"""

import signal
import threading
from pathlib import Path
from typing import Final, Protocol

from sagapost_ops import plan, program, state
from sagapost_sandbox import postgres, processes, rabbitmq

TERMINATE: Final = signal.SIGTERM


class Driver(Protocol):
    """What the supervisor does with a unit."""

    def start(self, stopping: threading.Event) -> None:
        """Start it and return when it is ready, or when `stopping` is set."""
        ...

    def record(self) -> processes.Record | None:
        """Name the process that runs now."""
        ...

    def stop(self) -> None:
        """End it in order."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...


class Database:
    """A private PostgreSQL cluster with the one role and database of a service."""

    def __init__(self, unit: plan.Unit, home: Path) -> None:
        self._cluster = postgres.Cluster(home / unit.name, unit.port)
        self._names = plan.DATABASES[unit.name]

    def start(self, stopping: threading.Event) -> None:
        """Start the cluster and make role and database, unless they are there."""
        del stopping
        self._cluster.start()
        self._cluster.create(*self._names)

    def record(self) -> processes.Record | None:
        """Name the postmaster."""
        pid = self._cluster.pid
        return processes.identify(pid) if pid else None

    def stop(self) -> None:
        """Shut down fast: sessions end, a checkpoint is written."""
        self._cluster.stop()

    def kill(self) -> None:
        """End the postmaster and its backends at once."""
        self._cluster.kill()


class Broker:
    """A private RabbitMQ node with its epmd."""

    def __init__(self, unit: plan.Unit, ports: dict[str, int], home: Path) -> None:
        self._node = rabbitmq.Node(home / unit.name, unit.port, ports["rabbitmq-management"], ports["epmd"], ports["distribution"])

    def start(self, stopping: threading.Event) -> None:
        """Start the node; its user and virtual host are made at its first start."""
        del stopping
        self._node.start()

    def record(self) -> processes.Record | None:
        """Name the Erlang machine."""
        pid = self._node.pid
        return processes.identify(pid) if pid else None

    def stop(self) -> None:
        """Shut down in order, epmd too."""
        self._node.stop()

    def kill(self) -> None:
        """End node and epmd at once."""
        self._node.kill()
        self._node.stop()  # what is left is epmd


def make(unit: plan.Unit, ports: dict[str, int], home: Path) -> Driver:
    """Choose the driver for a unit."""
    match unit.how:
        case "database":
            return Database(unit, home)
        case "broker":
            return Broker(unit, ports, home)
        case "task" | "program":
            return program.Program(unit, home)


def end_leftovers(home: Path) -> int:
    """End what a supervisor that was killed left running, by pid and start time; say how many that were."""
    left = [process for path in (home / state.PIDS).glob("*.pid") if (process := processes.load(path)) is not None]
    for process in left:
        process.send(TERMINATE)  # all at once, then one after the other
    for process in left:
        process.stop(program.STOP_S)
    servers: list[postgres.Cluster | rabbitmq.Node] = [postgres.Cluster(home / name, 0) for name in plan.DATABASES]
    servers.append(rabbitmq.Node(home / "rabbitmq", 0, 0, 0, 0))
    running = sum(server.running() for server in servers)
    for server in servers:
        server.stop()
    return len(left) + running
