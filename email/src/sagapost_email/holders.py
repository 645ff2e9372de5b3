"""Which processes of this host are alive: each holds a lock on a file of its own; it must not know what the lock is for.

The kernel gives the lock back when the process ends, however it ends. A process that is stopped (SIGSTOP) keeps it.
"""

import fcntl
import os
import pathlib
import uuid
from typing import Final

_SUFFIX: Final = ".holder"


class Holder:
    """The name of this process in a folder, locked until the process ends or `close`.

    Raises:
        OSError: the file cannot be made or locked.

    """

    def __init__(self, folder: pathlib.Path) -> None:
        self.name: Final = uuid.uuid4().hex
        self._folder = folder
        self._file = os.open(self._path(self.name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # another process that cleans up may hold it for a moment; it then removes the file, which makes this name dead
            fcntl.flock(self._file, fcntl.LOCK_EX)
            os.utime(self._path(self.name))
        except BaseException:
            os.close(self._file)
            raise

    def alive(self, name: str) -> bool:
        """Return whether the process of this name lives; in doubt it does."""
        return _locked(self._path(name))

    def present(self) -> bool:
        """Return whether the file is still there: whoever empties the folder makes this name that of a dead process."""
        return self._path(self.name).exists()

    def clean(self) -> None:
        """Remove the files of processes that have ended."""
        for path in self._folder.glob(f"*{_SUFFIX}"):
            if path != self._path(self.name):
                _locked(path, remove=True)

    def close(self) -> None:
        """Remove the file and release the lock."""
        self._path(self.name).unlink(missing_ok=True)
        os.close(self._file)

    def _path(self, name: str) -> pathlib.Path:
        return self._folder / f"{name}{_SUFFIX}"


def _locked(path: pathlib.Path, *, remove: bool = False) -> bool:
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if remove:
            path.unlink(missing_ok=True)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False
