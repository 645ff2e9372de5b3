"""Asks a server once whether it is ready, with nothing but a socket; it must not know why one is not."""

import contextlib
import http.client
import socket
import struct
from typing import Final

import msgspec

from sagapost_ops.state import Kind

HOST: Final = "127.0.0.1"
TIMEOUT_S: Final = 2.5
_STARTUP: Final = b"user\0nobody\0database\0postgres\0\0"
_PROTOCOL_3: Final = 196608
_AMQP_HEADER: Final = b"AMQP\x00\x00\x09\x01"
_MAX_BYTES: Final = 4096


class _Live(msgspec.Struct, frozen=True, kw_only=True):
    mode: str | None = None


_LIVE: Final = msgspec.json.Decoder(_Live)


def ready(kind: Kind, port: int, timeout_s: float = TIMEOUT_S) -> bool:
    """Tell whether the server of this kind on a local port takes work now."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        match kind:
            case "health":
                return status(port, "/health/ready", timeout_s) == 200
            case "http":
                return status(port, "/", timeout_s) < 500
            case "postgres":
                # an authentication request ("R") means it accepts sessions; while it starts or stops it answers "E"
                body = struct.pack("!i", _PROTOCOL_3) + _STARTUP
                return _first_byte(port, struct.pack("!i", len(body) + 4) + body, timeout_s) == b"R"
            case "rabbitmq":
                return _first_byte(port, _AMQP_HEADER, timeout_s) == b"\x01"
            case "smtp":
                return _first_byte(port, b"", timeout_s) == b"2"
    return False


def status(port: int, path: str, timeout_s: float = TIMEOUT_S) -> int:
    """Give the status of one GET.

    Raises:
        OSError: nobody answers.

    """
    connection = http.client.HTTPConnection(HOST, port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def mode(port: int, timeout_s: float = TIMEOUT_S) -> str | None:
    """Return what a service of ours says of its mode, development or production; None when it does not answer."""
    connection = http.client.HTTPConnection(HOST, port, timeout=timeout_s)
    try:
        connection.request("GET", "/health/live")
        return _LIVE.decode(connection.getresponse().read(_MAX_BYTES)).mode
    except (OSError, http.client.HTTPException, msgspec.DecodeError, UnicodeDecodeError):
        return None
    finally:
        connection.close()


def _first_byte(port: int, greeting: bytes, timeout_s: float) -> bytes:
    with socket.create_connection((HOST, port), timeout=timeout_s) as connection:
        connection.sendall(greeting)
        return connection.recv(1)
