"""Services as real child processes of a test; knows their common variables, not what they do."""

import contextlib
import http.client
import os
import pathlib
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from sagapost_sandbox import errors, ports, processes

HOST: Final = "127.0.0.1"
READY_S: Final = 20.0
END_S: Final = 30.0
BACKLOG: Final = 2048
_POLL_S: Final = 0.05
_OK: Final = 200
_INHERITED: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "SAGAPOST_MIGRATIONS")


class Service:
    """One `python -m <module>`; its variables are those given, plus host, port, and metrics off.

    `inside` is put before its command line, to run it in another network namespace; it listens in ours all the same.
    """

    def __init__(self, module: str, env: Mapping[str, str], log: pathlib.Path, *, inside: Sequence[str] = ()) -> None:
        self.module = module
        self.log = log
        self.env = {
            **{name: os.environ[name] for name in _INHERITED if name in os.environ},
            "PYTHONUNBUFFERED": "1",
            "SAGAPOST_HOST": HOST,
            "SAGAPOST_METRICS_PORT": "0",
            **env,
        }
        if "SAGAPOST_PORT" not in self.env:
            self.env["SAGAPOST_PORT"] = str(ports.trial(1)[0])
        self.port = int(self.env["SAGAPOST_PORT"])
        self.url = f"http://{HOST}:{self.port}"
        line = [*inside, sys.executable, "-m", module]
        with contextlib.ExitStack() as held:
            sockets = [(str(self.port), held.enter_context(socket.create_server((HOST, self.port), backlog=BACKLOG)))] if inside else []
            self._process = processes.spawn(line, log=log, cwd=pathlib.Path("/"), env=self.env, sockets=sockets)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return None if self._process.running() else self._process.returncode

    def running(self) -> bool:
        """Whether it still runs."""
        return self._process.running()

    def wait_ready(self, deadline_s: float = READY_S) -> "Service":
        """Wait until /health/ready says 200, and return the service itself.

        Raises:
            StartError: it ended, or was not ready in time; with the end of its log.

        """
        deadline = time.monotonic() + deadline_s
        while True:
            answered = self._ready()
            if not self.running():  # looked at last: on a port that was taken somebody else answers
                raise errors.StartError(f"{self.module} ended with {self.returncode}: {processes.tail(self.log)}")
            if answered:
                return self
            if time.monotonic() > deadline:
                raise errors.StartError(f"{self.module} was not ready after {deadline_s:.0f} s: {processes.tail(self.log)}")
            time.sleep(_POLL_S)

    def wait(self, deadline_s: float = END_S) -> int | None:
        """Wait until it ends by itself, as at a crash point; return its exit code.

        Raises:
            StopError: it still runs after `deadline_s`.

        """
        if not self._process.wait(deadline_s):
            raise errors.StopError(f"{self.module} still ran after {deadline_s:.0f} s: {processes.tail(self.log)}")
        return self._process.returncode

    def terminate(self, deadline_s: float = END_S) -> int | None:
        """SIGTERM, as a deployment does; return its exit code."""
        self._process.send(signal.SIGTERM)
        return self.wait(deadline_s)

    def kill(self) -> None:
        """SIGKILL; nothing when it has ended."""
        self._process.kill()

    def send(self, number: signal.Signals) -> None:
        """Send any signal, SIGSTOP and SIGCONT for instance."""
        self._process.send(number)

    def logs(self) -> str:
        """Return everything it has written so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def lines(self) -> list[dict[str, object]]:
        """Return its JSON log lines; what is not one is left out, and one that is still being written."""
        whole = self.logs().rpartition("\n")[0]
        return [msgspec.json.decode(line, type=dict[str, object]) for line in whole.splitlines() if line.startswith("{")]

    def _ready(self) -> bool:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=3)
        try:
            connection.request("GET", "/health/ready")
            return connection.getresponse().status == _OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
