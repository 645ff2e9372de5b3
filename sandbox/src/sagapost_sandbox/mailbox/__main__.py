"""Starts the mailbox: settings, store, SMTP, HTTP."""

import asyncio
import os
import pathlib
import ssl

from sagapost_chassis import lifecycle, sites
from sagapost_chassis import settings as environment
from sagapost_sandbox.mailbox import api, settings, smtp, store


def _context(config: settings.Settings) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(config.smtp_certificate, config.smtp_key)
    except OSError as exc:
        environment.exit_with(f"SMTP_CERTIFICATE and SMTP_KEY cannot be used: {exc.strerror}")
    return context


def main() -> None:
    """Run until SIGTERM."""
    config = environment.load_or_exit(settings.Settings, os.environ)

    async def serve(stop: asyncio.Event) -> None:
        async with store.opened(pathlib.Path(config.mailbox_ledger)) as mails:
            conduct = smtp.Conduct(config.mailbox_delay_s, stop)
            context = None if config.smtp_tls == "off" else _context(config)
            sessions = smtp.sessions(mails, conduct, context if config.smtp_tls == "starttls" else None)
            implicit = context if config.smtp_tls == "tls" else None
            try:
                listener = await asyncio.get_running_loop().create_server(sessions, config.host, config.smtp_port, ssl=implicit)
            except OSError as exc:
                environment.exit_with(f"SMTP cannot listen on {config.host}:{config.smtp_port}: {exc.strerror}")
            try:
                guarded = sites.guarding(config.env, config.hosts())(api.app(mails, conduct, back=config.shop_url))
                await lifecycle.serve(guarded, config.host, config.port, stop)
            finally:
                listener.close()

    lifecycle.run("mailbox", config, serve)


if __name__ == "__main__":
    main()
