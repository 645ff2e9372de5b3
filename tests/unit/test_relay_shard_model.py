"""One shard in a relay's hands as a state machine: writers, a broker, channels and relays that end, in whatever order they like."""

import hypothesis
from hypothesis import stateful
from hypothesis import strategies as st

from sagapost_relay import blocks, queries, shard, snapshot
from sagapost_relay.blocks import Outcome

START = queries.Position(lo=snapshot.parse(snapshot.EMPTY), hi=None, last_id=0)
SOON = float("inf")


def _cursor(at: queries.Position = START, *, strikes: int = 0, suspect: int | None = None) -> queries.Cursor:
    hi = None if at.hi is None else snapshot.text_of(at.hi)
    return queries.Cursor(
        shard=0, lo=snapshot.text_of(at.lo), hi=hi, last_id=at.last_id, epoch=1, strikes=strikes, suspect=suspect, system_identifier=1
    )


def _row(row_id: int, *, is_large: bool) -> blocks.Row:
    return blocks.Row(row_id, 0, f"e{row_id}", "T", "a.b", "c", "{}", None if is_large else b"{}", 2, 1e9)


def _visible(xid: int, seen: snapshot.Snapshot) -> bool:
    return xid < seen.xmax and xid not in seen.running


class Model(stateful.RuleBasedStateMachine):
    """Writers, a broker that takes rows in order and answers as it likes, channels and relays that end; rows have no other home than here.

    A transaction writes one row; it draws its id after its transaction id, so that neither order follows from the other.
    """

    def __init__(self) -> None:
        super().__init__()
        self.open: dict[int, int] = {}  # transaction id: its row
        self.committed: dict[int, int] = {}  # row: transaction id
        self.large: set[int] = set()
        self.next_xid, self.next_id = 3, 1
        self.pending: list[int] = []  # transactions that have drawn no row yet
        self.seen: set[int] = set()  # rows that have reached the broker
        self.taken: set[int] = set()  # rows that the broker may have kept
        self.confirmed: set[int] = set()  # in this relay's life
        self.before: dict[int, set[int]] = {}  # row: what was committed when its id was drawn
        self.excused: set[int] = set()  # has been set aside at least once: later rows need not wait for it
        self.parked: set[int] = set()  # set aside, and stored
        self.lane: list[tuple[blocks.Block, int]] = []  # sent and not yet taken, as block and index
        self.unanswered: list[tuple[blocks.Block, int]] = []  # taken and not answered
        self.cursor = _cursor()
        self.its = shard.Shard(self.cursor, SOON)

    def snapshot(self) -> snapshot.Snapshot:
        """Take one."""
        running = frozenset({*self.open, *self.pending})
        return snapshot.Snapshot(xmin=min(running, default=self.next_xid), xmax=self.next_xid, running=running)

    def passed(self, at: queries.Position) -> set[int]:
        """Give the committed rows that a position has passed."""
        return {
            row_id
            for row_id, xid in self.committed.items()
            if _visible(xid, at.lo) or (at.hi is not None and _visible(xid, at.hi) and row_id <= at.last_id)
        }

    @stateful.rule()
    def begin(self) -> None:
        """Assign a transaction id."""
        self.pending.append(self.next_xid)
        self.next_xid += 1

    @stateful.rule(count=st.integers(1, 6))
    def write_and_commit(self, count: int) -> None:
        """Write and commit rows, one after the other."""
        for xid in range(self.next_xid, self.next_xid + count):
            self._draw(xid)
            self.committed[self.open.pop(xid)] = xid
        self.next_xid += count

    @stateful.precondition(lambda self: self.pending)
    @stateful.rule(data=st.data(), large=st.sampled_from((False, False, False, True)))
    def write(self, data: st.DataObject, *, large: bool) -> None:
        """Draw an id in any of the transactions."""
        xid = data.draw(st.sampled_from(self.pending))
        self.pending.remove(xid)
        self._draw(xid)
        if large:
            self.large.add(self.open[xid])
            self.excused.add(self.open[xid])

    def _draw(self, xid: int) -> None:
        self.open[xid] = self.next_id
        self.before[self.next_id] = set(self.committed)
        self.next_id += 1

    @stateful.precondition(lambda self: self.open)
    @stateful.rule(data=st.data(), rolls_back=st.sampled_from((False, False, True)))
    def end(self, data: st.DataObject, *, rolls_back: bool) -> None:
        """Commit, or do not."""
        xid = data.draw(st.sampled_from(sorted(self.open)))
        row_id = self.open.pop(xid)
        if not rolls_back:
            self.committed[row_id] = xid

    @stateful.rule(batch=st.sampled_from((1, 2, 3, 5)))
    def poll(self, batch: int) -> None:
        """Read a page and send it, as the pump does."""
        limit = self.its.limit(batch)
        if not limit:
            return
        hi, read = self.snapshot(), self.its.read
        until = read.hi or hi
        found = [row_id for row_id in sorted(set(self.committed)) if _visible(self.committed[row_id], until) and row_id > read.last_id]
        page = [row_id for row_id in found if not _visible(self.committed[row_id], read.lo)][:limit]
        if not page and read.hi is None:
            self.its.skip(hi)
            return
        for flight in self.its.plan([_row(row_id, is_large=row_id in self.large) for row_id in page], hi, limit):
            block = self.its.launch(flight, lambda: None)
            if block is not None:
                assert not self.confirmed & {row.id for row in block.rows}
                self.lane += [(block, index) for index in range(len(block.rows))]

    @stateful.precondition(lambda self: self.lane)
    @stateful.rule(count=st.integers(1, 4))
    def take(self, count: int) -> None:
        """Let rows reach the broker, in order."""
        for block, index in self.lane[:count]:
            row_id = block.rows[index].id
            assert self.before[row_id] <= self.seen | self.excused
            self.seen.add(row_id)
            self.unanswered.append((block, index))
        del self.lane[:count]

    @stateful.precondition(lambda self: self.unanswered)
    @stateful.rule(data=st.data(), count=st.integers(1, 3))
    def answer(self, data: st.DataObject, count: int) -> None:
        """Answer for any rows that have arrived."""
        for _ in range(min(count, len(self.unanswered))):
            block, index = self.unanswered.pop(data.draw(st.integers(0, len(self.unanswered) - 1)))
            outcome = data.draw(st.sampled_from((Outcome.CONFIRMED, Outcome.CONFIRMED, Outcome.RETURNED, Outcome.NACKED)))
            block.settle_one(index, outcome, "312 NO_ROUTE")
            if outcome == Outcome.CONFIRMED:
                self.taken.add(block.rows[index].id)
                self.confirmed.add(block.rows[index].id)
            else:
                self.excused.add(block.rows[index].id)

    def _end_channel(self) -> None:
        self.taken.update(block.rows[index].id for block, index in self.unanswered)  # they are there, and nobody will know
        self.lane, self.unanswered = [], []

    @stateful.rule()
    def settle(self) -> None:
        """Move on."""
        self.its.settle()

    @stateful.rule(refusal=st.sampled_from((None, "406 PRECONDITION_FAILED")))
    def lose(self, refusal: str | None) -> None:
        """End the channel: what had arrived is there without an answer, the rest is gone."""
        self._end_channel()
        self.its.lose(refusal, 0)
        self.excused.update(aside.row.id for aside in self.its.aside)

    @stateful.rule()
    def store(self) -> None:
        """Write a checkpoint."""
        if self.its.dirty():
            self.parked.update(aside.row.id for aside in self.its.aside)
            self.its.store(self.its.at, tuple(self.its.aside))
            self.cursor = _cursor(at=self.its.stored)

    @stateful.rule(strikes=st.sampled_from((0, 0, 1, 2, 3)), has_suspect=st.booleans())
    def crash(self, strikes: int, *, has_suspect: bool) -> None:
        """End the relay; the next one begins with what is stored."""
        self._end_channel()
        self.confirmed.clear()
        suspects = sorted(set(self.committed) - self.passed(self.its.stored))
        suspect = suspects[0] if has_suspect and suspects else None
        self.excused.update({suspect} if suspect else ())
        self.its = shard.Shard(_cursor(strikes=strikes, suspect=suspect, at=queries.position_of(self.cursor)), SOON)

    @stateful.invariant()
    def positions_are_in_order(self) -> None:
        """Hold stored <= at <= read, and no more in flight than may be."""
        assert self.passed(self.its.stored) <= self.passed(self.its.at) <= self.passed(self.its.read)
        flying = sum(flight.unsettled() for flight in self.its.flights)
        assert flying <= (1 if self.its.careful else shard.UNCONFIRMED_MAX)

    @stateful.invariant()
    def nothing_stored_is_lost(self) -> None:
        """Find whatever the stored cursor has passed with the broker, or set aside by the same checkpoint."""
        assert self.passed(self.its.stored) <= self.taken | self.parked

    def teardown(self) -> None:
        """Let everything end well: then everything has arrived, or lies aside."""
        for xid in self.pending:
            self._draw(xid)
        self.pending = []
        self.committed.update({row_id: xid for xid, row_id in self.open.items()})
        self.open.clear()
        for _ in range(4 * len(self.committed) + 8):
            self.poll(5)
            self.take(100)
            while self.unanswered:
                block, index = self.unanswered.pop(0)
                block.settle_one(index, Outcome.CONFIRMED, "")
                self.taken.add(block.rows[index].id)
            self.settle()
            self.store()

        assert set(self.committed) == self.taken | self.parked
        assert self.passed(self.its.stored) == set(self.committed)


TestModel = Model.TestCase
TestModel.settings = hypothesis.settings(max_examples=100, stateful_step_count=40, deadline=None)
