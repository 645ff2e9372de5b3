"""What stands in a queue, for tests that look at a broker."""

import aio_pika
from integration import relay_kit

from sagapost_sandbox.testing import polling


async def take(url: str, queue: str, deadline_s: float = 15) -> aio_pika.abc.AbstractIncomingMessage:
    """Wait for a message of a queue, and take it out."""
    async with relay_kit.channel(url) as channel:
        source = await channel.get_queue(queue)

        async def got() -> tuple[aio_pika.abc.AbstractIncomingMessage, ...]:
            found = await source.get(no_ack=True, fail=False)
            return (found,) if found else ()

        return (await polling.eventually(got, deadline_s))[0]


async def depth(url: str, queue: str) -> int:
    """Return how many messages of a queue are ready."""
    async with relay_kit.channel(url) as channel:
        return (await channel.declare_queue(queue, passive=True)).declaration_result.message_count or 0
