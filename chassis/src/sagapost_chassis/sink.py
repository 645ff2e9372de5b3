"""Writes lines to standard error and never raises: a line that cannot be written is dropped and counted; it must not know what a line says.

A write must not stop the event loop either. While a pipe or terminal takes nothing, up to `ROOM_BYTES` wait; further lines are
dropped. Only a write to a regular file may block: the kernel has no non-blocking write for it.
"""

import atexit
import contextlib
import os
import select
import socket
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

import prometheus_client

ROOM_BYTES: Final = 1 << 20
LAST_S: Final = 1.0  # how long the end of the process waits for lines that have not been taken
LOOK_S: Final = 1.0  # how often a log file is compared with its path
_PIECE_BYTES: Final = select.PIPE_BUF  # a pipe that polls writable takes this much at once (pipe(7))
_NEWLINE: Final = b"\n"
_END: Final = _NEWLINE[0]
_NOWHERE: Final = -1

LOST: Final = prometheus_client.Counter("sagapost_log_lines_lost", "Log lines that could not be written, and were dropped")

Notice = Callable[[int], str]


class Sink:
    """One descriptor that lines go to; `notice` makes the line that says how many were lost, written when lines can be written again."""

    def __init__(self, descriptor: int = _NOWHERE, notice: Notice | None = None) -> None:
        self._lock = threading.RLock()  # a destructor that runs in the middle of a write may log, too
        self._notice = notice
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._unsaid = 0
        self._inside = False  # the last byte that was written was not the end of a line
        self._torn = False  # and the rest of that line was dropped
        self._busy = False
        self._waiter: threading.Thread | None = None
        self._descriptor = _NOWHERE
        self._path: Path | None = None
        self._looked_at = time.monotonic()
        self._put: Callable[[bytes], int] = _nowhere
        with contextlib.suppress(OSError):
            self._use(descriptor)
        atexit.register(self.close)

    def write(self, line: str) -> None:
        """Write one line, or drop and count it; returns at once."""
        try:
            content = line.encode("utf-8", "backslashreplace") + _NEWLINE
            with self._lock:
                if self._waiting_bytes + len(content) > ROOM_BYTES and self._waiting:
                    self._lose()
                    return
                self._append(content)
                if not self._busy:
                    self._flush()
        except Exception:  # any kind: who logs must go on
            self._lose()

    def close(self, timeout_s: float = LAST_S) -> None:
        """Wait for the lines that have not been taken yet, for `timeout_s` seconds at most."""
        waiter = self._waiter
        if waiter is not None:
            waiter.join(timeout_s)

    def idle(self) -> bool:
        """Return whether everything was written or dropped."""
        return not self._waiting

    def _append(self, content: bytes) -> None:
        self._waiting.append(content)
        self._waiting_bytes += len(content)

    def _lose(self) -> None:
        LOST.inc()
        self._unsaid += 1

    def _flush(self) -> None:
        """Write what waits, as far as it is taken without waiting; the rest is left to a thread."""
        self._busy = True
        try:
            self._follow()
            taken = True
            while self._waiting and taken:
                if self._unsaid and self._notice is not None and (self._torn or not self._inside):
                    taken = self._tell(self._notice(self._unsaid))
                taken = taken and self._take()
        finally:
            self._busy = False
        if self._waiting and self._waiter is None:
            self._waiter = threading.Thread(target=self._wait, name="log", daemon=True)
            self._waiter.start()

    def _tell(self, notice: str) -> bool:
        """Write how many lines were lost; False when it is not taken now. A notice that fails is made again with the next line."""
        unsaid, content = self._unsaid, notice.encode("utf-8", "backslashreplace") + _NEWLINE
        try:
            left = self._written(content)
        except OSError:
            return True
        if left == len(content):
            return False
        self._unsaid -= unsaid
        if left:
            self._waiting.appendleft(content[-left:])
            self._waiting_bytes += left
        return not left

    def _take(self) -> bool:
        """Write the first line that waits; False when it is not taken now, or not all of it."""
        line = self._waiting[0]
        try:
            left = self._written(line)
        except OSError:  # no room, nobody at the other end, the terminal closed
            left = 0
            self._lose()
        self._waiting.popleft()
        self._waiting_bytes -= len(line)
        if left:
            self._waiting.appendleft(line[-left:])
            self._waiting_bytes += left
        return not left

    def _written(self, content: bytes) -> int:
        """Write what is taken of `content`, and return how many bytes are left.

        Raises:
            OSError: the rest cannot be written; the next line begins with a line break if some of this one was.

        """
        left = memoryview(_NEWLINE + content if self._torn else content)
        try:
            while left:
                done = self._put(bytes(left))
                self._inside = left[done - 1] != _END
                self._torn = False
                left = left[done:]
        except BlockingIOError:
            return min(len(left), len(content))
        except OSError:
            self._torn = self._inside
            raise
        return 0

    def _wait(self) -> None:
        """Write what waits whenever the other end takes something, until nothing waits."""
        while True:
            poll = select.poll()
            poll.register(self._descriptor, select.POLLOUT)
            poll.poll(round(LAST_S * 1000))
            with self._lock:
                self._flush()
                if not self._waiting:
                    self._waiter = None
                    return

    def _use(self, descriptor: int) -> None:
        """Write to `descriptor` from now on.

        Raises:
            OSError: it is not open.

        """
        mode = os.fstat(descriptor).st_mode
        self._put, self._descriptor = _writer(descriptor, mode)
        self._path = Path(f"/proc/self/fd/{descriptor}").readlink() if stat.S_ISREG(mode) else None

    def _follow(self) -> None:
        """Open the log file again when its path names another file: it was rotated."""
        now = time.monotonic()
        if self._path is None or now - self._looked_at < LOOK_S:
            return
        self._looked_at = now
        with contextlib.suppress(OSError):
            ours = os.fstat(self._descriptor)
            try:
                there = self._path.stat()
            except FileNotFoundError:
                there = None
            if there is None or (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino):
                _reopen(self._path, self._descriptor, stat.S_IMODE(ours.st_mode))


def standard_error(notice: Notice | None = None) -> Sink:
    """Return a sink on this process's standard error; one that drops all when the process was started without."""
    try:
        return Sink(sys.stderr.fileno(), notice) if sys.stderr is not None else Sink()
    except (OSError, ValueError):  # replaced by something that is no file
        return Sink()


def say(sentence: str) -> None:
    """Write one sentence to standard error before the process ends, if anybody takes it."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        try:
            made = Sink(sys.stderr.fileno())
        except (OSError, ValueError):
            sys.stderr.write(sentence + "\n")
        else:
            made.write(sentence)
            made.close()


def _nowhere(_: bytes) -> int:
    raise OSError("there is no standard error")


def _reopen(path: Path, descriptor: int, mode: int) -> None:
    fresh = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, mode)
    try:
        if os.path.samestat(os.fstat(1), os.fstat(descriptor)):
            os.dup2(fresh, 1)
        os.dup2(fresh, descriptor)
    finally:
        os.close(fresh)


def _writer(descriptor: int, mode: int) -> tuple[Callable[[bytes], int], int]:
    """Choose how to write without waiting, and return the descriptor that is written to.

    O_NONBLOCK belongs to the open file, which other processes may share: a pipe or a terminal is opened once more, for us alone.
    """
    if stat.S_ISREG(mode):
        return lambda content: os.write(descriptor, content), descriptor
    if stat.S_ISSOCK(mode):
        shared = socket.socket(fileno=os.dup(descriptor))
        return lambda content: shared.send(content, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL), descriptor
    try:
        own = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return lambda content: _when_taken(descriptor, content), descriptor
    return lambda content: os.write(own, content), own


def _when_taken(descriptor: int, content: bytes) -> int:
    """Write a piece that is taken at once.

    Raises:
        BlockingIOError: nothing is taken now.

    """
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    if not poll.poll(0):
        raise BlockingIOError
    return os.write(descriptor, content[:_PIECE_BYTES])
