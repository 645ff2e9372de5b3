"""Starts the payment provider: settings, books, desk, HTTP."""

import asyncio
import os
import pathlib

from sagapost_chassis import lifecycle, sites
from sagapost_chassis import settings as environment
from sagapost_sandbox.provider import api, books, desk, settings


def main() -> None:
    """Run until SIGTERM."""
    config = environment.load_or_exit(settings.Settings, os.environ)

    async def serve(stop: asyncio.Event) -> None:
        async with books.opened(pathlib.Path(config.provider_ledger)) as opened:
            counter = desk.Desk(opened, config.provider_delay_s, stop)
            guarded = sites.guarding(config.env, config.hosts())(api.app(counter))
            await lifecycle.serve(guarded, config.host, config.port, stop)

    lifecycle.run("provider", config, serve)


if __name__ == "__main__":
    main()
