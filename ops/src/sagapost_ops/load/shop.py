"""Calls the gateway as a shop's page does, and sorts each answer into done, refused and unknown; it must not repeat anything."""

import asyncio
import http
from datetime import datetime
from types import TracebackType
from typing import Final, Literal, Self

import aiohttp
import msgspec

from sagapost_ops.load import planning

TIMEOUT_S: Final = 10.0  # the gateway answers within five seconds, whatever happens behind it
CONNECTIONS: Final = 128
# refused before anything was passed on to the order service; any other 5xx may have made an order
_REFUSED: Final = frozenset({"overloaded", "circuit-open", "rate-limited"})
_STILL_RUNNING: Final = "idempotency-in-progress"
_NAMES: Final = {status.value: status.phrase.lower().replace(" ", "-") for status in http.HTTPStatus}

Outcome = Literal["ok", "refused", "unknown"]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one call; `error` names what went wrong, status 0 means that there was no answer."""

    outcome: Outcome
    status: int = 0
    error: str = ""
    order_id: int | None = None
    saga_id: str | None = None
    replayed: bool = False


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What a customer sees of a row of a saga's history."""

    to: str
    event: str
    at: datetime
    outcome: str = "applied"


class Saga(msgspec.Struct, frozen=True, kw_only=True):
    """What a customer sees of a saga."""

    state: str
    version: int
    done: bool
    history: tuple[Row, ...] = ()


class _Order(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    saga_id: str


class _Problem(msgspec.Struct, frozen=True, kw_only=True):
    type: str = ""


class Shop:
    """A bounded number of connections to one gateway; each call ends within `TIMEOUT_S` once it has one."""

    def __init__(self, url: str, *, token: str = "", connections: int = CONNECTIONS) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._connections = connections
        self._turns = asyncio.Semaphore(connections)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(limit=self._connections, keepalive_timeout=30)
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._headers,
            skip_auto_headers=("User-Agent", "Accept-Encoding"),
        )
        return self

    async def __aexit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        if self._session:
            await self._session.close()

    async def check_out(self, checkout: planning.Checkout) -> Answer:
        """Buy something."""
        headers = {"Content-Type": "application/json", "Idempotency-Key": checkout.key}
        answer, body = await self._call("POST", "/api/checkout", headers, msgspec.json.encode(checkout.body()))
        if answer.outcome != "ok":
            return answer
        try:
            order = msgspec.json.decode(body, type=_Order)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return Answer(outcome="unknown", status=answer.status, error="unreadable-answer")
        return msgspec.structs.replace(answer, order_id=order.id, saga_id=order.saga_id)

    async def cancel(self, order_id: int) -> Answer:
        """Cancel an order."""
        answer, _ = await self._call("POST", f"/api/orders/{order_id}/cancel", {}, None)
        return answer

    async def saga(self, saga_id: str) -> Saga | Answer:
        """Look at a saga; an answer when it could not be seen."""
        answer, body = await self._call("GET", f"/api/sagas/{saga_id}", {}, None)
        if answer.outcome != "ok":
            return answer
        try:
            return msgspec.json.decode(body, type=Saga)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return Answer(outcome="unknown", status=answer.status, error="unreadable-answer")

    async def _call(self, method: str, path: str, headers: dict[str, str], body: bytes | None) -> tuple[Answer, bytes]:
        if self._session is None:
            raise RuntimeError("the shop is used outside of its async with block")
        async with self._turns:
            try:
                async with (
                    asyncio.timeout(TIMEOUT_S),
                    self._session.request(method, self._url + path, headers=headers, data=body, allow_redirects=False) as response,
                ):
                    content = await response.read()
                    return sort(response.status, content, replayed="Idempotent-Replayed" in response.headers), content
            except TimeoutError:
                return Answer(outcome="unknown", error="timeout"), b""
            except (aiohttp.ClientConnectorError, ConnectionRefusedError):
                return Answer(outcome="unknown", error="not-connected"), b""
            except (aiohttp.ClientError, OSError):
                return Answer(outcome="unknown", error="connection-lost"), b""


def sort(status: int, body: bytes, *, replayed: bool = False) -> Answer:
    """Say whether the call took effect: unknown unless the answer itself says so."""
    if 200 <= status < 300:
        return Answer(outcome="ok", status=status, replayed=replayed)
    slug = _slug(body) or _NAMES.get(status, "")
    error = f"{status} {slug}".strip()
    if slug == _STILL_RUNNING or (status >= 500 and slug not in _REFUSED) or status < 400:
        return Answer(outcome="unknown", status=status, error=error)
    return Answer(outcome="refused", status=status, error=error)


def _slug(body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=_Problem).type.rpartition("/")[2]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
