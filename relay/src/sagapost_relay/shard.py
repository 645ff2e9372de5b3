"""One shard in this relay's hands: what is read, in flight, settled and stored; it does no I/O."""

import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from sagapost_relay import lanes, parked, queries, snapshot
from sagapost_relay.blocks import Block, Outcome, Row

# enough to keep the broker busy; more only makes a restart repeat more
UNCONFIRMED_MAX: Final = 512
# rows that were in flight at two ends in a row are published alone, so that the next end names its row
STRIKES: Final = 2
# a connection that is lost without a word says little of the row that was in flight: the broker may be restarting
LONELY: Final = 4
# A channel whose first publish meets a queue without a leader is nacked by RabbitMQ 3.10 for as long as the last leader's node is away
# (docs/adr/0026), and one that is opened then is not. A queue that is full gets nothing better from a fresh channel, so not at each nack.
FRESH_S: Final = 1.0


class Flight(msgspec.Struct, kw_only=True):
    """Rows on their way together, and the shard's position once they and all before them are settled."""

    after: queries.Position
    rows: list[Row]
    aside: list[parked.Aside]
    known: list[int]  # rows in between that an earlier flight got confirmed
    block: Block | None = None

    def unsettled(self) -> int:
        """Count the rows without an answer."""
        return 0 if not self.rows else len(self.rows) if self.block is None else self.block.left


class Shard:
    """Positions are ordered stored <= at <= read: in the database, settled in memory, sent or settled."""

    def __init__(
        self, cursor: queries.Cursor, deadline: float, *, keys: re.Pattern[str] | None = None, waiting: frozenset[str] = frozenset()
    ) -> None:
        self.lease = queries.Lease(shard=cursor.shard, epoch=cursor.epoch)
        self.deadline = deadline  # of time.monotonic(): nothing is written after it
        self.stored = self.at = self.read = queries.position_of(cursor)
        self.flights: deque[Flight] = deque()
        self.aside: list[parked.Aside] = []
        self.lane: lanes.Lane | None = None
        self.retrying = False  # rows that were set aside are in flight too
        self.not_before = 0.0
        self.losses = 0
        self.leaving = False
        self._confirmed: set[int] = set()  # beyond `at`, by flights that were lost: not to be published again
        # one end beside a row says nothing of the row, and set aside it would come out of order: it must be the last of several
        self._suspect = cursor.suspect if cursor.strikes > STRIKES else None
        self._strikes = cursor.strikes
        self._keys = keys
        self._waiting = waiting  # aggregates with a stored row that waits for the broker
        self._careful = UNCONFIRMED_MAX if cursor.strikes >= STRIKES else 0
        self._lonely = 0
        self._moved = False  # since the last store, past rows and not only past emptiness

    @property
    def number(self) -> int:
        """The shard's number."""
        return self.lease.shard

    @property
    def careful(self) -> bool:
        """Whether rows are sent one by one, because one of the next may be what kills relays."""
        return self._careful > 0

    def limit(self, batch: int) -> int:
        """Return how many rows may be read now; 0: none."""
        if self.leaving or self.not_before > time.monotonic():
            return 0
        if self.careful:
            return 0 if self.flights else 1
        unsettled = self.unsettled()
        if unsettled and self.worn():
            return 0
        return batch if unsettled + batch <= UNCONFIRMED_MAX else 0

    def unsettled(self) -> int:
        """Count the rows in flight without an answer."""
        return sum(flight.unsettled() for flight in self.flights)

    def worn(self) -> bool:
        """Whether a fresh lane is due, once nothing is in flight on this one: a queue has rejected something on it."""
        nacked_at = None if self.lane is None else self.lane.nacked_at
        return nacked_at is not None and time.monotonic() - nacked_at >= FRESH_S

    def idle(self) -> bool:
        """Whether nothing is in flight and everything settled is stored."""
        return not self.flights and not self.dirty()

    def dirty(self) -> bool:
        """Whether there is something to store: empty windows alone are not worth a write."""
        return bool(self.aside) or (self._moved and self.at != self.stored)

    def wait_for(self, aggregates: frozenset[str]) -> None:
        """Note the aggregates of which a stored row waits for the broker: later rows of theirs are set aside behind it."""
        self._waiting = aggregates

    def held(self) -> set[str]:
        """Return the aggregates of which a row waits for the broker, stored or not, or was refused and is still in flight."""
        asides = [*self.aside, *(aside for flight in self.flights for aside in flight.aside)]
        found = {*self._waiting, *(aside.row.aggregate for aside in asides if aside.reason in parked.ENDLESS)}
        for flight in self.flights:
            if flight.block is not None and (Outcome.RETURNED in flight.block.outcomes or Outcome.NACKED in flight.block.outcomes):
                found.update(aside.row.aggregate for aside in parked.refusals(flight.block))
        found.discard("")
        return found

    def plan(self, rows: Sequence[Row], hi: snapshot.Snapshot, limit: int) -> list[Flight]:
        """Turn a page that was read into the flights that it will be.

        Two of them, so that the broker works on the first while the second is being encoded.
        """
        until = self.read.hi or hi
        if len(rows) < limit:
            after = queries.Position(lo=until, hi=None, last_id=0)
        else:
            after = queries.Position(lo=self.read.lo, hi=until, last_id=rows[-1].id)
        if len(rows) < 2:
            return [self._flight(rows, after)]
        middle = (len(rows) + 1) // 2
        between = queries.Position(lo=self.read.lo, hi=until, last_id=rows[middle - 1].id)
        return [self._flight(rows[:middle], between), self._flight(rows[middle:], after)]

    def _flight(self, rows: Sequence[Row], after: queries.Position) -> Flight:
        flight = Flight(after=after, rows=[], aside=[], known=[])
        held = self.held() if rows else set[str]()
        for row in rows:
            if row.id in self._confirmed:
                flight.known.append(row.id)
            elif (aside := parked.unfit(row, self._keys)) is not None:
                flight.aside.append(aside)
            elif row.id == self._suspect:
                flight.aside.append(parked.Aside(row=row, reason="crash-suspect", detail="a relay ended while it was in flight alone"))
            elif row.aggregate in held:
                flight.aside.append(parked.Aside(row=row, reason="behind", detail="an earlier message of the same aggregate waits"))
            else:
                flight.rows.append(row)
        return flight

    def launch(self, flight: Flight, on_settled: Callable[[], None]) -> Block | None:
        """Count a flight as under way; its block, if it has rows, is for the caller to send."""
        if flight.rows:
            flight.block = Block(flight.rows, on_settled)
        self.read = flight.after
        self.flights.append(flight)
        return flight.block

    def settle(self) -> list[Block]:
        """Move `at` over what is settled, and give the blocks that were."""
        landed: list[Block] = []
        while self.flights and self.flights[0].unsettled() == 0:
            flight = self.flights.popleft()
            self.at = flight.after
            self.aside += flight.aside
            self._confirmed.difference_update(flight.known)
            # an open window in a stored cursor keeps the ring from turning, so that its end is worth a write too
            self._moved = self._moved or bool(flight.rows or flight.aside or flight.known) or self.stored.hi is not None
            if flight.block is not None:
                self.aside += parked.refusals(flight.block)
                landed.append(flight.block)
                self._careful = max(0, self._careful - len(flight.rows))
        if landed:
            self.losses = self._strikes = self._lonely = 0
        return landed

    def skip(self, hi: snapshot.Snapshot) -> None:
        """Move over an empty window when nothing is in flight; this lives in memory only, a restart reads the same emptiness again."""
        if not self.flights:
            self.at = queries.Position(lo=hi, hi=None, last_id=0)
        self.read = queries.Position(lo=hi, hi=None, last_id=0)

    def store(self, at: queries.Position, aside: Sequence[parked.Aside]) -> None:
        """Note what has been stored."""
        self.stored = at
        self._moved = self.at != at
        self._waiting |= {one.row.aggregate for one in aside if one.reason in parked.ENDLESS}
        del self.aside[: len(aside)]

    def excuse(self, now: float) -> None:
        """Restart the confirm timeout of what is in flight: the broker is blocked."""
        for flight in self.flights:
            if flight.block is not None:
                flight.block.sent_at = now

    def expire(self, sent_before: float) -> bool:
        """Give up rows that were sent before that time and that the broker has passed by: it has answered for later ones.

        A queue without a majority confirms nothing; that must not hold up what goes to the others. Rows behind the last answer
        are not given up, for their connection may be dead, and set aside they would come out of order. False: there are no others.
        """
        waiting = [flight.block for flight in self.flights if flight.block is not None]
        answered = [number for number, block in enumerate(waiting) if block.left < len(block.rows)]
        given_up = False
        for number, block in enumerate(waiting[: answered[-1] + 1] if answered else ()):
            if block.sent_at > sent_before:
                break
            end = len(block.rows) if number < answered[-1] else len(block.outcomes.rstrip(b"\0"))
            for index in range(end):
                if not block.outcomes[index]:
                    block.settle_one(index, Outcome.NACKED, "no confirm in time: a queue without a leader?")
                    given_up = True
        return given_up

    def lose(self, refusal: str | None, wait_s: float, *, to_blame: bool = True) -> None:
        """Forget what is in flight after its channel died, and go on from the first row that is not settled.

        `refusal` is what the broker said when it closed the channel, None when it went without a word; `to_blame`: a row may
        be the reason.
        """
        self.lane = None
        self.losses += 1
        self.not_before = time.monotonic() + wait_s
        flying = [flight.block for flight in self.flights if flight.block is not None]
        if to_blame and self.careful and len(flying) == 1 and flying[0].left and self._is_to_blame(flying[0], refusal):
            return
        for block in flying:
            self._confirmed.update(row.id for row, outcome in zip(block.rows, block.outcomes, strict=True) if outcome == Outcome.CONFIRMED)
        self.flights.clear()
        self.read = self.at
        self._strikes += to_blame and bool(flying)
        if self._strikes >= STRIKES:
            self._careful = UNCONFIRMED_MAX

    def _is_to_blame(self, block: Block, refusal: str | None) -> bool:
        """Set a row aside that was alone in flight when its channel was closed, or several times when it was lost."""
        self._lonely += 1
        if refusal is None and self._lonely < LONELY:
            return False
        detail = refusal or f"the connection was lost {LONELY} times while it was in flight alone"
        self.aside += [parked.Aside(row=row, reason="refused", detail=detail) for row in block.rows]
        self.at = self.read = self.flights[-1].after
        self.flights.clear()
        self._lonely = 0
        self._moved = True
        return True
