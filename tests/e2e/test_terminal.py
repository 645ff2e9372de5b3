"""A stack in front of a terminal: its logs turn over, its supervisor needs no room on the disk, and it ends with the terminal."""

import contextlib
import json
import os
import pathlib
import pty
import resource
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Generator

import pytest
from e2e import shop_stack

from sagapost_ops import probes, state
from sagapost_sandbox import logfiles, processes
from sagapost_sandbox.testing import polling

START_S = 280
STOP_S = 90
LOG_BYTES = 20_000
KEPT = 6
CALLS = 300


class Terminal:
    """`./sagapost up` in front of a terminal of its own, which somebody reads until it is closed."""

    def __init__(self, base: pathlib.Path) -> None:
        self.stack = shop_stack.Stack(base)
        line = [sys.executable, "-P", "-m", "sagapost_ops", "up", "--payment-delay", "0", "--email-delay", "0"]
        environ = {name: value for name, value in os.environ.items() if not name.startswith("SAGAPOST_")}
        environ |= {"SAGAPOST_STATE": str(base), "SAGAPOST_LOG_BYTES": str(LOG_BYTES), "SAGAPOST_LOGS_KEPT": str(KEPT)}
        self._master, slave = pty.openpty()
        # the first process of its session: the terminal that it opens becomes its own, and its end a SIGHUP
        shell = ["/bin/sh", "-c", 'exec "$@" <>"$0" >&0 2>&0', os.ttyname(slave), *line, "--port-offset", str(self.stack.offset)]
        self.process = subprocess.Popen(shell, env=environ, start_new_session=True)
        polling.eventually(lambda: self._is_controlled(os.ttyname(slave)))
        os.close(slave)
        self._closing = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        polling.eventually(self._is_ready, START_S)

    def close(self) -> None:
        """Close the terminal, as the window manager does."""
        if not self._closing.is_set():
            self._closing.set()
            self._reader.join()  # the kernel hangs up when nobody is in a read any more
            os.close(self._master)

    def _is_controlled(self, name: str) -> bool:
        with contextlib.suppress(OSError):
            return pathlib.Path(f"/proc/{self.process.pid}/fd/2").readlink() == pathlib.Path(name)
        return False

    def _is_ready(self) -> bool:
        found = state.read(self.stack.home)
        return found is not None and found.phase == "ready"

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while not self._closing.is_set():
                if select.select([self._master], [], [], 0.1)[0]:
                    os.read(self._master, 65_536)


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Generator[Terminal]:
    """Start a stack in front of a terminal, for the tests of this module; whatever is left of it ends with them."""
    made = Terminal(tmp_path_factory.mktemp("terminal") / "stack")
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait()
        made.stack.run("down", "--purge")


def test_logs_turn_over_and_no_line_is_lost(terminal: Terminal) -> None:
    """The gateway's log stays bounded, old ones go, and who follows it sees each call once and in order."""
    stack = terminal.stack
    line = [sys.executable, "-P", "-m", "sagapost_ops", "logs", "gateway", "-f", "-n", "0", "--json", "--port-offset", str(stack.offset)]
    environ = {**os.environ, "SAGAPOST_STATE": str(stack.base)}
    following = subprocess.Popen(line, env=environ, stdout=subprocess.PIPE, text=True)
    seen: list[str] = []
    assert following.stdout is not None
    reader = threading.Thread(target=lambda: seen.extend(following.stdout or ()), daemon=True)
    reader.start()
    try:
        _follow(stack, seen)
    finally:
        following.kill()
        following.wait()
        reader.join()
        following.stdout.close()

    log = state.log_of(stack.home, "gateway")
    assert [path for path in _paths(seen) if path.startswith("/api/orders/1")] == [
        f"/api/orders/{number + 1_000_000}" for number in range(CALLS)
    ]
    assert logfiles.older(log).exists()
    assert not logfiles.older(log, KEPT + 1).exists()


def _follow(stack: shop_stack.Stack, seen: list[str]) -> None:
    """Call often, waiting for the log to be turned over now and then, until the last call was seen."""
    polling.eventually(lambda: _sees(stack, seen))
    log = state.log_of(stack.home, "gateway")

    for number in range(CALLS):
        stack.call("GET", f"/api/orders/{number + 1_000_000}")
        if number % 50 == 49:
            polling.eventually(lambda: log.exists() and log.stat().st_size < LOG_BYTES)
    polling.eventually(lambda: _paths(seen)[-1:] == [f"/api/orders/{CALLS + 999_999}"], 60)


def test_the_supervisor_needs_no_room(terminal: Terminal) -> None:
    """It can write neither state nor process ids: what dies is started again all the same, and is written down when there is room."""
    stack = terminal.stack
    supervisor = stack.state().supervisor.pid
    before = stack.state().services
    email = next(service for service in before if service.name == "email")
    assert email.record is not None
    _room(supervisor, 0)
    os.kill(email.record.pid, signal.SIGKILL)
    polling.eventually(lambda: processes.identify(email.record.pid) is None if email.record else True)
    polling.eventually(lambda: probes.ready("health", email.port), 60)
    _room(supervisor, resource.RLIM_INFINITY)

    polling.eventually(lambda: next(one.restarts for one in stack.state().services if one.name == "email") == 1, 20)
    assert stack.ended(stack.checkout("pm_card_ok")).state == "notified"


def test_a_closed_terminal_ends_the_whole_stack(terminal: Terminal) -> None:
    """The window is closed: the supervisor is told so, cannot print any more, and stops everything in order."""
    before = terminal.stack.state()
    assert processes.identify(before.supervisor.pid) is not None

    terminal.close()

    assert terminal.process.wait(STOP_S) == 0
    shop_stack.assert_gone(terminal.stack, before)
    assert state.read(terminal.stack.home) is None


def _sees(stack: shop_stack.Stack, seen: list[str]) -> bool:
    stack.call("GET", "/api/orders/999")
    return bool(_paths(seen))


def _paths(seen: list[str]) -> list[str]:
    return [str(json.loads(line).get("path", "")) for line in seen if '"request.handled"' in line]


def _room(pid: int, size_bytes: int) -> None:
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size_bytes, resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]))
