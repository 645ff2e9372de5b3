"""Keeps the state file of a running stack up to date; it must not know how anything is started.

A file that cannot be written, on a full disk for instance, is written as soon as it can be: nothing of it raises.
"""

import contextlib
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from sagapost_ops import environment, plan, state
from sagapost_sandbox import processes

_BESIDE: Final[dict[str, tuple[str, state.Kind]]] = {
    "gateway": ("page", "http"),
    "rabbitmq": ("rabbitmq-management", "http"),
    "mailbox": ("smtp", "smtp"),
}
_SCHEMES: Final[dict[state.Kind, str]] = {"postgres": "postgresql", "rabbitmq": "amqp", "smtp": "smtp", "http": "http", "health": "http"}


class Board:
    """What is known about the stack; every change is written at once, as a whole file, or at the next `refresh`."""

    def __init__(self, home: Path, wanted: plan.Plan, versions: dict[state.Kind, str], supervisor: processes.Record) -> None:
        self._home = home
        self._lock = threading.Lock()
        self._stale = False
        self._services = {unit.name: _services(unit, wanted.ports, versions) for unit in wanted.units if unit.how != "task"}
        self._state = state.State(
            supervisor=supervisor,
            phase="starting",
            port_offset=wanted.options.port_offset,
            env=environment.mode(),
            addresses=wanted.addresses,
        )
        self.phase("starting")

    def phase(self, phase: state.Phase, failure: str = "") -> None:
        """Note where the stack as a whole is."""
        with self._lock:
            self._state = msgspec.structs.replace(self._state, phase=phase, failure=failure)
            self._write()

    def process(self, name: str, record: processes.Record | None, version: str = "") -> None:
        """Note the process behind a unit, None when it ended, and its version when that is another one than before."""
        with self._lock:
            if name in self._services:
                changed = (_with(service, record) for service in self._services[name])
                self._services[name] = tuple(msgspec.structs.replace(one, version=version or one.version) for one in changed)
                self._write()

    def refresh(self) -> None:
        """Write what could not be written before."""
        with self._lock:
            if self._stale:
                self._write()

    def remove(self) -> None:
        """Take the file away: nothing runs any more."""
        with self._lock, contextlib.suppress(OSError):
            (self._home / state.FILE).unlink(missing_ok=True)

    def _write(self) -> None:
        services = tuple(service for several in self._services.values() for service in several)
        try:
            state.write(self._home, msgspec.structs.replace(self._state, services=services))
            self._stale = False
        except OSError:
            self._stale = True


def _services(unit: plan.Unit, ports: dict[str, int], versions: dict[state.Kind, str]) -> tuple[state.Service, ...]:
    addresses: list[tuple[str, state.Kind, int]] = [(unit.name, unit.kind, unit.port)]
    if unit.name in _BESIDE:
        name, kind = _BESIDE[unit.name]
        addresses.append((name, kind, ports[name]))
    return tuple(
        state.Service(
            name=name,
            kind=kind,
            url=f"{_SCHEMES[kind]}://localhost:{port}",
            port=port,
            version=versions[unit.kind],
            metrics_port=ports.get(f"{name}-metrics"),
        )
        for name, kind, port in addresses
    )


def _with(service: state.Service, record: processes.Record | None) -> state.Service:
    if record is None:
        return msgspec.structs.replace(service, record=None, restarts=service.restarts + 1)
    return msgspec.structs.replace(service, record=record, started_at=datetime.now(UTC))
