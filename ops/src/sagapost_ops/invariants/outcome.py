"""What a check is given beside the evidence, and what it answers."""

from collections.abc import Callable, Iterable
from uuid import UUID

import msgspec

from sagapost_ops import evidence


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
    """How many things one check looked at, a sentence for each that is wrong, and how many the outbox is too young to tell of."""

    checked: int
    violations: tuple[str, ...] = ()
    unjudged: int = 0


Check = Callable[[evidence.Evidence, Expectations], Outcome | None]  # None: there is nothing to ask


def outcome(checked: int, violations: Iterable[str], unjudged: int = 0) -> Outcome:
    """Make an outcome."""
    return Outcome(checked=checked, violations=tuple(violations), unjudged=unjudged)
