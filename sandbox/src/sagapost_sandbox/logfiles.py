"""Turns log files over when they have grown: `x.log`, `x.1.log`, `x.2.log` …; it must not know who writes them."""

import contextlib
import os
import pathlib
import re
import shutil
from typing import Final

BYTES: Final = 20_000_000
KEPT: Final = 3  # beside the one that is written to
_OLDER: Final = re.compile(r"\.[0-9]+$")


def older(log: pathlib.Path, number: int = 1) -> pathlib.Path:
    """Return where the content of a log is after it was turned over so often."""
    return log.with_suffix(f".{number}.log")


def is_older(log: pathlib.Path) -> bool:
    """Return whether a file is a log that was turned over."""
    return _OLDER.search(log.stem) is not None


def turn_over(log: pathlib.Path, *, reopened: bool, size_bytes: int = BYTES, kept: int = KEPT) -> bool:
    """Begin a log anew when it has `size_bytes`, and keep the last `kept` of those before it; return whether that was done.

    `reopened`: who writes it notices that the file was renamed, and opens it again, as our own processes do: no line is lost. From any
    other program a line is lost that it writes between the copy and the cut. A disk without room leaves the log as it is.
    """
    with contextlib.suppress(OSError):
        if log.stat().st_size < size_bytes:
            return False
        for number in range(kept - 1, 0, -1):
            if older(log, number).exists():
                older(log, number).replace(older(log, number + 1))
        if reopened:
            mode = log.stat().st_mode & 0o777
            log.replace(older(log))
            log.touch(mode)
        else:
            _copy_and_cut(log, older(log))
        return True
    return False


def _copy_and_cut(log: pathlib.Path, to: pathlib.Path) -> None:
    with log.open("r+b") as source, to.open("wb") as target:
        to.chmod(log.stat().st_mode & 0o777)
        shutil.copyfileobj(source, target)
        target.flush()
        shutil.copyfileobj(source, target)  # what came meanwhile
        target.flush()
        os.ftruncate(source.fileno(), 0)
