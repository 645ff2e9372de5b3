"""Every SQL statement on the memory of mails, an SQLite file; it must not know which process calls, or what a mail is."""

import sqlite3
from collections.abc import Callable, Sequence
from typing import Final, Literal

import msgspec

LONGEST_DOUBT_S: Final = 3600.0  # the wait before a further copy of a mail in doubt doubles with each break, up to this
LEAST_STEP_S: Final = 5.0  # other processes may read the clock a little later
PRUNED: Final = 20  # rows that one accepted mail removes at most: more than it adds, so that a backlog goes by itself

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS mails (
    mail_id TEXT NOT NULL PRIMARY KEY,
    state TEXT NOT NULL CHECK (state IN ('claimed', 'doubtful', 'accepted')),
    holder TEXT NOT NULL,
    touched_at REAL NOT NULL,
    not_before REAL NOT NULL DEFAULT 0,
    breaks INTEGER NOT NULL DEFAULT 0,
    recipient TEXT
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS mails_touched_at ON mails (touched_at);
CREATE INDEX IF NOT EXISTS mails_recipient ON mails (recipient, touched_at) WHERE recipient IS NOT NULL;
"""
_ONE: Final = "SELECT state, holder, not_before FROM mails WHERE mail_id = :mail_id"
_CLAIM: Final = """
INSERT INTO mails (mail_id, state, holder, touched_at, recipient)
VALUES (:mail_id, 'claimed', :holder, :now, :recipient)
ON CONFLICT (mail_id) DO UPDATE SET state = 'claimed', holder = :holder, touched_at = :now, recipient = :recipient
"""
_ACCEPT: Final = """
INSERT INTO mails (mail_id, state, holder, touched_at)
VALUES (:mail_id, 'accepted', :holder, :now)
ON CONFLICT (mail_id) DO UPDATE SET state = 'accepted', touched_at = :now
"""
# A row that was touched in the future: the clock was set back, and its wait moves by as much.
_FOLLOW_CLOCK: Final = """
UPDATE mails SET not_before = max(0, not_before - (touched_at - :now)), touched_at = :now
 WHERE touched_at > :now + :least_s AND (mail_id = :mail_id OR recipient = :recipient)
"""
_DOUBT: Final = """
UPDATE mails SET state = 'doubtful', touched_at = :now, breaks = breaks + 1,
    not_before = :now + min(:longest_s, :wait_s * (1 << min(breaks, 20)))
WHERE mail_id = :mail_id AND holder = :holder AND state = 'claimed'
"""
_FORGET: Final = "DELETE FROM mails WHERE mail_id = :mail_id AND holder = :holder AND state = 'claimed' AND breaks = 0"
_GIVE_BACK: Final = "UPDATE mails SET state = 'doubtful' WHERE mail_id = :mail_id AND holder = :holder AND state = 'claimed'"
_PRUNE: Final = """
DELETE FROM mails WHERE mail_id IN (SELECT mail_id FROM mails WHERE touched_at < :oldest ORDER BY touched_at LIMIT :pruned)
"""
_LATELY: Final = """
SELECT count(*), coalesce(min(touched_at), 0)
FROM mails WHERE recipient = :recipient AND touched_at > :since AND mail_id <> :mail_id
"""
_IMPORT: Final = """
INSERT OR IGNORE INTO mails (mail_id, state, holder, touched_at) VALUES (:mail_id, 'accepted', '', :now)
"""

_ENDS: Final[dict[str, tuple[str, ...]]] = {"accepted": (_ACCEPT,), "doubtful": (_DOUBT,), "released": (_FORGET, _GIVE_BACK)}

Alive = Callable[[str], bool]
Ending = Literal["accepted", "doubtful", "released"]


class Claimant(msgspec.Struct, frozen=True, kw_only=True):
    """Who wants to send which mail, and when (seconds since 1970); at most `limit` mails an hour to `recipient`, 0: any number."""

    mail_id: str
    holder: str
    now: float
    recipient: str | None = None
    limit: int = 0


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a claim; `wait_s`: for how long a mail in doubt, or beyond the limit, has to wait."""

    kind: Literal["mine", "accepted", "busy", "doubtful", "limited"]
    wait_s: float = 0


class End(msgspec.Struct, frozen=True, kw_only=True):
    """How the sending of a claimed mail ended, and when; `wait_s`: the least wait before a second copy of a mail in doubt."""

    mail_id: str
    kind: Ending
    at: float
    wait_s: float = 0


def connect(path: str, *, busy_s: float) -> sqlite3.Connection:
    """Open the file, make the table where there is none; a lock of another process is waited for `busy_s` seconds."""
    conn = sqlite3.connect(path, timeout=busy_s, isolation_level=None, check_same_thread=False)
    try:
        # NORMAL: a commit is a write to the page cache. It survives the death of the process, not of the machine.
        conn.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA journal_size_limit = 16777216;" + _SCHEMA)
    except BaseException:
        conn.close()
        raise
    return conn


def claim(conn: sqlite3.Connection, who: Claimant, alive: Alive) -> Verdict:
    """Store a claim to a mail, unless it was accepted, is in doubt or with a holder that lives, or is one too many for its recipient."""
    conn.execute("BEGIN IMMEDIATE")
    try:
        conn.execute(_FOLLOW_CLOCK, {"mail_id": who.mail_id, "recipient": who.recipient, "now": who.now, "least_s": LEAST_STEP_S})
        verdict = look(conn, who, alive)
        if verdict.kind == "mine":
            conn.execute(_CLAIM, {"mail_id": who.mail_id, "holder": who.holder, "now": who.now, "recipient": who.recipient})
        conn.execute("COMMIT")
    except BaseException:
        _roll_back(conn)
        raise
    return verdict


def look(conn: sqlite3.Connection, who: Claimant, alive: Alive) -> Verdict:
    """Return what a claim would be answered, and write nothing."""
    row = conn.execute(_ONE, {"mail_id": who.mail_id}).fetchone()
    if row is not None:
        state, holder, not_before = row
        if state == "accepted":
            return Verdict(kind="accepted")
        if state == "claimed" and holder != who.holder and alive(holder):
            return Verdict(kind="busy")
        if not_before > who.now:
            return Verdict(kind="doubtful", wait_s=not_before - who.now)
    return _limited(conn, who) or Verdict(kind="mine")


def _limited(conn: sqlite3.Connection, who: Claimant) -> Verdict | None:
    if not who.limit or who.recipient is None:
        return None
    found = {"recipient": who.recipient, "since": who.now - 3600, "mail_id": who.mail_id}
    count, first = conn.execute(_LATELY, found).fetchone()
    return Verdict(kind="limited", wait_s=max(1.0, first + 3600 - who.now)) if count >= who.limit else None


def settle(conn: sqlite3.Connection, ends: Sequence[End], *, holder: str, kept_s: float) -> None:
    """Store how the sending of these mails ended, and remove some rows that are older than `kept_s`."""
    conn.execute("BEGIN IMMEDIATE")
    try:
        for end in ends:
            values = {"mail_id": end.mail_id, "holder": holder, "now": end.at, "wait_s": end.wait_s, "longest_s": LONGEST_DOUBT_S}
            for statement in _ENDS[end.kind]:
                conn.execute(statement, values)
        oldest = max((end.at for end in ends), default=0) - kept_s
        conn.execute(_PRUNE, {"oldest": oldest, "pruned": PRUNED * max(1, len(ends))})
        conn.execute("COMMIT")
    except BaseException:
        _roll_back(conn)
        raise


def take_over(conn: sqlite3.Connection, mail_ids: Sequence[str], *, now: float) -> None:
    """Store mails that an earlier version noted as accepted in its text files."""
    conn.execute("BEGIN IMMEDIATE")
    try:
        conn.executemany(_IMPORT, [{"mail_id": mail_id, "now": now} for mail_id in mail_ids])
        conn.execute("COMMIT")
    except BaseException:
        _roll_back(conn)
        raise


def _roll_back(conn: sqlite3.Connection) -> None:
    if conn.in_transaction:  # a full disk has rolled back by itself
        conn.execute("ROLLBACK")
