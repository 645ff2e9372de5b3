"""The inbox: which messages this database has seen, claimed in the transaction of their effect."""

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from sagapost_chassis import db

_CLAIM: Final = "INSERT INTO inbox (message_id, type) VALUES (%(message_id)s, %(type)s) ON CONFLICT DO NOTHING"
_CLAIM_ALL: Final = """
INSERT INTO inbox (message_id, type) SELECT * FROM unnest(%(message_ids)s::uuid[], %(types)s::text[]) ON CONFLICT DO NOTHING
"""


async def claim(conn: db.Connection, message_id: UUID, message_type: str) -> bool:
    """Claim a message for the running transaction; False when it was processed before, and nothing is to be done.

    It may be acknowledged only after the transaction: then the synchronous standbys know, too, that it was processed.
    """
    cursor = await conn.execute(_CLAIM, {"message_id": message_id, "type": message_type})
    if cursor.rowcount == 1:
        return True
    await db.await_standbys(conn)
    return False


async def claim_all(conn: db.Connection, messages: Sequence[tuple[UUID, str]]) -> None:
    """Claim messages, each with its type, whose effects are known to be there already: new or not, nothing is to be done."""
    if not messages:
        return
    values = {"message_ids": [message_id for message_id, _ in messages], "types": [kind for _, kind in messages]}
    cursor = await conn.execute(_CLAIM_ALL, values)
    if cursor.rowcount < len(messages):
        await db.await_standbys(conn)
