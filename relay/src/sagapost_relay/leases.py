"""Shares the shards among the relays that are alive: who holds which, until when, and who comes next; it must not publish."""

import asyncio
import time
from collections.abc import Sequence
from typing import Final

from sagapost_chassis import db, outbox
from sagapost_relay import errors, keeper, metrics, parked, queries
from sagapost_relay.desk import LEASE_MARGIN_S, Desk

BEAT_S: Final = 1.0
_LEAVING_S: Final = 0.01
LEAVE_S: Final = 8.0


def share(relays: Sequence[str], owner: str, shards: int) -> int:
    """Give how many shards are `owner`'s fair share; all relays see the same list, so that the shares add up."""
    if owner not in relays:
        return 0
    each, over = divmod(shards, len(relays))
    return each + (list(relays).index(owner) < over)


async def run(conn: db.Connection, desk: Desk, stop: asyncio.Event) -> None:
    """Keep this relay's fair share until `stop` is set, then give everything back in order and return.

    Raises:
        errors.FencedError: another relay holds a shard that this one had.
        errors.RefusedError: this server's transaction ids mean nothing to the cursors.

    """
    give_up_at = float("inf")
    while True:
        desk.turn.clear()
        if stop.is_set():
            give_up_at = min(give_up_at, time.monotonic() + LEAVE_S)
        async with asyncio.timeout(max(desk.config.lease_s, 1)):  # a server that accepts and never answers
            await _beat(conn, desk, leaving=stop.is_set())
        left = await _release(conn, desk)
        if stop.is_set() and (not desk.shards or time.monotonic() > give_up_at):
            await queries.forget(conn, desk.owner)
            await queries.notify(conn, "shards")
            return
        if not left:
            await _wait(desk, stop, _LEAVING_S if any(shard.leaving for shard in desk.shards.values()) else BEAT_S)


async def _beat(conn: db.Connection, desk: Desk, *, leaving: bool) -> None:
    """Say that this relay is alive, renew what it holds, and move towards its share."""
    asked_at = time.monotonic()
    lease_s = desk.config.lease_s
    async with desk.control, conn.transaction():
        relays = await queries.seen(conn, desk.owner, lease_s, desk.trouble)
        target = 0 if leaving else share(relays, desk.owner, outbox.SHARDS)
        mine = await queries.renew(conn, desk.owner, [shard.lease for shard in desk.shards.values()], lease_s)
        lost = [number for number in desk.shards if number not in mine]
        if lost:
            metrics.FENCED.inc(len(lost))
            raise errors.FencedError(f"shards {lost} belong to another relay")
        wanted = target - len(desk.shards)
        cursors = await queries.claim(conn, desk.owner, list(desk.shards), wanted, lease_s) if wanted > 0 else []
        ahead = await _ahead(conn, cursors)  # who refuses leaves no lease behind
        if ahead:
            await queries.distrust(conn, desk.owner, ahead)
        waiting = await parked.waiting(conn, [cursor.shard for cursor in cursors]) if cursors else {}
        desk.note_unserved(outbox.SHARDS - await queries.served(conn, lease_s))
    if ahead:
        raise errors.RefusedError(queries.refusal(ahead))  # outside: the transaction that stores the refusal is to be committed
    deadline = asked_at + lease_s - min(LEASE_MARGIN_S, lease_s / 4)
    for shard in desk.shards.values():
        shard.deadline = deadline
    for cursor in cursors:
        desk.admit(cursor, deadline, waiting.get(cursor.shard, frozenset()))
    if cursors:
        desk.wake.set()
    staying = [shard for shard in desk.shards.values() if not shard.leaving]
    for shard in sorted(staying, key=lambda shard: shard.number)[target:]:
        shard.leaving = True
    desk.led_at = time.monotonic()


async def _ahead(conn: db.Connection, cursors: Sequence[queries.Cursor]) -> list[int]:
    """Return the shards whose cursors lie ahead of this server, or did so once.

    Raises:
        errors.RefusedError: the cursors are another cluster's.

    """
    if not cursors:
        return []
    server = await queries.server(conn)
    if any(cursor.system_identifier not in {server.system_identifier, queries.DISTRUSTED} for cursor in cursors):
        raise errors.RefusedError(
            "the outbox cursors were written in another PostgreSQL cluster (a restore or a copy): their transaction ids mean "
            "nothing here, and going on could lose messages; look at it with: ./sagapost outbox repair"
        )
    now, _ = await queries.current_snapshot(conn)
    return [one.shard for one in cursors if one.system_identifier == queries.DISTRUSTED or queries.is_ahead(one, now)]


async def _release(conn: db.Connection, desk: Desk) -> bool:
    """Give back the shards that are leaving and have nothing in flight any more; tell whether any went."""
    leaving = [shard for shard in desk.shards.values() if shard.leaving and not shard.flights]
    if not leaving:
        return False
    await keeper.store(conn, desk)
    async with desk.control:
        for shard in leaving:
            await queries.release(conn, desk.owner, shard.lease)
            desk.dismiss(shard, "released")
        await queries.notify(conn, "shards")
    return True


async def _wait(desk: Desk, stop: asyncio.Event, seconds: float) -> None:
    """Wait for the next beat, or until shards change hands, or until it is time to leave."""
    waits = {asyncio.ensure_future(desk.turn.wait())}
    if not stop.is_set():
        waits.add(asyncio.ensure_future(stop.wait()))
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def listen(conn: db.Connection, desk: Desk) -> None:
    """Pass on what writers and other relays say: new rows, or shards that are free."""
    async for said in conn.notifies():
        if said.payload == "shards":
            desk.turn.set()
        else:
            desk.hint()
