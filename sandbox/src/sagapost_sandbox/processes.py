"""Starts child processes, as an unprivileged user when we are root, and ends exactly those again; does not know what they do."""

import contextlib
import fcntl
import os
import pathlib
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import msgspec

from sagapost_sandbox import accounts, errors, logfiles

POLL_S: Final = 0.02
KILL_WAIT_S: Final = 10.0
TAIL_BYTES: Final = 3_000
_FIRST_SOCKET: Final = 3  # SD_LISTEN_FDS_START
# A program takes sockets only when its own process id is named, and only the program itself can know that before it runs.
_ACTIVATED: Final = ("/bin/sh", "-c", 'export LISTEN_PID=$$; exec "$@"', "sh")
_GONE: Final = frozenset("ZXx")
# Fields of /proc/PID/stat counted from behind the closing bracket of the name: man 5 proc numbers state as 3.
_STATE, _PARENT, _SESSION, _STARTED = 0, 1, 3, 19


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Which process this is: pids are used again, pid + start (clock ticks since boot) + boot are not."""

    pid: int
    started: int
    boot: str


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """How a program that was run to its end went; both of its streams in `output`."""

    code: int
    output: str


class Process:
    """A child of ours, or one that an earlier run of ours left running."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.returncode: int | None = None  # stays None for a process that is not our child

    @property
    def pid(self) -> int:
        """Its process id, and the id of its session."""
        return self.record.pid

    def running(self) -> bool:
        """Whether it still runs; reaps it when it is our child and has ended."""
        fields = None if self.returncode is not None else _stat(self.pid)
        if fields is None or int(fields[_STARTED]) != self.record.started:
            return False
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            return fields[_STATE] not in _GONE
        if pid == self.pid:
            self.returncode = os.waitstatus_to_exitcode(status)
        return pid != self.pid

    def wait(self, timeout_s: float) -> bool:
        """Wait until it has ended; False when it still runs after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while self.running():
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_S)
        return True

    def send(self, number: signal.Signals) -> None:
        """Signal it, and nobody else who may have got its pid meanwhile."""
        if self.running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def send_all(self, number: signal.Signals) -> None:
        """Signal it and everything it started, itself first."""
        if self.running():
            for record in (self.record, *_tree(self.record)):
                Process(record).send(number)

    def stop(self, timeout_s: float, number: signal.Signals = signal.SIGTERM) -> None:
        """Ask it to end, wait, then kill it and everything it started.

        Raises:
            StopError: it survived even that.

        """
        tree = _tree(self.record) if self.running() else ()
        self.send(number)
        if not self.wait(timeout_s):
            self.kill()
        _kill_all(tree)

    def kill(self) -> None:
        """SIGKILL for it and everything it started, at once.

        Raises:
            StopError: it is still there afterwards.

        """
        self.send(signal.SIGSTOP)  # so that it starts nothing more while its children are listed
        tree = _tree(self.record) if self.running() else ()
        self.send(signal.SIGKILL)
        _kill_all(tree)
        if not self.wait(KILL_WAIT_S):
            raise errors.StopError(f"process {self.pid} survived SIGKILL; look at it with: ps -fp {self.pid}")


def spawn(
    arguments: Sequence[str | pathlib.Path],
    *,
    log: pathlib.Path,
    cwd: pathlib.Path,
    env: Mapping[str, str],
    account: accounts.Account | None = None,
    sockets: Sequence[tuple[str, socket.socket]] = (),
    nice: int = 0,
) -> Process:
    """Start a program in a session of its own, both streams appended to `log`; `account` needs root.

    One that is `nice` (0 to 19) leaves the processors to the others where there are too few.

    `cwd` is entered before the rights are dropped. posix_spawn instead of Popen: the child may well outlive us.
    Listening `sockets` are handed over by name, in the manner of systemd's socket activation.
    """
    logfiles.turn_over(log, reopened=True)
    line = [_program("env"), f"--chdir={cwd}", *accounts.prefix(account, cwd), *(_ACTIVATED if sockets else ()), *map(str, arguments)]
    # copies far above where they go, so that no dup2 hits one that is still to be moved
    copies = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, _FIRST_SOCKET + len(sockets)) for _, one in sockets]
    try:
        pid = os.posix_spawn(
            line[0],
            line,
            dict(env) | ({"LISTEN_FDS": str(len(sockets)), "LISTEN_FDNAMES": ":".join(name for name, _ in sockets)} if sockets else {}),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
                *((os.POSIX_SPAWN_DUP2, copy, _FIRST_SOCKET + nth) for nth, copy in enumerate(copies)),
            ],
            setsid=True,
            setsigmask=[],
            setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGXFSZ],
        )
    finally:
        for copy in copies:
            os.close(copy)
    if nice:
        _stand_back(pid, nice)
    fields = _stat(pid)  # there even when it has ended already: it is our child, and not reaped
    return Process(Record(pid=pid, started=int(fields[_STARTED]) if fields else 0, boot=_boot()))


def _stand_back(pid: int, nice: int) -> None:
    os.setpriority(os.PRIO_PROCESS, pid, nice)
    # Linux shares processors out among sessions first, and a priority counts within its session only (sched(7), autogroup)
    with contextlib.suppress(OSError):
        pathlib.Path(f"/proc/{pid}/autogroup").write_text(str(nice), encoding="ascii")


def run(
    arguments: Sequence[str | pathlib.Path],
    *,
    cwd: pathlib.Path = pathlib.Path("/"),
    env: Mapping[str, str] | None = None,
    account: accounts.Account | None = None,
    timeout_s: float = 60,
) -> Finished:
    """Run a program to its end; one that takes longer than `timeout_s` is killed and has code -9."""
    with tempfile.TemporaryDirectory(prefix="sagapost-run-") as folder:
        log = pathlib.Path(folder) / "out"
        child = spawn(arguments, log=log, cwd=cwd, env=os.environ if env is None else env, account=account)
        if not child.wait(timeout_s):
            child.kill()
        return Finished(code=child.returncode or 0, output=log.read_text(encoding="utf-8", errors="replace"))


def save(process: Process, path: pathlib.Path) -> None:
    """Write down which process it is, for a later run; whoever reads meanwhile finds what was there before, or all of it."""
    beside = path.with_name(f"{path.name}.part")
    beside.write_bytes(msgspec.json.encode(process.record))
    beside.replace(path)


def load(path: pathlib.Path) -> Process | None:
    """Return the process that was written down, if it still runs."""
    try:
        process = Process(msgspec.json.decode(path.read_bytes(), type=Record))
    except (OSError, msgspec.DecodeError):
        return None
    return process if process.record.boot == _boot() and process.running() else None


def identify(pid: int) -> Record | None:
    """Tell which process has this pid now; None when nobody has, or only a zombie."""
    fields = _stat(pid)
    if fields is None or fields[_STATE] in _GONE:
        return None
    return Record(pid=pid, started=int(fields[_STARTED]), boot=_boot())


def pids() -> Iterator[int]:
    """Every process of this machine."""
    return (int(entry.name) for entry in pathlib.Path("/proc").iterdir() if entry.name.isdigit())


def below(folder: pathlib.Path) -> Iterator[int]:
    """Every process that works in a folder or below it, as far as this user may see."""
    for pid in pids():
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            if pathlib.Path(f"/proc/{pid}/cwd").readlink().is_relative_to(folder):
                yield pid


def tail(log: pathlib.Path, size_bytes: int = TAIL_BYTES) -> str:
    """Return the end of a log, for an error message."""
    try:
        return log.read_bytes()[-size_bytes:].decode(errors="replace").strip()
    except OSError:
        return "(no log)"


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise errors.StartError(f"{name} is not on the PATH; it belongs to coreutils")
    return found


def _boot() -> str:
    return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _stat(pid: int) -> list[str] | None:
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def _tree(root: Record) -> tuple[Record, ...]:
    """Everything below `root`: by parent, and by session for those whose parent has gone."""
    stats = {pid: fields for pid in pids() if (fields := _stat(pid)) is not None}
    family = {root.pid}
    grown = True
    while grown:
        more = {pid for pid, fields in stats.items() if int(fields[_PARENT]) in family or int(fields[_SESSION]) in family}
        grown = not more <= family
        family |= more
    return tuple(record for pid in family - {root.pid} if (record := identify(pid)) is not None)


def _kill_all(tree: Sequence[Record]) -> None:
    for record in tree:
        if identify(record.pid) == record:
            with contextlib.suppress(ProcessLookupError):
                os.kill(record.pid, signal.SIGKILL)
