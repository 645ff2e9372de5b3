"""How a command asks the supervisor of a running stack for something: one socket, a line of JSON there, lines of JSON back."""

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Final, Literal

import msgspec

from sagapost_ops import plan

SOCKET: Final = "control.sock"
LINE_BYTES: Final = 1_000_000
_ASK_S: Final = 5.0
_ACCEPT_S: Final = 0.2

State = Literal["starting", "done", "failed"]


class Restart(msgspec.Struct, frozen=True, kw_only=True):
    """Replace these units one after the other by processes of this interpreter, whose code has this version."""

    python: str
    version: str
    units: tuple[plan.Unit, ...]


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """Where the replacement of one service is; times in seconds."""

    service: str
    state: State
    old_pid: int | None = None
    pid: int | None = None
    ready_s: float = 0
    drained_s: float = 0
    error: str = ""


Handle = Callable[[Restart], Generator[Step]]


class Desk:
    """The supervisor's end: answers one command after the other, in a thread of its own."""

    def __init__(self, home: Path, handle: Handle, stopping: threading.Event) -> None:
        self._path = home / SOCKET
        self._handle = handle
        self._stopping = stopping
        self._listener = socket.socket(socket.AF_UNIX)
        self._thread = threading.Thread(target=self._serve, name="control", daemon=True)

    def open(self) -> None:
        """Begin to answer.

        Raises:
            OSError: the socket cannot be made in the folder, on a full disk for instance.

        """
        self._path.unlink(missing_ok=True)  # of a supervisor that was killed
        with _reachable(self._path) as name:
            self._listener.bind(name)
        self._listener.listen()
        self._listener.settimeout(_ACCEPT_S)
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Wait for what is being done; call it when `stopping` is set."""
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        self._listener.close()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _serve(self) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(Exception):  # nobody asked, or who asked has gone or was not one of ours; the next one may be
                connection, _ = self._listener.accept()
                with connection:
                    connection.settimeout(_ASK_S)
                    self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as lines:
            wanted = msgspec.json.decode(lines.readline(LINE_BYTES), type=Restart)
        with contextlib.closing(self._handle(wanted)) as steps:
            for step in steps:
                with contextlib.suppress(OSError):  # who asked has gone; what was asked for is done to its end all the same
                    connection.sendall(msgspec.json.encode(step) + b"\n")


def ask(home: Path, wanted: Restart, timeout_s: float) -> Iterator[Step]:
    """Ask, and give the steps as they are made; `timeout_s` bounds the wait for each.

    Raises:
        OSError: there is no supervisor, or it said nothing in time.

    """
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as connection:
        connection.settimeout(timeout_s)
        with _reachable(home / SOCKET) as name:
            connection.connect(name)
        connection.sendall(msgspec.json.encode(wanted) + b"\n")
        with connection.makefile("rb") as lines:
            while line := lines.readline(LINE_BYTES):
                yield msgspec.json.decode(line, type=Step)


@contextlib.contextmanager
def _reachable(path: Path) -> Generator[str]:
    """Name a socket in at most the 107 bytes that unix(7) allows, however long the way to its folder is."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
