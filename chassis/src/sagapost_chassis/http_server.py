"""HTTP/1.1 as strangers may speak it: bounds of time, size and number around uvicorn's protocol, and one meaning for each request.

It must not know what is served. Only one process's sockets are counted here: a limit per peer address would be wrong behind a proxy,
where everybody has the same one.
"""

import asyncio
import re
import resource
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import httptools
import msgspec
import prometheus_client
import uvicorn
from opentelemetry.trace import SpanKind
from uvicorn import server
from uvicorn.protocols.http import httptools_impl

from sagapost_chassis import problems, telemetry, web

HEAD_S: Final = 10.0  # from the first byte of a request, or from the beginning of a connection, to the end of the headers
BODY_LATE_S: Final = 1.0  # a body that is not whole by then may have to make room for a newcomer
BODY_S: Final = 12.0  # longer than the gateway's own limit of 10 s, whose answer says more
STALL_S: Final = 30.0  # how long a client may leave unread what is more than the kernel's buffers take
LINGER_S: Final = 2.0  # for a client that is still sending to read why it should not
LINGER_MAX_BYTES: Final = 1024 * 1024
HEAD_MAX_BYTES: Final = 16 * 1024  # request line, headers and trailers together
HEADERS_MAX: Final = 100
PIPELINE_MAX: Final = 16
PIECES_MAX: Final = 1024  # chunks or reads of one body: each costs CPU, however small it is
BODY_WIRE_MAX_BYTES: Final = 1024 * 1024  # of one body with its chunk headers, which no application sees
MAX_OPEN: Final = 4096

_HEAD_TOO_LARGE: Final = f"The request line and the headers may have at most {HEAD_MAX_BYTES} bytes."
_BODY_TOO_LARGE: Final = "The body has far more bytes than it holds."
_OTHER_FILES: Final = 1024  # what else a process opens: connections to others, logs, libraries
_PORTS: Final = 2
_TARGET: Final = re.compile(rb'\A/[!"$-~]*\Z')  # visible ASCII from a slash on, without a fragment
_HOST: Final = re.compile(rb"\A(?:[A-Za-z0-9._~-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?\Z")
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_FRAMING: Final = (b"host", b"content-length", b"transfer-encoding")
_LENGTH: Final = re.compile(rb"\A[0-9]{1,19}\Z")
_OTHER_PROTOCOL: Final = re.compile(rb"[!-~] (?:RTSP|ICE)/[0-9.]+\r?\n")
_PROTOCOL_MAX_BYTES: Final = 16
_SPEAK_HTTP: Final = "Speak HTTP/1.1."

OPEN: Final = prometheus_client.Gauge("sagapost_http_open_connections", "Connections that clients hold open")
REFUSED: Final = prometheus_client.Counter("sagapost_http_refused", "Connections cut or refused before any handler saw them", ["reason"])


class State(server.ServerState):
    """What the connections of one port share, each kind with the oldest first.

    `lingering`: closed on our side, the client is still sending. `idle`: without a request under way. `begun`: with a request whose body is
    not whole, and since when.
    """

    def __init__(self, max_open: int) -> None:
        super().__init__()
        self.max_open = max_open
        self.lingering: dict[Protocol, None] = {}
        self.idle: dict[Protocol, None] = {}
        self.begun: dict[Protocol, float] = {}

    def replaceable(self, now_s: float) -> "Protocol | None":
        """Return the connection that makes room for a newcomer: one that lingers, is idle, or whose body is late; or None."""
        found = next(iter(self.lingering or self.idle), None)
        if found is None and self.begun:
            found, since_s = next(iter(self.begun.items()))
            return found if now_s - since_s >= BODY_LATE_S else None
        return found

    def forget(self, protocol: "Protocol") -> None:
        """Take a connection out of every list."""
        for kind in (self.lingering, self.idle, self.begun):
            kind.pop(protocol, None)


def bounded(max_open: int) -> int:
    """Give how many connections one port may hold: `max_open`, or what the limit on open files leaves for each of two ports."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _PORTS * max_open + _OTHER_FILES
    if soft < wanted and soft != resource.RLIM_INFINITY:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        max_open = min(max_open, max(soft // 4, (soft - _OTHER_FILES) // _PORTS))
    return max_open


class _RefusedError(Exception):
    """Stops the parser from inside a callback."""


class _Parting(asyncio.Transport):
    """What an answer is written to: closing it leaves a client that is still sending the time to read the answer."""

    def __init__(self, protocol: "Protocol") -> None:
        super().__init__()
        self._protocol = protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._protocol.transport.write(data)

    def is_closing(self) -> bool:
        return self._protocol.transport.is_closing()

    def close(self) -> None:
        self._protocol.end()


def fault(version: str, target: bytes, headers: Sequence[tuple[bytes, bytes]], *, upgrade: bool = False) -> str:
    """Say in a sentence why a request could be read in two ways or not at all; nothing when all is well. Names are in lower case.

    RFC 9112, sections 3.2, 6.1 to 6.3 and 11.2: what a proxy in front may have understood differently is not repaired but refused.
    """
    hosts, lengths, codings = ([value.strip(b" \t") for name, value in headers if name == wanted] for wanted in _FRAMING)
    chunked = [coding.lower() for coding in codings] == [b"chunked"] and version == "1.1" and not lengths
    rules = (
        (version in {"1.1", "1.0"}, _SPEAK_HTTP),
        (_TARGET.match(target), "The request's target must be a path that begins with a slash."),
        (len(hosts) == 1 or (not hosts and version == "1.0"), "Send one Host header."),
        (all(_HOST.match(host) for host in hosts), "The Host header must be a name or an address, and a port if need be."),
        (not codings or chunked, "Send either one Content-Length or Transfer-Encoding: chunked."),
        (len(lengths) < 2 and all(_LENGTH.match(length) for length in lengths), "Send one Content-Length of digits."),
        (not (upgrade and (codings or lengths)), "A request that wants another protocol cannot have a body here."),
        (not any(_CONTROL.search(value) for _, value in headers), "A header holds a control character."),
    )
    return next((sentence for kept, sentence in rules if not kept), "")


class Protocol(httptools_impl.HttpToolsProtocol):
    """One connection: uvicorn's protocol, which times out only between requests, with the bounds above.

    Once `_deaf`, nothing more is parsed: what follows on a connection that is about to end, or after something that could not be read,
    is nobody's request.
    """

    def __init__(
        self, config: uvicorn.Config, server_state: State, app_state: dict[str, Any], _loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._shared = server_state
        self._parting = _Parting(self)
        self._timer: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._fault = ""
        self._refusal = b""
        self._deaf = False
        self._draining = False
        self._keeps = False
        self._in_head = False
        self._begun = False
        self._at_end = False
        self._last = b""
        self._head_bytes = 0
        self._pending_bytes = 0
        self._pieces = 0
        self._wire_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a connection in, if need be for the one that has been idle longest."""
        super().connection_made(cast("asyncio.Transport", transport))  # uvloop's is none by its class, only by what it does
        OPEN.inc()
        if len(self.connections) > self._shared.max_open:
            oldest = self._shared.replaceable(self.loop.time())
            if oldest is None:
                self._refuse("full", 503, "overloaded", "Every connection is busy. Try again in a moment.")
                return
            oldest.evict()
        self._shared.idle[self] = None
        self._arm(HEAD_S, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        OPEN.dec()
        self._shared.forget(self)
        self._unset_keepalive_if_required()
        self._disarm()
        if self._stall is not None:
            self._stall.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came; whatever cannot be read in exactly one way ends the connection."""
        if self._deaf:
            self._pending_bytes += len(data)
            if self._pending_bytes > LINGER_MAX_BYTES:
                self.transport.abort()
            return
        self._begun = True
        self._unset_keepalive_if_required()
        if sentence := self._too_much(data):
            self._malformed(sentence)
            return
        try:
            self._reader().feed_data(data)
        except httptools.HttpParserUpgrade:
            self._stop_parsing()  # the request is answered as it stands, and no other protocol follows
        except httptools.HttpParserError:
            if self._deaf:
                self._stop_parsing()
            else:
                self._malformed(self._fault or "This is not HTTP as it is written.")
        if not self._deaf and self._timer is None and self._is_idle():
            self._arm(HEAD_S, self._late)

    def _too_much(self, data: bytes) -> str:
        """Return why these bytes are not parsed: another protocol (llhttp takes it for HTTP), a long head, far too long a body."""
        other = _OTHER_PROTOCOL.search(self._last + data)
        self._last = data[-_PROTOCOL_MAX_BYTES:]
        if other:
            return _SPEAK_HTTP
        if self._in_head:
            self._pending_bytes += len(data)
            return _HEAD_TOO_LARGE if self._pending_bytes > HEAD_MAX_BYTES else ""
        self._wire_bytes += len(data)
        return _BODY_TOO_LARGE if self._wire_bytes > BODY_WIRE_MAX_BYTES else ""

    def on_message_begin(self) -> None:
        """Begin a request, when there may be another one."""
        if self._deaf or len(self.pipeline) >= PIPELINE_MAX:
            self._deaf = True
            raise _RefusedError
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = self._pending_bytes = self._pieces = self._wire_bytes = 0
        if self._timer is None:
            self._arm(HEAD_S, self._late)

    def on_url(self, url: bytes) -> None:
        """Take a piece of the target."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; a trailer behind the body is counted and dropped, for it would pass for a header that was checked."""
        self._count(len(name) + len(value) + 4)
        if not self._in_head:
            return
        if len(self.headers) >= HEADERS_MAX:
            self._fault = f"A request may have at most {HEADERS_MAX} headers."
            raise _RefusedError
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Check what was announced, then let the application begin."""
        reader = self._reader()
        upgrade = reader.should_upgrade()
        self._fault = fault(reader.get_http_version(), self.url, self.headers, upgrade=upgrade)
        if self._fault:
            raise _RefusedError
        self._in_head = False
        self._shared.idle.pop(self, None)
        self._shared.begun[self] = self.loop.time()
        super().on_headers_complete()
        cycle = self.cycle
        cast("dict[str, Any]", self.scope)["extensions"] = {web.GONE: lambda: self._at_end or cycle.disconnected}
        self.cycle.transport = self._parting
        # Who answers before the body is whole says `Connection: close`, rather than wait for the rest of it.
        self._keeps = self.cycle.keep_alive and not upgrade
        self.cycle.keep_alive = False
        self._arm(BODY_S, self._late)

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body, when there have not been too many."""
        self._pieces += 1
        if self._pieces > PIECES_MAX:
            self._fault = f"A body may come in at most {PIECES_MAX} pieces."
            raise _RefusedError
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that the request is whole, and the connection good for another one."""
        self._disarm()
        self._shared.begun.pop(self, None)
        super().on_message_complete()
        if not self.cycle.response_started:
            self.cycle.keep_alive = self._keeps and not self._draining
        if not self._keeps:
            self._deaf = True

    def on_response_complete(self) -> None:
        """Go on with the next request, or with what had to wait for its turn: a refusal, or the end."""
        more = bool(self.pipeline)
        super().on_response_complete()
        if more or self.transport.is_closing():
            return
        if self._refusal:
            self._part(self._refusal)
        elif self._deaf:
            self.end()
        else:
            self._shared.idle[self] = None

    def shutdown(self) -> None:
        """Answer what is under way, and nothing after it; who is still sending a body has a moment left."""
        self._draining = True
        super().shutdown()
        if self._is_cut() and not self._deaf:
            self._arm(LINGER_S, self._late)

    def eof_received(self) -> None:
        """Note that the client has gone, before the connection is closed for it."""
        self._at_end = True
        super().eof_received()

    def pause_writing(self) -> None:
        """Wait for the client to read, but not for ever."""
        super().pause_writing()
        self._stall = self.loop.call_later(STALL_S, self._abort, "unread")

    def resume_writing(self) -> None:
        """Go on: the client has read."""
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def timeout_keep_alive_handler(self) -> None:
        """End a connection on which nothing has been asked for long."""
        self.end()

    def evict(self) -> None:
        """Make room for a newcomer: what lingers has no more time, a late body is answered first."""
        lingers, late = self in self._shared.lingering, self in self._shared.begun
        self._shared.forget(self)
        if lingers:
            self._abort("evicted")
        elif late:
            self._refuse("evicted", 503, "overloaded", "Every connection is busy, and the body is late. Try again in a moment.")
        else:
            REFUSED.labels("evicted").inc()
            self.end()

    def end(self) -> None:
        """Close: at once, or when the client had time to read the answer to a request that it is still sending."""
        self._deaf = True
        self._unset_keepalive_if_required()
        if self.transport.is_closing():
            return
        if self._is_cut():
            self._part(b"")
            return
        self.transport.close()
        self._arm(LINGER_S, self._abort)  # should the client never read the last of it

    def _part(self, last: bytes) -> None:
        """Write the last bytes and close our side; a socket closed over unread bytes would reset, and take the answer with it."""
        self._deaf = True
        self._pending_bytes = 0
        self._shared.forget(self)
        self._shared.lingering[self] = None
        if last:
            self.transport.write(last)
        self.transport.write_eof()
        self.flow.resume_reading()
        self._arm(LINGER_S, self._abort)

    def _stop_parsing(self) -> None:
        self._deaf = True
        if self._is_idle():
            self.end()

    def _is_idle(self) -> bool:
        cycle = self._latest()
        return not self.pipeline and (cycle is None or cycle.response_complete)

    def _is_cut(self) -> bool:
        """Whether the latest request is not whole."""
        cycle = self._latest()
        return cycle is not None and cycle.more_body

    def _latest(self) -> httptools_impl.RequestResponseCycle | None:
        return self.cycle  # None before the first request, whatever its type says

    def _reader(self) -> httptools.HttpRequestParser:
        reader: httptools.HttpRequestParser | None = self.parser
        if reader is None:
            raise RuntimeError("the connection is lost")
        return reader

    def _count(self, size_bytes: int) -> None:
        self._head_bytes += size_bytes
        if self._head_bytes > HEAD_MAX_BYTES:
            self._fault = _HEAD_TOO_LARGE
            raise _RefusedError

    def _late(self) -> None:
        self._timer = None
        if not self._begun:
            REFUSED.labels("silent").inc()
            self.end()
        elif self.flow.read_paused:  # it is the application that is slow
            self._arm(BODY_S, self._late)
        else:
            self._refuse("slow", 408, "request-timeout", f"Send a whole request within {HEAD_S:g} seconds.")

    def _malformed(self, detail: str) -> None:
        self._refuse("malformed", 400, "malformed-request", detail)

    def _refuse(self, reason: str, status: int, slug: str, detail: str) -> None:
        """Answer in its turn what no handler will see, and end the connection behind the answer."""
        REFUSED.labels(reason).inc()
        self._deaf = True
        self._disarm()
        answer = self._problem(status, slug, detail)
        if self._is_cut() and self.pipeline and self.pipeline[0][0] is self.cycle:
            self.pipeline.popleft()  # it has not begun, and the ones before it have
            self._refusal = answer
        elif self._is_cut():
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            self._part(b"" if self.cycle.response_started else answer)
        elif self._is_idle():
            self._part(answer)
        else:
            self._refusal = answer

    def _problem(self, status: int, slug: str, detail: str) -> bytes:
        target = getattr(self, "url", b"/")  # there is none before the first request begins
        path = target.partition(b"?")[0][:200].decode("ascii") if _TARGET.match(target) else "/"
        with telemetry.span("http.refused", SpanKind.SERVER, None):
            telemetry.log.info("http.refused", status=status, reason=detail, path=path)
            trace_id = telemetry.current_trace_id()
        body = msgspec.json.encode(
            problems.Problem(
                type=f"/problems/{slug}", title=problems.TITLES[slug], status=status, detail=detail, instance=path, trace_id=trace_id
            )
        )
        headers = [
            *(pair for pair in self.server_state.default_headers if pair[0] != b"connection"),
            *web.SECURE_HEADERS,
            (b"cache-control", b"no-store"),
            (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
            (b"content-type", problems.MEDIA_TYPE.encode()),
            (b"content-length", str(len(body)).encode()),
            *([(b"retry-after", b"1")] if status == 503 else []),
            (b"connection", b"close"),
        ]
        head = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        return httptools_impl.STATUS_LINE[status] + head + b"\r\n" + body

    def _arm(self, seconds: float, act: Callable[[], None]) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, act)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _abort(self, reason: str = "") -> None:
        if reason:
            REFUSED.labels(reason).inc()
        self.transport.abort()
