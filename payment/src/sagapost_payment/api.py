"""Payment's HTTP side: health, nothing else; payments are asked for over the broker."""

from litestar import types

from sagapost_chassis import consuming, db, health, web


def app(pool: db.Pool, consumer: consuming.Consumer, *, mode: str) -> types.ASGIApp:
    """Build the application; the process is ready when its database and the broker are, degraded while the broker takes no messages."""

    async def database() -> bool:
        async with db.connection(pool) as conn:
            await conn.execute("SELECT 1")
        return True

    required = {"database": database, "rabbitmq": consumer.check}
    return web.app(health.routes("payment", required, {"rabbitmq": consumer.flows}, mode=mode))
