"""The order service as the gateway sees it: one pooled HTTP client, one call, no retry, and two ways to fail."""

import asyncio
from types import TracebackType
from typing import Final, Self

import aiohttp
import msgspec

from sagapost_chassis import telemetry
from sagapost_gateway import errors

_KEPT: Final = ("Location", "Retry-After", "ETag", "Idempotent-Replayed")
# Shorter than the 30 s after which uvicorn closes an idle connection, so that a POST does not meet a closing one.
_IDLE_S: Final = 15
_HEALTH_S: Final = 1.5


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What came back; `headers` holds only those that may reach the client."""

    status: int
    body: bytes
    content_type: str
    headers: dict[str, str]


class Order:
    """The pooled client; lives as long as the process. `deadline_s` covers waiting for a connection, sending and reading."""

    def __init__(self, url: str, *, deadline_s: float, max_connections: int) -> None:
        self._url = url.rstrip("/")
        self._deadline_s = deadline_s
        self._max_connections = max_connections
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._max_connections, keepalive_timeout=_IDLE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Accept-Encoding", "Content-Type"),
            auto_decompress=False,
        )
        return self

    async def __aexit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        if self._session:
            await self._session.close()

    async def call(
        self, method: str, path: str, *, headers: dict[str, str] | None = None, body: bytes | None = None, wait_s: float = 0
    ) -> Answer:
        """Send one request and read the whole answer; the running span's traceparent goes with it.

        `path` must hold only checked identifiers. A POST is sent at most once; aiohttp repeats a GET when a kept
        connection turns out to be closed. `wait_s` is added to the deadline for a call that may wait for a change.

        Raises:
            OrderTimeoutError: no whole answer before the deadline.
            OrderUnavailableError: refused, dropped, or a 5xx, whose body stays here.

        """
        sent = dict(headers or {})
        traceparent = telemetry.current_traceparent()
        if traceparent:
            sent["traceparent"] = traceparent
        try:
            answer = await self._exchange(method, path, sent, body, self._deadline_s + wait_s)
        except TimeoutError as exc:
            raise errors.OrderTimeoutError(f"no answer within {self._deadline_s + wait_s:g} s") from exc
        except (aiohttp.ClientError, OSError) as exc:
            raise errors.OrderUnavailableError(f"{type(exc).__name__}: {exc}") from exc
        if answer.status >= 500:
            raise errors.OrderUnavailableError(f"the order service answered {answer.status}")
        return answer

    async def alive(self) -> bool:
        """Ask whether the order service's process runs; its dependencies are its own business."""
        answer = await self._exchange("GET", "/health/live", {}, None, _HEALTH_S)
        return answer.status == 200

    async def _exchange(self, method: str, path: str, headers: dict[str, str], body: bytes | None, deadline_s: float) -> Answer:
        if not self._session:
            raise RuntimeError("the client is used outside of its async with block")
        async with (
            asyncio.timeout(deadline_s),
            self._session.request(method, self._url + path, headers=headers, data=body, allow_redirects=False) as response,
        ):
            return Answer(
                status=response.status,
                body=await response.read(),
                content_type=response.headers.get("Content-Type", ""),
                headers={name: response.headers[name] for name in _KEPT if name in response.headers},
            )
