"""Which TCP ports of this machine are free, and who holds the others; knows nothing of what will listen there."""

import contextlib
import errno
import functools
import itertools
import pathlib
import re
import socket
from collections.abc import Collection, Iterable, Iterator
from typing import Final

from sagapost_sandbox import processes

HIGHEST: Final = 65535
LISTEN: Final = "0A"
# Below the kernel's usual range for outgoing connections (32768+), so that no client socket takes a port between the choice and the bind.
# Whole stacks that tests start keep their public ports below it: what a stack leaves for its restart, no trial server takes.
TRIAL_RANGE: Final = (22_000, 32_000)
_BLOCK: Final = 500  # whole runs of all tests take some 1,500 ports a worker, most for seconds; the oldest come again first
_TAKEN: Final = frozenset({errno.EADDRINUSE, errno.EACCES})


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of 127.0.0.1, and nobody else answers to `localhost` over IPv6."""
    return _can_bind(socket.AF_INET, "127.0.0.1", port) and _can_bind(socket.AF_INET6, "::1", port)


def _can_bind(family: socket.AddressFamily, host: str, port: int) -> bool:
    try:
        with contextlib.closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
            # Connections in TIME_WAIT do not keep a server from binding; a listener still does.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as exc:
        return exc.errno not in _TAKEN  # no IPv6 on this machine: nobody can answer there
    return True


def next_free(port: int, avoid: Collection[int] = ()) -> int:
    """Return the first free port from `port` upwards that is not in `avoid`."""
    for candidate in range(port, HIGHEST + 1):
        if candidate not in avoid and is_free(candidate):
            return candidate
    raise OSError(errno.EADDRNOTAVAIL, f"no free TCP port from {port} upwards")


def trial(count: int) -> tuple[int, ...]:
    """Return `count` free ports, for servers that only this run knows.

    They come out of a block that belongs to this process as long as it lives, and go round in it: what is chosen here and not listened on
    yet, or given up for a restart, nobody else is given meanwhile.

    Raises:
        OSError: every port of the block is taken.

    """
    chosen = tuple(itertools.islice(filter(is_free, itertools.islice(_own_block(), _BLOCK)), count))
    if len(chosen) < count:
        raise OSError(errno.EADDRNOTAVAIL, f"no {count} free TCP ports in the block of this process")
    return chosen


@functools.cache
def _own_block() -> Iterator[int]:
    """Go round in the ports of a block; its first one is listened on until the process ends, and says that the block is taken."""
    for first in range(*TRIAL_RANGE, _BLOCK):
        with contextlib.suppress(OSError):
            socket.create_server(("127.0.0.1", first)).detach()
            return itertools.cycle(range(first + 1, first + _BLOCK))
    raise OSError(errno.EADDRNOTAVAIL, "every block of TCP ports for trials belongs to some process")


def owner(port: int) -> tuple[int, str] | None:
    """Return (pid, process name) of who listens on `port`; None when nobody does or when it may not be seen.

    Of several that have the same socket it is the one that was there first: the others got it from there, and come and go.
    """
    inodes = set(_listening_inodes(port))
    if not inodes:
        return None
    pid = eldest(pid for pid in processes.pids() if inodes & set(_socket_inodes(pathlib.Path(f"/proc/{pid}"))))
    return None if pid is None else (pid, _name(pathlib.Path(f"/proc/{pid}")))


def eldest(pids: Iterable[int]) -> int | None:
    """Return which of these processes was started first, whatever the order of their ids; None when none of them runs."""
    records = [record for pid in pids if (record := processes.identify(pid)) is not None]
    return min(records, key=lambda record: (record.started, record.pid)).pid if records else None


def describe_taken(port: int) -> str:
    """Say in one sentence that `port` is taken and by whom."""
    holder = owner(port)
    if holder is None:
        return f"port {port} is taken by a process of another user"
    return f"port {port} is taken by {holder[1]} (pid {holder[0]})"


def _listening_inodes(port: int) -> Iterator[str]:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in pathlib.Path(table).read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                    yield fields[9]


def _socket_inodes(process: pathlib.Path) -> Iterator[str]:
    with contextlib.suppress(OSError):  # it ended meanwhile, or belongs to somebody else
        for descriptor in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                if match := re.fullmatch(r"socket:\[(\d+)\]", str(descriptor.readlink())):
                    yield match[1]


def _name(process: pathlib.Path) -> str:
    try:
        return (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "a process that just ended"
