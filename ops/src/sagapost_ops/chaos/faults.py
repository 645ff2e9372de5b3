"""Carries the schedule out: kills, starts again, waits for crash points, measures what outages cost; it must not judge."""

import asyncio
import collections
import contextlib
import time
from collections.abc import AsyncGenerator
from typing import Final

import msgspec

from sagapost_ops import client, errors, probes
from sagapost_ops.chaos import letters, rig, schedule
from sagapost_ops.load import sending

PATIENCE_S: Final = 60.0
TRIES: Final = 4
CLEAN: Final = 3  # so many outages of a server happen beside no other fault, and are measured
_START_S: Final = 2.0
_LIVES_S: Final = 2.5  # on average at least, however far behind the run is: where nothing works for a moment nothing is proved
_LONGEST_S: Final = 30.0
_QUIET_S: Final = 20.0
_FIRST_S: Final = 15.0
_POLL_S: Final = 0.02
_FIRSTS: Final = ("order-db", "rabbitmq")
_CONFIRMED: Final = "sagapost_relay_published_total "


class Outage(msgspec.Struct, kw_only=True):
    """A server that was away: from the kill until its port took work; `first_s` counts from there, None when it was not measured.

    The first 202 after the order database, the first message confirmed after the broker.
    """

    server: str
    killed_at: float
    open_at: float
    first_s: float | None = None


class Faults:
    """One schedule under way; `over` is set when all of it has happened and everything runs again."""

    def __init__(self, world: rig.Rig, wanted: schedule.Schedule, load: sending.Load, lasts_s: float) -> None:
        self.fired: collections.Counter[str] = collections.Counter()
        self.missed: collections.Counter[str] = collections.Counter()
        self.outages: list[Outage] = []
        self.replays = letters.Replays(world)
        self.over = asyncio.Event()
        self._rig = world
        self._wanted = wanted
        self._load = load
        self._ends = time.monotonic() + lasts_s
        self._gate = asyncio.Event()
        self._gate.set()
        self._turn = asyncio.Lock()
        self._away: set[str] = set()

    async def run(self) -> None:
        """Do everything, or until the load is stopped."""
        async with asyncio.TaskGroup() as group:
            for name in schedule.SERVICES:
                group.create_task(self._torment(name))
            for name in schedule.SERVERS:
                group.create_task(self._fell(name))
            group.create_task(self._replay())
        self.over.set()

    async def _torment(self, name: str) -> None:
        """Let a service live and die as often as it is written."""
        todo = collections.deque(self._wanted.deaths[name])
        tries = collections.Counter[str]()
        while todo and not self._load.stop.is_set():
            await self._pass(name)
            death = todo.popleft()
            if death.way == "kill":
                await self._kill(name, death, len(todo) + 1)
            elif not await self._dies(name, death):
                tries[death.point] += 1
                self.missed[death.point] += 1
                if tries[death.point] < TRIES:
                    todo.append(death)
            self._load.note = f"{sum(life.how in rig.KILLED for life in self._rig.lives):,} of {self._wanted.kills:,} deaths"
        await self._clean(name)

    async def _pass(self, name: str) -> None:
        """Wait until faults are allowed; meanwhile the service runs as usual."""
        if not self._gate.is_set():
            await self._clean(name)
            await self._gate.wait()

    async def _clean(self, name: str) -> None:
        life = self._rig.life(name)
        if not self._rig.runs(life) or life.armed:
            self._rig.kill(life)
            await self._rig.alive(name)

    async def _kill(self, name: str, death: schedule.Death, left: int) -> None:
        """Kill a service after a while; when it ends by itself before, because its database is away, it is started again."""
        while not self._load.stop.is_set():
            life = self._rig.life(name)
            if not self._rig.runs(life):
                life = self._rig.spawn(name)
            if not death.hasty and not life.ready_at and not await self._rig.ready(life):
                self._rig.kill(life)
                await asyncio.sleep(rig.AGAIN_S)
                continue
            await sending.pause(self._while_s(death, left), self._load.stop)
            await self._gate.wait()
            if self._rig.kill(life):
                return

    async def _dies(self, name: str, death: schedule.Death) -> bool:
        """Start a service that is to die at a point, and wait until it has; False when it does not come there."""
        self._rig.kill(self._rig.life(name))
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and not self._load.stop.is_set():
            life = self._rig.spawn(name, f"{death.point}:{death.nth}")
            while self._rig.runs(life) and time.monotonic() < deadline and not self._load.stop.is_set():
                await asyncio.sleep(_POLL_S)
                if not life.ready_at and await asyncio.to_thread(probes.ready, "health", self._rig.units[name].port, 1.0):
                    life.ready_at = time.time()
            if life.how == "point":
                self.fired[death.point] += 1
                return True
            if not self._rig.kill(life):
                await asyncio.sleep(rig.AGAIN_S)
        return False

    async def _fell(self, name: str) -> None:
        """Kill a server and start it again, as often as it is written."""
        deaths = self._wanted.deaths[name]
        for number, death in enumerate(deaths):
            await sending.pause(self._while_s(death, len(deaths) - number, longest_s=1e9), self._load.stop)
            if self._load.stop.is_set():
                return
            if number < CLEAN and name in _FIRSTS:
                async with self._quiet() as is_quiet:
                    await self._outage(name, death.down_s, measured=is_quiet)
            else:
                await self._gate.wait()
                await self._outage(name, death.down_s)

    async def _outage(self, name: str, down_s: float, *, measured: bool = False) -> None:
        unit = self._rig.units[name]
        before = await asyncio.to_thread(self._confirmed)
        self._away.add(name)
        outage = Outage(server=name, killed_at=time.time(), open_at=0.0)
        await self._rig.kill_server(name)
        await asyncio.sleep(down_s)
        starting = asyncio.create_task(self._rig.start_server(name))
        while not starting.done():
            if await asyncio.to_thread(probes.ready, unit.kind, unit.port, 1.0):
                break
            await asyncio.sleep(_POLL_S)
        outage.open_at = time.time()
        self.outages.append(outage)
        self._away.discard(name)
        if measured:
            outage.first_s = await self._first(name, outage.open_at, before)
        await starting

    async def _first(self, name: str, since: float, before: float) -> float | None:
        """Wait for the first 202 or the first confirm after a server is back, and give how long that took."""
        while time.time() - since < _FIRST_S:
            if name == "order-db":
                if any(course.accepted_at > since for course in self._load.courses):
                    return round(min(course.accepted_at for course in self._load.courses if course.accepted_at > since) - since, 3)
            elif await asyncio.to_thread(self._confirmed) > before:
                return round(time.time() - since, 3)
            await asyncio.sleep(_POLL_S)
        return None

    def _confirmed(self) -> float:
        """Read how many messages the order database's relay has seen confirmed."""
        unit = self._rig.units["relay-order"]
        with (
            contextlib.suppress(errors.CommandError),
            client.Client(f"http://127.0.0.1:{unit.environ['SAGAPOST_METRICS_PORT']}", 2.0) as relay,
        ):
            lines = relay.call("GET", "/metrics").body.decode().splitlines()
            return sum(float(line.removeprefix(_CONFIRMED)) for line in lines if line.startswith(_CONFIRMED))
        return 0.0

    async def _replay(self) -> None:
        """Kill the operator's replay of dead letters behind its publish."""
        deaths = self._wanted.deaths[schedule.REPLAY]
        for number, death in enumerate(deaths):
            await sending.pause(self._while_s(death, len(deaths) - number, longest_s=1e9), self._load.stop)
            await self._gate.wait()
            if self._load.stop.is_set():
                return
            if await self.replays.die(death.point):
                self.fired[death.point] += 1
            else:
                self.missed[death.point] += 1

    def _while_s(self, death: schedule.Death, left: int, longest_s: float = _LONGEST_S) -> float:
        """Give how long something lives: what time is left, shared by the deaths that are left."""
        left_s = self._ends - time.monotonic()
        mean_s = max(_LIVES_S, left_s / left - _START_S)
        return min(longest_s, 2 * death.share * mean_s, max(2 * _LIVES_S, left_s))

    @contextlib.asynccontextmanager
    async def _quiet(self) -> AsyncGenerator[bool]:
        """Hold all other faults back for the length of a block, which begins once everything runs; False when that does not come."""
        async with self._turn:
            self._gate.clear()
            try:
                deadline = time.monotonic() + _QUIET_S
                while time.monotonic() < deadline and not self._load.stop.is_set():
                    if self._all_well():
                        break
                    await asyncio.sleep(0.1)
                yield self._all_well()
            finally:
                self._gate.set()

    def _all_well(self) -> bool:
        lives = [self._rig.life(name) for name in schedule.SERVICES]
        return not self._away and all(life.ready_at and not life.armed and self._rig.runs(life) for life in lives)
