"""A consumer process for the poison campaign: one effect a message, in the transaction of its inbox row; it obeys the message's `reason`.

The process that is started only forks: a consumer that is killed is replaced within milliseconds, without imports.
"""

import asyncio
import os
import signal
from functools import partial

from sagapost_chassis import amqp, consuming, db, inbox, ladder, lifecycle, settings
from sagapost_contracts import events, topology

SLOW_S = 0.05


class Settings(settings.Common, frozen=True, kw_only=True):
    """`broker_url` leads straight to the broker, for publishing; `amqp_url` may lead through something that changes messages."""

    database_url: str
    amqp_url: str
    broker_url: str
    retry_delays_s: str = "1"


async def _handle(pool: db.Pool, delivery: consuming.Delivery, message: events.CancelPayment) -> None:
    if message.reason == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if message.reason == "raise":
        raise ZeroDivisionError("always")
    if message.reason == "slow":
        await asyncio.sleep(SLOW_S)
    async with db.transaction(pool) as conn:
        if await inbox.claim(conn, delivery.message_id, delivery.type):
            await conn.execute("INSERT INTO effects (number) VALUES (%(number)s)", {"number": message.order_id})


async def _consume(config: Settings, stop: asyncio.Event) -> None:
    async with (
        db.open_pool(config.database_url, "poison-worker", max_size=4) as pool,
        amqp.Publisher(config.broker_url, "poison-worker") as publisher,
    ):
        handler = consuming.typed(events.CancelPayment, partial(_handle, pool))
        delays_s = ladder.parse(config.retry_delays_s)
        consumer = consuming.Consumer(
            config.amqp_url, topology.PAYMENT_QUEUE, {events.CancelPayment: handler}, publisher, retry_delays_s=delays_s
        )
        await consumer.run(stop)


def main() -> None:
    """Keep one consumer alive until it ends by itself."""
    config = settings.load_or_exit(Settings, os.environ)
    while True:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until it is known whom to tell
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            lifecycle.run("poison-worker", config, partial(_consume, config))
            return
        signal.signal(signal.SIGTERM, partial(_forward, child))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            raise SystemExit(os.waitstatus_to_exitcode(status))


def _forward(child: int, number: int, _: object) -> None:
    try:
        os.kill(child, number)
    except ProcessLookupError:  # it was killed, and the next one has not been started
        raise SystemExit(0) from None


if __name__ == "__main__":
    main()
