"""The SQL of clients, their keys and their buckets; it must not know HTTP, nor a key itself."""

from collections.abc import Sequence
from typing import Final

import msgspec

from sagapost_chassis import db
from sagapost_contracts import access

# A token bucket by the database's clock, so that all gateways share it. Whoever waits for the bucket's row computes from what the
# one before left. After the clock was set back one draw adds no tokens; the next ones count from the new time. Asking for nothing
# only looks the key up.
_DRAW: Final = """
WITH known AS (
    SELECT clients.name, clients.rate_per_s, clients.burst, api_keys.id AS key_id, api_keys.scopes
      FROM api_keys JOIN clients ON clients.name = api_keys.client
     WHERE api_keys.sha256 = %(sha256)s::bytea AND api_keys.revoked_at IS NULL
       AND (api_keys.expires_at IS NULL OR api_keys.expires_at > clock_timestamp())
     UNION ALL
    SELECT name, rate_per_s, burst, NULL, %(scopes)s::text[] FROM clients WHERE name = %(demo)s::text
), used AS (
    UPDATE api_keys SET last_used = current_date FROM known
     WHERE api_keys.id = known.key_id AND api_keys.last_used IS DISTINCT FROM current_date
), drawn AS (
    INSERT INTO client_buckets AS bucket (client, tokens, granted, at)
    SELECT name, burst - least(%(want)s::integer, burst), least(%(want)s::integer, burst), clock_timestamp() FROM known
    ON CONFLICT (client) DO UPDATE SET (tokens, granted, at) = (
        SELECT level.tokens - given.tokens, given.tokens, level.at
          FROM known
          CROSS JOIN LATERAL (SELECT clock_timestamp() AS at) AS clock
          CROSS JOIN LATERAL (SELECT greatest(0, extract(epoch FROM clock.at - bucket.at)) AS s) AS passed
          CROSS JOIN LATERAL (
              SELECT clock.at, least(known.burst, bucket.tokens + known.rate_per_s * passed.s) AS tokens
          ) AS level
          CROSS JOIN LATERAL (SELECT least(%(want)s::integer, floor(level.tokens)) AS tokens) AS given
    )
    RETURNING tokens, granted
)
SELECT known.name AS client, known.key_id, known.scopes, known.rate_per_s, known.burst, drawn.granted, drawn.tokens AS remaining
  FROM known, drawn
"""


class Admission(msgspec.Struct, frozen=True, kw_only=True):
    """What the gateway is told of a caller; `client` is None for nobody, `granted` calls may pass, `remaining` are left for all."""

    client: str | None = None
    key_id: int | None = None
    scopes: tuple[str, ...] = ()
    rate_per_s: float = 0
    burst: int = 0
    granted: int = 0
    remaining: float = 0


_KNOWN: Final = """
SELECT encode(sha256, 'hex') FROM api_keys WHERE sha256 = ANY(%(sha256)s::bytea[]) AND revoked_at IS NULL LIMIT %(most)s
"""


async def known(conn: db.Connection, sha256: Sequence[bytes]) -> list[str]:
    """Return, in hexadecimal, those of these digests that are somebody's keys."""
    cursor = await conn.execute(_KNOWN, {"sha256": list(sha256), "most": len(sha256)})
    return [row[0] for row in await cursor.fetchall()]


async def draw(conn: db.Connection, sha256: bytes | None, want: int) -> Admission:
    """Find a key's client, the demo client without a key, and take up to `want` tokens from its bucket, in one statement."""
    values = {"sha256": sha256, "demo": access.DEMO if sha256 is None else None, "scopes": list(access.SCOPES), "want": want}
    async with conn.cursor(row_factory=db.struct_row(Admission)) as cursor:
        await cursor.execute(_DRAW, values)
        return await cursor.fetchone() or Admission()
