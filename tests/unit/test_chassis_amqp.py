"""Connections to a broker that does not want any."""

import asyncio
import gc

import aio_pika
import pytest
import yarl

from sagapost_chassis import amqp

pytestmark = pytest.mark.anyio


async def test_a_connection_that_failed_leaves_nothing_to_its_destructor() -> None:
    """It is collected in whatever thread: there the client would begin to close it, and nobody would await that."""
    failed = False
    gc.disable()
    try:
        async with await asyncio.start_server(_hang_up, "127.0.0.1", 0) as server:
            try:
                await amqp.connect(f"amqp://guest:guest@127.0.0.1:{server.sockets[0].getsockname()[1]}/", "test")
            except amqp.BrokerUnavailableError:
                failed = True
            await asyncio.sleep(0)
        await asyncio.to_thread(gc.collect)  # a warning is an error
    finally:
        gc.enable()

    assert failed


async def test_a_fault_of_the_program_does_not_pass_for_an_outage() -> None:
    """A RuntimeError of our own comes out as itself; the client's, for a connection that is closed, is an outage."""
    closed = aio_pika.Connection(yarl.URL("amqp://127.0.0.1/"))

    with pytest.raises(RuntimeError, match="our own"), amqp.failures("not done"):
        raise RuntimeError("our own")
    with pytest.raises(amqp.BrokerUnavailableError), amqp.failures("not done"):
        await closed.channel(publisher_confirms=False).initialize()


async def _hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readexactly(8)
    writer.transport.abort()
