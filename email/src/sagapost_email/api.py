"""Email's HTTP side: health, nothing else."""

from litestar import types

from sagapost_chassis import consuming, health, web
from sagapost_email import recent, sender


def app(outbound: sender.Sender, consumer: consuming.Consumer, memory: recent.Recent, *, mode: str) -> types.ASGIApp:
    """Build the application; ready but degraded without its mail server or its memory, and while the broker takes nothing."""
    degrading = {"smtp": outbound.check, "mail-memory": memory.check, "rabbitmq": consumer.flows}
    return web.app(health.routes("email", {"rabbitmq": consumer.ready}, degrading, mode=mode))
