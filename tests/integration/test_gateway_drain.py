"""What becomes of connections when the gateway is told to stop."""

import asyncio
import contextlib
import pathlib
import signal
from collections.abc import AsyncGenerator

import pytest
from integration import told_server

from sagapost_sandbox import ports
from sagapost_sandbox.testing import polling, services

pytestmark = pytest.mark.anyio

HEAD = b"Host: localhost\r\nContent-Type: application/json\r\n"
CHECKOUT = b"POST /api/checkout HTTP/1.1\r\n" + HEAD + b"Content-Length: 2\r\n\r\n{}"
LIVE = b"GET /health/live HTTP/1.1\r\n" + HEAD + b"\r\n"
EVENTS = b"GET /api/sagas/0193b1c2-7d4e-7a10-9f0e-5f2f6c1d8a11/events HTTP/1.1\r\n" + HEAD + b"\r\n"


@pytest.fixture
async def pair(tmp_path: pathlib.Path) -> AsyncGenerator[tuple[services.Service, told_server.Told]]:
    """Run a gateway in front of a server that keeps a checkout until it is told to go on, and streams for ever."""
    told = told_server.Told()
    told.going.clear()
    async with await asyncio.start_server(told.serve, "127.0.0.1", 0) as listening:
        env = {"SAGAPOST_ORDER_URL": f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", "SAGAPOST_PAGE_PORT": "0"}
        gateway = services.Service("sagapost_gateway", env, tmp_path / "gateway.log")
        try:
            await asyncio.to_thread(gateway.wait_ready)
            yield gateway, told
        finally:
            gateway.kill()
            told.close()


@contextlib.asynccontextmanager
async def begun(gateway: services.Service, *sent: bytes) -> AsyncGenerator[list[asyncio.StreamReader]]:
    """Open a connection for each of these, and send it."""
    opened = [await asyncio.open_connection("127.0.0.1", gateway.port) for _ in sent]
    for (_, writer), data in zip(opened, sent, strict=True):
        writer.write(data)
    try:
        yield [reader for reader, _ in opened]
    finally:
        for _, writer in opened:
            writer.close()


async def test_what_was_begun_is_answered_and_whoever_waits_is_let_go(pair: tuple[services.Service, told_server.Told]) -> None:
    """SIGTERM with a checkout under way, a stream open and a connection idle: an answer, two ends, nobody new, and exit code 0."""
    gateway, told = pair
    async with begun(gateway, LIVE, EVENTS, CHECKOUT) as (idle, stream, checkout):
        assert (await idle.readuntil(b'"degraded":[]}')).startswith(b"HTTP/1.1 200")
        await stream.readuntil(b"data: 1")
        await polling.eventually(lambda: _asked(told))

        gateway.send(signal.SIGTERM)
        await polling.eventually(lambda: _refuses(gateway))
        told.going.set()
        async with asyncio.timeout(15):
            answer, rest, nothing = await asyncio.gather(checkout.read(), stream.read(), idle.read())
            code = await asyncio.to_thread(gateway.wait)

    assert answer.startswith(b"HTTP/1.1 200")
    assert b"\r\nconnection: close" in answer
    assert answer.endswith(b"{}")
    assert rest.endswith(b"0\r\n\r\n")
    assert (nothing, code) == (b"", 0)
    assert ports.is_free(gateway.port)


async def _asked(told: told_server.Told) -> bool:
    return "POST /CHECKOUT" in told.seen


async def _refuses(gateway: services.Service) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    except ConnectionRefusedError:
        return True
    writer.close()
    return False


async def test_who_never_ends_a_request_does_not_keep_the_process(pair: tuple[services.Service, told_server.Told]) -> None:
    """Half a head, half a body and silence are nobody's work: they are let go, and the exit code is 0."""
    gateway, _ = pair
    async with begun(gateway, b"", LIVE[:20], CHECKOUT[:-1]):
        code = await asyncio.to_thread(gateway.terminate)

    assert code == 0
