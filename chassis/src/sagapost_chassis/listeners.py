"""Listening sockets: those that whoever started this process holds open for it, else new ones; it must not know what is served.

The sockets come as systemd's socket activation hands them over, sd_listen_fds(3): LISTEN_FDS of them from descriptor 3 on,
meant for the process LISTEN_PID, with the names LISTEN_FDNAMES. A socket that outlives its processes refuses nobody while one
of them replaces another: who comes in between waits in its backlog.
"""

import os
import socket
import socketserver
import threading
import wsgiref.simple_server
from collections.abc import Mapping
from typing import Final

import prometheus_client

PROBE: Final = "probe"  # the name of a socket that no other process shares: who answers there is this one
BACKLOG: Final = 2048
_FIRST: Final = 3


def bind(host: str, port: int, environ: Mapping[str, str] = os.environ) -> socket.socket:
    """Give the inherited socket of this port, or make one.

    Raises:
        OSError: the port is taken, or not ours to take.

    """
    for _, fd in _inherited(environ):
        if (found := _listening(fd)) is not None:
            if found.getsockname()[1] == port:
                return found
            found.detach()
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=BACKLOG)


def addresses(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the IP addresses of the inherited sockets."""
    found: list[str] = []
    for _, fd in _inherited(environ):
        if (held := _listening(fd)) is not None:
            if held.family in {socket.AF_INET, socket.AF_INET6}:
                found.append(str(held.getsockname()[0]))
            held.detach()
    return found


def probe(environ: Mapping[str, str] = os.environ) -> socket.socket | None:
    """Give the inherited socket that is this process's alone; None when there is none."""
    return next((_listening(fd) for name, fd in _inherited(environ) if name == PROBE), None)


def serve_metrics(listener: socket.socket) -> None:
    """Answer Prometheus on a listening socket, in a thread that ends with the process."""
    server = _Server(listener.getsockname()[:2], _Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    listener.settimeout(0)  # another process may have taken the connection that was seen here
    server.server_name, server.server_port = "metrics", listener.getsockname()[1]
    server.setup_environ()
    server.set_app(prometheus_client.make_wsgi_app())
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()


class _Server(socketserver.ThreadingMixIn, wsgiref.simple_server.WSGIServer):
    daemon_threads = True


class _Handler(wsgiref.simple_server.WSGIRequestHandler):
    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Log nothing: a scrape is no event."""


def _inherited(environ: Mapping[str, str]) -> list[tuple[str, int]]:
    """Give names and descriptors; none when they are meant for a parent of ours, which let its variables through."""
    count = environ.get("LISTEN_FDS", "")
    if environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdigit():
        return []
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    padded = [*names, *[""] * int(count)]  # names are optional
    return list(zip(padded, range(_FIRST, _FIRST + int(count)), strict=False))


def _listening(fd: int) -> socket.socket | None:
    """Wrap a descriptor when it is a listening socket; nothing that this process starts shall have it."""
    try:
        found = socket.socket(fileno=fd)
        found.set_inheritable(inheritable=False)
    except OSError:
        return None  # closed since, or never a socket
    if found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return found
    found.detach()
    return None
