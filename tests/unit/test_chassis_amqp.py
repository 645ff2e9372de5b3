"""Connections to a broker that does not want any."""

import asyncio
import gc

import pytest

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


async def _hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readexactly(8)
    writer.transport.abort()
