"""Installs Debian packages without letting their services start, now or at the next boot; knows nothing of what the packages are for."""

import contextlib
import fcntl
import os
import pathlib
import time
from collections.abc import Generator
from typing import Final

from sagapost_sandbox import errors, processes

POLICY: Final = pathlib.Path("/usr/sbin/policy-rc.d")
CREATECLUSTER: Final = pathlib.Path("/etc/postgresql-common/createcluster.d/sagapost.conf")
LOCK: Final = pathlib.Path("/run/lock/sagapost-apt.lock")
LOCK_WAIT_S: Final = 120
INSTALL_TIMEOUT_S: Final = 900
_SYSTEMD_RUNS: Final = pathlib.Path("/run/systemd/system")
_PROGRAM: Final = "/usr/bin/apt-get"
MARK: Final = "# placed by sagapost while it installs packages; may be deleted"
_OPTIONS: Final = ("-q", "-y", "-o", f"DPkg::Lock::Timeout={LOCK_WAIT_S}", "-o", "Dpkg::Use-Pty=0")


def command(packages: tuple[str, ...]) -> str:
    """Write the line that a person without root's rights runs."""
    return f"sudo apt-get install --no-install-recommends -y {' '.join(packages)}"


def install(packages: tuple[str, ...]) -> None:
    """Install with apt-get; needs root.

    Raises:
        MissingPackagesError: there is no apt-get, or it failed.

    """
    if not os.access(_PROGRAM, os.X_OK):
        raise errors.MissingPackagesError(packages, command(packages), "this machine has no apt-get; use its own package manager")
    with (
        _alone(),
        placed(POLICY, f"#!/bin/sh\n{MARK}\nexit 101\n", 0o755),
        placed(CREATECLUSTER, f"{MARK}\ncreate_main_cluster = false\n", 0o644),
    ):
        before = _enabled()
        try:
            _update()
            done = _apt(("install", "--no-install-recommends", *packages))
        finally:
            _disable(_enabled() - before)
    if done.code != 0:
        raise errors.MissingPackagesError(packages, command(packages), f"apt-get failed: {_last_line(done)}")


@contextlib.contextmanager
def _alone() -> Generator[None]:
    """Two starts at once take turns: the second must not lose its policy file to the first one's tidying."""
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with LOCK.open("w") as handle:
        deadline = time.monotonic() + INSTALL_TIMEOUT_S
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
        yield


@contextlib.contextmanager
def placed(path: pathlib.Path, text: str, mode: int) -> Generator[None]:
    """Have a file there meanwhile. Somebody else's stays; ours, left behind by a kill, is taken over."""
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        yield
        return
    made = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # the package lives there now
            for folder in made:
                folder.rmdir()


def _update() -> None:
    """Refresh the lists; apt does not wait for the lock on them by itself. A failure is not final: old lists may do."""
    deadline = time.monotonic() + LOCK_WAIT_S
    while (done := _apt(("update",))).code != 0 and "lock" in done.output and time.monotonic() < deadline:
        time.sleep(2)


def _apt(arguments: tuple[str, ...]) -> processes.Finished:
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C", "NEEDRESTART_SUSPEND": "1"}
    return processes.run([_PROGRAM, *_OPTIONS, *arguments], env=environ, timeout_s=INSTALL_TIMEOUT_S)


def _last_line(done: processes.Finished) -> str:
    lines = [line for line in done.output.splitlines() if line.strip()]
    wrong = [line for line in lines if line.startswith(("E:", "dpkg: error"))]
    return next(reversed(wrong or lines), f"exit code {done.code}")


def _enabled() -> set[pathlib.Path]:
    """List the links that start something at boot: systemd's, and System V's."""
    return {*pathlib.Path("/etc/systemd/system").glob("*.wants/*"), *pathlib.Path("/etc").glob("rc[2-5].d/S*")}


def _disable(links: set[pathlib.Path]) -> None:
    """Take the links away as `systemctl disable` does; Debian's helper leaves a unit off at upgrades whose link is gone."""
    for name in sorted({link.name[3:] for link in links if link.name.startswith("S") and link.parent.name.startswith("rc")}):
        processes.run(["/usr/sbin/update-rc.d", name, "disable"])
    for link in links:
        if link.parent.name.endswith(".wants"):
            link.unlink(missing_ok=True)
    if _SYSTEMD_RUNS.exists():
        processes.run(["systemctl", "daemon-reload"])
