"""What the parts of one relay share: its shards, its broker connection, its clock; it must not do I/O of its own."""

import asyncio
import re
import time
from contextlib import suppress
from typing import Final
from urllib.parse import unquote, urlsplit

from sagapost_chassis import amqp, telemetry
from sagapost_contracts import topology
from sagapost_relay import lanes, metrics, parked, queries
from sagapost_relay.blocks import Outcome
from sagapost_relay.broker import Broker
from sagapost_relay.settings import Settings
from sagapost_relay.shard import Shard

STALE_S: Final = 5.0
LEASE_MARGIN_S: Final = 0.5
_NO_EXCHANGE: Final = 404
BACKOFF_MAX_S: Final = 1.0  # the first confirm is to come within 2 s of the broker's


def backoff_s(failures: int) -> float:
    """Full jitter, up to `BACKOFF_MAX_S`."""
    return amqp.backoff_s(failures, cap_s=BACKOFF_MAX_S)


class Desk:
    """One session's state; a new session begins with an empty desk."""

    def __init__(self, config: Settings, owner: str) -> None:
        self.config = config
        self.owner = owner
        self.policy = parked.Policy(
            attempts=config.retry_attempts, base_s=config.retry_base_s, cap_s=config.retry_cap_s, max_bytes=config.max_payload_bytes
        )
        keys = topology.keys_of(unquote(urlsplit(config.amqp_url).username or ""))
        self.keys = None if keys is None else re.compile(keys)
        self.shards: dict[int, Shard] = {}
        self.broker: Broker | None = None
        self.broken = asyncio.Event()  # the connection is of no more use
        self.wake = asyncio.Event()  # something happened that the pump should look at
        self.hinted_at = 0.0  # when a writer last said that there is something
        self.starved = False  # the pump would read if more were confirmed
        self.turn = asyncio.Event()  # shards changed hands somewhere
        self._opening = asyncio.Lock()
        self.control = asyncio.Lock()  # one transaction at a time on the control connection
        self._reached_at = time.monotonic()
        self.missing: str | None = None  # what the broker said when it had no such exchange; None again after any other answer
        self.unserved = (0, 0)  # shards without a lease that can be believed, at the last two beats
        self.polled_at = self.led_at = time.monotonic()

    def admit(self, cursor: queries.Cursor, deadline: float, waiting: frozenset[str] = frozenset()) -> None:
        """Take a shard in hand; rows of the aggregates in `waiting` wait for the broker."""
        self.shards[cursor.shard] = Shard(cursor, deadline, keys=self.keys, waiting=waiting)
        metrics.EPOCH.labels(cursor.shard).set(cursor.epoch)
        telemetry.log.info("relay.shard_taken", shard=cursor.shard, epoch=cursor.epoch, strikes=cursor.strikes)

    def dismiss(self, shard: Shard, reason: str) -> None:
        """Drop a shard; nothing of it is published or stored any more."""
        self.shards.pop(shard.number, None)
        for gauge in (metrics.EPOCH, metrics.BACKLOG, metrics.OLDEST):
            with suppress(KeyError):
                gauge.remove(shard.number)
        telemetry.log.info("relay.shard_left", shard=shard.number, epoch=shard.lease.epoch, reason=reason)

    @property
    def trouble(self) -> str | None:
        """Why this relay cannot publish now, for the others and for `outbox stats`; None: it can."""
        if self.missing is not None:
            return self.missing
        if self.broker is not None and self.broker.is_open:
            self._reached_at = time.monotonic()
        return "no connection to the broker" if time.monotonic() - self._reached_at > STALE_S else None

    def note_unserved(self, number: int) -> None:
        """Store how many shards no relay serves."""
        self.unserved = (self.unserved[1], number)
        metrics.UNSERVED.set(number)

    def hint(self) -> None:
        """Wake the pump: a writer has committed messages."""
        self.hinted_at = time.monotonic()
        self.wake.set()

    def landed(self) -> None:
        """Advance the position of every shard past the rows that the broker has answered."""
        any_block = False
        for shard in self.shards.values():
            for block in shard.settle():
                any_block = True
                confirmed = block.outcomes.count(Outcome.CONFIRMED)
                self.missing = None  # whatever it answered, it has the exchange
                metrics.PUBLISHED.inc(confirmed)
                metrics.LATENCY.observe(block.rows)
                if confirmed < len(block.rows):
                    metrics.RETURNED.inc(block.outcomes.count(Outcome.RETURNED))
                    metrics.NACKED.inc(block.outcomes.count(Outcome.NACKED))
        if self.starved and any_block:  # without a block the pump would wake itself for ever, and the broker's answers would never be read
            self.wake.set()

    async def lane(self, shard: Shard) -> lanes.Lane | None:
        """Give the shard's one channel, opened when there is none or when a fresh one is due; None without a broker.

        Raises:
            BrokerUnavailableError: the broker does not open one.

        """
        async with self._opening:  # two channels would keep no order between them
            if shard.lane is not None and shard.worn() and not shard.unsettled() and not shard.retrying:
                worn, shard.lane = shard.lane, None
                await worn.drop()
            if shard.lane is None and self.broker is not None:
                shard.lane = await self.broker.lane(shard.number)
            return shard.lane

    def may_write(self, shard: Shard) -> bool:
        """Whether the shard is ours for certain: by this machine's monotonic clock, counted from before the lease was asked for."""
        return self.shards.get(shard.number) is shard and time.monotonic() < shard.deadline

    def watch(self) -> None:
        """Take note of channels and connections that have died, or that do not answer."""
        broker = self.broker
        now = time.monotonic()
        metrics.BROKER_BLOCKED.set(broker is not None and broker.blocked)
        for shard in self.shards.values():
            lane = shard.lane
            if lane is None:
                continue
            if broker is None or not broker.is_open:
                self._lose(shard, None, 0)
            elif lane.closed is not None:
                self.missing = lane.closed if lane.reply_code == _NO_EXCHANGE else self.missing
                # access refused, no such exchange: nothing that a row could be the reason of
                said = lane.closed if lane.reply_code is not None else None
                self._lose(shard, said, backoff_s(shard.losses), to_blame=lane.reply_code not in {403, 404})
            else:
                self._watch_answers(shard, now, is_blocked=broker.blocked)
        if broker is not None and not broker.is_open:
            self.broken.set()

    def _watch_answers(self, shard: Shard, now: float, *, is_blocked: bool) -> None:
        block = shard.flights[0].block if shard.flights else None
        if block is None:
            return
        if is_blocked:
            shard.excuse(now)
        elif now - block.sent_at > self.config.confirm_timeout_s:
            telemetry.log.warning("relay.unanswered", shard=shard.number, rows=block.left)
            if shard.expire(now - self.config.confirm_timeout_s):
                shard.excuse(now)
            else:
                self.broken.set()

    def _lose(self, shard: Shard, refusal: str | None, wait_s: float, *, to_blame: bool = True) -> None:
        rows = shard.unsettled()
        metrics.REPUBLISHED.inc(rows)
        telemetry.log.warning("relay.channel_lost", shard=shard.number, in_flight=rows, reason=refusal or "connection lost")
        shard.lose(refusal, wait_s, to_blame=to_blame)

    def alive(self) -> bool:
        """Whether both loops turn."""
        now = time.monotonic()
        return now - self.polled_at < STALE_S and now - self.led_at < STALE_S
