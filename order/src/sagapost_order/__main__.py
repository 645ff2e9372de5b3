"""The order service's composition root: settings, pool, broker, API, consumer and sweeper in one TaskGroup."""

import asyncio
import functools
import os

from sagapost_chassis import amqp, consuming, db, health, ladder, lifecycle, outbox, retention, settings, web
from sagapost_contracts import topology
from sagapost_order import api, client_api, consumer, saga_api, sweeper, watch
from sagapost_order.settings import Settings


def main() -> None:
    """Run until SIGTERM."""
    config = settings.load_or_exit(Settings, os.environ)
    lifecycle.run("order", config, functools.partial(_main, config))


async def _main(config: Settings, stop: asyncio.Event) -> None:
    await db.require(config.database_url, "sagapost-order")
    hints = outbox.Hints(config.database_url, "sagapost-order-hints")
    async with (
        db.open_pool(config.database_url, "sagapost-order", on_commit=hints.soon) as pool,
        amqp.Publisher(config.amqp_url, "sagapost-order") as publisher,
    ):
        updates = consuming.Consumer(
            config.amqp_url,
            topology.ORDER_QUEUE,
            consumer.routes(pool, config.policy()),
            publisher,
            retry_delays_s=ladder.parse(config.retry_delays_s),
        )
        checks = health.routes("order", {"database": functools.partial(_reads, pool)}, {"rabbitmq": updates.ready}, mode=config.env)
        policy, watcher, backlog = config.policy(), watch.Watch(pool), sweeper.Backlog()
        app = web.app(
            [
                *api.routes(pool, policy, config.pay_window_s, lambda: backlog.unpaid_s),
                *saga_api.routes(pool, policy, watcher),
                *client_api.routes(pool, env=config.env),
                *checks,
            ],
            named={"client": "sagapost-client", "key_id": "sagapost-key-id"},
            secret=config.internal_secret,
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(lifecycle.serve(app, config.host, config.port, stop))
            group.create_task(updates.run(stop))
            group.create_task(hints.run(stop))
            group.create_task(watcher.run(stop))
            group.create_task(sweeper.run(pool, policy, stop, backlog))
            terms = retention.Terms(inbox_days=config.inbox_days, customer_days=config.customer_days)
            group.create_task(retention.run(pool, terms, stop))


async def _reads(pool: db.Pool) -> bool:
    async with db.connection(pool) as conn:
        await conn.execute("SELECT 1")
    return True


if __name__ == "__main__":
    main()
