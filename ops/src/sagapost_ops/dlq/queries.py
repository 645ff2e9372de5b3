"""Every statement of the dead-letter commands: the lock, the record of runs and letters, and who has processed what."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final, Literal
from uuid import UUID

import msgspec
from psycopg.types import json

from sagapost_ops import database
from sagapost_ops.dlq import letters

_SPACE: Final = 0x444C51  # "DLQ": the first half of the lock's key, the second is the queue

Kind = Literal["replay", "discard"]
State = Literal["replayed", "discarded", "left", "unknown"]

_LOCK: Final = "SELECT pg_try_advisory_lock(%(space)s, hashtext(%(queue)s)) AS mine"
_RUNNING: Final = """
SELECT id, kind, actor, started_at FROM dlq_runs WHERE queue = %(queue)s AND state = 'running' ORDER BY started_at DESC LIMIT 1
"""
_BREAK_OFF: Final = """
WITH over AS (
    UPDATE dlq_runs SET state = 'broken_off', ended_at = now(), detail = 'its process ended without a word'
     WHERE queue = %(queue)s AND state = 'running' RETURNING id
), open AS (
    UPDATE dlq_letters SET state = 'unknown', at = now() WHERE run_id IN (SELECT id FROM over) AND state = 'moving' RETURNING run_id
)
SELECT (SELECT count(*) FROM over) AS runs, (SELECT count(*) FROM open) AS letters
"""
_BEGIN: Final = """
INSERT INTO dlq_runs (id, kind, queue, actor, reason, choice)
VALUES (%(id)s, %(kind)s, %(queue)s, %(actor)s, %(reason)s, %(choice)s)
"""
_MATCHED: Final = "UPDATE dlq_runs SET matched = %(matched)s WHERE id = %(id)s"
_INTEND: Final = """
INSERT INTO dlq_letters (run_id, number, message_id, type, fingerprint, state)
SELECT %(run_id)s, number, message_id, type, fingerprint, 'moving'
  FROM unnest(%(numbers)s::integer[], %(ids)s::text[], %(types)s::text[], %(fingerprints)s::text[])
    AS one (number, message_id, type, fingerprint)
"""
_BECAME: Final = """
WITH became AS (
    UPDATE dlq_letters SET state = %(state)s, at = now() WHERE run_id = %(run_id)s AND number = ANY(%(numbers)s::integer[]) RETURNING 1
)
UPDATE dlq_runs SET moved = moved + (SELECT count(*) FROM became WHERE %(state)s IN ('replayed', 'discarded')) WHERE id = %(run_id)s
"""
_UNSETTLE: Final = "UPDATE dlq_letters SET state = 'unknown', at = now() WHERE run_id = %(run_id)s AND state = 'moving'"
_END: Final = """
UPDATE dlq_runs SET state = %(state)s, detail = %(detail)s, came_back = %(came_back)s, ended_at = now() WHERE id = %(id)s
"""
_PROCESSED: Final = "SELECT message_id::text AS message_id FROM inbox WHERE message_id = ANY(%(ids)s::uuid[])"


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """A run that has not ended."""

    id: UUID
    kind: Kind
    actor: str
    started_at: datetime


class BrokenOff(msgspec.Struct, frozen=True, kw_only=True):
    """Runs whose process ended without a word, and letters of theirs of which nobody knows whether they moved."""

    runs: int
    letters: int


class _Lock(msgspec.Struct, frozen=True, kw_only=True):
    mine: bool


class _Processed(msgspec.Struct, frozen=True, kw_only=True):
    message_id: str


def lock(conn: database.Connection, queue: str) -> bool:
    """Try to become the only run on a queue, for as long as this session lives."""
    return database.rows(conn, _LOCK, _Lock, {"space": _SPACE, "queue": queue})[0].mine


def running(conn: database.Connection, queue: str) -> Running | None:
    """Give the run that holds a queue, if it has written its row by now."""
    return next(iter(database.rows(conn, _RUNNING, Running, {"queue": queue})), None)


def break_off(conn: database.Connection, queue: str) -> BrokenOff:
    """End the rows of runs that are no more; only for who holds the lock."""
    return database.rows(conn, _BREAK_OFF, BrokenOff, {"queue": queue})[0]


def begin(conn: database.Connection, run_id: UUID, *, kind: Kind, queue: str, actor: str, reason: str, choice: object) -> None:
    """Write who begins what, and why."""
    values = {
        "id": run_id,
        "kind": kind,
        "queue": queue,
        "actor": actor,
        "reason": reason,
        "choice": json.Jsonb(msgspec.to_builtins(choice)),
    }
    conn.execute(_BEGIN, values)


def matched(conn: database.Connection, run_id: UUID, number: int) -> None:
    """Write how many letters the choice meant."""
    conn.execute(_MATCHED, {"id": run_id, "matched": number})


def intend(conn: database.Connection, run_id: UUID, first: int, chosen: Sequence[letters.Letter]) -> None:
    """Write which letters are about to move; they are numbered from `first`."""
    values = {
        "run_id": run_id,
        "numbers": list(range(first, first + len(chosen))),
        "ids": [_storable(letter.id) for letter in chosen],
        "types": [_storable(letter.type) for letter in chosen],
        "fingerprints": [_storable(letter.fingerprint) for letter in chosen],
    }
    conn.execute(_INTEND, values)


def became(conn: database.Connection, run_id: UUID, numbers: Sequence[int], state: State) -> None:
    """Write what became of letters."""
    conn.execute(_BECAME, {"run_id": run_id, "numbers": list(numbers), "state": state})


def end(conn: database.Connection, run_id: UUID, state: Literal["done", "stopped", "failed"], detail: str, came_back: int) -> None:
    """Write how a run ended; of a letter that was still moving nobody knows."""
    conn.execute(_UNSETTLE, {"run_id": run_id})
    conn.execute(_END, {"id": run_id, "state": state, "detail": detail, "came_back": came_back})


def processed(conn: database.Connection, ids: Sequence[str]) -> set[str]:
    """Give those of these message ids (UUIDs) whose effect this database holds."""
    return {row.message_id for row in database.rows(conn, _PROCESSED, _Processed, {"ids": list(ids)})}


def _storable(text: str) -> str:
    return text.replace("\0", "\\x00")
