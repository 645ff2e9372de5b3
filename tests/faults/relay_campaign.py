"""The campaign against the relays: which fault comes when, by seeded dice, what each does, and what it all came to."""

import asyncio
import collections
import os
import pathlib
import random
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import ExitStack
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
from faults import relay_books, relay_fleet
from faults.relay_fleet import Slot

from sagapost_relay import shard
from sagapost_sandbox.testing import proxy, servers, services

# by how often each comes
KINDS: Final[Mapping[str, int]] = {
    "kill": 5,
    "term": 4,
    "stop": 3,
    "pause": 3,
    "broker-cut": 2,
    "broker-reset": 3,
    "broker-torn": 3,
    "broker-held": 2,
    "broker-hole": 2,
    "database-cut": 2,
    "database-reset": 2,
    "database-held": 2,
    "broker-restart": 1,
    "broker-kill": 1,
    "database-restart": 1,
    "database-kill": 1,
}
# of these a short campaign has one each, because they take so long
_SERVERS: Final = (("broker-restart", "broker-kill"), ("database-restart", "database-kill"))
SHORT: Final = len(KINDS) - len(_SERVERS)
GAP_S: Final = (0.2, 1.0)  # between two faults
WRITE_GAP_S: Final = 0.08  # about 120 events a second
TAKEOVER_S: Final = 5.0  # beyond the lease
LEAVE_S: Final = 1.0
HELD: Final = 0.5  # of the relays that die or stop: their link to the broker passes nothing for `HOLD_S` before
HOLD_S: Final = 0.3
STOP_AGAIN_S: Final = 0.01
HALF_OPEN_S: Final = 20.0
CALM_S: Final = 60.0
DRAIN_S: Final = 30.0
FEW: Final = 100  # rows that are not settled, in the middle of everything
# What one end of a shard's owner or channel may repeat: what is unconfirmed, and what was confirmed since the last stored checkpoint.
# That is 0.1 s and a write, or 0.6 s of asynchronous commit when the server dies; no backlog here gives a shard more in that time.
UNSTORED: Final = 512
PER_END: Final = shard.UNCONFIRMED_MAX + UNSTORED


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What determines a campaign, as far as anything does: when a fault hits is up to the machine."""

    seed: int
    faults: int
    lease_s: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a campaign came to; `problems` is empty when every guarantee held."""

    line: str
    history: str
    problems: tuple[str, ...]


class Campaign:
    """One run."""

    def __init__(self, plan: Plan, fleet: relay_fleet.Fleet, databases: servers.Databases, broker: servers.Broker) -> None:
        self.plan = plan
        self.fleet = fleet
        self.databases = databases
        self.broker = broker
        self.fired: collections.Counter[str] = collections.Counter()
        self.history: list[str] = []  # what came when, in seconds
        self._began = time.monotonic()
        self.takeovers: dict[str, list[float]] = {"kill": [], "term": [], "stop": []}
        self._busy: set[str] = set()
        self._recovering: set[asyncio.Task[None]] = set()
        self._faults: Mapping[str, Callable[[random.Random], Awaitable[None]]] = {
            "kill": self._kill,
            "term": self._term,
            "stop": self._stop,
            "pause": self._pause,
            "broker-cut": lambda dice: self._end_link(dice, "broker-cut", "broker"),
            "broker-reset": lambda dice: self._end_link(dice, "broker-reset", "broker"),
            "broker-torn": self._tear,
            "broker-held": lambda dice: self._hold(dice, "broker-held", "broker"),
            "broker-hole": self._swallow,
            "database-cut": lambda dice: self._end_link(dice, "database-cut", "database"),
            "database-reset": lambda dice: self._end_link(dice, "database-reset", "database"),
            "database-held": lambda dice: self._hold(dice, "database-held", "database"),
            "broker-restart": lambda dice: self._restart(dice, "broker-restart", self.broker, self.broker.stop),
            "broker-kill": lambda dice: self._restart(dice, "broker-kill", self.broker, self.broker.kill),
            "database-restart": lambda dice: self._restart(dice, "database-restart", self.databases, self.databases.stop),
            "database-kill": lambda dice: self._restart(dice, "database-kill", self.databases, self.databases.kill),
        }

    def planned(self) -> list[str]:
        """Give the kinds in their order: at first what is to be measured while little else goes on, then each of the others, mixed."""
        dice = random.Random(self.plan.seed)
        servers_ = [dice.choice(pair) for pair in _SERVERS]
        first = ["term", "kill", servers_[0], "stop"]
        rest = [kind for kind in KINDS if kind not in first and not any(kind in pair for pair in _SERVERS)]
        rest.append(servers_[1])
        if self.plan.faults > SHORT:
            rest += [kind for kind in KINDS if kind not in first and kind not in rest]
        rest += dice.choices(list(KINDS), list(KINDS.values()), k=max(0, self.plan.faults - len(first) - len(rest)))
        dice.shuffle(rest)
        return first + rest

    async def rage(self) -> None:
        """Do everything that is planned, and wait until all of it is over and the relays have found together again."""
        await relay_fleet.until(self.fleet.calm, CALM_S, "the relays have shared the shards")
        for number, kind in enumerate(self.planned()):
            dice = random.Random(f"{self.plan.seed}-{number}")
            await self._faults[kind](dice)
            self.note(kind)
            await asyncio.sleep(dice.uniform(*GAP_S))
            self._raise()
        while self._recovering:
            await asyncio.wait(self._recovering)
            self._raise()
        self.note("over")
        await relay_fleet.until(self.fleet.calm, CALM_S, "the relays have found together after the faults")
        self.note("calm")

    def note(self, what: str) -> None:
        """Write down what has come now."""
        self.history.append(f"{time.monotonic() - self._began:.1f} {what}")

    def _later(self, recovery: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(recovery)
        self._recovering.add(task)
        return task

    def _raise(self) -> None:
        for task in [task for task in self._recovering if task.done()]:
            self._recovering.discard(task)
            task.result()

    async def _choose(self, dice: random.Random, subject: str, fits: Callable[[Slot], bool]) -> Slot:
        """Wait for a slot that a fault can be done to, and keep the other faults of this subject off it."""
        slots = dice.sample(self.fleet.slots, relay_fleet.SIZE)

        def fitting() -> list[Slot]:
            return [slot for slot in slots if f"{subject}-{slot.number}" not in self._busy and fits(slot)]

        chosen = (await relay_fleet.until(fitting, CALM_S, f"a relay for a fault of its {subject}"))[0]
        self._busy.add(f"{subject}-{chosen.number}")
        return chosen

    def _free(self, subject: str, slot: Slot) -> None:
        self._busy.discard(f"{subject}-{slot.number}")

    def _may_hold(self, slot: Slot) -> bool:
        return f"broker-{slot.number}" not in self._busy

    def _leads(self, slot: Slot) -> bool:
        fresh = time.monotonic() - self.fleet.view.at < LEAVE_S
        return fresh and slot.live and bool(self.fleet.shards_of(slot))

    async def _measure(self, kind: str, pid: int, shards: list[int], since: float, bound_s: float) -> None:
        try:
            taken_s = await self.fleet.taken_over(pid, shards, since, bound_s)
        except AssertionError as exc:  # the campaign goes on: what became of the events is worth knowing all the more
            self.note(f"{kind}: {exc}")
            self.fleet.problems.append(f"{kind}: {exc}")
            return
        if shards:
            self.takeovers[kind].append(taken_s)

    async def _kill(self, dice: random.Random) -> None:
        """Kill a relay; often after its link to the broker has passed nothing for a while, and what it had sent is lost too."""
        slot = await self._choose(dice, "process", self._leads)
        hold = self._may_hold(slot) and (not self.fired["kill"] or dice.random() < HELD)
        if hold:
            slot.to_broker.pause()
            await asyncio.sleep(HOLD_S)
        pid, shards, since = slot.pid, self.fleet.shards_of(slot), self.fleet.disturb()
        slot.start_at = since + (dice.uniform(0.5, 4) if dice.random() < 0.5 else 0)
        slot.killed = True
        _service(slot).send(signal.SIGKILL)
        if hold:
            slot.to_broker.reset()
            slot.to_broker.resume()
        self.fired["kill"] += 1
        self._free("process", slot)
        measuring = self._later(self._measure("kill", pid, shards, since, self.plan.lease_s + TAKEOVER_S))
        if self.fired["kill"] == 1 or dice.random() < 0.5:
            await asyncio.wait({measuring})

    async def _term(self, dice: random.Random) -> None:
        """Let a relay leave: while nothing else is wrong, and then within a second; or amid everything, and then in order."""
        amid = dice.random() < 0.3 and self.fired["term"] > 0
        if not amid:
            while self._recovering:
                await asyncio.wait(self._recovering)
                self._raise()
            await relay_fleet.until(self.fleet.calm, CALM_S, "the relays have found together")
            await self.fleet.drain(CALM_S, FEW)  # who leaves waits for the broker's answers, and a broker that has just started is slow
        slot = await self._choose(dice, "process", self._leads)
        pid, shards, since = slot.pid, self.fleet.shards_of(slot), self.fleet.disturb()
        slot.start_at = since + dice.uniform(0, 2)
        slot.leaving = True
        _service(slot).send(signal.SIGTERM)
        self.fired["term"] += 1
        if amid:
            self._later(self._leave(slot))
        else:
            await self._measure("term", pid, shards, since, LEAVE_S)
            await self._leave(slot)

    async def _leave(self, slot: Slot) -> None:
        service = slot.service
        await relay_fleet.until(lambda: service is not slot.service, CALM_S, "a relay told to leave has ended")
        self._free("process", slot)

    async def _stop(self, dice: random.Random) -> None:
        """Stop a process until another has its shards, then let it go on as a zombie, often with what it had sent arriving late."""
        slot = await self._choose(dice, "process", self._leads)
        slot.stopped = True
        if hold := self._may_hold(slot) and dice.random() < HELD:
            slot.to_broker.pause()
            await asyncio.sleep(HOLD_S)
        since = await self._stop_at_rest(slot)
        pid, shards = slot.pid, self.fleet.shards_of(slot)

        async def go_on() -> None:
            await self._measure("stop", pid, shards, since, self.plan.lease_s + TAKEOVER_S)
            await asyncio.sleep(dice.uniform(0, 1))
            if hold:
                slot.to_broker.resume()
            _service(slot).send(signal.SIGCONT)
            slot.stopped = False
            self.fired["stop"] += 1
            self._free("process", slot)

        going_on = self._later(go_on())
        if not self.fired["stop"] or dice.random() < 0.5:
            await asyncio.wait({going_on})

    async def _stop_at_rest(self, slot: Slot) -> float:
        """Stop a process between two uses of the database, and give the time: what it wakes to is its fence, not a time that is up."""
        deadline = time.monotonic() + CALM_S
        while True:
            since = self.fleet.disturb()
            _service(slot).send(signal.SIGSTOP)
            if await self.fleet.rests(slot.pid):
                return since
            _service(slot).send(signal.SIGCONT)
            assert time.monotonic() < deadline, "a relay is never at rest"
            await asyncio.sleep(STOP_AGAIN_S)

    async def _pause(self, dice: random.Random) -> None:
        """Stop a process for less than its lease."""
        slot = await self._choose(dice, "process", self._leads)
        _service(slot).send(signal.SIGSTOP)

        async def go_on() -> None:
            await asyncio.sleep(dice.uniform(0.1, 0.5) * self.plan.lease_s)
            _service(slot).send(signal.SIGCONT)
            self.fired["pause"] += 1
            self._free("process", slot)

        self._later(go_on())

    async def _end_link(self, dice: random.Random, kind: str, to: str) -> None:
        ended = 0
        while not ended:  # it may have ended by itself since it was looked at
            slot = await self._choose(dice, to, lambda slot: slot.runs and _link(slot, to).connections > 0)
            ended = _link(slot, to).reset() if kind.endswith("reset") else _link(slot, to).cut()
            self._free(to, slot)
        self.fired[kind] += 1

    async def _tear(self, dice: random.Random) -> None:
        """Reset the link to the broker in the middle of what a relay publishes."""
        slot = await self._choose(dice, "broker", lambda slot: self._leads(slot) and slot.to_broker.connections > 0)
        slot.to_broker.cut_after(dice.randint(1, 5000))

        async def torn() -> None:
            await relay_fleet.until(lambda: not slot.to_broker.armed, CALM_S, "a relay has published enough to be cut off")
            self.fired["broker-torn"] += 1
            self._free("broker", slot)

        self._later(torn())

    async def _hold(self, dice: random.Random, kind: str, to: str) -> None:
        """Hold everything back for a while, up to more than a lease; then pass it on, late, or end the connections."""
        slot = await self._choose(dice, to, lambda slot: slot.runs and _link(slot, to).connections > 0)
        _link(slot, to).pause()
        slot.cut_off = to == "database"
        self.fleet.disturb()

        async def pass_on() -> None:
            await asyncio.sleep(dice.uniform(0.3, self.plan.lease_s + 2))
            if dice.random() < 0.3:
                _link(slot, to).reset()
            _link(slot, to).resume()
            slot.cut_off = slot.cut_off and to != "database"
            self.fleet.disturb()
            self.fired[kind] += 1
            self._free(to, slot)

        self._later(pass_on())

    async def _swallow(self, dice: random.Random) -> None:
        """Make the connection to the broker half-open; the relay must notice by itself."""
        slot = await self._choose(dice, "broker", lambda slot: slot.live and slot.to_broker.connections > 0)
        slot.to_broker.blackhole()
        await asyncio.sleep(dice.uniform(0, 1))
        slot.to_broker.resume()

        async def noticed() -> None:
            await relay_fleet.until(
                lambda: slot.to_broker.half_open == 0, HALF_OPEN_S + self.plan.lease_s, "a half-open connection is given up"
            )
            self.fired["broker-hole"] += 1
            self._free("broker", slot)

        self._later(noticed())

    async def _restart(self, dice: random.Random, kind: str, server: servers.Databases | servers.Broker, end: Callable[[], None]) -> None:
        what = kind.partition("-")[0]
        await relay_fleet.until(lambda: what not in self._busy, CALM_S, f"the {what} is there")
        self._busy.add(what)

        async def restarted() -> None:
            await asyncio.to_thread(end)
            await asyncio.sleep(dice.uniform(0, 1))
            await asyncio.to_thread(server.start)
            self.fired[kind] += 1
            self._busy.discard(what)

        self._later(restarted())


async def run(plan: Plan, folder: pathlib.Path, databases: servers.Databases, broker: servers.Broker, dsn: str) -> Report:
    """Run a campaign against relays of its own on a migrated, empty database and a broker with the topology."""
    url = broker.amqp_url()
    await relay_books.prepare(dsn)
    env = {"SAGAPOST_LEASE_S": str(plan.lease_s), "SAGAPOST_CONFIRM_TIMEOUT_S": "2", "SAGAPOST_ROTATE_S": "2"}
    books = relay_books.Books()
    with ExitStack() as stack:
        links = [stack.enter_context(_proxy(target)) for _ in range(relay_fleet.SIZE) for target in (url, dsn)]
        fleet = relay_fleet.Fleet(folder, dsn, url, env, links)
        stack.callback(fleet.kill)
        campaign = Campaign(plan, fleet, databases, broker)
        began = time.monotonic()
        try:
            await _rage(campaign, dsn, books)
        except BaseException as exc:
            exc.add_note("; ".join((*campaign.history, *fleet.problems, f"at {time.monotonic() - began:.1f} {fleet.state()}")))
            raise
        raged_s = time.monotonic() - began
        verdict = relay_books.judge(books, await relay_books.journal(url))
        return await _report(campaign, books, verdict, raged_s)


async def _rage(campaign: Campaign, dsn: str, books: relay_books.Books) -> None:
    """Let writers write and relays relay through all faults, then let everything come to its end."""
    fleet, stop = campaign.fleet, asyncio.Event()
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(fleet.watch())
        supervising = group.create_task(fleet.supervise())
        writing = [
            group.create_task(relay_books.write(dsn, books, random.Random(f"{campaign.plan.seed}-w{number}"), gap_s=WRITE_GAP_S, stop=stop))
            for number in range(relay_books.WRITERS)
        ]
        await campaign.rage()
        stop.set()
        await asyncio.wait(writing)
        await fleet.drain(DRAIN_S, 0)
        campaign.note("drained")
        await fleet.stop()
        campaign.note("stopped")
        await supervising
        watching.cancel()


async def _report(campaign: Campaign, books: relay_books.Books, verdict: relay_books.Verdict, raged_s: float) -> Report:
    plan, fleet = campaign.plan, campaign.fleet
    events = len(books.committed)
    # an end: a shard was taken anew, or its channel was lost with rows in flight
    losses = sum(line["in_flight"] > 0 for line in fleet.lines("relay.channel_lost"))
    ends = await fleet.claims() + losses
    planned = collections.Counter(campaign.planned())
    fenced = sum("FencedError" in str(line["reasons"]) for line in fleet.lines("relay.interrupted"))
    turns = len(fleet.lines("relay.ring_turned"))
    checks = {
        f"lost: {verdict.lost[:5]} and {len(verdict.lost)} in all": bool(verdict.lost),
        f"published and never committed: {verdict.strange[:5]}": bool(verdict.strange),
        f"inverted: {[(e, n, fleet.asides.get(str(e.id))) for e, n in verdict.inverted[:5]]}, {len(verdict.inverted)} in all": bool(
            verdict.inverted
        ),
        f"{verdict.repeated} repetitions, at most {ends} x {PER_END} may be": verdict.repeated > ends * PER_END,
        f"{verdict.longest} repetitions of a shard in a row, {PER_END} at most": verdict.longest > PER_END,
        f"invalid: planned {planned}, done {campaign.fired}": planned != campaign.fired,
        "invalid: no zombie was fenced off": fenced == 0,
        "invalid: the ring did not turn": turns == 0,
        "invalid: nobody has measured a take-over": not all(campaign.takeovers.values()),
        f"invalid: {events} events are too few": events < 10 * plan.faults,
    }
    worst = ", ".join(f"{kind} {max(taken, default=-1):.2f} s" for kind, taken in campaign.takeovers.items())
    line = (
        f"relay campaign seed={plan.seed} lease={plan.lease_s:g} s: {campaign.fired.total()} faults in {raged_s:.0f} s "
        f"({', '.join(f'{kind} {number}' for kind, number in sorted(campaign.fired.items()))}); "
        f"{events} events, {len(books.unknown)} of unknown outcome, {verdict.deliveries} deliveries; "
        f"lost {len(verdict.lost)}, inverted {len(verdict.inverted)}, repeated {verdict.repeated} ({verdict.longest} in a row at most; "
        f"bound {ends} ends x {PER_END}); worst take-over {worst}; fenced {fenced}, ring turns {turns}, "
        f"set aside {len(fleet.asides)}, refused starts {fleet.refused_starts}"
    )
    problems = (*fleet.problems, *(sentence for sentence, broken in checks.items() if broken))
    return Report(line=line, history="; ".join(campaign.history), problems=problems)


def _proxy(url: str) -> proxy.Proxy:
    parts = urlsplit(url)
    return proxy.Proxy(str(parts.hostname), int(parts.port or 0))


def _link(slot: Slot, to: str) -> proxy.Proxy:
    return slot.to_broker if to == "broker" else slot.to_database


def _service(slot: Slot) -> services.Service:
    assert slot.service is not None
    return slot.service


def plan_of(environ: Mapping[str, str] = os.environ) -> Plan:
    """Read SEED, SAGAPOST_FAULTS and SAGAPOST_FAULTS_LEASE_S; without a seed one is drawn."""
    return Plan(
        seed=int(environ.get("SEED") or random.SystemRandom().randrange(1_000_000)),
        faults=int(environ.get("SAGAPOST_FAULTS") or SHORT),
        lease_s=float(environ.get("SAGAPOST_FAULTS_LEASE_S") or 3),
    )
