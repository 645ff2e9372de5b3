"""One private PostgreSQL cluster as a child process, reachable over TCP on 127.0.0.1 only; knows no table and no service."""

import contextlib
import os
import pathlib
import secrets
import signal
import time
import urllib.parse
from typing import Final

import psycopg

from sagapost_sandbox import accounts, apt, databases, errors, packages, processes

HOST: Final = "127.0.0.1"
ADMIN: Final = "postgres"
START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 20.0
ORPHAN_WAIT_S: Final = 5.0
_RETRY_S: Final = 0.05
_ACCESS: Final = """\
host all all 127.0.0.1/32 scram-sha-256
host replication all 127.0.0.1/32 scram-sha-256
"""
# terse: the DETAIL of an error holds the failing row, a customer's address with it.
# No Unix socket: its path would have to fit into 107 bytes, and a checkout may lie deeper than that.
_SETTINGS: Final = """\
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
port = {port}
max_connections = 200
shared_buffers = 64MB
max_wal_size = 512MB
synchronous_commit = on
fsync = {fsync}
full_page_writes = {fsync}
jit = off
timezone = 'UTC'
log_timezone = 'UTC'
log_line_prefix = '%m [%p] %u %d '
log_error_verbosity = terse
cluster_name = 'sagapost'
"""
_TLS: Final = """\
ssl = on
ssl_cert_file = '{certificate}'
ssl_key_file = '{key}'
"""


class Cluster:
    """A cluster with its data in `folder`; made at the first start, found again at every other one.

    `fast` gives up what a power cut would need, not what kill -9 needs: for tests. `tls`: PEM files of certificate and key;
    connections over TCP are refused without it then.
    """

    def __init__(
        self, folder: pathlib.Path, port: int, *, fast: bool = False, tls: tuple[pathlib.Path, pathlib.Path] | None = None
    ) -> None:
        self.folder = folder.absolute()
        self.port = port
        self.fast = fast
        self.tls = tls
        self.data = self.folder / "data"
        self.log = self.folder / "server.log"
        self._record = self.folder / "server.pid"
        self._password = self.folder / "admin.password"
        self._process: processes.Process | None = None

    @property
    def pid(self) -> int | None:
        """The postmaster's pid, None when it does not run."""
        return self._process.pid if self.running() and self._process else None

    @property
    def version(self) -> str:
        """Version of the binaries that serve this cluster."""
        return self._binaries().version

    @property
    def admin_dsn(self) -> str:
        """The superuser's connection string; there only after the first start."""
        return self.dsn(ADMIN, self._password.read_text(encoding="ascii").strip(), ADMIN)

    def dsn(self, user: str, password: str, database: str) -> str:
        """Build the connection string (URL form) of a user of this cluster."""
        return f"postgresql://{user}:{urllib.parse.quote(password, safe='')}@{HOST}:{self.port}/{database}"

    def running(self) -> bool:
        """Whether the postmaster runs, started by us or by an earlier run of ours."""
        if self._process is None or not self._process.running():
            self._process = processes.load(self._record)
        return self._process is not None

    def start(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Start it, unless it runs, and wait until it accepts connections.

        Raises:
            MissingPackagesError: there are no binaries.
            PermissionsError: the data belong to another user, or cannot be reached.
            VersionMismatchError: the data were made by a major version that is not installed.
            StartError: it did not come up; the end of its log says why.

        """
        if self.running() and self._accepts(timeout_s):
            return
        account = accounts.unprivileged(self.folder, ADMIN)
        accounts.own_folder(self.folder, account)
        if not self.data.exists():
            self._initialise(account)
        binaries = self._binaries()
        self._clear_leftovers()
        accounts.write(self.data / "sagapost.conf", self._settings(account), account)
        self._process = processes.spawn(
            [binaries.folder / "postgres", "-D", self.data], log=self.log, cwd=self.folder, env=self._environ(), account=account
        )
        processes.save(self._process, self._record)
        if not self._accepts(timeout_s):
            raise errors.StartError(f"PostgreSQL ended while starting on port {self.port}: {processes.tail(self.log)}")

    def stop(self) -> None:
        """Shut down fast (sessions are ended, a checkpoint is written); nothing when it does not run."""
        if self.running() and self._process:
            self._process.stop(STOP_TIMEOUT_S, signal.SIGINT)
        self._record.unlink(missing_ok=True)

    def kill(self) -> None:
        """SIGKILL for the postmaster and all its backends, as a fault."""
        if self.running() and self._process:
            self._process.kill()

    def pause(self) -> None:
        """Stop every process of it where it stands, as a fault: connections stay open, and nobody answers."""
        if self.running() and self._process:
            self._process.send_all(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        if self._process:
            self._process.send_all(signal.SIGCONT)

    def restart(self) -> None:
        """Stop and start."""
        self.stop()
        self.start()

    def create(self, user: str, password: str, database: str) -> str:
        """Make a role and a database of its own, unless they are there; return its connection string."""
        databases.ensure_role(self.admin_dsn, user, password)
        databases.ensure_database(self.admin_dsn, database, user)
        return self.dsn(user, password, database)

    def _binaries(self) -> packages.PostgresBinaries:
        made_by = self.data / "PG_VERSION"
        major = int(made_by.read_text(encoding="ascii")) if made_by.exists() else None
        fitting = packages.find_postgres(major)
        if fitting is not None:
            return fitting
        newest = packages.find_postgres()
        if newest is None:
            wanted = (packages.POSTGRES_PACKAGE,)
            raise errors.MissingPackagesError(wanted, apt.command(wanted))
        raise errors.VersionMismatchError(
            f"{self.data} was made by PostgreSQL {major}, installed is {newest.version}: "
            f"install postgresql-{major}, or throw the data away with: ./sagapost down --purge"
        )

    def _initialise(self, account: accounts.Account | None) -> None:
        """Run initdb beside the final place, so that a kill in the middle leaves nothing that looks finished."""
        half_made = self.folder / "data.half-made"
        processes.run(["rm", "-rf", half_made])
        accounts.write(self._password, secrets.token_urlsafe(24) + "\n", account)
        done = processes.run(
            [
                *(self._binaries().folder / "initdb", f"--pgdata={half_made}", f"--username={ADMIN}", f"--pwfile={self._password}"),
                *("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--no-instructions"),
                *(("--no-sync",) if self.fast else ()),
            ],
            cwd=self.folder,
            env=self._environ(),
            account=account,
            timeout_s=120,
        )
        if done.code != 0:
            raise errors.StartError(f"initdb failed in {self.folder}: {done.output[-processes.TAIL_BYTES :].strip()}")
        accounts.write(half_made / "pg_hba.conf", _ACCESS, account)
        accounts.write(half_made / "postgresql.conf", "include 'sagapost.conf'\n", account)
        half_made.rename(self.data)

    def _settings(self, account: accounts.Account | None) -> str:
        text = _SETTINGS.format(port=self.port, fsync="off" if self.fast else "on")
        if self.tls is None:
            return text
        for name, source in zip(("server.crt", "server.key"), self.tls, strict=True):
            accounts.write(self.data / name, source.read_text(encoding="ascii"), account)
        accounts.write(self.data / "pg_hba.conf", _ACCESS.replace("host ", "hostssl "), account)
        return text + _TLS.format(certificate="server.crt", key="server.key")

    def _clear_leftovers(self) -> None:
        """After kill -9: let orphaned backends end, and remove a postmaster.pid whose number may be somebody else's by now.

        PostgreSQL refuses to start when any process of its user has the pid in that file. A process of this cluster is
        known by its working directory, which is the data folder; only when there is none is the file stale.
        """
        deadline = time.monotonic() + ORPHAN_WAIT_S
        while (orphans := self._own_pids()) and time.monotonic() < deadline:
            time.sleep(_RETRY_S)
        for pid in orphans:
            if record := processes.identify(pid):
                processes.Process(record).stop(STOP_TIMEOUT_S, signal.SIGINT)
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def _own_pids(self) -> list[int]:
        found: list[int] = []
        for pid in processes.pids():
            with contextlib.suppress(OSError):  # ended meanwhile, or another user's
                if pathlib.Path(f"/proc/{pid}/cwd").readlink() == self.data.resolve():
                    found.append(pid)
        return found

    def _environ(self) -> dict[str, str]:
        return {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self.folder), "LC_ALL": "C.UTF-8"}

    def _accepts(self, timeout_s: float) -> bool:
        """Wait until it takes connections; False when it ended instead, as one does that was just killed by somebody."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                psycopg.connect(self.admin_dsn, connect_timeout=2).close()
            except psycopg.OperationalError as exc:
                if not self.running():
                    return False
                if time.monotonic() > deadline:
                    raise errors.StartError(
                        f"PostgreSQL on port {self.port} accepted nobody for {timeout_s:.0f} s; see {self.log}"
                    ) from exc
                time.sleep(_RETRY_S)
            else:
                return True
