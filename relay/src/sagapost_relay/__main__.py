"""Starts one relay: settings, database, broker, health, the loops."""

import asyncio
import functools
import os
import secrets
import socket

from sagapost_chassis import db, health, lifecycle, settings, web
from sagapost_contracts import topology
from sagapost_relay.relay import Relay
from sagapost_relay.settings import Settings


async def _main(config: Settings, stop: asyncio.Event) -> None:
    await db.require(config.database_url, "sagapost-relay", standby_ok=True)
    # never the same twice: in containers host names and process ids come again
    relay = Relay(config, owner=f"relay-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}")
    required = {"outbox": relay.turns, "rabbitmq": relay.publishes, f"exchange {topology.EXCHANGE}": relay.has_exchange}
    degrading = {"parked": relay.nothing_parked, "waiting": relay.nothing_waits, "shards": relay.all_served}
    checks = health.routes("relay", required, degrading, mode=config.env)
    async with asyncio.TaskGroup() as group:
        group.create_task(lifecycle.serve(web.app(checks), config.host, config.port, stop))
        group.create_task(relay.run(stop))


def main() -> None:
    """Run until SIGTERM or Ctrl-C."""
    config = settings.load_or_exit(Settings, os.environ)
    lifecycle.run("relay", config, functools.partial(_main, config))


if __name__ == "__main__":
    main()
