"""The databases' roles for services and relays: what each may do, as data, and their passwords; it must not connect.

The owner of a database (order_user, payment_user) migrates it and serves the operator's commands; a service has a role of its own.
"""

from collections.abc import Mapping
from typing import Final, LiteralString

import msgspec

from sagapost_ops import passwords as deployed

PREFIX: Final = "SAGAPOST_DATABASE_PASSWORD_"

Rights = tuple[LiteralString, ...]


class Role(msgspec.Struct, frozen=True, kw_only=True):
    """A login role; `tables` and `sequences` map each that it may touch to how, columns in brackets.

    `functions`: those with their owner's rights that it may call; everybody else may not.
    """

    name: str
    database: str
    tables: dict[str, Rights]
    sequences: dict[str, Rights]
    functions: tuple[LiteralString, ...] = ()


# A row of the outbox is only ever added; its defaults draw an id and read which partition is being filled.
_WRITES_OUTBOX: Final[dict[str, Rights]] = {"outbox": ("INSERT",), "inbox": ("SELECT", "INSERT")}
_OUTBOX_DEFAULTS: Final[dict[str, Rights]] = {"outbox_id": ("USAGE",), "outbox_ring": ("SELECT",)}
_FORGETS: Final[tuple[LiteralString, ...]] = ("forget_inbox", "forget_customers")  # by age, and nothing that is younger than 30 days
_PARTITIONS: Final = tuple(f"outbox_{number}" for number in range(4))
_RELAYS: Final[dict[str, Rights]] = {
    "outbox": ("SELECT",),
    # It empties a partition by TRUNCATE, after it has seen under a lock that everything in it is confirmed. A function with its
    # owner's rights would give no more safety: what is confirmed stands in the cursors, which are the relay's to write.
    **dict.fromkeys(_PARTITIONS, ("SELECT", "TRUNCATE")),
    "outbox_bucket": ("SELECT", "UPDATE"),
    "outbox_cursor": ("SELECT", "UPDATE"),
    "outbox_relay": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    # a trigger takes what it inserts from the outbox: the relay cannot add a message of its own
    "outbox_parked": ("SELECT", "INSERT", "UPDATE (state, reason, detail, attempts, retry_at)", "DELETE"),
}
_TURNS_RING: Final[dict[str, Rights]] = {"outbox_ring": ("SELECT", "UPDATE")}

ROLES: Final = (
    Role(
        name="order_service",
        database="order",
        tables={
            "products": ("SELECT",),
            "orders": ("SELECT", "INSERT", "UPDATE (status, updated_at)"),
            "order_items": ("SELECT", "INSERT"),
            "idempotency_keys": ("SELECT", "INSERT", "UPDATE (created_at)", "DELETE"),  # FOR UPDATE wants one column; kept 7 days
            "sagas": ("SELECT", "INSERT", "UPDATE"),
            "saga_transitions": ("SELECT",),
            "saga_history": ("SELECT", "INSERT"),
            "clients": ("SELECT",),
            "api_keys": ("SELECT", "UPDATE (last_used)"),
            "client_buckets": ("SELECT", "INSERT", "UPDATE"),
            # whether a saga's last message has left: its deadlines wait for it
            "outbox_cursor": ("SELECT",),
            "outbox_parked": ("SELECT",),
            **_WRITES_OUTBOX,
        },
        sequences=_OUTBOX_DEFAULTS,
        functions=_FORGETS,
    ),
    Role(
        name="payment_service",
        database="payment",
        tables={
            "payments": ("SELECT", "INSERT", "UPDATE"),
            "ledger": ("SELECT", "INSERT"),
            "duplicate_charges": ("SELECT", "INSERT"),
            **_WRITES_OUTBOX,
        },
        sequences=_OUTBOX_DEFAULTS,
        functions=_FORGETS,
    ),
    Role(name="order_relay", database="order", tables=_RELAYS, sequences=_TURNS_RING),
    Role(name="payment_relay", database="payment", tables=_RELAYS, sequences=_TURNS_RING),
)
# which no service needs: the migrations' own, and what the operator's commands write
OPERATORS: Final = frozenset({"alembic_version", "dlq_runs", "dlq_letters", "operator_actions"})


def of(database: str) -> tuple[Role, ...]:
    """Give the roles of one database, order or payment."""
    return tuple(role for role in ROLES if role.database == database)


def variable(name: str) -> str:
    """Name the variable that holds a role's password."""
    return PREFIX + name.upper()


def development_password(name: str) -> str:
    """Give the password that a role has where nobody set one; refused in production."""
    return f"{name}_password"


def passwords(environ: Mapping[str, str], database: str) -> dict[str, str]:
    """Read the password of every role of a database; in production none may be missing or weak.

    Raises:
        UnfitError: names every variable that is.

    """
    return deployed.chosen(environ, (role.name for role in of(database)), variable, development_password)
