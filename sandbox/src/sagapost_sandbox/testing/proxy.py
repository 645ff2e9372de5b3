"""A TCP proxy that does to connections what networks do to them, in a thread of its own; it knows no protocol."""

import asyncio
import contextlib
import functools
import socket
import struct
import threading
from collections.abc import Callable
from typing import Final, Self, TypeVar
from urllib.parse import urlsplit

HOST: Final = "127.0.0.1"
_CALL_S: Final = 10.0
_CHUNK_BYTES: Final = 65_536
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # SO_LINGER for no seconds: what is unsent is dropped, and RST goes out

T = TypeVar("T")


class Proxy:
    """Forwards `host`:`port` to a target while the `with` block runs; its methods may be called from any thread.

    It listens on 127.0.0.1, or where `listener` does.

    A connection that is lost in a black hole stays open and silent on both sides until its owner gives it up, as a half-open one does;
    but unlike there, this machine's kernel goes on acknowledging what is sent, so that TCP's own timeouts never fire.
    """

    def __init__(self, host: str, port: int, listener: socket.socket | None = None) -> None:
        self.host = HOST
        self.port = 0
        self._target = (host, port)
        self._listener = listener
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._server: asyncio.Server | None = None
        self._open: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._passing = asyncio.Event()
        self._passing.set()
        self._swallows = False
        self._latency_s = 0.0
        self._cut_after: int | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(_CALL_S)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(_CALL_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def connections(self) -> int:
        """Connections that are open through to the target now, those lost in a black hole left out."""
        return self._call(lambda: sum(connection.target is not None and not connection.lost for connection in self._open))

    @property
    def half_open(self) -> int:
        """Connections that were lost in a black hole and that nobody has given up yet."""
        return self._call(lambda: sum(connection.lost for connection in self._open))

    def latency(self, seconds: float) -> None:
        """Hold each piece of bytes back for this long, in both directions."""
        self._call(lambda: setattr(self, "_latency_s", seconds))

    def reset(self) -> int:
        """End every connection with RST in both directions; give how many there were."""
        return self._call(functools.partial(self._close_all, reset=True))

    def cut(self) -> int:
        """Close every connection in both directions, with FIN unless bytes were waiting to be read; give how many there were."""
        return self._call(functools.partial(self._close_all, reset=False))

    def cut_after(self, count: int) -> None:
        """Reset the first connection whose client sends `count` more bytes, when exactly so many have been passed on; once."""
        self._call(functools.partial(self._arm, count))

    @property
    def armed(self) -> bool:
        """Whether `cut_after` still waits for its bytes."""
        return self._call(lambda: self._cut_after is not None)

    def pause(self) -> int:
        """Pass nothing on until `resume`, which passes on everything sent meanwhile; give how many connections are held."""
        return self._call(self._pause)

    def blackhole(self) -> int:
        """Lose every connection, and those made until `resume`; give how many there were. What is sent is swallowed, nothing is closed."""
        return self._call(self._lose_all)

    def resume(self) -> None:
        """End `pause` and `blackhole`; what a black hole has swallowed stays half-open."""
        self._call(self._resume)

    def _call(self, function: Callable[[], T]) -> T:
        async def called() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(called(), self._loop).result(_CALL_S)

    def _close_all(self, *, reset: bool) -> int:
        through = [connection for connection in self._open if connection.target is not None]
        for connection in through:
            connection.close(reset=reset)
        return len(through)

    def _arm(self, count: int) -> None:
        self._cut_after = count
        for connection in self._open:
            connection.sent = 0

    def _pause(self) -> int:
        self._passing.clear()
        return len(self._open)

    def _lose_all(self) -> int:
        self._swallows = True
        for connection in self._open:
            connection.lost = True
        return len(self._open)

    def _resume(self) -> None:
        self._swallows = False
        self._passing.set()

    async def _listen(self) -> None:
        listener = self._listener or socket.create_server((HOST, 0))
        self._server = await asyncio.start_server(self._accept, sock=listener)
        self.host, self.port = listener.getsockname()

    async def _end(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # the loop closes the sockets in its next round

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, client_reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        connection = _Connection(client)
        connection.lost = self._swallows
        self._open.add(connection)
        copies: list[asyncio.Future[None]] = []
        try:
            await self._passing.wait()
            target_reader, connection.target = await asyncio.open_connection(*self._target)
            copies = [
                asyncio.ensure_future(self._copy(connection, client_reader, connection.target, sends=True)),
                asyncio.ensure_future(self._copy(connection, target_reader, client, sends=False)),
            ]
            await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
            connection.close(reset=False)
        except OSError:
            pass  # the target refuses: its client sees a reset
        finally:
            for copy in copies:
                copy.cancel()
            await asyncio.gather(*copies, return_exceptions=True)
            connection.close(reset=True)  # whatever a peer that does not read has kept from being closed
            self._open.discard(connection)

    async def _copy(self, connection: "_Connection", reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, sends: bool) -> None:
        while chunk := await reader.read(_CHUNK_BYTES):
            await asyncio.sleep(self._latency_s)
            await self._passing.wait()
            if connection.lost:
                continue
            left = None if self._cut_after is None or not sends else self._cut_after - connection.sent
            connection.sent += len(chunk) if sends else 0
            if left is not None and left <= len(chunk):
                self._cut_after = None
                writer.write(chunk[:left])
                connection.close(reset=True, flushed=writer)
                return
            writer.write(chunk)
            await writer.drain()


def through(url: str, link: Proxy) -> str:
    """Give the same URL with the proxy's address in it."""
    parts = urlsplit(url)
    account = parts.netloc.rpartition("@")[0]
    return parts._replace(netloc=f"{account}@{link.host}:{link.port}" if account else f"{link.host}:{link.port}").geturl()


class _Connection:
    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.client = client
        self.target: asyncio.StreamWriter | None = None
        self.lost = False
        self.sent = 0  # bytes from the client, counted for cut_after

    def close(self, *, reset: bool, flushed: asyncio.StreamWriter | None = None) -> None:
        """Close both sides; what `flushed` was told to write still goes out, when its peer reads."""
        for writer in (self.client, self.target):
            if writer is None:
                continue
            if not reset or writer is flushed:
                writer.close()
                continue
            with contextlib.suppress(OSError):  # it is closed already
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            writer.transport.abort()
