"""Writes down what an operator's command changed: who, why, what; the rows are never changed."""

from typing import Final

import msgspec

from sagapost_ops import database

_WRITE: Final = """
INSERT INTO operator_actions (command, actor, reason, detail) VALUES (%(command)s, %(actor)s, %(reason)s, %(detail)s)
"""


def write(order: database.Connection, *, command: str, actor: str, reason: str, detail: object) -> None:
    """Insert one row into the order database."""
    values = {"command": command, "actor": actor, "reason": reason, "detail": msgspec.json.encode(detail).decode()}
    order.execute(_WRITE, values)
