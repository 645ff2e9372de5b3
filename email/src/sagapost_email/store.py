"""The memory's file and this process's name in it, opened when needed and opened again after a failure; it must not know SQL.

One thread does all the work: a lock of another process, or a slow disk, must not hold up the event loop.
"""

import asyncio
import contextlib
import errno
import fcntl
import functools
import os
import pathlib
import sqlite3
import time
from collections.abc import Callable
from concurrent import futures
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar

import prometheus_client

from sagapost_chassis import settings
from sagapost_email import errors, holders, queries

FILE: Final = "mails.sqlite3"
BUSY_S: Final = 2.0  # what another process's transaction may take
AGAIN_S: Final = 1.0  # a store that failed is tried again so often, not by every mail
FRESH_S: Final = 60.0  # failures further apart are two outages
_BROKEN: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_WRONG_FOLDER: Final = (errno.ENOTDIR, errno.EEXIST, errno.EACCES, errno.EPERM, errno.EROFS)
_PARTS: Final = ("", "-wal", "-shm")

FAILURES: Final = prometheus_client.Counter("sagapost_mail_memory_failures_total", "Times that the memory of mails could not be used")
T = TypeVar("T")


class Store:
    """An SQLite file in a folder that several processes of one host share; without a folder, a database of this process alone.

    Raises:
        settings.CannotStartError: the folder cannot be made or written to, which no wait mends.

    """

    def __init__(self, folder: pathlib.Path | None) -> None:
        self._folder = folder
        self._worker = futures.ThreadPoolExecutor(1, thread_name_prefix="mail-memory")
        self._conn: sqlite3.Connection | None = None
        self._holder: holders.Holder | None = None
        self._inode = 0
        self._away_since: float | None = None
        self._failed_at = 0.0
        self._reason = ""
        if folder is not None:
            _require(folder)

    @property
    def name(self) -> str:
        """Return what this process's claims are stored under."""
        return self._holder.name if self._holder is not None else "this process"

    def alive(self, name: str) -> bool:
        """Return whether the process of a claim still lives."""
        return self._holder is not None and self._holder.alive(name)

    def away_s(self) -> float:
        """Return for how many seconds nothing could be written; 0: the last write succeeded, or was tried long ago."""
        if self._away_since is None or time.monotonic() - self._failed_at > FRESH_S:
            return 0
        return time.monotonic() - self._away_since

    async def run(self, job: Callable[[sqlite3.Connection], T], *, writes: bool = True) -> T:
        """Return what `job` returns; it runs in the store's thread, to its end even if the caller is cancelled.

        Raises:
            errors.MemoryUnavailableError: the file cannot be used now.

        """
        work = functools.partial(self._do, job, writes=writes)
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._worker, work))

    async def close(self) -> None:
        """Close the file, and give up the name in it."""
        await asyncio.get_running_loop().run_in_executor(self._worker, self._close)
        self._worker.shutdown(wait=False)

    def _do(self, job: Callable[[sqlite3.Connection], T], *, writes: bool) -> T:
        if writes and self._away_since is not None and time.monotonic() - self._failed_at < AGAIN_S:
            raise errors.MemoryUnavailableError(self._reason)
        try:
            result = job(self._open())
        except (sqlite3.Error, OSError) as exc:
            self._fail(exc)
            raise errors.MemoryUnavailableError(self._reason) from exc
        if writes:
            self._away_since = None
        return result

    def _fail(self, exc: sqlite3.Error | OSError) -> None:
        FAILURES.inc()
        now = time.monotonic()
        if self._away_since is None or now - self._failed_at > FRESH_S:
            self._away_since = now
        self._failed_at = now
        self._reason = f"the memory of mails cannot be used: {exc}"
        inode = self._inode
        self._let_go()
        if isinstance(exc, sqlite3.Error) and getattr(exc, "sqlite_errorcode", 0) & 0xFF in _BROKEN and self._folder is not None:
            with contextlib.suppress(OSError):
                _put_away(self._folder, inode)

    def _open(self) -> sqlite3.Connection:
        if self._conn is not None and not self._gone():
            return self._conn
        self._let_go()
        if self._folder is None:
            self._conn = queries.connect(":memory:", busy_s=BUSY_S)
            return self._conn
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._holder is not None and not self._holder.present():
            self._drop_name()
        if self._holder is None:
            self._holder = holders.Holder(self._folder)
            self._holder.clean()
        path = self._folder / FILE
        with contextlib.suppress(FileNotFoundError):
            self._inode = path.stat().st_ino
        conn = queries.connect(str(path), busy_s=BUSY_S)
        self._inode = path.stat().st_ino
        _take_over(self._folder, conn)
        self._conn = conn
        return conn

    def _gone(self) -> bool:
        """Return whether the file was removed or replaced since it was opened."""
        if self._folder is None:
            return False
        try:
            return (self._folder / FILE).stat().st_ino != self._inode
        except FileNotFoundError:
            return True

    def _let_go(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            with contextlib.suppress(sqlite3.Error):
                conn.close()

    def _drop_name(self) -> None:
        holder, self._holder = self._holder, None
        if holder is not None:
            with contextlib.suppress(OSError):
                holder.close()

    def _close(self) -> None:
        self._let_go()
        self._drop_name()


def _require(folder: pathlib.Path) -> None:
    reason = ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        reason = str(exc.strerror) if exc.errno in _WRONG_FOLDER else ""  # a full disk may have room again
    if not reason and folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
        reason = "it is not writable"
    if reason:
        raise settings.CannotStartError(f"SAGAPOST_MAIL_MEMORY: {folder} cannot be used: {reason}")


def _put_away(folder: pathlib.Path, inode: int) -> None:
    """Rename a damaged file, so that a new one is made; whoever finds it renamed already does nothing."""
    with (folder / "repair.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / FILE).stat().st_ino != inode:
            return
        for part in _PARTS:
            with contextlib.suppress(FileNotFoundError):
                (folder / f"{FILE}{part}").rename(folder / f"{FILE}{part}.broken-{int(time.time())}")


def _take_over(folder: pathlib.Path, conn: sqlite3.Connection) -> None:
    """Store what an earlier version noted in its text files, today's and yesterday's, and remove older ones."""
    yesterday = f"accepted-{datetime.now(UTC).date() - timedelta(days=1):%Y%m%d}.txt"
    for file in folder.glob("accepted-*.txt"):
        if file.name < yesterday:
            file.unlink(missing_ok=True)
        else:
            queries.take_over(conn, file.read_text(encoding="utf-8", errors="replace").split(), now=time.time())
