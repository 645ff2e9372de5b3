"""The inbox: which messages this database has seen, claimed in the transaction of their effect."""

from typing import Final
from uuid import UUID

from sagapost_chassis import db

_CLAIM: Final = "INSERT INTO inbox (message_id, type) VALUES (%(message_id)s, %(type)s) ON CONFLICT DO NOTHING"


async def claim(conn: db.Connection, message_id: UUID, message_type: str) -> bool:
    """Claim a message for the running transaction; False when it was processed before, and nothing is to be done.

    It may be acknowledged only after the transaction: then the synchronous standbys know, too, that it was processed.
    """
    cursor = await conn.execute(_CLAIM, {"message_id": message_id, "type": message_type})
    if cursor.rowcount == 1:
        return True
    await db.await_standbys(conn)
    return False
