"""One stack of real processes that die and are started again at once; it must not know when, or what for."""

import asyncio
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Final

import msgspec

from sagapost_chassis import settings
from sagapost_ops import drivers, environment, plan, probes, state
from sagapost_ops.chaos import schedule
from sagapost_sandbox import errors, processes

KILLED: Final = frozenset({"kill", "point"})
READY_S: Final = 60.0
AGAIN_S: Final = 0.3
STOP_S: Final = 20.0
_POLL_S: Final = 0.05
_KEPT: Final = frozenset({environment.MIGRATIONS, environment.MIGRATIONS + settings.FROM_FILE})
# Shorter than where customers are, so that what waits for them happens often enough: a lease that a dead relay left behind,
# the provider's deadline (the late token charges behind it), the saga's second asking for a refund. One mail at a time: then a death of
# the email process, between the server's 250 and the note of it, explains one second copy and no more; the verdict holds it to that.
SETTINGS: Final[dict[str, dict[str, str]]] = {
    "order": {"SAGAPOST_COMPENSATE_S": "1", "SAGAPOST_COMPENSATE_MAX_S": "10"},
    "payment": {"SAGAPOST_PROVIDER_TIMEOUT_S": "3", "SAGAPOST_LOOK_S": "20"},
    "email": {"SAGAPOST_SMTP_CONNECTIONS": "1"},
    "relay-order": {"SAGAPOST_LEASE_S": "2"},
    "relay-payment": {"SAGAPOST_LEASE_S": "2"},
}


class Life(msgspec.Struct, kw_only=True):
    """One process from start to end, in seconds of the wall clock; `how` is kill, point (the one it was armed with), or exit N."""

    name: str
    armed: str = ""
    started_at: float
    ready_at: float = 0.0
    ended_at: float = 0.0
    how: str = ""


class Rig:
    """Every process of a stack, and the lives of all of them so far.

    `dying`: with SETTINGS, and nobody stands back, since whoever dies all day must be up again soon. Otherwise as `up` runs it.
    """

    def __init__(self, made: plan.Plan, home: Path, *, dying: bool = True) -> None:
        self.plan = made
        self._dying = dying
        self.home = home
        self.units = {unit.name: unit for unit in made.units}
        self.lives: list[Life] = []
        self._servers = {name: drivers.make(self.units[name], made.ports, home) for name in schedule.SERVERS}
        self._running: dict[str, processes.Process] = {}
        self._never = threading.Event()

    async def start(self) -> None:
        """Start everything, in the order in which one part needs the other."""
        await asyncio.gather(*(self.start_server(name) for name in self._servers))
        for unit in self.plan.units:
            if unit.how == "task":
                await self._run(unit)
        outside = [unit.name for unit in self.plan.units if unit.how == "program" and unit.name not in schedule.SERVICES]
        await asyncio.gather(*(self.ready(self.spawn(name)) for name in outside))
        await asyncio.gather(*(self.alive(name) for name in schedule.SERVICES))

    def spawn(self, name: str, crash: str = "") -> Life:
        """Start a process, told where to die if `crash` names a point."""
        unit = self.units[name]
        environ = _inherited() | unit.environ | (SETTINGS.get(name, {}) if self._dying else {}) | {"SAGAPOST_CRASH": crash}
        line = [sys.executable, "-P", "-m", *unit.arguments]
        nice, log = 0 if self._dying else unit.nice, self.home / "logs" / f"{name}.log"
        process = processes.spawn(line, log=log, cwd=self.home, env=environ, nice=nice)
        processes.save(process, self.home / state.PIDS / f"{name}.pid")
        self._running[name] = process
        self.lives.append(life := Life(name=name, armed=crash, started_at=time.time()))
        return life

    async def ready(self, life: Life) -> bool:
        """Wait until a process is ready; False when it ended before, or is not after `READY_S` seconds."""
        port, deadline = self.units[life.name].port, time.monotonic() + READY_S
        while time.monotonic() < deadline and self.runs(life):
            if await asyncio.to_thread(probes.ready, "health", port, 1.0):
                life.ready_at = time.time()
                return True
            await asyncio.sleep(_POLL_S)
        return False

    async def alive(self, name: str) -> Life:
        """Start a process, again and again until it is ready: one whose database is away ends by itself.

        Raises:
            StartError: it does not become ready.

        """
        deadline = time.monotonic() + 2 * READY_S
        while time.monotonic() < deadline:
            life = self.spawn(name)
            if await self.ready(life):
                return life
            self.kill(life)
            await asyncio.sleep(AGAIN_S)
        raise errors.StartError(f"{name} is not ready: {processes.tail(self.home / 'logs' / f'{name}.log')}")

    def runs(self, life: Life) -> bool:
        """Tell whether a process still runs; note how it ended when it does not."""
        process = self._running[life.name]
        if life.ended_at:
            return False
        if process.running():
            return True
        life.ended_at = time.time()
        code = process.returncode
        life.how = "point" if life.armed and code == -signal.SIGKILL else f"exit {code}"
        return False

    def kill(self, life: Life) -> bool:
        """SIGKILL a process; False when it has ended by itself."""
        if not self.runs(life):
            return False
        process = self._running[life.name]
        process.send(signal.SIGKILL)
        process.wait(STOP_S)
        life.ended_at, life.how = time.time(), "kill"
        return True

    def life(self, name: str) -> Life:
        """Give a process' present life, or its last one."""
        return next(life for life in reversed(self.lives) if life.name == name)

    async def kill_server(self, name: str) -> None:
        """SIGKILL a database or the broker, with all of its own processes."""
        await asyncio.to_thread(self._servers[name].kill)
        life = self.life(name)
        life.ended_at, life.how = time.time(), "kill"

    async def start_server(self, name: str) -> None:
        """Start a database or the broker, and wait until it takes connections."""
        life = Life(name=name, started_at=time.time())
        await asyncio.to_thread(self._servers[name].start, self._never)
        life.ready_at = time.time()
        self.lives.append(life)

    async def stop(self) -> None:
        """End everything: services first, then the outside world, then the servers."""
        for name in reversed(self._running):
            self._running[name].send(signal.SIGTERM)
        for process in reversed(self._running.values()):
            await asyncio.to_thread(process.stop, STOP_S)
        await asyncio.gather(*(asyncio.to_thread(server.stop) for server in self._servers.values()))

    async def _run(self, unit: plan.Unit) -> None:
        line = [sys.executable, "-P", "-m", *unit.arguments]
        environ = _inherited() | unit.environ
        done = await asyncio.to_thread(processes.run, line, cwd=self.home, env=environ, timeout_s=120)
        if done.code != 0:
            raise errors.StartError(f"{unit.name} failed: {done.output.strip()[-500:]}")


def _inherited() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SAGAPOST_") or name in _KEPT}
    return kept | {"PYTHONUNBUFFERED": "1"}
