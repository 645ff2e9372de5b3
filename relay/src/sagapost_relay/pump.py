"""Reads what ended since the cursors and puts it in flight, shard by shard, in order; it must not store anything."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NoReturn

from sagapost_chassis import amqp, crashpoints, db
from sagapost_relay import errors, queries, snapshot
from sagapost_relay.blocks import Row
from sagapost_relay.desk import Desk, backoff_s
from sagapost_relay.shard import Flight, Shard

IDLE_MIN_S: Final = 0.002
IDLE_MAX_S: Final = 0.05
HINTED_S: Final = 1.0
_GROWTH: Final = 1.5


async def run(conn: db.Connection, control: db.Connection, desk: Desk) -> None:
    """Poll for ever: at once while there is more, when a writer hints, and otherwise every few milliseconds while it is busy.

    Up to `IDLE_MAX_S` when it is not, and when the writers hint: they will say when there is more, and a hint that is lost costs one pause.
    """
    pause_s = IDLE_MIN_S
    while True:
        desk.wake.clear()
        desk.starved = False
        desk.landed()
        desk.watch()
        more, moved = await _poll(conn, control, desk)
        desk.polled_at = time.monotonic()
        if more:
            await asyncio.sleep(0)
            continue
        pause_s = IDLE_MIN_S if moved else min(pause_s * _GROWTH, IDLE_MAX_S)
        hinted = desk.polled_at - desk.hinted_at < HINTED_S
        with suppress(TimeoutError):
            async with asyncio.timeout(IDLE_MAX_S if hinted else pause_s):
                await desk.wake.wait()


async def _poll(conn: db.Connection, control: db.Connection, desk: Desk) -> tuple[bool, bool]:
    """Read one page of each shard that has room; tell whether there is more to read at once, and whether anything moved."""
    if desk.broker is None or not desk.broker.is_open:
        return False, False
    limits = [(shard, limit) for shard in desk.shards.values() if (limit := shard.limit(desk.config.batch))]
    desk.starved = len(limits) < len(desk.shards)
    if not limits:
        return False, False
    hi, replicated = await queries.current_snapshot(conn)
    more = moved = False
    for limit in sorted({limit for _, limit in limits}):  # one, except beside a shard that goes row by row
        pages = await _pages(conn, control, desk, [shard for shard, its in limits if its == limit], hi, limit=limit)
        moved = moved or bool(pages)
        more = more or any(len(rows) == limit for _, _, rows in pages)
        if replicated and any(rows for _, _, rows in pages):
            await queries.await_standbys(conn)  # a message is never ahead of the order that a promotion keeps
        if pages:
            await crashpoints.crashpoint("relay.after_read")
        for number, (shard, at, rows) in enumerate(pages):
            if number:
                await crashpoints.crashpoint("relay.mid_batch")
            if shard.read is at:
                await _send(control, desk, shard, shard.plan(rows, hi, limit))
    if moved:
        await asyncio.sleep(0)  # to the connection's writer
        await crashpoints.crashpoint("relay.before_confirm")
    return more, moved


async def _read(
    conn: db.Connection, shards: Sequence[Shard], hi: snapshot.Snapshot, limit: int, max_bytes: int
) -> list[tuple[Shard, queries.Position, list[Row]]]:
    """Read the next page of each shard, and give where it began; a window that turns out empty is passed at once.

    A channel that is lost meanwhile takes its shard's position back: what was read lies behind rows that must go first, and is
    of no use any more.
    """
    began = {shard.number: shard.read for shard in shards}
    fresh = [shard for shard in shards if shard.read.hi is None and shard.read.lo != hi]
    paged = [shard for shard in shards if shard.read.hi is not None]
    rows: list[Row] = []
    if fresh:
        rows += await queries.window(conn, [(shard.number, shard.read) for shard in fresh], hi, limit=limit, max_bytes=max_bytes)
    if paged:
        rows += await queries.page(conn, [(shard.number, shard.read) for shard in paged], limit=limit, max_bytes=max_bytes)
    by_shard: dict[int, list[Row]] = {shard.number: [] for shard in (*fresh, *paged)}
    for row in rows:
        by_shard[row.shard].append(row)
    for shard in fresh:
        if not by_shard[shard.number] and shard.read is began[shard.number]:
            shard.skip(hi)
    return [
        (shard, began[shard.number], by_shard[shard.number])
        for shard in (*fresh, *paged)
        if by_shard[shard.number] or began[shard.number].hi is not None
    ]


async def _pages(
    conn: db.Connection, control: db.Connection, desk: Desk, shards: Sequence[Shard], hi: snapshot.Snapshot, *, limit: int
) -> list[tuple[Shard, queries.Position, list[Row]]]:
    try:
        return await _read(conn, shards, hi, limit, desk.config.max_payload_bytes)
    except ValueError:
        await _refuse(control, desk, [shard.number for shard in shards])


async def _refuse(control: db.Connection, desk: Desk, shards: Sequence[int]) -> NoReturn:
    """Store that the server has fallen behind the cursors, and stop.

    Raises:
        errors.RefusedError: always.

    """
    async with desk.control, control.transaction():
        await queries.distrust(control, desk.owner, shards)
    raise errors.RefusedError(queries.refusal(shards))


async def _send(control: db.Connection, desk: Desk, shard: Shard, flights: Sequence[Flight]) -> None:
    """Put flights under way; whatever fails, the shard goes on from its first row without an answer."""
    careful, at = shard.careful, shard.read
    try:
        for number, flight in enumerate(flights):
            if careful and flight.rows and not await _note_suspect(control, desk, shard, flight.rows[0]):
                raise errors.FencedError(f"shard {shard.number} belongs to another relay")
            lane = await desk.lane(shard)
            if lane is None or not desk.may_write(shard) or shard.leaving or shard.read is not at:
                return  # a channel that was lost meanwhile took the shard back to rows that go first; one that is left goes on elsewhere
            block, at = shard.launch(flight, desk.landed), flight.after
            if block is not None:
                await lane.send(block)
            if number == 0 and len(flights) > 1:
                await crashpoints.crashpoint("relay.mid_batch")
    except amqp.BrokerUnavailableError:
        if shard.lane is None:  # no channel within its time: waiting for one per shard, again and again, would hold up all of them
            desk.broken.set()
        shard.lose(None, backoff_s(shard.losses))


async def _note_suspect(control: db.Connection, desk: Desk, shard: Shard, row: Row) -> bool:
    async with desk.control:
        return await queries.suspect(control, desk.owner, shard.lease, row.id)
