"""What finished between two PostgreSQL snapshots, as ranges of transaction ids; pure, it must not know any table.

A snapshot's text is `xmin:xmax:xip,xip` (pg_snapshot, PostgreSQL manual 9.27): transactions below xmax that are not in
xip had ended when it was taken. What ended after `lo` and no later than `hi` is therefore `[lo.xmax, hi.xmax)` without
hi's running ones, and those of lo's running ones that run no longer.
"""

from typing import Final

import msgspec

EMPTY: Final = "1:1:"


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """`running` holds the ids below `xmax` that had not ended."""

    xmin: int
    xmax: int
    running: frozenset[int]


def parse(text: str) -> Snapshot:
    """Read a pg_snapshot's text.

    Raises:
        ValueError: it is none.

    """
    xmin, xmax, running = text.split(":")
    return Snapshot(xmin=int(xmin), xmax=int(xmax), running=frozenset(map(int, running.split(","))) if running else frozenset())


def text_of(snapshot: Snapshot) -> str:
    """Write a snapshot as pg_snapshot reads it."""
    return f"{snapshot.xmin}:{snapshot.xmax}:{','.join(map(str, sorted(snapshot.running)))}"


def ended_between(lo: Snapshot, hi: Snapshot) -> list[tuple[int, int]]:
    """Give the half-open ranges of transaction ids that ended after `lo` and no later than `hi`, ascending.

    Raises:
        ValueError: `hi` lies before `lo`: the cursor was written by another cluster, or by a future of this one.

    """
    if hi.xmax < lo.xmax or hi.xmin < lo.xmin:
        raise ValueError(f"the snapshot {hi.xmin}:{hi.xmax} lies before the cursor's {lo.xmin}:{lo.xmax}")
    ranges = [(xid, xid + 1) for xid in sorted(lo.running - hi.running)]
    start = lo.xmax
    for xid in sorted(xid for xid in hi.running if xid >= lo.xmax):
        if xid > start:
            ranges.append((start, xid))
        start = xid + 1
    if hi.xmax > start:
        ranges.append((start, hi.xmax))
    return ranges
