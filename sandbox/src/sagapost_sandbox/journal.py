"""An append-only file of JSON lines that is on disk before anybody is told so; does not know what the lines mean."""

import asyncio
import contextlib
import os
import pathlib
from collections.abc import AsyncGenerator, Sequence
from typing import Final

NEWLINE: Final = b"\n"


class Journal:
    """One writer's file; open it with `opened`. Lines that arrive while a write is under way share the next fsync."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None

    async def append(self, line: bytes) -> None:
        """Write one line (without a newline in it); returns when it is on disk.

        Raises:
            OSError: it could not be written, and is not there.

        """
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((line, written))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_all())
        await asyncio.shield(written)

    async def drain(self) -> None:
        """Wait until everything that was appended is on disk."""
        if self._writer is not None:
            await asyncio.wait({self._writer})

    async def _write_all(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                await asyncio.to_thread(_write, self._descriptor, [line for line, _ in batch])
            except Exception as exc:  # any kind: who appended waits for an answer, and those that come later for a writer
                for _, written in batch:
                    written.set_exception(exc)
            else:
                for _, written in batch:
                    written.set_result(None)
        self._writer = None


def read(path: pathlib.Path) -> list[bytes]:
    """Return the whole lines of a journal; a last line torn by a kill is left out, nobody was told that it is there."""
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(NEWLINE) + 1].splitlines()


@contextlib.asynccontextmanager
async def opened(path: pathlib.Path) -> AsyncGenerator[Journal]:
    """Open a journal for appending, cutting off a torn last line, and drain it at the end."""
    descriptor = _open(path)
    try:
        journal = Journal(descriptor)
        try:
            yield journal
        finally:
            await journal.drain()
    finally:
        os.close(descriptor)


def _open(path: pathlib.Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    whole = path.read_bytes().rfind(NEWLINE) + 1
    os.ftruncate(descriptor, whole)
    os.lseek(descriptor, whole, os.SEEK_SET)
    return descriptor


def _write(descriptor: int, lines: Sequence[bytes]) -> None:
    start = os.lseek(descriptor, 0, os.SEEK_CUR)
    content = memoryview(b"".join(line + NEWLINE for line in lines))
    try:
        while content:
            content = content[os.write(descriptor, content) :]
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, start)  # a disk that filled up in the middle: half a batch must not stay
        os.lseek(descriptor, start, os.SEEK_SET)
        raise
