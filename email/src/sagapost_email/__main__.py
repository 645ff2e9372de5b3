"""Email's process: settings, mail server, broker, then health and consumer side by side until SIGTERM."""

import asyncio
import os
import pathlib
from functools import partial

from sagapost_chassis import amqp, consuming, ladder, lifecycle, settings
from sagapost_contracts import topology
from sagapost_email import api, consumer, handlers, orders, recent, sender
from sagapost_email.settings import Settings


async def _main(config: Settings, stop: asyncio.Event) -> None:
    async with (
        recent.Recent(
            pathlib.Path(config.mail_memory) if config.mail_memory else None,
            doubt_s=config.smtp_doubt_s,
            limit=config.mails_per_recipient_hour,
            stop=stop,
        ) as memory,
        orders.Orders(config.order_url, secret=config.internal_secret) as asked,
        sender.Sender(
            config.smtp_host,
            config.smtp_port,
            mail_from=config.mail_from,
            size=config.smtp_connections,
            timeout_s=config.smtp_timeout_s,
            dot_timeout_s=config.smtp_dot_timeout_s,
            security=config.security(),
        ) as outbound,
        amqp.Publisher(config.amqp_url, "sagapost-email-publisher") as publisher,
    ):
        delays_s = ladder.parse(config.retry_delays_s)
        outlets = handlers.Outlets(
            sender=outbound,
            publisher=publisher,
            mail_from=config.mail_from,
            recent=memory,
            order=asked,
            attempts=len(delays_s) + 1,
            stop=stop,
        )
        # no message in hand beyond those that are being mailed: a death repeats at most as many mails
        worker = consuming.Consumer(
            config.amqp_url,
            topology.EMAIL_QUEUE,
            consumer.routes(outlets),
            publisher,
            concurrency=config.smtp_connections,
            retry_delays_s=delays_s,
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(lifecycle.serve(api.app(outbound, worker, memory, mode=config.env), config.host, config.port, stop))
            group.create_task(worker.run(stop))


def main() -> None:
    """Run the email service."""
    config = settings.load_or_exit(Settings, os.environ)
    lifecycle.run("email", config, partial(_main, config))


if __name__ == "__main__":
    main()
