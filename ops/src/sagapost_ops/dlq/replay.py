"""Sends dead letters to the queue they came from: published and confirmed first, acknowledged then; it must not print."""

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec

from sagapost_chassis import crashpoints
from sagapost_ops import database, errors
from sagapost_ops.dlq import choice, letters, properties, queries, settling, shelf, wire
from sagapost_ops.dlq import run as runs

LOOK_EVERY: Final = 20
LOOK_S: Final = 3.0
# the broker takes back what is held for half an hour; what is left then is for the next call
LONGEST_S: Final = 25 * 60.0
_DROPPED: Final = frozenset(
    {"x-attempt", "x-waits", "x-delivery-count", "x-acquired-count", "CC", "BCC", letters.REPLAY_COUNT, letters.REPLAY_ID}
)
_BROKERS: Final = ("x-death", "x-first-death-", "x-last-death-")
_WITHOUT: Final = frozenset({"user_id", "expiration"})


class Manner(msgspec.Struct, frozen=True, kw_only=True):
    """How to replay: sizes of the first steps, the failed share that stops (0 to 1), messages per second, seconds to wait after a step."""

    canary: tuple[int, ...] = ()
    stop_share: float | None = None
    rate_per_s: float | None = None
    settle_s: float | None = None
    max_replays: int = 3


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay would do or has done; `stopped` before everything was sent, and why; `unsettled` ones are still under way."""

    replay_id: str | None
    queue: str
    matched: int
    replayed: int
    failed_again: int
    stopped: bool
    dry_run: bool
    stopped_why: str = ""
    unsettled: int = 0
    over_max_replays: int = 0
    unreadable: int = 0
    would_replay: int = 0
    not_reached: int = 0


class _Course(msgspec.Struct, kw_only=True):
    """A replay under way."""

    link: wire.Link
    held: shelf.Shelf
    run: runs.Run
    watch: settling.Watch
    manner: Manner
    queue: str
    channel: int
    on_letter: Callable[[], None]
    sent: int = 0
    is_under_way: bool = False
    next_at: float = 0.0
    end_at: float = 0.0


def perform(
    url: str,
    run: runs.Run,
    request: runs.Request,
    manner: Manner,
    *,
    inbox: database.Connection | None,
    on_chosen: Callable[[choice.Sorted], None],
    on_letter: Callable[[], None],
) -> Result:
    """Replay what is meant, and say what became of it; `on_chosen` hears of the choice before anything moves.

    Raises:
        FailedError: the broker does not take a message, or gave up; what was not confirmed is still a dead letter.

    """
    with shelf.opened(url) as link, shelf.Shelf(link, request.queue) as held:
        found = choice.for_replay(held.letters, request.wanted, manner.max_replays)
        queries.matched(run.conn, run.id, found.matched)
        on_chosen(found)
        course = _Course(
            link=link,
            held=held,
            run=run,
            watch=settling.Watch(held, str(run.id), inbox),
            manner=manner,
            queue=request.queue,
            channel=link.channel(confirms=True),
            on_letter=on_letter,
            end_at=time.monotonic() + LONGEST_S,
        )
        unsettled = _go(course, found.chosen) if found.chosen else 0
    return Result(
        replay_id=str(run.id),
        queue=held.queue,
        matched=found.matched,
        replayed=course.sent,
        failed_again=len(course.watch.back),
        stopped=bool(run.stopped),
        dry_run=False,
        stopped_why=run.stopped,
        unsettled=unsettled,
        over_max_replays=found.over_max,
        unreadable=found.unreadable,
        not_reached=len(found.chosen) - course.sent,
    )


def planned(queue: str, found: choice.Sorted) -> Result:
    """Say what a replay would do."""
    return Result(
        replay_id=None,
        queue=queue,
        matched=found.matched,
        replayed=0,
        failed_again=0,
        stopped=False,
        dry_run=True,
        over_max_replays=found.over_max,
        unreadable=found.unreadable,
        would_replay=len(found.chosen),
    )


def again(letter: letters.Letter, replay_id: str) -> bytes:
    """Write a letter's properties for the next try: the same message, a fresh count of attempts, and one more replay."""
    marks: dict[str, str | int] = {letters.REPLAY_COUNT: letter.replays + 1, letters.REPLAY_ID: replay_id}
    return properties.rewritten(letter.properties, _is_dropped, marks, _WITHOUT)


def _is_dropped(header: str) -> bool:
    # the broker's history would make 3.10 drop an expired retry as a loop, its counters are its own, and CC routes to other queues
    return header in _DROPPED or header.startswith(_BROKERS)


def steps(manner: Manner, chosen: int) -> Iterator[tuple[int, bool]]:
    """Give the size of each step and whether it is one of the canary's."""
    left = chosen
    for size, is_canary in itertools.chain(((size, True) for size in manner.canary), itertools.repeat((LOOK_EVERY, False))):
        if not left:
            return
        yield min(size, left), is_canary
        left -= min(size, left)


def _go(course: _Course, chosen: Sequence[letters.Letter]) -> int:
    at = 0
    for size, is_canary in steps(course.manner, len(chosen)):
        _step(course, chosen[at : at + size])
        at += size
        if course.run.stopped:
            break
        course.run.stopped = _verdict(course, is_canary=is_canary, is_last=at == len(chosen))
        if course.run.stopped:
            break
    unsettled = course.watch.look(_patience_s(course, is_canary=False))
    course.run.came_back = len(course.watch.back)
    return unsettled


def _patience_s(course: _Course, *, is_canary: bool) -> float:
    """Say how long to wait for what was sent: never longer than the broker lets us hold the rest."""
    asked = course.manner.settle_s
    longest_s = course.watch.patience_s if is_canary else LOOK_S
    if asked is not None:
        longest_s = asked if is_canary else min(asked, LOOK_S)
    return min(longest_s, max(0.0, course.end_at - time.monotonic()))


def _verdict(course: _Course, *, is_canary: bool, is_last: bool) -> str:
    """Say why to stop, or nothing."""
    share = course.manner.stop_share
    if not is_canary and (share is None or is_last):  # after the last there is nothing left to stop
        return ""
    unsettled = course.watch.look(_patience_s(course, is_canary=is_canary))
    failed = len(course.watch.back)
    if share is not None and failed and failed >= share * course.sent:
        return f"{failed} of {course.sent} failed again"
    if is_canary and unsettled:
        return f"{unsettled} of {course.sent} are neither processed nor back; is the consumer up?"
    return ""


def _step(course: _Course, chosen: Sequence[letters.Letter]) -> None:
    """Send one step, a second's worth at a time, so that the record runs ahead of a slow replay by no more than that."""
    rate = course.manner.rate_per_s
    size = len(chosen) if rate is None else max(1, min(len(chosen), math.ceil(rate)))
    for at in range(0, len(chosen), size):
        _part(course, chosen[at : at + size])
        if course.run.stopped:
            return


def _part(course: _Course, part: Sequence[letters.Letter]) -> None:
    first, end = course.sent + 1, course.sent + 1 + len(part)
    queries.intend(course.run.conn, course.run.id, first, part)
    try:
        for letter in part:
            if not _pace(course):
                course.run.stopped = (
                    f"it went on for {LONGEST_S / 60:.0f} minutes, and the broker would take back the rest; call again for it"
                )
                return
            _send(course, letter)
    finally:
        queries.became(course.run.conn, course.run.id, range(first, course.sent + 1), "replayed")
        # of one that was under way when something broke nobody knows; the run's end says so
        queries.became(course.run.conn, course.run.id, range(course.sent + 1 + course.is_under_way, end), "left")


def _pace(course: _Course) -> bool:
    """Wait for the next message's time; False when that is too late."""
    at = max(course.next_at, time.monotonic())
    if at >= course.end_at:
        return False
    shelf.wait(at)
    if course.manner.rate_per_s is not None:
        course.next_at = at + 1 / course.manner.rate_per_s
    return True


def _send(course: _Course, letter: letters.Letter) -> None:
    course.is_under_way = True
    outcome = course.link.publish(course.channel, course.queue, again(letter, str(course.run.id)), letter.delivery.body)
    if outcome != "stored":
        course.is_under_way = False
        why = "there is no such queue; see ./sagapost topology check" if outcome == "unroutable" else "it is full; see ./sagapost status"
        raise errors.FailedError(
            f"{course.queue} does not take {letter.id}: {why}; it is still a dead letter, {course.sent} were replayed before it"
        )
    asyncio.run(crashpoints.crashpoint("dlq.after_publish"))
    course.held.ack(letter)
    course.sent += 1
    course.is_under_way = False
    course.watch.sent(letter.id)
    course.on_letter()
