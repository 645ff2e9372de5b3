"""Which delivery tag on a channel is which row of which block; pure, it knows no client and no broker.

A channel in confirm mode numbers what is published on it from 1, and the broker answers by number: for one, or for all up to it.
"""

from collections import deque

from sagapost_relay import blocks


class _Run:
    """Rows of one block under tags that follow each other: `first` to `last`, `start` is the index of the first one's row."""

    __slots__ = ("block", "first", "last", "start")

    def __init__(self, block: blocks.Block, first: int, last: int, start: int) -> None:
        self.block = block
        self.first = first
        self.last = last
        self.start = start

    def index(self, tag: int) -> int:
        """Give the index of a tag's row."""
        return self.start + tag - self.first

    def shrink(self, tag: int) -> bool:
        """Leave behind what is below `tag`, and what has its answer after that; True when nothing remains."""
        self.start, self.first = self.index(tag), tag
        while self.first <= self.last and self.block.outcomes[self.start]:
            self.start, self.first = self.start + 1, self.first + 1
        return self.first > self.last


class Tags:
    """The tags of one channel, in the order in which they were taken."""

    def __init__(self) -> None:
        self._last = 0
        self._runs: deque[_Run] = deque()

    def __len__(self) -> int:
        return len(self._runs)

    def take(self, block: blocks.Block, start: int, end: int) -> None:
        """Give the next tags to the rows from `start` up to `end`."""
        first, self._last = self._last + 1, self._last + end - start
        self._runs.append(_Run(block, first, self._last, start))

    def answer(self, tag: int, outcome: blocks.Outcome, *, multiple: bool) -> bool:
        """Settle one row, or all up to it; False when no such tag was taken."""
        if not 0 < tag <= self._last:
            return False
        if multiple:
            while self._runs and self._runs[0].first <= tag:
                run = self._runs[0]
                last = min(tag, run.last)
                run.block.settle(run.start, run.index(last) + 1, outcome)
                if run.shrink(last + 1):
                    self._runs.popleft()
            return True
        for run in self._runs:  # nearly always the first one: brokers answer about in order
            if tag <= run.last:
                if tag >= run.first:
                    run.block.settle(run.index(tag), run.index(tag) + 1, outcome)
                break
        while self._runs and self._runs[0].shrink(self._runs[0].first):
            self._runs.popleft()
        return True

    def find(self, message_id: object) -> tuple[blocks.Block, int] | None:
        """Give the first row without an answer that has this message id, as its block and its index there."""
        for run in self._runs:
            for index in range(run.start, run.index(run.last) + 1):
                if run.block.rows[index].event_id == message_id and not run.block.outcomes[index]:
                    return run.block, index
        return None
