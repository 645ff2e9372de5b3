"""Payment's HTTP side: health, nothing else; payments are asked for over the broker."""

from litestar import types

from sagapost_chassis import consuming, db, health, web
from sagapost_payment import clock


def app(pool: db.Pool, consumer: consuming.Consumer, skew: clock.Skew, *, mode: str) -> types.ASGIApp:
    """Build the application; the process is ready when its database and the broker are.

    It is degraded while the broker takes no messages, and while the clocks of order and payment are too far apart.
    """

    async def database() -> bool:
        async with db.connection(pool) as conn:
            await conn.execute("SELECT 1")
        return True

    required = {"database": database, "rabbitmq": consumer.ready}
    return web.app(health.routes("payment", required, {"rabbitmq": consumer.flows, "clock-skew": skew.check}, mode=mode))
