"""How one database's outbox stands, and what of it needs a person."""

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Final

import msgspec

from sagapost_chassis import outbox
from sagapost_ops import database
from sagapost_ops.outbox import queries, times

LATE_S: Final = 15  # a lease that has run out is taken over sooner than that, as long as any relay lives
OLD_S: Final = 60
WAITING_S: Final = 10  # what the broker does not take for a moment only needs nobody


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """One database's outbox; `history_since`: what is older may be gone, None: nothing is; `attention`: sentences for a person."""

    database: str
    shards: list[queries.Shard]
    partitions: list[queries.Partition]
    history_since: datetime | None
    aside: list[queries.Aside]
    relays: list[str]
    troubles: list[queries.Trouble] = []
    attention: list[str] = []


def read(conn: database.Connection, name: str) -> Stats:
    """Read everything and judge it."""
    found = Stats(
        database=name,
        shards=queries.shards(conn),
        partitions=queries.partitions(conn),
        history_since=queries.whole_since(conn),
        aside=queries.aside(conn),
        relays=queries.relays(conn),
        troubles=queries.troubles(conn),
    )
    return msgspec.structs.replace(found, attention=attention(found))


def attention(found: Stats) -> list[str]:
    """Say what needs a person, the root of other things first, and what to do about each."""
    name = found.database
    if any(not shard.is_ours for shard in found.shards):
        foreign = (
            "the cursors were written in another PostgreSQL cluster (a restore or a copy), so that no relay runs; "
            f"see: ./sagapost outbox repair --database {name}"
        )
        return [f"{name}: {sentence}" for sentence in (foreign, *_parked(found))]
    return [
        f"{name}: {sentence}"
        for sentence in (*_missing(found), *_held(found), *_troubled(found), *_late(found), *_waiting(found), *_parked(found))
    ]


def _missing(found: Stats) -> Iterator[str]:
    missing = set(range(outbox.SHARDS)) - {shard.shard for shard in found.shards}
    if missing:
        repair = f"./sagapost outbox repair --database {found.database}"
        yield f"no cursor for shard {_numbers(missing)}, whose rows are never published; see: {repair}"


def _held(found: Stats) -> Iterator[str]:
    logs = f"./sagapost logs relay-{found.database}"
    if not found.relays:
        yield f"no relay is alive, nothing is published; see ./sagapost status and {logs}"
        return
    free = [shard.shard for shard in found.shards if shard.owner is None]
    if free:
        yield f"nobody holds shard {_numbers(free)} although a relay is alive; see {logs}"
    for shard in found.shards:
        if shard.owner is not None and shard.lease_s is not None and shard.lease_s < -LATE_S:
            ago = times.span(-shard.lease_s)
            yield f"the lease of shard {shard.shard} ran out {ago} ago and nobody took it over from {shard.owner}; see {logs}"


def _troubled(found: Stats) -> Iterator[str]:
    for relay in found.troubles:
        yield f"{relay.owner} cannot publish: {relay.trouble}; see ./sagapost topology check and ./sagapost status"


def _waiting(found: Stats) -> Iterator[str]:
    waiting = [line for line in found.aside if line.state == "waiting" and line.reason in queries.BROKERS]
    if waiting and max(line.oldest_s for line in waiting) > WAITING_S:
        rows = sum(line.rows for line in waiting)
        why = ", ".join(f"{line.rows} {line.reason}" for line in waiting)
        yield (
            f"{rows} {'message waits' if rows == 1 else 'messages wait'} for the broker ({why}), the first for "
            f"{times.span(max(line.oldest_s for line in waiting))}; they are tried again without end; see: ./sagapost topology check, and "
            f"./sagapost outbox list --state waiting --database {found.database}"
        )


def _late(found: Stats) -> Iterator[str]:
    old = {shard.shard: shard.oldest_s for shard in found.shards if shard.oldest_s is not None and shard.oldest_s > OLD_S}
    if old:
        yield (
            f"shard {_numbers(old)} has rows that have waited for {times.span(max(old.values()))}; "
            f"is the broker up? see ./sagapost status and ./sagapost logs relay-{found.database}"
        )


def _parked(found: Stats) -> Iterator[str]:
    parked = sum(line.rows for line in found.aside if line.state == "parked")
    if parked:
        yield (
            f"{parked} {'message is' if parked == 1 else 'messages are'} parked; see "
            f"./sagapost outbox list --state parked --database {found.database}, mend the cause, then ./sagapost outbox retry"
        )


def _numbers(numbers: Iterable[int]) -> str:
    return ", ".join(str(number) for number in sorted(numbers))
