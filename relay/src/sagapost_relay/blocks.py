"""Rows of the outbox on their way through the broker, and what became of each; it knows neither database nor broker."""

import enum
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Row(NamedTuple):
    """One outbox row as the relay reads it; a plain tuple, for a Struct built by name costs more than all that is done with it.

    `headers` is JSON text, `payload` is None above the size limit, `created_s` is seconds since 1970.
    """

    id: int
    shard: int
    event_id: str
    type: str
    routing_key: str
    correlation_id: str
    headers: str
    payload: bytes | None
    size_bytes: int
    created_s: float
    aggregate: str = ""


class Outcome(enum.IntEnum):
    """What the broker said of one row; REFUSED: it cannot be written as a message, and the broker has not seen it."""

    UNKNOWN = 0
    CONFIRMED = 1
    RETURNED = 2
    NACKED = 3
    REFUSED = 4


class Block:
    """Rows that are written together, in order; it is settled when the broker has answered for each of them."""

    def __init__(self, rows: Sequence[Row], on_settled: Callable[[], None]) -> None:
        self.rows = rows
        self.outcomes = bytearray(len(rows))  # of Outcome
        self.details: dict[int, str] = {}  # why, by the row's index, for rows that were RETURNED or REFUSED
        self.left = len(rows)
        self.sent_at = time.monotonic()
        self._on_settled = on_settled

    def settle_one(self, index: int, outcome: Outcome, detail: str) -> None:
        """Note an answer for one row, and why; a row's first answer stands."""
        if not self.outcomes[index]:
            self.details[index] = detail
            self.settle(index, index + 1, outcome)

    def settle(self, start: int, end: int, outcome: Outcome) -> None:
        """Note an answer for the rows from `start` up to `end`; a row's first answer stands."""
        fresh = self.outcomes.count(0, start, end)
        if fresh == 0:
            return
        if fresh == end - start:
            self.outcomes[start:end] = bytes((outcome,)) * fresh
        else:
            for index in range(start, end):
                self.outcomes[index] = self.outcomes[index] or outcome
        self.left -= fresh
        if self.left == 0:
            self._on_settled()
