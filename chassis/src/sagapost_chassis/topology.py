"""Declares the broker's exchanges, queues and bindings, and checks that they are there."""

import aio_pika
from aio_pika import abc, exceptions

from sagapost_chassis import amqp
from sagapost_contracts import topology


async def declare(url: str) -> int:
    """Declare everything, idempotently, and return the number of queues.

    Raises:
        amqp.BrokerUnavailableError: the broker does not answer.
        aio_pika.exceptions.ChannelPreconditionFailed: something of that name exists with other arguments.

    """
    connection = await amqp.connect(url, "sagapost-topology")
    try:
        channel = await connection.channel()
        exchanges = {
            topology.EXCHANGE: await channel.declare_exchange(topology.EXCHANGE, aio_pika.ExchangeType.TOPIC, durable=True),
            topology.DEAD_LETTER_EXCHANGE: await channel.declare_exchange(
                topology.DEAD_LETTER_EXCHANGE, aio_pika.ExchangeType.DIRECT, durable=True
            ),
        }
        wanted = topology.queues()
        for queue in wanted:
            declared = await channel.declare_queue(queue.name, durable=True, arguments=dict(queue.arguments))
            for exchange, key in queue.bindings:
                await declared.bind(exchanges[exchange], key)
        return len(wanted)
    finally:
        await amqp.close(connection)


async def missing(url: str) -> list[str]:
    """Name the exchanges and queues that are not there.

    Raises:
        amqp.BrokerUnavailableError: the broker does not answer.

    """
    connection = await amqp.connect(url, "sagapost-topology")
    try:
        found = [name for name in (topology.EXCHANGE, topology.DEAD_LETTER_EXCHANGE) if not await _exists(connection, name, exchange=True)]
        found += [queue.name for queue in topology.queues() if not await _exists(connection, queue.name, exchange=False)]
        return found
    finally:
        await amqp.close(connection)


async def _exists(connection: abc.AbstractConnection, name: str, *, exchange: bool) -> bool:
    channel = await connection.channel()  # a passive declare that finds nothing closes its channel
    try:
        if exchange:
            await channel.get_exchange(name, ensure=True)
        else:
            await channel.get_queue(name, ensure=True)
    except exceptions.ChannelNotFoundEntity:
        return False
    await channel.close()
    return True
