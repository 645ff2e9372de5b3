"""What the tests of the broker's users and topology share: the operator's command, the users' URLs, a connection."""

import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncGenerator
from urllib.parse import urlsplit

import aio_pika
from aio_pika import abc

from sagapost_contracts import topology
from sagapost_ops.topology import accounts, found
from sagapost_sandbox import management
from sagapost_sandbox.testing import servers

USERS = [user.name for user in topology.USERS]


def command(broker: servers.Broker, url: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run `./sagapost topology …` against a virtual host; `more` are variables."""
    api = broker.management
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SAGAPOST_")}
    where = {"SAGAPOST_AMQP_URL": url, "SAGAPOST_MANAGEMENT_URL": f"http://{api.user}:{api.password}@{api.host}:{api.port}"}
    line = [sys.executable, "-P", "-m", "sagapost_ops", "topology", *arguments]
    return subprocess.run(line, env=environ | where | more, capture_output=True, text=True, check=False, timeout=60)


def make_users(broker: servers.Broker, url: str) -> dict[str, str]:
    """Make the services' users in a virtual host, as the operator does, and give each one's AMQP URL."""
    parts, vhost = urlsplit(url), found.vhost_of(url)
    accounts.make(broker.management, vhost, accounts.passwords({}))
    host, port = parts.hostname or "", parts.port or 0
    return {user: management.amqp_url(host, port, user, accounts.development_password(user), vhost) for user in USERS}


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncGenerator[abc.AbstractConnection]:
    """Open a connection of the test's own."""
    async with await aio_pika.connect(url) as connection:
        yield connection
