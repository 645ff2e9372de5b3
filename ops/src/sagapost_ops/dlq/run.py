"""One run on one queue: the lock, the record from its begin to its end; it must not know what a run does."""

import getpass
import os
import socket
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final
from uuid import UUID

import msgspec
import psycopg

from sagapost_chassis import ids
from sagapost_ops import database, errors
from sagapost_ops.dlq import choice, queries
from sagapost_ops.outbox import times

_LOCK_S: Final = 1.0  # a server notices within moments that the process that held the lock was killed
_POLL_S: Final = 0.1


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator asks for: on which work queue, which letters, who and why."""

    kind: queries.Kind
    queue: str
    wanted: choice.Choice
    actor: str
    reason: str


class Run(msgspec.Struct, kw_only=True):
    """A run under way; what it sets here is written at its end."""

    id: UUID
    conn: database.Connection
    before: queries.BrokenOff
    came_back: int = 0
    stopped: str = ""


def system_user() -> str:
    """Name who calls, as far as this machine knows."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


@contextmanager
def recorded(conn: database.Connection, request: Request) -> Generator[Run]:
    """Be the only run on a queue for the length of a block; its row ends with it, whatever happens but a kill.

    Raises:
        FailedError: another run is under way on the queue.

    """
    _lock(conn, request.queue)
    run = Run(id=ids.uuid7(), conn=conn, before=queries.break_off(conn, request.queue))
    queries.begin(conn, run.id, kind=request.kind, queue=request.queue, actor=request.actor, reason=request.reason, choice=request.wanted)
    try:
        yield run
    except BaseException as exc:
        if not isinstance(exc, psycopg.Error):  # then there is nothing left to write with: the next run ends this one's row
            detail = "interrupted" if isinstance(exc, KeyboardInterrupt) else str(exc)[:500] or type(exc).__name__
            queries.end(conn, run.id, "failed", detail, run.came_back)
        raise
    queries.end(conn, run.id, "stopped" if run.stopped else "done", run.stopped, run.came_back)


def _lock(conn: database.Connection, queue: str) -> None:
    deadline = time.monotonic() + _LOCK_S
    while not queries.lock(conn, queue):
        if time.monotonic() > deadline:
            raise errors.FailedError(_refusal(queue, queries.running(conn, queue)))
        time.sleep(_POLL_S)


def _refusal(queue: str, other: queries.Running | None) -> str:
    if other is None:
        return f"somebody else has just begun on {queue}; nothing was moved; call again when that has ended"
    return (
        f"{other.actor} has a {other.kind} running on {queue} since {times.clock(other.started_at)} "
        f"({other.kind} {other.id}); nothing was moved; call again when that has ended"
    )
