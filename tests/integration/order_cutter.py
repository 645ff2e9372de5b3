"""A connection to PostgreSQL that breaks during COMMIT, shared by the tests of what a checkout then answers."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from urllib.parse import urlsplit


class Cutter:
    """A TCP relay in front of PostgreSQL that cuts the first connection on which a client commits, before or after passing it on."""

    def __init__(self, dsn: str, *, deliver: bool) -> None:
        self._target = urlsplit(dsn)
        self._deliver = deliver
        self._open: set[asyncio.Task[None]] = set()
        self.cuts = 0
        self.dsn = ""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator["Cutter"]:
        """Listen on a free port; at the end every connection is closed."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        self.dsn = self._target._replace(netloc=f"{self._target.netloc.rpartition('@')[0]}@127.0.0.1:{port}").geturl()
        try:
            yield self
        finally:
            server.close()
            await asyncio.gather(*self._open, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(asyncio.create_task(self._relay(reader, writer)))

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, downstream = await asyncio.open_connection(self._target.hostname, self._target.port)
        answers = asyncio.create_task(self._copy(upstream, writer))
        try:
            while chunk := await reader.read(65536):
                cut = b"COMMIT" in chunk and self.cuts == 0
                if not cut or self._deliver:
                    downstream.write(chunk)
                    await downstream.drain()
                if cut:
                    self.cuts += 1
                    break
        finally:
            answers.cancel()
            writer.close()
            downstream.close()
            await asyncio.gather(answers, writer.wait_closed(), downstream.wait_closed(), return_exceptions=True)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(65536):
                writer.write(chunk)
                await writer.drain()
