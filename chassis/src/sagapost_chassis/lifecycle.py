"""A process's life: settings and loop at start, SIGTERM, SIGHUP and Ctrl-C drain and end with exit code 0."""

import asyncio
import gc
import math
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Final

import uvicorn
import uvloop
from litestar import types

from sagapost_chassis import http_server, listeners, loopback, settings, telemetry

_POLL_S: Final = 0.02
_LINGER_POLLS: Final = 25  # half a second, in which a kept connection may still bring one more request
KEEP_ALIVE_S: Final = 75.0  # nginx and AWS load balancers keep an idle connection for 60 s: who waits shorter closes it under their request
GRACE_S: Final = 25  # longer than one provider call, shorter than what orchestrators grant


class _Server(uvicorn.Server):
    """Uvicorn without its own signal handlers: the process drains as a whole."""

    def __init__(self, config: uvicorn.Config, max_open: int) -> None:
        super().__init__(config)
        self.server_state = http_server.State(max_open)

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let go of the port first, then of the connections: whoever is connected already gets an answer to what is on its way.

        Uvicorn alone closes each connection on which it has no request at that moment, and one may just be arriving.
        """
        for listening in (*self.servers, *(sockets or ())):
            listening.close()
        self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
        for connection in tuple(self.server_state.connections):
            cycle = getattr(connection, "cycle", None)
            if cycle is not None and not cycle.response_complete:
                connection.shutdown()  # after this answer: an event stream that ends takes its connection with it
        for _ in range(_LINGER_POLLS):
            if self.server_state.connections:
                await asyncio.sleep(_POLL_S)
        await super().shutdown(sockets)


def run(service: str, common: settings.Common, main: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Run `main(stop)` until it returns; the event is set at SIGTERM, SIGHUP or SIGINT, and a second signal ends it at once."""
    telemetry.configure(service, common.log_level)
    _collect_less()
    sentence = ""
    try:
        if common.stays_local():
            _refuse_open_sockets()
        if common.metrics_port:
            listeners.serve_metrics(_bind(common.host, common.metrics_port, "METRICS_PORT"))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_supervise(service, main))
    except* settings.CannotStartError as group:
        sentence = _first(group)
    if sentence:  # not in the except*: what is raised there comes out as a group
        settings.exit_with(sentence)


def _collect_less() -> None:
    """Leave what was imported to itself, and look for cycles after more than Python's 700 new objects: nearly nothing here makes any."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 5)


def _first(exc: BaseException) -> str:
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return str(exc)


async def _supervise(service: str, main: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    stop = asyncio.Event()
    task = asyncio.ensure_future(main(stop))

    def on_signal() -> None:
        if stop.is_set():
            task.cancel()
        telemetry.log.info("process.stopping", service=service)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN or number != signal.SIGHUP:  # nohup means it
            asyncio.get_running_loop().add_signal_handler(number, on_signal)
    telemetry.log.info("process.started", service=service)
    watch = asyncio.ensure_future(stop.wait())
    await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
    watch.cancel()
    done, _ = await asyncio.wait({task}, timeout=GRACE_S)
    if not done:
        telemetry.log.warning("process.grace_over", service=service, grace_s=GRACE_S)
        task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
    telemetry.log.info("process.stopped", service=service)


def _refuse_open_sockets() -> None:
    found = [address for address in listeners.addresses() if not loopback.is_loopback(address)]
    if found:
        raise settings.CannotStartError(settings.open_to_others("a socket that was handed over (LISTEN_FDS)", found))


def _bind(host: str, port: int, variable: str) -> socket.socket:
    try:
        return listeners.bind(host, port)
    except OSError as exc:
        raise settings.CannotStartError(
            f"port {port} of {host} cannot be used: {os.strerror(exc.errno or 0)}; end what uses it or set {settings.PREFIX}{variable}"
        ) from exc


async def serve(
    app: types.ASGIApp,
    host: str,
    port: int,
    stop: asyncio.Event,
    *,
    variable: str = "PORT",
    max_open: int = http_server.MAX_OPEN,
    keep_alive_s: float = KEEP_ALIVE_S,
) -> None:
    """Serve HTTP until `stop` is set, then finish the requests under way; `variable` is the setting that moves the port.

    At most `max_open` connections, fewer where the process may not open as many files; an idle one is closed after `keep_alive_s`.

    Raises:
        CannotStartError: the port is taken, or not ours to take.

    """
    sockets = [_bind(host, port, variable)]  # not left to uvicorn, which ends the process with a traceback
    if variable == "PORT" and (probe := listeners.probe()) is not None:
        sockets.append(probe)
    server = _Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=True,
            timeout_graceful_shutdown=10,
            timeout_keep_alive=math.ceil(keep_alive_s),
            lifespan="off",
            http=http_server.Protocol,
            ws="none",
            proxy_headers=False,  # whom to believe about a client's address is the gateway's business
        ),
        http_server.bounded(max_open),
    )
    task = asyncio.ensure_future(server.serve(sockets))
    watch = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        await task
    finally:
        watch.cancel()
        server.should_exit = True
