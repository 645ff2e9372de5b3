"""Starts and stops one unit of a stack, waiting until it is ready; it must not know the other units or when to restart.

Every driver has the same four operations; `start` blocks until the unit is ready and raises SandboxError when it is not.
"""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Final, Protocol

from sagapost_ops import plan, probes, state
from sagapost_sandbox import errors, postgres, processes, rabbitmq

READY_S: Final = 120.0
STOP_S: Final = 30.0
TERMINATE: Final = signal.SIGTERM
_PROBE_EVERY_S: Final = 0.05
_ONCE: Final = "SAGAPOST_CRASH"


class DiedError(errors.StartError):
    """A process ended before it was ready; `code` is its exit code, negative for a signal."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


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


class Program:
    """One of our own processes, `python -m …`; a task is one that ends by itself, and is ready then."""

    def __init__(self, unit: plan.Unit, home: Path) -> None:
        self._unit = unit
        self._home = home
        self._log = home / "logs" / f"{unit.name}.log"
        self._process: processes.Process | None = None
        self._starts = 0

    def start(self, stopping: threading.Event) -> None:
        """Start the process and wait for its readiness, or for its end when it is a task.

        Raises:
            DiedError: it ended before that.
            StartError: it is not ready after `READY_S` seconds.

        """
        self._process = process = processes.spawn(
            [sys.executable, "-P", "-m", *self._unit.arguments], log=self._log, cwd=self._home, env=self._environ()
        )
        processes.save(process, self._home / state.PIDS / f"{self._unit.name}.pid")
        self._starts += 1
        if not self._becomes_ready(process, stopping):
            self._explain(process)

    def _environ(self) -> dict[str, str]:
        # a named crash point kills the first process only: what the supervisor starts instead must live
        inherited = {name: value for name, value in os.environ.items() if self._starts == 0 or name != _ONCE}
        return inherited | {"PYTHONUNBUFFERED": "1"} | self._unit.environ

    def _becomes_ready(self, process: processes.Process, stopping: threading.Event) -> bool:
        for _ in range(round(READY_S / _PROBE_EVERY_S)):
            if not process.running():
                return self._unit.how == "task" and process.returncode == 0
            if self._unit.how == "program" and probes.ready(self._unit.kind, self._unit.port):
                return True
            if stopping.wait(_PROBE_EVERY_S):
                return True
        return False

    def _explain(self, process: processes.Process) -> None:
        code = process.returncode
        if code is None:
            process.kill()
            raise errors.StartError(f"{self._unit.name} was not ready after {READY_S:.0f} s")
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        raise DiedError(f"{self._unit.name} {how}", code)

    def record(self) -> processes.Record | None:
        """Name the process."""
        return self._process.record if self._process is not None and self._process.running() else None

    def stop(self) -> None:
        """Let it drain: SIGTERM, and SIGKILL only when that takes too long."""
        if self._process is not None:
            self._process.stop(STOP_S)

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()


def make(unit: plan.Unit, ports: dict[str, int], home: Path) -> Driver:
    """Choose the driver for a unit."""
    match unit.how:
        case "database":
            return Database(unit, home)
        case "broker":
            return Broker(unit, ports, home)
        case "task" | "program":
            return Program(unit, home)


def end_leftovers(home: Path) -> int:
    """End what a supervisor that was killed left running, by pid and start time; say how many that were."""
    left = [process for path in (home / state.PIDS).glob("*.pid") if (process := processes.load(path)) is not None]
    for process in left:
        process.send(TERMINATE)  # all at once, then one after the other
    for process in left:
        process.stop(STOP_S)
    servers: list[postgres.Cluster | rabbitmq.Node] = [postgres.Cluster(home / name, 0) for name in plan.DATABASES]
    servers.append(rabbitmq.Node(home / "rabbitmq", 0, 0, 0, 0))
    running = sum(server.running() for server in servers)
    for server in servers:
        server.stop()
    return len(left) + running
