"""One relay: a session on the database with everything that runs in it, begun again after each failure."""

import asyncio
import time
from contextlib import AsyncExitStack, suppress
from typing import Final

import psycopg
from psycopg import sql

from sagapost_chassis import amqp, db, outbox, settings, telemetry
from sagapost_chassis import errors as failures
from sagapost_relay import errors, keeper, leases, metrics, parked, pump, queries, ring
from sagapost_relay.broker import Broker
from sagapost_relay.desk import Desk, backoff_s
from sagapost_relay.settings import Settings

SURVEY_S: Final = 2.0
RING_S: Final = 1.0
_LISTEN: Final = sql.SQL("LISTEN {}").format(sql.Identifier(outbox.CHANNEL))
_AGAIN: Final = (
    failures.TransientError,
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.IdleInTransactionSessionTimeout,
    psycopg.errors.ReadOnlySqlTransaction,
    OSError,
    TimeoutError,
)


class Relay:
    """Serves one database beside any number of others; each holds its share of the shards."""

    def __init__(self, config: Settings, *, owner: str) -> None:
        self._config = config
        self._owner = owner
        self._desk = Desk(config, owner)
        self._pace = ring.Pace(config.rotate_s, time.monotonic())
        self._parked = self._waiting = 0  # rows parked for a person, and rows that the broker does not take, as last counted

    async def turns(self) -> bool:
        """Tell whether the loops turn: they polled and renewed within the last seconds."""
        return self._desk.alive()

    async def publishes(self) -> bool:
        """Return whether the broker is connected and takes messages.

        Raises:
            failures.NotReadyError: it has no such exchange.

        """
        broker = self._desk.broker
        if broker is not None and broker.fault:
            raise failures.NotReadyError(broker.fault)
        return broker is not None and broker.is_open and not broker.blocked

    async def nothing_parked(self) -> bool:
        """Tell whether no row waits for a person."""
        return self._parked == 0

    async def nothing_waits(self) -> bool:
        """Return whether the broker takes every row: none waits because of a missing binding, a full queue, or one without a leader."""
        return self._waiting == 0

    async def all_served(self) -> bool:
        """Return whether some relay has served each shard within the last two beats."""
        return min(self._desk.unserved) == 0

    async def has_exchange(self) -> bool:
        """Return whether the broker has the exchange; it has been asked with the last message that was published."""
        return self._desk.missing is None

    async def run(self, stop: asyncio.Event) -> None:
        """Relay until `stop` is set, across outages of the database and the broker.

        Raises:
            settings.CannotStartError: this server's snapshots do not belong to these cursors; ends the process with exit code 2.

        """
        lost = 0
        while not stop.is_set():
            began = time.monotonic()
            refused: list[BaseException] = []
            try:
                await self._session(stop)
            except* errors.RefusedError as group:
                refused += group.exceptions
            except* _AGAIN as group:
                reasons = sorted({f"{type(exc).__name__}: {exc}"[:300] for exc in _leaves(group)})
                telemetry.log.warning("relay.interrupted", reasons=reasons)
            for exc in refused:
                telemetry.log.error("relay.refused", reason=str(exc))
                raise settings.CannotStartError(str(exc)) from exc
            if not stop.is_set():
                lost = 0 if time.monotonic() - began > 10 else lost + 1
                await _wait(stop, backoff_s(lost))

    async def _session(self, stop: asyncio.Event) -> None:
        desk = Desk(self._config, self._owner)
        self._desk = desk
        async with AsyncExitStack() as stack:
            reader = await self._connect(stack, "reader")
            control = await self._connect(stack, "control")
            listener = await self._connect(stack, "listener")
            await _trust(reader)
            await queries.pin(reader, patient=True)
            await queries.pin(control)
            await queries.limit_locks(control, max(self._config.lease_s, 1))  # else nobody could claim shards that are free
            await listener.execute(_LISTEN)
            async with asyncio.TaskGroup() as group:
                others = [
                    group.create_task(part)
                    for part in (
                        pump.run(reader, control, desk),
                        keeper.checkpoints(control, desk),
                        keeper.retries(control, desk),
                        leases.listen(listener, desk),
                        self._keep_broker(desk),
                        self._turn_ring(control, desk),
                        self._survey(control, desk),
                    )
                ]
                await leases.run(control, desk, stop)
                for other in others:
                    other.cancel()

    async def _connect(self, stack: AsyncExitStack, what: str) -> db.Connection:
        dsn = db.dsn_of(self._config.database_url, f"{self._owner}-{what}"[:63])
        return await stack.enter_async_context(await db.Connection.connect(dsn, autocommit=True, prepare_threshold=0))

    async def _keep_broker(self, desk: Desk) -> None:
        """Keep one connection to the broker; after each loss a new one, with full jitter in between."""
        failed = 0
        while True:
            broker = Broker(self._config.amqp_url, self._owner, on_change=desk.wake.set, plain=self._config.plain_publish)
            began = time.monotonic()
            try:
                await broker.open()
                desk.broken.clear()
                desk.broker = broker
                desk.wake.set()
                await desk.broken.wait()
            except amqp.BrokerUnavailableError as exc:
                telemetry.log.warning("relay.no_broker", reason=str(exc)[:300])
            finally:
                await broker.close()
                desk.watch()
                desk.broker = None
            failed = 0 if time.monotonic() - began > 10 else failed + 1
            await asyncio.sleep(backoff_s(failed))

    async def _turn_ring(self, control: db.Connection, desk: Desk) -> None:
        """Let the holder of the first shard turn the ring."""
        said: str | None = None
        while True:
            await asyncio.sleep(min(RING_S, self._config.rotate_s / 2))
            if 0 not in desk.shards:
                continue
            async with desk.control:
                turned = await ring.rotate(control, self._pace)
            metrics.ROTATION_BLOCKED.set(turned.blocked is not None)
            if turned.rotated:
                metrics.ROTATIONS.inc()
                telemetry.log.info("relay.ring_turned")
            elif turned.blocked and turned.blocked != said:
                telemetry.log.info("relay.ring_blocked", reason=turned.blocked)
            said = turned.blocked

    async def _survey(self, control: db.Connection, desk: Desk) -> None:
        """Measure what is left to do and what was set aside."""
        while True:
            async with desk.control:
                lags = await queries.lags(control, list(desk.shards))
                counts = await parked.count(control)
                waiting = await parked.waiting(control, list(desk.shards))
                for shard in desk.shards.values():
                    shard.wait_for(waiting.get(shard.number, frozenset()))
            for lag in lags:
                if lag.shard in desk.shards:
                    metrics.BACKLOG.labels(lag.shard).set(lag.rows)
                    metrics.OLDEST.labels(lag.shard).set(lag.oldest_s)
            metrics.PARKED.clear()
            for (state, reason), number in counts.items():
                metrics.PARKED.labels(state, reason).set(number)
            self._parked = sum(number for (state, _), number in counts.items() if state == "parked")
            self._waiting = sum(number for (state, reason), number in counts.items() if state == "waiting" and reason in parked.ENDLESS)
            await asyncio.sleep(SURVEY_S)


async def _trust(conn: db.Connection) -> None:
    server = await queries.server(conn)
    if server.in_recovery:
        # a hot standby's snapshot lists no running transactions: their rows would be taken for finished, and lost
        raise failures.TransientError("the database is a standby; a relay needs the primary")
    if server.synchronous_commit == "off":
        raise errors.RefusedError("synchronous_commit is off on this server: a confirmed message could tell of a lost transaction")


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    return [leaf for exc in group.exceptions for leaf in (_leaves(exc) if isinstance(exc, BaseExceptionGroup) else [exc])]


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
