"""The order service as the gateway sees it: pooled HTTP clients behind a breaker and a gate; it must not know what a call means."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from types import TracebackType
from typing import Final, Self

import aiohttp
import msgspec
import prometheus_client

from sagapost_chassis import background, internal, telemetry
from sagapost_gateway import breaker, errors, gate

CLIENT: Final = "Sagapost-Client"  # whose call it is
_KEPT: Final = ("Location", "Retry-After", "ETag", "Idempotent-Replayed", "Preference-Applied")
# Shorter than the 30 s after which uvicorn closes an idle connection, so that a POST does not meet a closing one.
_IDLE_S: Final = 15
_HEALTH_S: Final = 1.0
_NOT_OURS: Final = 401  # the order service leaves keys to the gateway: it refuses a secret, not a client
_PAUSE_S: Final = (0.05, 0.2)  # between two attempts
_LEAST_S: Final = 0.1  # an attempt with less time than this would make a timeout of a failure that is known already
_IN_PROGRESS: Final = b"/problems/idempotency-in-progress"
_SILENCE_S: Final = 30  # twice as long as the order service lets a stream be silent
_EVENTS: Final = "text/event-stream"
_SHARES: Final = 10  # of the places for those who wait one client has a tenth
STREAM_MAX_S: Final = 900.0

_dice: Final = random.SystemRandom()

WAITING: Final = prometheus_client.Gauge("sagapost_gateway_waiting", "Requests and streams that wait for a saga to move")
CUT: Final = prometheus_client.Counter("sagapost_gateway_streams_cut", "Streams that the gateway ended before their saga did", ["reason"])
REPEATED: Final = prometheus_client.Counter("sagapost_gateway_repeated", "Calls to the order service made again after a broken connection")


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What came back; `headers` holds only those that may reach the client."""

    status: int
    body: bytes
    content_type: str
    headers: dict[str, str]


class Stream:
    """What the order service sends bit by bit; whoever has it must close it. It ends by itself after `life_s` seconds."""

    def __init__(self, response: aiohttp.ClientResponse, opened: "dict[Stream, str]", client: str, life_s: float) -> None:
        self._response = response
        self._opened = opened
        self._end = asyncio.get_running_loop().call_later(life_s, self.cut, "life")
        opened[self] = client
        WAITING.inc()

    async def chunks(self) -> AsyncGenerator[bytes]:
        """Pass on what comes; a stream that breaks just ends: the client asks again from the last event it saw."""
        try:
            async for chunk in self._response.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            if self in self._opened:  # not closed by ourselves
                telemetry.log.warning("upstream.stream_broken", reason=f"{type(exc).__name__}: {exc}")
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the connection, which ends the stream on both sides; again is no harm."""
        if self in self._opened:
            del self._opened[self]
            WAITING.dec()
        self._end.cancel()
        self._response.close()

    def cut(self, reason: str) -> None:
        """End a stream that its client would have kept: the client asks again from the last event it saw."""
        CUT.labels(reason).inc()
        self.close()


def _there() -> bool:
    return False


class Order:
    """The pooled clients; they live as long as the process. `deadline_s` covers waiting for a connection, sending and reading.

    Whoever waits for a saga holds a connection for long, so those who do have connections of their own, `max_waiting` of
    them: however many wait, a checkout finds one of its `max_connections`. Beyond those, `max_queued` calls wait for their turn, very
    shortly. One client has at most `max_waiting_per_client` of the places for those who wait, and a stream lives `stream_max_s` seconds.
    After `failures` in a row no call of that client is made until the order service says that it is ready.
    """

    def __init__(
        self,
        url: str,
        *,
        deadline_s: float,
        max_connections: int,
        max_waiting: int,
        max_queued: int = 64,
        failures: int = breaker.FAILURES,
        max_waiting_per_client: int = 0,
        stream_max_s: float = STREAM_MAX_S,
        secret: str = "",
    ) -> None:
        self._url = url.rstrip("/")
        self._headers = internal.headers(secret)
        self._deadline_s = deadline_s
        self._max_connections = max_connections
        self._max_waiting = max_waiting
        self._session: aiohttp.ClientSession | None = None
        self._patient: aiohttp.ClientSession | None = None
        self._share = max_waiting_per_client or max(2, max_waiting // _SHARES)
        self._stream_max_s = stream_max_s
        self._streams: dict[Stream, str] = {}  # with their clients, the oldest first
        self._asking: Counter[str] = Counter()
        self._ending = asyncio.Event()
        self.room = max_connections + max_queued  # as many calls as can be under way or wait for their turn
        self._gate = gate.Gate(max_connections, max_queued)
        self._breakers = breaker.Breakers(failures)

    async def __aenter__(self) -> Self:
        self._session = _session(self._max_connections, self._headers)
        self._patient = _session(self._max_waiting, self._headers)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        for session in (self._session, self._patient):
            if session:
                await session.close()

    async def run(self, stop: asyncio.Event) -> None:
        """Watch over the breaker until `stop` is set; then let nobody wait any longer: streams end, and who waits gets what there is."""
        try:
            await background.until(stop, self._breakers.run(self._ready))
        finally:
            self._ending.set()
            for stream in tuple(self._streams):
                stream.close()

    def busy(self) -> bool:
        """Whether a call that came now would be refused as overloaded."""
        return self._gate.full()

    async def call(
        self,
        method: str,
        path: str,
        *,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
        again: bool = False,
        gone: Callable[[], bool] = _there,
    ) -> Answer:
        """Send one request and read the whole answer; the running span's traceparent goes with it.

        `path` must hold only checked identifiers. A call whose connection broke before any answer is made again: with `again`, which
        says that doing it twice is doing it once, until the deadline; a GET once, by aiohttp; anything else never. Nothing is sent when
        `gone()` says that the client has gone away while the call waited for its turn.

        Raises:
            BodyCutError: the client has gone.
            OverloadedError: too many calls are under way. CircuitOpenError: too many have failed. Nothing was sent.
            OrderTimeoutError: no whole answer before the deadline.
            OrderUnavailableError: refused, dropped, or a 5xx, whose body stays here.

        """
        self._breakers.check(_client(headers))
        async with self._gate.turn():
            if gone():
                raise errors.BodyCutError("The client has gone away.")
            return await self._repeated(method, path, headers or {}, body, again=again)

    async def poll(self, path: str, *, headers: dict[str, str], wait_s: int, gone: Callable[[], Coroutine[None, None, None]]) -> Answer:
        """Read what may change, and wait up to `wait_s` seconds for it to.

        Nobody waits when as many do as may, or as many of this client, nor longer than until this process is about to end. When `gone()`
        says that the client has gone away, nobody is called for it.

        Raises:
            as `call`; `wait_s` is added to the deadline.

        """
        client = _client(headers)
        self._breakers.check(client)
        if wait_s and not self._full() and self._held(client) < self._share and not self._ending.is_set():
            patient = {**headers, "Prefer": f"wait={wait_s}"}
            asked = self._attempt(_opened(self._patient), "GET", path, patient, deadline_s=self._deadline_s + wait_s)
            waiting = asyncio.create_task(asked)
            over = (asyncio.create_task(self._ending.wait()), asyncio.create_task(gone()))
            self._asking[client] += 1
            try:
                with WAITING.track_inprogress():
                    await asyncio.wait({waiting, *over}, return_when=asyncio.FIRST_COMPLETED)
                if waiting.done():
                    return waiting.result()
                if over[1].done():
                    raise errors.BodyCutError("The client has gone away.")
            finally:
                self._left(client)
                for task in (waiting, *over):
                    task.cancel()
        return await self.call("GET", path, headers=headers)

    async def stream(self, path: str, *, headers: dict[str, str]) -> Stream | Answer:
        """Open a stream of events; anything but 200 is an answer.

        Raises:
            TooManyError: as many wait as may. A client that has its share loses its oldest stream instead.
            OrderTimeoutError: no answer before the deadline.
            OrderUnavailableError: refused, dropped, or a 5xx. CircuitOpenError: too many calls have failed.

        """
        client = _client(headers)
        self._breakers.check(client)
        if self._full():
            raise errors.TooManyError(f"{len(self._streams)} streams are open")
        if self._held(client) >= self._share:
            oldest = next((stream for stream, whose in self._streams.items() if whose == client), None)
            if oldest is None:
                raise errors.TooManyError("this client has taken its share of the places")
            oldest.cut("share")
        self._asking[client] += 1
        try:
            with self._counted(client):
                async with _failures(self._deadline_s):
                    return await self._open(path, headers)
        finally:
            self._left(client)

    async def alive(self) -> bool:
        """Ask whether the order service's process runs; its dependencies are its own business."""
        return (await self._call(_opened(self._session), "GET", "/health/live", {}, deadline_s=_HEALTH_S)).status == 200

    async def _ready(self) -> bool:
        try:
            return (await self._call(_opened(self._session), "GET", "/health/ready", {}, deadline_s=_HEALTH_S)).status == 200
        except (errors.OrderUnavailableError, errors.OrderTimeoutError):
            return False

    async def _repeated(self, method: str, path: str, headers: dict[str, str], body: bytes | None, *, again: bool) -> Answer:
        clock = asyncio.get_running_loop().time
        ends_s = clock() + self._deadline_s
        sent, broken = False, None
        while True:
            session, pause_s = _opened(self._session), _dice.uniform(*_PAUSE_S)
            left_s = ends_s - clock()
            try:
                answer = await self._attempt(session, method, path, headers, body=body, deadline_s=left_s)
            except errors.OrderTimeoutError:
                if broken is None:
                    raise
                raise broken from broken.__cause__  # what is known already stays what it was, however the last attempt ended
            except errors.OrderBrokenError as exc:
                sent, broken = sent or exc.sent, exc
                if not again or clock() + pause_s >= ends_s - _LEAST_S:
                    raise
            else:
                # the first attempt of ours is still being worked on, where its connection broke and its answer was lost
                if not (again and sent and answer.status == 409 and _IN_PROGRESS in answer.body) or clock() + pause_s >= ends_s - _LEAST_S:
                    return answer
            REPEATED.inc()
            await asyncio.sleep(pause_s)
            if not sent:
                self._breakers.check(_client(headers))  # it can be said that nothing happened; otherwise the answer is worth waiting for
            elif not await self._breakers.closes(_client(headers), ends_s - clock()):
                raise errors.OrderTimeoutError(f"no answer within {self._deadline_s:g} s")

    async def _attempt(
        self,
        session: aiohttp.ClientSession,
        method: str,
        path: str,
        headers: dict[str, str],
        *,
        deadline_s: float,
        body: bytes | None = None,
    ) -> Answer:
        with self._counted(_client(headers)):
            return await self._call(session, method, path, headers, body=body, deadline_s=deadline_s)

    @contextlib.contextmanager
    def _counted(self, client: str) -> Generator[None]:
        """Note for the breakers how a client's call went; a caller who went away says nothing about the order service."""
        try:
            yield
        except (errors.OrderUnavailableError, errors.OrderTimeoutError):
            self._breakers.failed(client)
            raise
        self._breakers.succeeded(client)

    def _full(self) -> bool:
        return len(self._streams) + self._asking.total() >= self._max_waiting

    def _left(self, client: str) -> None:
        self._asking[client] -= 1
        if not self._asking[client]:
            del self._asking[client]

    def _held(self, client: str) -> int:
        return self._asking[client] + sum(whose == client for whose in self._streams.values())

    async def _call(
        self,
        session: aiohttp.ClientSession,
        method: str,
        path: str,
        headers: dict[str, str],
        *,
        deadline_s: float,
        body: bytes | None = None,
    ) -> Answer:
        async with (
            _failures(deadline_s),
            session.request(method, self._url + path, headers=_traced(headers), data=body, allow_redirects=False) as response,
        ):
            return _checked(await _read(response))

    async def _open(self, path: str, headers: dict[str, str]) -> Stream | Answer:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._deadline_s, sock_read=_SILENCE_S)
        response = await _opened(self._patient).get(self._url + path, headers=_traced(headers), allow_redirects=False, timeout=timeout)
        if response.status != 200 or response.content_type != _EVENTS:
            async with response:
                answer = _checked(await _read(response))
            if answer.status == 200:
                raise errors.OrderUnavailableError(f"the order service answered {answer.content_type} instead of events")
            return answer
        stream = Stream(response, self._streams, _client(headers), self._stream_max_s)
        if self._ending.is_set():
            stream.close()
        return stream


def _client(headers: dict[str, str] | None) -> str:
    """Return whose call it is; the gateway's own calls are nobody's."""
    return (headers or {}).get(CLIENT, "")


def _session(max_connections: int, headers: dict[str, str]) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        headers=headers,
        connector=aiohttp.TCPConnector(limit=max_connections, keepalive_timeout=_IDLE_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=("User-Agent", "Accept-Encoding", "Content-Type"),
        auto_decompress=False,
    )


def _opened(session: aiohttp.ClientSession | None) -> aiohttp.ClientSession:
    if not session:
        raise RuntimeError("the client is used outside of its async with block")
    return session


@contextlib.asynccontextmanager
async def _failures(deadline_s: float) -> AsyncGenerator[None]:
    """Bound the block, and sort what goes wrong in it."""
    try:
        async with asyncio.timeout(deadline_s):
            yield
    except TimeoutError as exc:
        raise errors.OrderTimeoutError(f"no answer within {deadline_s:g} s") from exc
    except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError) as exc:
        sent = not isinstance(exc, aiohttp.ClientConnectorError)
        raise errors.OrderBrokenError(f"{type(exc).__name__}: {exc}", sent=sent) from exc
    except aiohttp.ClientError as exc:
        raise errors.OrderUnavailableError(f"{type(exc).__name__}: {exc}") from exc


def _traced(headers: dict[str, str]) -> dict[str, str]:
    traceparent = telemetry.current_traceparent()
    return {**headers, "traceparent": traceparent} if traceparent else headers


def _checked(answer: Answer) -> Answer:
    if answer.status == _NOT_OURS:
        telemetry.log.error("order.refuses_us", reason="this gateway and the order service do not have the same SAGAPOST_INTERNAL_SECRET")
    if answer.status == _NOT_OURS or answer.status >= 500:
        raise errors.OrderUnavailableError(f"the order service answered {answer.status}")
    return answer


async def _read(response: aiohttp.ClientResponse) -> Answer:
    return Answer(
        status=response.status,
        body=await response.read(),
        content_type=response.headers.get("Content-Type", ""),
        headers={name: response.headers[name] for name in _KEPT if name in response.headers},
    )
