"""The stack that the fault tests of one module share."""

import asyncio
import uuid
from collections.abc import Generator, Mapping

import pytest
from faults import stack as stacks

from sagapost_chassis import topology
from sagapost_sandbox import databases
from sagapost_sandbox.testing import servers


@pytest.fixture(scope="module")
def stack(
    tmp_path_factory: pytest.TempPathFactory, database_server: servers.Databases, broker: servers.Broker, templates: Mapping[str, str]
) -> Generator[stacks.Stack]:
    """Run every service, a provider and a mailbox of their own, on fresh databases and a fresh virtual host."""
    folder, mark = tmp_path_factory.mktemp("stack"), uuid.uuid4().hex[:8]
    urls: dict[str, str] = {}
    for service, template in templates.items():
        databases.clone(database_server.admin_dsn, template, f"{service}_{mark}", f"{service}_user")
        urls[service] = database_server.dsn(f"{service}_user", f"{service}_password", f"{service}_{mark}")
    amqp_url = broker.create_vhost(f"stack-{mark}")
    asyncio.run(topology.declare(amqp_url))
    made = stacks.make(folder, urls, amqp_url, broker)
    try:
        yield made.start_all()
    finally:
        made.stop()
        broker.delete_vhost(f"stack-{mark}")
        for service in urls:
            databases.drop(database_server.admin_dsn, f"{service}_{mark}")
