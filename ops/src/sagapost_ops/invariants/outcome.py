"""What a check is given beside the evidence, and what it answers."""

import itertools
from collections.abc import Callable, Iterable
from typing import Final
from uuid import UUID

import msgspec

from sagapost_ops import evidence, parts

KEPT: Final = 10_000  # sentences of one check


class Expectations(msgspec.Struct, frozen=True, kw_only=True):
    """What whoever asks has done to the system on purpose; the default is nothing."""

    dead: int = 0  # messages in the dead-letter queues
    parked: int | None = None  # sagas waiting for an operator; None: any number
    parked_rows: int = 0  # messages that the broker did not take and that wait for an operator
    duplicate_mails: int = 0  # one for each crash between the mail server's 250 and the acknowledgement
    consumers: bool = True  # the services run
    strangers: bool = False  # provider and mailbox serve other databases too
    accepted: tuple[UUID, ...] = ()  # sagas that a client was told of with a 202


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How many things one check looked at, a sentence for each that is wrong, and how many are older than the outbox (`unjudged`).

    `more` sentences were counted and not kept; `note` is what breaks nothing and should be known.
    """

    checked: int
    violations: tuple[str, ...] = ()
    unjudged: int = 0
    more: int = 0
    note: str | None = None


Check = Callable[[evidence.Evidence, Expectations], Outcome | None]  # called once, reads its own pages; None: there is nothing to ask
PartCheck = Callable[[parts.Part, Expectations], Outcome | None]  # called for each page of sagas


class Tally:
    """The outcome of one check so far, added up page by page; it keeps `KEPT` sentences at most."""

    def __init__(self) -> None:
        self.checked = 0
        self.violations: list[str] = []
        self.unjudged = 0
        self.more = 0
        self.note: str | None = None

    def add(self, found: Outcome) -> None:
        """Add what the check said of one page."""
        room = KEPT - len(self.violations)
        self.checked += found.checked
        self.violations += found.violations[:room]
        self.unjudged += found.unjudged
        self.more += found.more + max(0, len(found.violations) - room)
        self.note = found.note or self.note

    def outcome(self) -> Outcome:
        """Return all of it."""
        return Outcome(checked=self.checked, violations=tuple(self.violations), unjudged=self.unjudged, more=self.more, note=self.note)


def outcome(checked: int, violations: Iterable[str], unjudged: int = 0, note: str | None = None) -> Outcome:
    """Make an outcome; sentences beyond `KEPT` are counted."""
    left = iter(violations)
    kept = tuple(itertools.islice(left, KEPT))
    return Outcome(checked=checked, violations=kept, unjudged=unjudged, more=sum(1 for _ in left), note=note)


def total(outcomes: Iterable[Outcome]) -> Outcome:
    """Add up the outcomes of all pages."""
    tally = Tally()
    for one in outcomes:
        tally.add(one)
    return tally.outcome()
