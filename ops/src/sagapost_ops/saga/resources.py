"""Sagas as the gateway shows them; it must not know how they are read or printed."""

from datetime import datetime
from decimal import Decimal

import msgspec


class Step(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One step of a saga; `ms` is the time it took."""

    name: str
    state: str
    at: datetime | None = None
    ms: int | None = None
    attempts: int | None = None


class History(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One row of a saga's history; `outcome` ignored means that it changed nothing."""

    seq: int
    before: str = msgspec.field(name="from")
    to: str
    event: str
    at: datetime
    outcome: str = "applied"
    source: str = "event"
    actor: str | None = None
    reason: str | None = None
    mail: str | None = None


class Saga(msgspec.Struct, frozen=True, kw_only=True):
    """A saga as it was when it was read."""

    saga_id: str
    order_id: int
    state: str
    version: int
    done: bool
    attention: str | None = None
    reason: str | None = None
    captured: Decimal
    refunded: Decimal
    currency: str
    deadline_at: datetime | None = None
    created_at: datetime
    steps: tuple[Step, ...] = ()
    history: tuple[History, ...] = ()
    trace_id: str | None = None


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """One saga of the operators' list; `stuck`: nothing will move it in time."""

    saga_id: str
    order_id: int
    state: str
    stuck: bool
    attention: str | None
    captured: Decimal
    refunded: Decimal
    currency: str
    deadline_at: datetime | None
    created_at: datetime


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """A page of the operators' list, each saga as it was written; no cursor on the last one."""

    sagas: tuple[msgspec.Raw, ...]
    next_cursor: str | None


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One wrong field of a request: where it stands, as a JSON pointer, and what is wrong, as a code."""

    pointer: str = ""
    code: str = ""


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Why the gateway refused."""

    title: str = ""
    detail: str = ""
    errors: tuple[Fault, ...] = ()
