"""Payment's process: settings, pool, provider, broker, then health and consumer side by side until SIGTERM."""

import asyncio
import os
from functools import partial

from sagapost_chassis import amqp, consuming, db, ladder, lifecycle, outbox, retention, settings
from sagapost_contracts import topology
from sagapost_payment import api, clock, consumer, provider, sweeper
from sagapost_payment.settings import Settings


async def _main(config: Settings, stop: asyncio.Event) -> None:
    await db.require(config.database_url, "sagapost-payment")
    hints = outbox.Hints(config.database_url, "sagapost-payment-hints")
    async with (
        db.open_pool(config.database_url, "sagapost-payment", on_commit=hints.soon) as pool,
        provider.open_provider(config.provider_url, config.provider_timeout_s) as psp,
        amqp.Publisher(config.amqp_url, "sagapost-payment-publisher") as publisher,
    ):
        skew = clock.Skew(config.max_clock_skew_s)
        terms = config.terms()  # once: deliveries and looks share what was seen of the database's clock
        routes = skew.observing(consumer.routes(pool, psp, terms))
        worker = consuming.Consumer(
            config.amqp_url,
            topology.PAYMENT_QUEUE,
            routes,
            publisher,
            concurrency=consumer.CONCURRENCY,
            retry_delays_s=ladder.parse(config.retry_delays_s),
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(lifecycle.serve(api.app(pool, worker, skew, mode=config.env), config.host, config.port, stop))
            group.create_task(worker.run(stop))
            group.create_task(hints.run(stop))
            group.create_task(sweeper.run(pool, psp, stop, terms, skew))
            kept = retention.Terms(inbox_days=config.inbox_days, customer_days=config.customer_days)
            group.create_task(retention.run(pool, kept, stop))


def main() -> None:
    """Run the payment service."""
    config = settings.load_or_exit(Settings, os.environ)
    lifecycle.run("payment", config, partial(_main, config))


if __name__ == "__main__":
    main()
