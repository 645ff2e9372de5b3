"""Starts one relay: settings, database, broker, health, the loop."""

import asyncio
import functools
import os
import socket

from sagapost_chassis import amqp, db, health, lifecycle, settings, web
from sagapost_relay.relay import Relay
from sagapost_relay.settings import Settings


async def _main(config: Settings, stop: asyncio.Event) -> None:
    await db.require(config.database_url, "sagapost-relay")
    owner = f"relay-{socket.gethostname()}-{os.getpid()}"
    async with amqp.Publisher(config.amqp_url, owner) as publisher:
        relay = Relay(config.database_url, publisher, owner=owner, batch=config.batch)
        app = web.app(health.routes("relay", {"outbox": relay.check, "rabbitmq": publisher.check}))
        async with asyncio.TaskGroup() as group:
            group.create_task(lifecycle.serve(app, config.host, config.port, stop))
            group.create_task(relay.run(stop))


def main() -> None:
    """Run until SIGTERM or Ctrl-C."""
    config = settings.load_or_exit(Settings, os.environ)
    lifecycle.run("relay", config, functools.partial(_main, config))


if __name__ == "__main__":
    main()
