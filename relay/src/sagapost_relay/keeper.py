"""Stores what is settled, and sees to the rows that were set aside; it must not read the outbox."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from sagapost_chassis import amqp, crashpoints, db
from sagapost_relay import errors, metrics, parked, queries
from sagapost_relay.blocks import Block, Outcome, Row
from sagapost_relay.desk import Desk
from sagapost_relay.shard import Shard

CHECKPOINT_S: Final = 0.1
RETRY_S: Final = 0.25
RETRY_ROWS: Final = 64
_ANSWER_S: Final = 10.0


async def checkpoints(conn: db.Connection, desk: Desk) -> None:
    """Store positions at most ten times a second, as long as they move."""
    while True:
        await asyncio.sleep(CHECKPOINT_S)
        await store(conn, desk)


async def store(conn: db.Connection, desk: Desk) -> None:
    """Store what is settled, and in the same transaction what was set aside.

    Raises:
        errors.FencedError: another relay holds one of the shards; nothing of this call was stored.

    """
    async with desk.control:
        desk.landed()
        moved = [(shard, shard.at, tuple(shard.aside)) for shard in desk.shards.values() if shard.dirty()]
        if not moved:
            return
        await crashpoints.crashpoint("relay.after_confirm")
        async with conn.transaction():
            stored = await queries.checkpoint(conn, desk.owner, [(shard.lease, at) for shard, at, _ in moved])
            fenced = [shard.number for shard, _, _ in moved if shard.number not in stored]
            if fenced:
                metrics.FENCED.inc(len(fenced))
                raise errors.FencedError(f"shards {fenced} belong to another relay")
            asides = [aside for _, _, some in moved for aside in some]
            if asides:
                await parked.set_aside(conn, asides, desk.policy)
        for shard, at, some in moved:
            shard.store(at, some)


async def retries(conn: db.Connection, desk: Desk) -> None:
    """Publish again what was set aside, each row when its time has come."""
    while True:
        await asyncio.sleep(RETRY_S)
        if desk.broker is None or not desk.broker.is_open or desk.broker.blocked:
            continue
        full = await _retry(conn, desk, parked.GENTLE, RETRY_ROWS)
        while full:
            full = await _retry(conn, desk, parked.GENTLE, RETRY_ROWS)
        await _retry(conn, desk, parked.DANGEROUS, 1)


async def _retry(conn: db.Connection, desk: Desk, reasons: Sequence[parked.Reason], limit: int) -> bool:
    numbers = [shard.number for shard in desk.shards.values() if not shard.leaving]
    if not numbers:
        return False
    async with desk.control:
        rows = await parked.due(conn, numbers, reasons, limit, desk.policy)
    moved = False
    for number in sorted({row.shard for row in rows}):
        metrics.RETRIED.inc(sum(row.shard == number for row in rows))
        shard = desk.shards.get(number)
        if shard is not None:
            moved = await _publish_again(conn, desk, shard, [row for row in rows if row.shard == number]) or moved
    return limit > 1 and (moved or len(rows) == limit)  # what one of them kept waiting is due now


async def _publish_again(conn: db.Connection, desk: Desk, shard: Shard, rows: Sequence[Row]) -> bool:
    """Return whether the broker took any of them."""
    refused = [aside for row in rows if (aside := parked.unfit(row, desk.keys)) is not None]
    unfit = {aside.row.id for aside in refused}
    sendable = [row for row in rows if row.id not in unfit]
    taken: list[int] = []
    unknown: list[int] = []
    if sendable:
        block, closed = await _answer(desk, shard, sendable)
        refused += parked.refusals(block)
        taken = [row.id for row, outcome in zip(block.rows, block.outcomes, strict=True) if outcome == Outcome.CONFIRMED]
        silent = [row for row, outcome in zip(block.rows, block.outcomes, strict=True) if outcome == Outcome.UNKNOWN]
        if closed is not None and len(rows) == 1:
            refused += [parked.Aside(row=row, reason="refused", detail=closed) for row in silent]
        else:
            unknown = [row.id for row in silent]
    metrics.PUBLISHED.inc(len(taken))
    async with desk.control, conn.transaction():
        await parked.taken(conn, taken)
        await parked.refused(conn, refused, desk.policy)
        await parked.worn_out(conn, unknown, desk.policy)
        if taken:
            shard.wait_for((await parked.waiting(conn, [shard.number])).get(shard.number, frozenset()))
    return bool(taken)


async def _answer(desk: Desk, shard: Shard, rows: Sequence[Row]) -> tuple[Block, str | None]:
    """Publish rows and wait for the broker's answers, or for the end of the channel; give the block and what the broker said."""
    settled = asyncio.Event()
    block = Block(rows, settled.set)
    try:
        lane = await desk.lane(shard)
        if lane is None or not desk.may_write(shard):
            return block, None
        shard.retrying = True
        await lane.send(block)
        deadline = time.monotonic() + _ANSWER_S
        while not settled.is_set() and lane.closed is None and time.monotonic() < deadline:
            with suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await settled.wait()
    except amqp.BrokerUnavailableError:
        return block, None
    finally:
        shard.retrying = False
    return block, lane.closed if lane.reply_code is not None else None
