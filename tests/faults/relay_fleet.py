"""Three relays behind fault proxies, kept running as an orchestrator does, and what the database says of them; it knows no fault."""

import asyncio
import pathlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, LiteralString, TypeVar

import msgspec
import psycopg
from integration import lateness

from sagapost_chassis import db
from sagapost_sandbox.testing import proxy, services

T = TypeVar("T")

SIZE: Final = 3
_CANNOT_START: Final = 2
_LOOK_S: Final = 0.02
_START_AGAIN_S: Final = 0.3
_FRESH_S: Final = 0.25
_VIEW: Final = """
SELECT (SELECT json_agg(json_build_array(shard, owner)) FROM outbox_cursor),
       (SELECT json_agg(owner) FROM outbox_relay WHERE seen_until >= now()),
       (SELECT json_agg(json_build_array(event_id, reason, detail)) FROM (SELECT * FROM outbox_parked LIMIT 1000) AS p)
"""
_LEFT: Final = """
SELECT (SELECT count(*) FROM outbox AS o JOIN outbox_cursor AS c USING (shard)
         WHERE NOT pg_visible_in_snapshot(o.xid, c.lo)
           AND NOT (c.hi IS NOT NULL AND o.id <= c.last_id AND pg_visible_in_snapshot(o.xid, c.hi)))
     + (SELECT count(*) FROM outbox_parked)
"""
_EPOCHS: Final = "SELECT sum(epoch)::bigint FROM outbox_cursor"
_SESSIONS: Final = "SELECT state FROM pg_stat_activity WHERE application_name LIKE 'relay-%%-' || %(pid)s || '-%%'"
_SESSIONS_EACH: Final = 3  # of a relay


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What the database said at `at` (of time.monotonic()): who owns each shard and who is alive, by process id."""

    at: float
    owners: dict[int, int | None]
    listed: frozenset[int]


class Slot:
    """The place of one relay: its two links, and the process that is in it now."""

    def __init__(self, number: int, to_broker: proxy.Proxy, to_database: proxy.Proxy) -> None:
        self.number = number
        self.to_broker = to_broker
        self.to_database = to_database
        self.service: services.Service | None = None
        self.past: list[services.Service] = []
        self.start_at = 0.0
        self.stopped = False  # by SIGSTOP
        self.leaving = False  # told so by SIGTERM
        self.killed = False
        self.cut_off = False  # its link to the database passes nothing

    @property
    def pid(self) -> int:
        """The process's id; 0: none."""
        return self.service.pid if self.service is not None else 0

    @property
    def runs(self) -> bool:
        """Whether there is a process, stopped or not."""
        return self.service is not None and self.service.running()

    @property
    def live(self) -> bool:
        """Whether it can do its work."""
        return self.runs and not (self.stopped or self.leaving or self.killed or self.cut_off)


class Fleet:
    """Starts relays again when they end, and looks at the cursors all the time."""

    def __init__(self, folder: pathlib.Path, dsn: str, amqp_url: str, env: Mapping[str, str], links: Sequence[proxy.Proxy]) -> None:
        self.slots = [Slot(number, links[2 * number], links[2 * number + 1]) for number in range(SIZE)]
        self.view = View(at=0, owners={}, listed=frozenset())
        self.asides: dict[str, str] = {}  # of every row that was ever set aside: why
        self.disturbed_at = 0.0  # when a relay last fell out or the database was last away: leases may end later for it
        self.problems: list[str] = []
        self.refused_starts = 0
        self._folder = folder
        self._dsn = dsn
        self._amqp_url = amqp_url
        self._env = env
        self._ending = False

    def disturb(self) -> float:
        """Note that leases are about to end, and give the time."""
        self.disturbed_at = time.monotonic()
        return self.disturbed_at

    def shards_of(self, slot: Slot) -> list[int]:
        """Give the shards that a slot's process holds."""
        return [shard for shard, owner in self.view.owners.items() if owner == slot.pid]

    def state(self) -> str:
        """Say what is seen of the relays, for a person."""
        slots = (
            f"{slot.number}: pid {slot.pid}, {'live' if slot.live else 'not live'}, links {slot.to_broker.connections}, "
            f"{slot.to_database.connections}"
            for slot in self.slots
        )
        return f"relays {'; '.join(slots)}; {self.view}, {time.monotonic() - self.view.at:.2f} s old"

    def calm(self) -> bool:
        """Whether all relays work, know of each other and of nobody else, and have shared the shards."""
        pids = {slot.pid for slot in self.slots if slot.live and slot.to_broker.connections}
        fresh = time.monotonic() - self.view.at < _FRESH_S
        return fresh and len(pids) == SIZE and self.view.listed == pids and set(self.view.owners.values()) == pids

    async def taken_over(self, pid: int, shards: Collection[int], since: float, bound_s: float) -> float:
        """Wait until each shard has had an owner that works and is not `pid`, and give the seconds since `since`.

        They are counted from the last disturbance on: with another relay or the database gone meanwhile, nobody could; and up to
        what was seen last. What this machine was late meanwhile comes on top of the bound.
        """
        left, taken_s = set(shards), 0.0
        async with lateness.ticking() as ticker:
            while left:
                await asyncio.sleep(0.005)
                works = {slot.pid for slot in self.slots if slot.live} - {pid}
                if self.view.at > since:
                    left -= {shard for shard in left if self.view.owners[shard] in works}
                taken_s = max(0.0, self.view.at - max(since, self.disturbed_at))
                if taken_s > bound_s + _FRESH_S + ticker.late_s:
                    raise AssertionError(f"after {taken_s:.1f} s shards {sorted(left)} of process {pid} had no owner that works")
        return taken_s

    async def rests(self, pid: int) -> bool:
        """Tell whether a process has all its sessions on the database, and none of them has begun anything."""
        try:
            async with await db.Connection.connect(db.dsn_of(self._dsn, "campaign-look")) as conn:
                found = await (await conn.execute(_SESSIONS, {"pid": str(pid)})).fetchall()
        except psycopg.OperationalError:
            return False
        return found == [("idle",)] * _SESSIONS_EACH

    async def supervise(self) -> None:
        """Start what is not there, and look at how everything ended."""
        while not self._ending:
            for slot in self.slots:
                if not slot.runs:
                    self._bury(slot)
                    if time.monotonic() >= slot.start_at:
                        self._start(slot)
            await asyncio.sleep(_LOOK_S)

    async def watch(self) -> None:
        """Read the cursors every few milliseconds."""
        while True:
            try:
                async with await db.Connection.connect(db.dsn_of(self._dsn, "campaign-watch"), autocommit=True) as conn:
                    while True:
                        await self._look(conn)
                        await asyncio.sleep(_LOOK_S)
            except (psycopg.OperationalError, psycopg.InterfaceError):
                self.disturb()
                await asyncio.sleep(_LOOK_S)

    async def stop(self) -> None:
        """Let all of them leave in order."""
        self._ending = True
        for slot in self.slots:
            slot.leaving = True
            if slot.service is not None:
                await asyncio.to_thread(slot.service.terminate)
            self._bury(slot)

    def kill(self) -> None:
        """End all of them."""
        self._ending = True
        for slot in self.slots:
            if slot.service is not None:
                slot.service.kill()

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Give the log lines of this name of all processes that ever ran."""
        services_ = [service for slot in self.slots for service in (*slot.past, slot.service) if service is not None]
        return [line for service in services_ for line in service.lines() if line.get("event") == name]

    async def drain(self, deadline_s: float, few: int) -> None:
        """Wait until all rows but a few are settled and not set aside."""
        deadline = time.monotonic() + deadline_s
        while (left := await self._number(_LEFT)) > few:
            assert time.monotonic() < deadline, f"{left} rows are not settled, or set aside: {self.asides}"
            await asyncio.sleep(_LOOK_S)

    async def claims(self) -> int:
        """Count how often a shard was taken."""
        return await self._number(_EPOCHS)

    async def _number(self, query: LiteralString) -> int:
        async with await db.Connection.connect(self._dsn) as conn:
            found = await (await conn.execute(query)).fetchone()
        return int(found[0]) if found else 0

    async def _look(self, conn: db.Connection) -> None:
        asked_at = time.monotonic()
        found = await (await conn.execute(_VIEW)).fetchone()
        owners, listed, asides = found or ((), (), ())
        self.view = View(
            at=asked_at,
            owners={shard: None if owner is None else _pid(owner) for shard, owner in owners},
            listed=frozenset(map(_pid, listed or ())),
        )
        self.asides.update({event_id: f"{reason}: {detail}" for event_id, reason, detail in asides or ()})

    def _start(self, slot: Slot) -> None:
        slot.stopped = slot.leaving = slot.killed = False
        slot.start_at = time.monotonic() + _START_AGAIN_S
        env = {
            **self._env,
            "SAGAPOST_DATABASE_URL": proxy.through(self._dsn, slot.to_database),
            "SAGAPOST_AMQP_URL": proxy.through(self._amqp_url, slot.to_broker),
        }
        slot.service = services.Service("sagapost_relay", env, self._folder / f"relay-{slot.number}-{len(slot.past)}.log")

    def _bury(self, slot: Slot) -> None:
        if (service := slot.service) is None:
            return
        slot.past.append(service)
        slot.service = None
        code = service.wait(1)
        if code == _CANNOT_START and "the database at" in service.logs():
            self.refused_starts += 1  # as said: an orchestrator starts it again
        elif not (slot.killed and code == -9) and not (slot.leaving and code == 0):
            self.problems.append(f"a relay ended with {code}, see {service.log}: {service.logs()[-600:]}")


async def until(condition: Callable[[], T], deadline_s: float, what: str) -> T:
    """Wait for something true, and give it.

    Raises:
        AssertionError: it did not come true in time.

    """
    deadline = time.monotonic() + deadline_s
    while True:
        if value := condition():
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {deadline_s:.0f} s")
        await asyncio.sleep(_LOOK_S)


def _pid(owner: str) -> int:
    return int(owner.rsplit("-", 2)[1])
