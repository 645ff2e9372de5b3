"""The relay's model: writers, relays, crashes and leases take steps in any order on a real database; each keeps every guarantee."""

import asyncio
import itertools
import os
from collections.abc import Collection, Coroutine
from typing import Any, Final, TypeVar

import hypothesis
import uvloop
from hypothesis import stateful, strategies
from integration import relay_readers, relay_world

from sagapost_chassis import outbox
from sagapost_relay import queries

SEED: Final = int(os.environ.get("SEED", "4"))

_ROUNDS: Final = 200
_SHARDS: Final = tuple(range(outbox.SHARDS))
_WRITER: Final = strategies.integers(0, relay_world.WRITERS - 1)
_AGGREGATE: Final = strategies.sampled_from(relay_world.AGGREGATES)
_RELAY: Final = strategies.integers(0, 1)
_HOT: Final = strategies.sampled_from(sorted({outbox.shard_of(f"order-{number}") for number in relay_world.AGGREGATES}))
_LIMIT: Final = strategies.sampled_from((1, 2, 5))
_WRITE: Final = strategies.tuples(
    strategies.just("write"), _WRITER, _AGGREGATE, strategies.sampled_from((1, 1, 0, 3)), strategies.sampled_from((0, 1, 300))
)
_WRITE_AT_ONCE: Final = strategies.tuples(strategies.just("write_at_once"), _AGGREGATE, strategies.integers(0, 1))
_SAVEPOINT: Final = strategies.tuples(
    strategies.just("savepoint"), _WRITER, strategies.sampled_from(("set", "set", "release", "roll back"))
)
_END: Final = strategies.tuples(strategies.just("end"), _WRITER, strategies.sampled_from((True, True, True, False)))
_ELSEWHERE: Final = strategies.tuples(strategies.just("elsewhere"), strategies.sampled_from((0, 1, 300)))
_TURN: Final = strategies.tuples(strategies.just("turn"), _RELAY, _LIMIT, strategies.booleans())
_POLL: Final = strategies.tuples(strategies.just("poll"), _RELAY, _LIMIT, strategies.booleans(), strategies.booleans())
_PUBLISH: Final = strategies.tuples(strategies.just("publish"), _RELAY, _LIMIT)
_STORE: Final = strategies.tuples(strategies.just("store"), _RELAY)
_TAKE_OVER: Final = strategies.tuples(strategies.just("take_over"), _RELAY, strategies.sampled_from((1, len(_SHARDS))))
_LIVE: Final = strategies.tuples(
    strategies.just("live"), _RELAY, strategies.sampled_from(("claim", "renew", "sleep", "release", "restart", "replace")), _HOT
)
# those that stand here twice are drawn twice as often
_MOVES: Final = strategies.one_of(
    *(_WRITE, _WRITE, _WRITE, _WRITE_AT_ONCE, _WRITE_AT_ONCE, _SAVEPOINT, _END, _END, _ELSEWHERE),
    *(_TURN, _TURN, _POLL, _POLL, _PUBLISH, _PUBLISH, _STORE, _TAKE_OVER, _LIVE),
)

T = TypeVar("T")


class FoundError(BaseException):
    """Carries a BrokenError past Hypothesis, which would first run the example again."""


async def _nothing() -> None:
    """Let nothing happen between a poll's two statements."""


class Relay:
    """A relay process: its name, and what it believes to hold."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.held: dict[int, relay_world.Holding] = {}


class Model(stateful.RuleBasedStateMachine):
    """Two relays, four writers, four aggregates in two shards."""

    def __init__(self, loop: asyncio.AbstractEventLoop, world: relay_world.World, reader: relay_readers.WindowLog, *, shrink: bool) -> None:
        super().__init__()
        self.loop = loop
        self.world = world
        self.reader = reader
        self.shrink = shrink
        self.broken = False
        self.run(world.reset())
        self.broker = relay_world.Broker()
        self.writers = [relay_world.Writer(conn) for conn in world.writers]
        self.relays = [Relay("relay-0"), Relay("relay-1")]
        self.births = itertools.count(2)
        self.owners: dict[int, tuple[str | None, int]] = dict.fromkeys(_SHARDS, (None, 0))
        self.leased: set[int] = set()
        self.stored = dict.fromkeys(_SHARDS, relay_readers.START)
        self.run(self._claim(self.relays[0], len(_SHARDS)))

    def run(self, step: Coroutine[Any, Any, T]) -> T:
        """Take a step; once something is broken, all that follows would only hide it."""
        try:
            return self.loop.run_until_complete(step)
        except relay_world.BrokenError as exc:
            self.broken = True
            if self.shrink:
                raise
            raise FoundError from exc

    @stateful.rule(move=_MOVES)
    def step(self, move: tuple[Any, ...]) -> None:
        """Take a step: one rule, for Hypothesis leaves rules out by turns, and half of a system shows nothing."""
        getattr(self, move[0])(*move[1:])

    def write(self, writer: int, aggregate: int, count: int, noise: int) -> None:
        """Let a writer lock an aggregate, if nobody else has, and add events; noise gives it its transaction id before."""
        if not self.writers[writer].is_open:
            self.run(self.writers[writer].begin(noise))
        self.run(self.writers[writer].add(aggregate, count))

    def write_at_once(self, aggregate: int, noise: int) -> None:
        """Commit a whole transaction with one event, if the aggregate is free."""
        idle = [writer for writer in self.writers if not writer.is_open]
        if idle:
            self.run(idle[-1].begin(noise))
            self.run(idle[-1].add(aggregate, 1))
            self.broker.commit(self.run(idle[-1].commit()))

    def savepoint(self, which: int, action: str) -> None:
        """Let a writer set a savepoint, or leave its last one."""
        writer = self.writers[which]
        if writer.is_open and action == "set":
            self.run(writer.save())
        elif writer.is_open and writer.depth:
            self.run(writer.leave(keep=action == "release"))

    def end(self, which: int, commit: bool) -> None:
        """Let a writer commit or give up."""
        writer = self.writers[which]
        if writer.is_open and commit:
            self.broker.commit(self.run(writer.commit()))
        elif writer.is_open:
            self.run(writer.rollback())

    def elsewhere(self, rows: int) -> None:
        """Commit what has nothing to do with the outbox, or turn the ring."""
        self.run(self.world.noise(rows) if rows else self.world.turn_ring())

    def turn(self, which: int, limit: int, paged: bool) -> None:
        """Let a relay take what is free, read, publish and store: its everyday."""
        self.run(self._claim(self.relays[which], len(_SHARDS)))
        self.run(self._turn(self.relays[which], limit, paged=paged))

    def poll(self, which: int, limit: int, paged: bool, crossed: bool) -> None:
        """Let a relay read ahead; when crossed, all that is open commits between its snapshot and its rows."""
        self.run(self._poll(self.relays[which], limit, paged=paged, between=self._commit_all if crossed else _nothing))

    def publish(self, which: int, limit: int) -> None:
        """Let a relay publish some of what it has read of each shard, while its lease lasts."""
        self.run(self._publish(self.relays[which], limit))

    def store(self, which: int) -> None:
        """Let a relay write its checkpoint; an older owner's must touch nothing."""
        self.run(self._store(self.relays[which]))

    def take_over(self, which: int, limit: int) -> None:
        """End all leases and let a relay take shards of the other one, which wakes up later."""
        self.run(self._expire(_SHARDS))
        self.run(self._claim(self.relays[which], limit))

    def live(self, which: int, action: str, shard: int) -> None:
        """Let a relay do something with its leases, or sleep past one; or lose its memory, and come back or be replaced."""
        relay = self.relays[which]
        match action:
            case "claim":
                self.run(self._claim(relay, 1))
            case "renew":
                self.run(self._renew(relay))
            case "sleep":
                self.run(self._expire((shard,)))
            case "release":
                self.run(self._release(relay, shard))
            case "restart":
                self.relays[which] = Relay(relay.name)
            case _:
                self.run(self._expire([number for number, holding in relay.held.items() if self._owns(relay, holding.lease)]))
                self.relays[which] = Relay(f"relay-{next(self.births)}")

    def teardown(self) -> None:
        """Let all commit, and a last relay take over: everything arrives, and then there is nothing left."""
        if self.broken:
            return
        self.run(self._commit_all())
        self.run(self._drain())

    async def _expire(self, shards: Collection[int]) -> None:
        """End leases, by the database's clock and by their owners'."""
        await self.world.expire(list(shards))
        self.leased -= set(shards)
        for relay in self.relays:
            for shard in relay.held.keys() & set(shards):
                relay.held[shard].in_time = False

    async def _drain(self) -> None:
        await self._expire(_SHARDS)
        last = Relay("relay-last")
        await self._claim(last, len(_SHARDS))
        for _ in range(_ROUNDS):
            under_way = any(holding.read.hi is not None for holding in last.held.values())
            if not await self._turn(last, 2, paged=True) and not under_way:
                break
        else:
            raise relay_world.BrokenError("endless", "the window does not become empty")
        if not self.reader.may_stall:
            self.broker.finish()

    async def _commit_all(self) -> None:
        for writer in self.writers:
            if writer.is_open:
                self.broker.commit(await writer.commit())

    async def _poll(self, relay: Relay, limit: int, *, paged: bool, between: relay_readers.Between) -> int:
        at = {shard: holding.read for shard, holding in relay.held.items() if holding.in_time}
        pages = await self.reader.read(self.world.relay, at, limit, paged=paged, between=between) if at else {}
        for shard, page in pages.items():
            relay.held[shard].take(page)
        return sum(len(page.rows) for page in pages.values())

    async def _publish(self, relay: Relay, limit: int) -> None:
        for _, holding in sorted(relay.held.items()):
            holding.publish(self.broker, limit)

    async def _turn(self, relay: Relay, limit: int, *, paged: bool) -> int:
        found = await self._poll(relay, limit, paged=paged, between=_nothing)
        await self._publish(relay, 1000)
        await self._store(relay)
        return found

    async def _store(self, relay: Relay) -> None:
        moved = {
            shard: (holding.lease, holding.read if self.reader.stores_what_it_read else holding.confirmed)
            for shard, holding in relay.held.items()
        }
        if not moved:
            return
        taken = await self.reader.store(self.world.relay, relay.name, list(moved.values()))
        for shard in taken:
            self.broker.stored(relay.held[shard].passed)
            relay.held[shard].passed = []
        await self._look()
        self._keep(relay, taken)

    async def _renew(self, relay: Relay) -> None:
        leases = [holding.lease for holding in relay.held.values()]
        renewed = await queries.renew(self.world.relay, relay.name, leases, relay_world.LEASE_S)
        self.leased |= renewed
        await self._look()
        self._keep(relay, renewed)
        for holding in relay.held.values():
            holding.in_time = True

    async def _release(self, relay: Relay, shard: int) -> None:
        if (holding := relay.held.pop(shard, None)) is None:
            return
        if self._owns(relay, holding.lease):
            self.owners[shard] = (None, holding.lease.epoch)
            self.leased.discard(shard)
        await queries.release(self.world.relay, relay.name, holding.lease)
        await self._look()

    async def _claim(self, relay: Relay, limit: int) -> None:
        free = {shard for shard in _SHARDS if shard not in relay.held and (shard not in self.leased or self.owners[shard][0] == relay.name)}
        async with self.world.relay.transaction():
            cursors = await queries.claim(self.world.relay, relay.name, list(relay.held), limit, relay_world.LEASE_S)
        taken = {cursor.shard for cursor in cursors}
        if not taken <= free or len(taken) != min(limit, len(free)):
            raise relay_world.BrokenError("unfenced", f"{relay.name} may take {limit} of {free} and took {taken}")
        self.leased |= taken
        for cursor in cursors:
            relay.held[cursor.shard] = relay_world.Holding(cursor)
            self.owners[cursor.shard] = (relay.name, self.owners[cursor.shard][1] + 1)
            self.broker.taken(cursor.shard)
        await self._look()

    def _owns(self, relay: Relay, lease: queries.Lease) -> bool:
        return self.owners[lease.shard] == (relay.name, lease.epoch)

    def _keep(self, relay: Relay, touched: set[int]) -> None:
        """Drop the shards that were taken over, which is what the database must have said."""
        owned = {shard for shard, holding in relay.held.items() if self._owns(relay, holding.lease)}
        if touched != owned:
            raise relay_world.BrokenError("unfenced", f"{relay.name} owns {owned} and could write to {touched}")
        relay.held = {shard: holding for shard, holding in relay.held.items() if shard in owned}

    async def _look(self) -> None:
        """Hold what is stored against what was."""
        for shard, (position, owner, epoch) in (await self.world.cursors()).items():
            if relay_world.goes_back(self.stored[shard], position):
                raise relay_world.BrokenError("went back", f"shard {shard} from {self.stored[shard]} to {position}")
            if (owner, epoch) != self.owners[shard]:
                raise relay_world.BrokenError("unfenced", f"shard {shard} belongs to {owner}, {epoch}, not to {self.owners[shard]}")
            self.stored[shard] = position


def check(dsn: str, reader: relay_readers.WindowLog, *, examples: int, steps: int, shrink: bool) -> None:
    """Let the model look for a broken guarantee, in a database of its own; with `shrink`, for the shortest way to one.

    Raises:
        relay_world.BrokenError: there is one.

    """
    settings = hypothesis.settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
        suppress_health_check=list(hypothesis.HealthCheck),
        report_multiple_bugs=False,
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sessions = relay_world.opened(dsn, reader.prepare.encode())
        world = runner.run(sessions.__aenter__())

        class Bound(Model):
            def __init__(self) -> None:
                super().__init__(runner.get_loop(), world, reader, shrink=shrink)

        try:
            stateful.run_state_machine_as_test(hypothesis.seed(SEED)(Bound), settings=settings)
        except FoundError as exc:
            if exc.__cause__ is not None:
                raise exc.__cause__ from None
        finally:
            runner.run(sessions.__aexit__(None, None, None))
