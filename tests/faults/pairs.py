"""Databases on servers of a test's own: who owns them, and a primary with a synchronous standby, of which either may take the writes."""

import itertools
import pathlib

import psycopg

from sagapost_ops import migrations
from sagapost_sandbox import ports, postgres, standby
from sagapost_sandbox.testing import servers

OWNERS = {"order": ("order_user", "order_password"), "payment": ("payment_user", "payment_password")}


def databases_on(server: servers.Databases | postgres.Cluster) -> dict[str, str]:
    """Make every service's database, with its tables, on a server that has none yet; give their addresses."""
    urls = {name: server.create(user, password, f"{name}_db") for name, (user, password) in OWNERS.items()}
    for name, url in urls.items():
        migrations.upgrade(url, name)
    return urls


class Pair:
    """Two servers on two ports that never change; which of them is the primary does."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folders = (folder / f"postgres-{number}" for number in itertools.count())
        self.ports = ports.trial(2)
        self.primary = postgres.Cluster(next(self._folders), self.ports[0], fast=True)
        self.second: standby.Standby | None = None
        self.dead: postgres.Cluster | None = None

    def url(self, name: str) -> str:
        """Give the address of a database that leads to whoever takes writes."""
        user, password = OWNERS[name]
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        return f"postgresql://{user}:{password}@{hosts}/{name}_db?target_session_attrs=read-write"

    def start(self) -> None:
        """Start the primary with both databases, and its standby."""
        self.primary.start()
        databases_on(self.primary)
        self.add_standby()

    def add_standby(self) -> None:
        """Copy the primary to the other port."""
        (port,) = set(self.ports) - {self.primary.port}
        self.second = standby.Standby(self.primary, next(self._folders), port)
        self.second.start()

    def lose_standby(self) -> None:
        """Kill the standby: from now on every commit waits for it."""
        assert self.second is not None
        self.second.kill()

    def fail_over(self) -> None:
        """Kill the primary, and promote the standby, which is started when it does not run."""
        assert self.second is not None
        self.dead, (self.primary, self.second) = self.primary, (self.second, None)
        self.dead.kill()
        self.primary.start()
        self.primary.promote()

    def stop(self) -> None:
        """Kill all."""
        for server in (self.second, self.primary, self.dead):
            if server is not None:
                server.kill()

    def waiting(self, who: str = "") -> int:
        """Count the primary's sessions, those whose name begins like this, that wait with a commit for the standby."""
        return self._count("SELECT pid", who)

    def end_waits(self, who: str) -> int:
        """End these sessions: what they were committing is there from now on, for everybody to see, and on no other server."""
        return self._count("SELECT pg_terminate_backend(pid, 10000)", who)  # they have ended when this returns

    def _count(self, select: str, who: str) -> int:
        with psycopg.connect(self.primary.admin_dsn, autocommit=True) as conn:
            found = conn.execute(f"{select} FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND application_name LIKE %s", [who + "%"])
            return len(found.fetchall())
