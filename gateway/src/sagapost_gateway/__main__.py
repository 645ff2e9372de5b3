"""Composition root of the gateway: settings, the client of the order service, one application on two ports."""

import asyncio
import functools
import os

from sagapost_chassis import lifecycle, settings
from sagapost_gateway import app, upstream
from sagapost_gateway.settings import Settings


def main() -> None:
    """Run the gateway until it is told to stop."""
    config = settings.load_or_exit(Settings, os.environ)
    lifecycle.run("gateway", config, functools.partial(_main, config))


async def _main(config: Settings, stop: asyncio.Event) -> None:
    async with upstream.Order(
        config.order_url,
        deadline_s=config.deadline_s,
        max_connections=config.max_connections,
        max_waiting=config.max_waiting,
        max_queued=config.max_queued,
        failures=config.breaker_failures,
        max_waiting_per_client=config.max_waiting_per_client,
        stream_max_s=config.stream_max_s,
        secret=config.internal_secret,
    ) as order:
        application = app.build(order, env=config.env, mailbox_url=config.mailbox_url, origins=config.origins(), hosts=config.hosts())
        async with asyncio.TaskGroup() as group:
            group.create_task(order.run(stop))
            for port, variable in ((config.port, "PORT"), (config.page_port, "PAGE_PORT")):
                if port and (variable == "PORT" or config.env == "development"):
                    serving = lifecycle.serve(
                        application,
                        config.host,
                        port,
                        stop,
                        variable=variable,
                        max_open=config.max_open,
                        keep_alive_s=config.keep_alive_s,
                    )
                    group.create_task(serving)


if __name__ == "__main__":
    main()
