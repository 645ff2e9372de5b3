"""Counts and forgets by age what both databases keep for a time, through the functions that the services call; knows no rule of its own."""

from collections.abc import Callable
from typing import Final, Literal

import msgspec

from sagapost_chassis import retention
from sagapost_ops import database

What = Literal["inbox", "customers"]

_INBOX: Final = "SELECT count(*) FROM inbox WHERE received_at < now() - make_interval(days => %(days)s)"
_ORDERS: Final = """
SELECT count(*) FROM orders AS o JOIN sagas AS s ON s.order_id = o.id
 WHERE o.user_email NOT LIKE '%%@erased.invalid' AND o.created_at < now() - make_interval(days => %(days)s)
   AND s.updated_at < now() - make_interval(days => %(days)s) AND s.deadline_at IS NULL
"""
_PAYMENTS: Final = """
SELECT count(*) FROM payments
 WHERE user_email NOT LIKE '%%@erased.invalid' AND status NOT IN ('processing', 'refunding')
   AND created_at < now() - make_interval(days => %(days)s) AND updated_at < now() - make_interval(days => %(days)s)
"""


class Forgotten(msgspec.Struct, frozen=True, kw_only=True):
    """What was older than `days`, and how many rows that are."""

    database: str
    what: What
    days: int
    rows: int


def count(conn: database.Connection, name: str, what: What, days: int) -> int:
    """Count what would be forgotten."""
    query = _INBOX if what == "inbox" else _ORDERS if name == "order" else _PAYMENTS
    row = conn.execute(query, {"days": days}).fetchone()
    return int(row[0]) if row else 0


def forget(conn: database.Connection, what: What, days: int, advance: Callable[[int], object]) -> int:
    """Forget a batch after the other, each in a transaction of its own, and return how many rows that were."""
    total = 0
    while True:
        row = conn.execute(retention.FORGET[what], {"days": days, "batch": retention.BATCH}).fetchone()
        rows = int(row[0]) if row else 0
        total += rows
        advance(rows)
        if rows < retention.BATCH:
            return total
