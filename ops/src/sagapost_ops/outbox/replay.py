"""Publishes confirmed messages again by appending copies of their rows; it must not publish anything itself."""

from collections.abc import Callable
from datetime import datetime
from typing import Final

import msgspec
from psycopg import sql

from sagapost_ops import database, errors
from sagapost_ops.outbox import queries

BATCH: Final = 500


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay would send; what is older than `history_since` may be gone (None: nothing is)."""

    database: str
    rows: int
    types: list[queries.Kind]
    history_since: datetime | None


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What was appended, and how many of the chosen messages left the ring before their turn."""

    database: str
    replayed: int
    missed: int
    relays: list[str]


def plan(conn: database.Connection, name: str, wanted: queries.Span) -> Plan:
    """Count what would be sent.

    Raises:
        FailedError: the cursors cannot say what is confirmed.

    """
    if any(not shard.is_ours for shard in queries.cursors(conn)):
        raise errors.FailedError(
            f"the cursors of {name} were written in another PostgreSQL cluster and cannot say what is confirmed; "
            f"see: ./sagapost outbox repair --database {name}"
        )
    kinds = queries.summary(conn, wanted)
    return Plan(database=name, rows=sum(kind.rows for kind in kinds), types=kinds, history_since=queries.whole_since(conn))


def perform(conn: database.Connection, name: str, wanted: queries.Span, reason: str, on_batch: Callable[[int], None]) -> Done:
    """Append the copies, BATCH in a transaction, and report the size of each; the reason goes to the server's log."""
    _log(conn, f"sagapost outbox replay: {reason}")
    asked = replayed = 0
    for ids in queries.chosen(conn, wanted, BATCH):
        asked += len(ids)
        replayed += queries.copy(conn, ids)
        on_batch(len(ids))
    return Done(database=name, replayed=replayed, missed=asked - replayed, relays=queries.relays(conn))


def _log(conn: database.Connection, sentence: str) -> None:
    # DO takes no parameters: the sentence is quoted once as a message and, with what is around it, once as a block
    block = f"BEGIN RAISE LOG USING MESSAGE = {sql.Literal(sentence).as_string(conn)}; END"
    conn.execute(sql.SQL("DO {}").format(sql.Literal(block)))
