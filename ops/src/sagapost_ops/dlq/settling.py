"""Waits until replayed messages are processed or come back; it must not know why they were replayed."""

import time
from typing import Final
from uuid import UUID

from sagapost_ops import database
from sagapost_ops.dlq import queries, shelf

LADDER_S: Final = 1200.0  # the longest retry ladder is payment's, about 17 minutes
WINDOW_S: Final = 30.0
_POLL_S: Final = 0.2
_BATCH: Final = 1000


class Watch:
    """Knows which replayed messages are under way, processed, or back among the dead letters.

    `inbox` is the consumer's database; without one a message counts as processed when it stayed away for the whole wait.
    """

    def __init__(self, held: shelf.Shelf, replay_id: str, inbox: database.Connection | None) -> None:
        self.back: set[str] = set()
        self._shelf = held
        self._replay_id = replay_id
        self._inbox = inbox
        self._open: set[str] = set()

    @property
    def patience_s(self) -> float:
        """How long to wait for one step at most, unless somebody says otherwise."""
        return WINDOW_S if self._inbox is None else LADDER_S

    def sent(self, message_id: str) -> None:
        """Expect a message to be processed."""
        self._open.add(message_id)

    def look(self, patience_s: float) -> int:
        """Wait until every message is settled, at most so long; give how many are not."""
        deadline = time.monotonic() + patience_s
        while True:
            left_s = deadline - time.monotonic()
            self._collect(min(_POLL_S, max(0.0, left_s)))
            if self._inbox is not None:
                self._ask(self._inbox)
            if not self._open:
                return 0
            if left_s <= 0:
                break
        if self._inbox is None:
            self._open.clear()  # stayed away: nothing more can be known
        return len(self._open)

    def _collect(self, timeout_s: float) -> None:
        while (letter := self._shelf.arrived(timeout_s)) is not None:
            timeout_s = 0.0
            if letter.replay_id == self._replay_id:
                self.back.add(letter.id)
                self._open.discard(letter.id)

    def _ask(self, inbox: database.Connection) -> None:
        asked = [message_id for message_id in self._open if _is_uuid(message_id)]
        for at in range(0, len(asked), _BATCH):
            self._open -= _settled(inbox, asked[at : at + _BATCH])


def _settled(inbox: database.Connection, asked: list[str]) -> set[str]:
    found = queries.processed(inbox, asked)
    return {message_id for message_id in asked if str(UUID(message_id)) in found}


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True
