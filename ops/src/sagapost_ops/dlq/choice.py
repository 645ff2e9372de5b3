"""Which letters a person means; pure."""

from collections.abc import Iterable
from datetime import datetime

import msgspec

from sagapost_ops.dlq import letters


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """Each field that is given narrows the choice; `since` and `until` ask for the time when a message became a dead letter."""

    ids: tuple[str, ...] = ()
    group: str | None = None
    event_type: str | None = None
    order_id: int | None = None
    since: datetime | None = None
    until: datetime | None = None
    limit: int | None = None


class Sorted(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the choice: `matched` letters, of which `chosen` may move and the others may not."""

    matched: int
    chosen: tuple[letters.Letter, ...]
    over_max: int = 0
    unreadable: int = 0


def matches(letter: letters.Letter, wanted: Choice) -> bool:
    """Tell whether a letter is meant; one without a time is not in any span."""
    return (
        (not wanted.ids or letter.id in wanted.ids)
        and (wanted.group is None or letter.fingerprint == wanted.group)
        and (wanted.event_type is None or letter.type == wanted.event_type)
        and (wanted.order_id is None or letter.order_id == wanted.order_id)
        and (wanted.since is None or (letter.failed_at is not None and letter.failed_at >= wanted.since))
        and (wanted.until is None or (letter.failed_at is not None and letter.failed_at < wanted.until))
    )


def for_discard(found: Iterable[letters.Letter], wanted: Choice) -> Sorted:
    """Choose letters, up to the limit."""
    meant = [letter for letter in found if matches(letter, wanted)]
    return Sorted(matched=len(meant), chosen=tuple(meant[: wanted.limit]))


def for_replay(found: Iterable[letters.Letter], wanted: Choice, max_replays: int) -> Sorted:
    """Choose letters, up to the limit, of those that a consumer can read and that were not sent again too often."""
    meant = [letter for letter in found if matches(letter, wanted)]
    readable = [letter for letter in meant if not letter.faults]
    good = [letter for letter in readable if letter.replays < max_replays]
    return Sorted(
        matched=len(meant),
        chosen=tuple(good[: wanted.limit]),
        over_max=len(readable) - len(good),
        unreadable=len(meant) - len(readable),
    )
