"""A synchronous standby beside a private PostgreSQL cluster, and its promotion; knows no table and no service."""

import pathlib
import time
import urllib.parse
from typing import Final

import psycopg

from sagapost_sandbox import accounts, errors, postgres, processes

COPY_TIMEOUT_S: Final = 120.0
PROMOTE_TIMEOUT_S: Final = 30.0
_RETRY_S: Final = 0.05
_FOLLOWING: Final = """\
primary_conninfo = '{primary}'
hot_standby = on
wal_retrieve_retry_interval = '200ms'
"""


class Standby(postgres.Cluster):
    """A copy of `primary`, which waits with each commit until the copy has it on disk; made when both are started.

    After `promote` it is a cluster of its own, whose commits wait for nobody. A primary that comes back after that is a
    zombie: its commits wait for ever for a standby that has gone, so that nobody is told of one.
    """

    def __init__(self, primary: postgres.Cluster, folder: pathlib.Path, port: int) -> None:
        super().__init__(folder, port, fast=primary.fast)
        self._primary = primary

    @property
    def admin_dsn(self) -> str:
        """The superuser's connection string: the copy has the primary's roles."""
        return self._primary.admin_dsn.replace(f":{self._primary.port}/", f":{self.port}/")

    def start(self, timeout_s: float = postgres.START_TIMEOUT_S) -> None:
        """Start it, copied from the primary the first time, and let the primary wait for it from then on.

        Raises:
            StartError: it could not be copied or did not come up.

        """
        is_new = not self.data.exists()
        super().start(timeout_s)
        if is_new:
            self._wait("SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'", self._primary.admin_dsn, timeout_s)
            _administer(self._primary.admin_dsn, "ALTER SYSTEM SET synchronous_standby_names = '*'")
            _administer(self._primary.admin_dsn, "SELECT pg_reload_conf()")
            self._wait("SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'", self._primary.admin_dsn, timeout_s)

    def promote(self) -> None:
        """Make it the primary; returns when it takes writes.

        Raises:
            StartError: it did not within 30 s.

        """
        _administer(self.admin_dsn, f"SELECT pg_promote(true, {PROMOTE_TIMEOUT_S:.0f})")
        self._wait("SELECT 1 WHERE NOT pg_is_in_recovery()", self.admin_dsn, PROMOTE_TIMEOUT_S)

    def _initialise(self, account: accounts.Account | None) -> None:
        half_made = self.folder / "data.half-made"
        processes.run(["rm", "-rf", half_made])
        program = self._binaries().folder / "pg_basebackup"
        done = processes.run(
            [program, f"--dbname={self._primary.admin_dsn}", f"--pgdata={half_made}", "--checkpoint=fast", "--wal-method=stream"],
            cwd=self.folder,
            env=self._environ(),
            account=account,
            timeout_s=COPY_TIMEOUT_S,
        )
        if done.code != 0:
            raise errors.StartError(f"pg_basebackup failed in {self.folder}: {done.output[-processes.TAIL_BYTES :].strip()}")
        accounts.write(half_made / "standby.signal", "", account)
        half_made.rename(self.data)

    def _settings(self, account: accounts.Account | None) -> str:
        parts = urllib.parse.urlsplit(self._primary.admin_dsn)
        primary = f"host={parts.hostname} port={parts.port} user={parts.username} password={parts.password} application_name=standby"
        return super()._settings(account) + _FOLLOWING.format(primary=primary)

    def _wait(self, query: str, dsn: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            with psycopg.connect(dsn, autocommit=True) as conn:
                if conn.execute(query.encode()).fetchone():
                    return
            if time.monotonic() > deadline:
                raise errors.StartError(f"in {timeout_s:.0f} s it did not come true: {query}; {processes.tail(self.log)}")
            time.sleep(_RETRY_S)


def _administer(dsn: str, statement: str) -> None:
    with psycopg.connect(dsn, autocommit=True, connect_timeout=5) as conn:
        conn.execute(statement.encode())
