"""Declares the broker's exchanges, queues and bindings, and checks over AMQP that they are there; it must not know the management API."""

import aiormq
from aio_pika import abc, exceptions

from sagapost_chassis import amqp
from sagapost_contracts import topology


class DiffersError(Exception):
    """Something of that name is there with another type or other arguments; the text is the broker's."""


class ForbiddenError(Exception):
    """The broker does not let this user do it; the text is the broker's."""


async def declare(url: str) -> int:
    """Declare everything, idempotently, and return the number of queues.

    Raises:
        amqp.BrokerUnavailableError: the broker does not answer.
        DiffersError: something of that name exists with other arguments.
        ForbiddenError: the user may not declare.

    """
    connection = await amqp.connect(url, "sagapost-topology")
    try:
        return await _declare(await connection.channel())
    except exceptions.ChannelPreconditionFailed as exc:
        raise DiffersError(str(exc).removeprefix("PRECONDITION_FAILED - ")) from exc
    except aiormq.ChannelAccessRefused as exc:
        raise ForbiddenError(str(exc).removeprefix("ACCESS_REFUSED - ")) from exc
    finally:
        await amqp.close(connection)


async def _declare(channel: abc.AbstractChannel) -> int:
    exchanges = {wanted.name: await channel.declare_exchange(wanted.name, wanted.type, durable=True) for wanted in topology.EXCHANGES}
    queues = topology.queues()
    for queue in queues:
        declared = await channel.declare_queue(queue.name, durable=True, arguments=dict(queue.arguments))
        for exchange, key in queue.bindings:
            await declared.bind(exchanges[exchange], key)
    return len(queues)


async def missing(url: str) -> list[str]:
    """Name the exchanges and queues that are not there.

    Raises:
        amqp.BrokerUnavailableError: the broker does not answer.

    """
    connection = await amqp.connect(url, "sagapost-topology")
    try:
        found = [wanted.name for wanted in topology.EXCHANGES if not await _exists(connection, wanted.name, exchange=True)]
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
