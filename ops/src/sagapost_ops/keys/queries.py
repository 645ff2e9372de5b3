"""The SQL of clients and keys; a key itself never comes here, only its digest."""

from collections.abc import Collection
from datetime import date, datetime
from typing import Final

import msgspec

from sagapost_ops import database

DEFAULT_RATE_PER_S: Final = 50.0
_CLIENT: Final = """
INSERT INTO clients (name, rate_per_s, burst)
VALUES (%(client)s, coalesce(%(rate_per_s)s, %(default_rate_per_s)s),
        coalesce(%(burst)s, least(1000000, ceil(2 * coalesce(%(rate_per_s)s, %(default_rate_per_s)s)))))
ON CONFLICT (name) DO UPDATE
   SET rate_per_s = coalesce(%(rate_per_s)s, clients.rate_per_s), burst = coalesce(%(burst)s, clients.burst)
RETURNING rate_per_s, burst
"""
_KEY: Final = """
INSERT INTO api_keys (client, label, env, scopes, sha256, expires_at, created_by, created_reason)
VALUES (%(client)s, %(label)s, %(env)s, %(scopes)s, %(sha256)s, %(expires_at)s, %(actor)s, %(reason)s)
RETURNING id, created_at, expires_at
"""
_LIST: Final = """
SELECT k.id, k.client, k.label, k.env, k.scopes, c.rate_per_s, c.burst, k.created_at, k.revoked_at, k.last_used,
       k.expires_at, k.created_by, k.created_reason, k.revoked_by, k.revoked_reason, coalesce(k.expires_at <= now(), false) AS expired
  FROM api_keys AS k JOIN clients AS c ON c.name = k.client
 WHERE %(client)s::text IS NULL OR k.client = %(client)s
 ORDER BY k.id LIMIT 10000
"""
# the first revocation stays, with who and why
_REVOKE: Final = """
UPDATE api_keys
   SET revoked_at = coalesce(revoked_at, now()),
       revoked_by = CASE WHEN revoked_at IS NULL THEN %(actor)s ELSE revoked_by END,
       revoked_reason = CASE WHEN revoked_at IS NULL THEN %(reason)s ELSE revoked_reason END
 WHERE id = ANY (%(ids)s) RETURNING id, client, revoked_at
"""


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """A client's bucket."""

    rate_per_s: float
    burst: int


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A new key's number and time, and until when it works."""

    id: int
    created_at: datetime
    expires_at: datetime | None


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """One key as it is kept; `last_used` is a day, None when it never was; who made and revoked it is '' where nobody wrote it down."""

    id: int
    client: str
    label: str
    env: str
    scopes: list[str]
    rate_per_s: float
    burst: int
    created_at: datetime
    revoked_at: datetime | None
    last_used: date | None
    expires_at: datetime | None
    expired: bool
    created_by: str
    created_reason: str
    revoked_by: str | None
    revoked_reason: str | None


class Why(msgspec.Struct, frozen=True, kw_only=True):
    """Who makes or revokes a key, and why, as far as anybody says."""

    actor: str = ""
    reason: str = ""


class Revoked(msgspec.Struct, frozen=True, kw_only=True):
    """A key that nobody can use any more, and since when."""

    id: int
    client: str
    revoked_at: datetime


def add(
    conn: database.Connection,
    *,
    client: str,
    label: str,
    env: str,
    scopes: Collection[str],
    sha256: bytes,
    rate_per_s: float | None,
    burst: int | None,
    expires_at: datetime | None = None,
    why: Why | None = None,
) -> tuple[Limit, Stored]:
    """Store a key, and its client if it is new; a limit that is given also changes that of a client that was there."""
    limits = {"client": client, "rate_per_s": rate_per_s, "burst": burst, "default_rate_per_s": DEFAULT_RATE_PER_S}
    key = {"client": client, "label": label, "env": env, "scopes": list(scopes), "sha256": sha256, "expires_at": expires_at}
    with conn.transaction():
        (limit,) = database.rows(conn, _CLIENT, Limit, limits)
        (stored,) = database.rows(conn, _KEY, Stored, key | msgspec.structs.asdict(why or Why()))
    return limit, stored


def listed(conn: database.Connection, client: str | None) -> list[Key]:
    """Read the keys, of one client or of all, the oldest first."""
    return database.rows(conn, _LIST, Key, {"client": client})


def revoke(conn: database.Connection, ids: Collection[int], why: Why | None = None) -> list[Revoked]:
    """Revoke keys and return those that there are."""
    return database.rows(conn, _REVOKE, Revoked, {"ids": list(ids)} | msgspec.structs.asdict(why or Why()))
