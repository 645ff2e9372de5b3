"""Email's HTTP side: health, nothing else."""

from litestar import types

from sagapost_chassis import consuming, health, web
from sagapost_email import sender


def app(outbound: sender.Sender, consumer: consuming.Consumer) -> types.ASGIApp:
    """Build the application; ready but degraded without its mail server, and while the broker takes nothing."""
    return web.app(health.routes("email", {"rabbitmq": consumer.check}, {"smtp": outbound.check, "rabbitmq": consumer.flows}))
