"""Runs one of our own programs, and replaces its process by a new one without refusing a connection; it must not know the others."""

import contextlib
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Final

import msgspec

from sagapost_chassis import settings
from sagapost_ops import plan, probes, state
from sagapost_sandbox import errors, processes

READY_S: Final = 120.0
STOP_S: Final = 30.0
_PROBE_EVERY_S: Final = 0.05
_BACKLOG: Final = 2048
_ONCE: Final = "SAGAPOST_CRASH"
_PROBE: Final = "probe"  # chassis.listeners knows it by this name


class DiedError(errors.StartError):
    """A process ended before it was ready; `code` is its exit code, negative for a signal."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Replaced(msgspec.Struct, frozen=True, kw_only=True):
    """How long one replacement took: until the new process was ready, and until the old one had finished."""

    old: processes.Record | None
    new: processes.Record
    ready_s: float
    drained_s: float


class Program:
    """One `python -m …`; a task is one that ends by itself, and is ready then.

    The sockets that a service listens on are opened here once and handed to each of its processes: while one replaces
    another, or a dead one is started again, who connects waits instead of being refused.
    """

    def __init__(self, unit: plan.Unit, home: Path) -> None:
        self._unit = unit
        self._home = home
        self._log = home / "logs" / f"{unit.name}.log"
        self._python = sys.executable
        self._listening: list[socket.socket] = []
        self._process: processes.Process | None = None
        self._leaving: processes.Process | None = None
        self._starts = 0
        self._turn = threading.Lock()

    def start(self, stopping: threading.Event) -> None:
        """Start the process and wait for its readiness, or for its end when it is a task.

        Raises:
            DiedError: it ended before that.
            StartError: it is not ready after `READY_S` seconds, or a port is taken.

        """
        with self._turn:
            if self.record() is not None:
                return  # a replacement was quicker
            self._process, port = self._spawn(self._unit, self._python)
            self._save(self._process, "")
            self._await(self._process, port, stopping)

    def replace(self, unit: plan.Unit, python: str, stopping: threading.Event) -> Replaced:
        """Start a second process beside the first, and when it is ready let the first finish what it has in hand.

        Raises:
            StartError: the new process did not become ready; it is gone, and the old one goes on.

        """
        with self._turn:
            began = time.monotonic()
            fresh, port = self._spawn(unit, python)
            self._save(fresh, ".new")
            try:
                self._await(fresh, port, stopping)
            finally:
                self._forget(f"{unit.name}.new.pid")
            ready = time.monotonic()
            self._leaving, self._process, self._unit, self._python = self._process, fresh, unit, python
            self._save(fresh, "")
            if self._leaving is not None:
                self._save(self._leaving, ".old")
                self._leaving.stop(STOP_S)
                self._forget(f"{unit.name}.old.pid")
            return Replaced(
                old=self._leaving.record if self._leaving else None,
                new=fresh.record,
                ready_s=round(ready - began, 2),
                drained_s=round(time.monotonic() - ready, 2),
            )

    def record(self) -> processes.Record | None:
        """Name the process."""
        return self._process.record if self._process is not None and self._process.running() else None

    def stop(self) -> None:
        """Let it drain: SIGTERM, and SIGKILL only when that takes too long. From now on its ports refuse."""
        with self._turn:
            self._close()
            if self._process is not None:
                self._process.stop(STOP_S)

    def kill(self) -> None:
        """End it at once."""
        self._close()
        for process in (self._process, self._leaving):
            if process is not None:
                process.kill()

    def _spawn(self, unit: plan.Unit, python: str) -> tuple[processes.Process, int]:
        """Start a process, and give the port at which this one, and no other that shares its sockets, says whether it is ready."""
        arguments = [python, "-P", "-m", *unit.arguments]
        if not unit.listens:
            return processes.spawn(arguments, log=self._log, cwd=self._home, env=self._environ(unit), nice=unit.nice), unit.port
        with socket.create_server((probes.HOST, 0)) as probe:
            sockets = [*((str(one.getsockname()[1]), one) for one in self._opened(unit)), (_PROBE, probe)]
            process = processes.spawn(arguments, log=self._log, cwd=self._home, env=self._environ(unit), sockets=sockets, nice=unit.nice)
            return process, int(probe.getsockname()[1])

    def _opened(self, unit: plan.Unit) -> list[socket.socket]:
        held = {one.getsockname()[1] for one in self._listening}
        for port in unit.listens:
            if port not in held:
                try:
                    self._listening.append(socket.create_server((probes.HOST, port), backlog=_BACKLOG))
                except OSError as exc:
                    raise errors.StartError(f"port {port} of {unit.name} cannot be used: {os.strerror(exc.errno or 0)}") from exc
        return self._listening

    def _close(self) -> None:
        for one in self._listening:
            with contextlib.suppress(OSError):
                one.close()

    def _save(self, process: processes.Process, mark: str) -> None:
        """Write down which process it is; one that cannot be written down runs all the same."""
        with contextlib.suppress(OSError):
            processes.save(process, self._home / state.PIDS / f"{self._unit.name}{mark}.pid")

    def _forget(self, name: str) -> None:
        with contextlib.suppress(OSError):
            (self._home / state.PIDS / name).unlink(missing_ok=True)

    def _environ(self, unit: plan.Unit) -> dict[str, str]:
        # a named crash point kills the first process only: what the supervisor starts instead must live
        dropped = {f"{name}{settings.FROM_FILE}" for name in unit.environ} | ({_ONCE} if self._starts else set())
        inherited = {name: value for name, value in os.environ.items() if name not in dropped}
        self._starts += 1
        return inherited | {"PYTHONUNBUFFERED": "1"} | unit.environ

    def _await(self, process: processes.Process, port: int, stopping: threading.Event) -> None:
        if self._becomes_ready(process, port, stopping):
            return
        code = process.returncode
        if code is None:
            process.kill()
            raise errors.StartError(f"{self._unit.name} was not ready after {READY_S:.0f} s")
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        raise DiedError(f"{self._unit.name} {how}", code)

    def _becomes_ready(self, process: processes.Process, port: int, stopping: threading.Event) -> bool:
        for _ in range(round(READY_S / _PROBE_EVERY_S)):
            if not process.running():
                return self._unit.how == "task" and process.returncode == 0
            if self._unit.how == "program" and probes.ready(self._unit.kind, port):
                return True
            if stopping.wait(_PROBE_EVERY_S):
                return True
        return False
