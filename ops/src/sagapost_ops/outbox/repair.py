"""Makes the cursors of a restored or copied outbox mean something in the cluster where it is now."""

import math

import msgspec

from sagapost_chassis import outbox
from sagapost_ops import database, errors
from sagapost_ops.outbox import queries


class Repair(msgspec.Struct, frozen=True, kw_only=True):
    """What was found or done in one database; `needed` says why, None that nothing is wrong."""

    database: str
    needed: str | None
    shards: list[queries.Counted]


def look(conn: database.Connection, name: str, *, force: bool) -> Repair:
    """Find out whether there is something to do, and count what would be what; changes nothing.

    Raises:
        FailedError: a relay holds a shard.

    """
    cursors = queries.cursors(conn)
    needed = _needed(cursors, force=force)
    if needed is None:
        return Repair(database=name, needed=None, shards=[])
    _refuse_while_held(cursors, name)
    return Repair(database=name, needed=needed, shards=_every_shard(queries.counted(conn)))


def perform(conn: database.Connection, found: Repair) -> Repair:
    """Write rows and cursors anew, in one transaction.

    Raises:
        FailedError: a relay holds a shard; nothing was changed.

    """
    with conn.transaction():
        queries.lock(conn)
        _refuse_while_held(queries.cursors(conn), found.database)
        return msgspec.structs.replace(found, shards=_every_shard(queries.rewrite(conn)))


def _needed(cursors: list[queries.Cursor], *, force: bool) -> str | None:
    if any(not cursor.is_ours for cursor in cursors):
        return "the cursors were written in another PostgreSQL cluster"
    missing = sorted(set(range(outbox.SHARDS)) - {cursor.shard for cursor in cursors})
    if missing:
        return f"no cursor for shard {', '.join(str(shard) for shard in missing)}"
    return "--force" if force else None


def _refuse_while_held(cursors: list[queries.Cursor], name: str) -> None:
    for cursor in cursors:
        if cursor.lease_s is not None and cursor.lease_s > 0:
            raise errors.FailedError(
                f"{cursor.owner} holds shard {cursor.shard} of {name} for {math.ceil(cursor.lease_s)} s more; "
                "stop the relay if it runs, and call again then"
            )


def _every_shard(counted: list[queries.Counted]) -> list[queries.Counted]:
    none = {shard: queries.Counted(shard=shard, confirmed=0, unconfirmed=0) for shard in range(outbox.SHARDS)}
    return list((none | {line.shard: line for line in counted}).values())
