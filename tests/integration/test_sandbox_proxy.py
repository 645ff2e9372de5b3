"""The fault proxy against real sockets, PostgreSQL and RabbitMQ: each fault is what it is called, and the end leaves nothing behind."""

import socket
import threading
import time
from collections.abc import Generator
from urllib.parse import urlsplit

import aio_pika
import psycopg
import pytest

from sagapost_sandbox.testing import polling, proxy


@pytest.fixture
def echo() -> Generator[int]:
    """Run a server that sends back whatever it gets, and give its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_echo_all, args=(server,))
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.fixture
def link(echo: int) -> Generator[proxy.Proxy]:
    """Run a proxy in front of `echo`."""
    with proxy.Proxy("127.0.0.1", echo) as running:
        yield running


def test_bytes_pass_both_ways_through_the_proxy(link: proxy.Proxy) -> None:
    """A megabyte arrives at the other side and comes back the same, and the proxy counts the connection."""
    content = bytes(range(256)) * 4096
    with _connect(link) as client:
        sender = threading.Thread(target=client.sendall, args=(content,))
        sender.start()

        assert _read(client, len(content)) == content
        assert link.connections == 1
        sender.join()


def test_a_reset_is_a_reset_and_a_cut_is_an_end(link: proxy.Proxy) -> None:
    """After `reset` the client's next read fails; after `cut` it reads the end; new connections pass."""
    with _connect(link) as client:
        assert _say(client, b"one") == b"one"
        assert link.reset() == 1
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    with _connect(link) as client:
        assert _say(client, b"two") == b"two"
        assert link.cut() == 1
        assert client.recv(1) == b""
    with _connect(link) as client:
        assert _say(client, b"three") == b"three"


def test_what_is_sent_during_a_pause_arrives_after_it(link: proxy.Proxy) -> None:
    """A paused connection is silent without being closed, and nothing of it is lost."""
    with _connect(link) as client:
        assert _say(client, b"one") == b"one"
        assert link.pause() == 1
        client.sendall(b"two")
        assert _is_silent(client)

        link.resume()

        assert _read(client, 3) == b"two"


def test_a_connection_in_a_black_hole_stays_half_open(link: proxy.Proxy) -> None:
    """It is neither closed nor answered, even after `resume`, when new connections pass again; it counts until its owner closes it."""
    with _connect(link) as client:
        assert _say(client, b"one") == b"one"
        assert link.blackhole() == 1
        link.resume()
        client.sendall(b"two")
        assert _is_silent(client)
        assert link.half_open == 1
        with _connect(link) as other:
            assert _say(other, b"three") == b"three"

    polling.eventually(lambda: link.half_open == 0)


def test_a_cut_after_so_many_bytes_passes_exactly_those(link: proxy.Proxy) -> None:
    """The connection ends in the middle of what was sent; the next one is whole."""
    with _connect(link) as client:
        assert _say(client, b"one") == b"one"
        link.cut_after(4)
        client.sendall(b"123")
        assert _read(client, 3) == b"123"
        assert link.armed
        client.sendall(b"456")
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    with _connect(link) as client:
        assert _say(client, b"whole") == b"whole"
    assert not link.armed


def test_latency_holds_each_way_back(link: proxy.Proxy) -> None:
    """A round trip takes at least twice the latency."""
    link.latency(0.1)
    with _connect(link) as client:
        began = time.monotonic()

        assert _say(client, b"one") == b"one"
        assert time.monotonic() - began >= 0.2


def test_a_target_that_refuses_is_a_reset_and_the_end_of_the_proxy_ends_its_connections() -> None:
    """Nobody waits for a server that is not there, nor for a proxy that is gone."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with proxy.Proxy("127.0.0.1", port) as link:
            client = _connect(link)
            polling.eventually(lambda: link.connections == 1)
        with client, pytest.raises(ConnectionResetError):
            client.recv(1)
    # it may come while the client still connects
    with proxy.Proxy("127.0.0.1", port) as link, pytest.raises(ConnectionResetError), _connect(link) as client:
        client.recv(1)


@pytest.mark.anyio
async def test_postgresql_and_rabbitmq_work_through_the_proxy_and_notice_a_reset(order_db: str, vhost: str) -> None:
    """Both clients connect and work through it; after a reset both raise, and connect again."""
    database, broker = urlsplit(order_db), urlsplit(vhost)
    with (
        proxy.Proxy(str(database.hostname), int(database.port or 0)) as to_database,
        proxy.Proxy("127.0.0.1", broker.port or 0) as to_broker,
    ):
        dsn = proxy.through(order_db, to_database)
        url = proxy.through(vhost, to_broker)
        async with await psycopg.AsyncConnection.connect(dsn) as conn:
            assert await (await conn.execute("SELECT 1")).fetchone() == (1,)
            assert to_database.reset() == 1
            with pytest.raises(psycopg.OperationalError):
                await conn.execute("SELECT 1")
        connection = await aio_pika.connect(url)
        async with connection:
            await connection.channel()
            assert to_broker.reset() == 1
            with pytest.raises(aio_pika.exceptions.AMQPError):
                await connection.channel()
        async with await aio_pika.connect(url) as again:
            await again.channel()


def _connect(link: proxy.Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", link.port), timeout=5)


def _say(client: socket.socket, words: bytes) -> bytes:
    client.sendall(words)
    return _read(client, len(words))


def _read(client: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        piece = client.recv(count - len(found))
        assert piece, f"the connection ended after {len(found)} of {count} bytes"
        found += piece
    return found


def _is_silent(client: socket.socket) -> bool:
    client.settimeout(0.1)
    try:
        client.recv(1)
    except TimeoutError:
        return True
    else:
        return False
    finally:
        client.settimeout(5)


def _echo_all(server: socket.socket) -> None:
    while True:
        try:
            accepted, _ = server.accept()
        except OSError:
            return
        threading.Thread(target=_echo, args=(accepted,)).start()


def _echo(accepted: socket.socket) -> None:
    with accepted:
        while True:
            try:
                piece = accepted.recv(65_536)
                accepted.sendall(piece)
            except OSError:
                return
            if not piece:
                return
