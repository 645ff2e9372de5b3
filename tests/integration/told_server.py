"""A real HTTP server at the order service's address that answers as a test tells it to."""

import asyncio
import contextlib

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
FAILED = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"
BREAK = b""
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n"


class Told:
    """Answers requests in their order with `script`, and the rest with its last entry; nothing at all is the connection's end.

    A checkout takes `pause_s` seconds, and until `going` is set; a stream of events begins and never goes on.
    """

    def __init__(self) -> None:
        self.script: list[bytes] = [OK]
        self.healthy = True
        self.seen: list[str] = []
        self.pause_s = 0.0
        self.going = asyncio.Event()
        self.going.set()
        self._writers: list[asyncio.StreamWriter] = []

    def close(self) -> None:
        """Let go of every connection."""
        for writer in self._writers:
            writer.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        self._writers.append(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                _, found, length = head.partition("content-length: ")
                await reader.readexactly(int(length.partition("\r\n")[0]) if found else 0)
                line = head.partition(" http")[0].upper()
                if line == "GET /HEALTH/READY":
                    writer.write(OK if self.healthy else FAILED)
                    continue
                self.seen.append(line)
                if line.endswith("/EVENTS"):
                    writer.write(STREAM)
                    continue
                if line == "POST /CHECKOUT":
                    await asyncio.sleep(self.pause_s)
                    await self.going.wait()
                answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
                if answer == BREAK:
                    break
                writer.write(answer)
        writer.close()
