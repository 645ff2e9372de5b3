"""Starts the mailbox: settings, store, SMTP, HTTP."""

import asyncio
import os
import pathlib

from sagapost_chassis import lifecycle
from sagapost_chassis import settings as environment
from sagapost_sandbox.mailbox import api, settings, smtp, store


def main() -> None:
    """Run until SIGTERM."""
    config = environment.load_or_exit(settings.Settings, os.environ)

    async def serve(stop: asyncio.Event) -> None:
        async with store.opened(pathlib.Path(config.mailbox_ledger)) as mails:
            conduct = smtp.Conduct(config.mailbox_delay_s, stop)
            sessions = smtp.sessions(mails, conduct)
            try:
                listener = await asyncio.get_running_loop().create_server(sessions, config.host, config.smtp_port)
            except OSError as exc:
                environment.exit_with(f"SMTP cannot listen on {config.host}:{config.smtp_port}: {exc.strerror}")
            try:
                await lifecycle.serve(api.app(mails, conduct), config.host, config.port, stop)
            finally:
                listener.close()

    lifecycle.run("mailbox", config, serve)


if __name__ == "__main__":
    main()
