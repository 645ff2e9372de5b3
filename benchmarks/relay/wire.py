"""AMQP 0-9-1 on a plain socket, for the two ends that must cost next to nothing; must not know what is measured."""

import socket
import urllib.parse
from typing import Final, TypeVar

import pamqp.base
import pamqp.body
import pamqp.commands
import pamqp.exceptions
import pamqp.frame
import pamqp.header

CHANNEL: Final = 1
TIMEOUT_S: Final = 10.0
_CHUNK_BYTES: Final = 65536
_GREETING: Final = b"AMQP\x00\x00\x09\x01"

F = TypeVar("F", bound=pamqp.base.Frame)


class WireError(RuntimeError):
    """The broker answered something else than what was asked for."""


class Link:
    """One connection with one open channel; after the handshake its socket is the caller's."""

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        self.socket = socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 5672), timeout=TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.left = b""
        try:
            self._shake_hands(
                urllib.parse.unquote(parts.username or "guest"),
                urllib.parse.unquote(parts.password or "guest"),
                urllib.parse.unquote(parts.path.removeprefix("/")) or "/",
            )
        except BaseException:
            self.socket.close()
            raise

    def close(self) -> None:
        """Hang up."""
        self.socket.close()

    def call(self, method: pamqp.base.Frame, answer: type[F]) -> F:
        """Send a method on the channel and wait for its answer.

        Raises:
            WireError: another answer came, or the connection was closed.

        """
        self._send(method, CHANNEL)
        return self._expect(answer)

    def _shake_hands(self, user: str, password: str, vhost: str) -> None:
        self.socket.sendall(_GREETING)
        self._expect(pamqp.commands.Connection.Start)
        self._send(pamqp.commands.Connection.StartOk(client_properties={}, response=f"\0{user}\0{password}"), 0)
        tune = self._expect(pamqp.commands.Connection.Tune)
        # no heartbeats: nobody would answer them between two reads
        self._send(pamqp.commands.Connection.TuneOk(channel_max=tune.channel_max, frame_max=tune.frame_max, heartbeat=0), 0)
        self._send(pamqp.commands.Connection.Open(virtual_host=vhost), 0)
        self._expect(pamqp.commands.Connection.OpenOk)
        self.call(pamqp.commands.Channel.Open(), pamqp.commands.Channel.OpenOk)

    def _send(self, method: pamqp.base.Frame, channel: int) -> None:
        self.socket.sendall(pamqp.frame.marshal(method, channel))

    def _expect(self, answer: type[F]) -> F:
        while True:
            try:
                used, _, found = pamqp.frame.unmarshal(self.left)
            except pamqp.exceptions.UnmarshalingException:
                used, found = 0, None
            if found is None:
                self._read()
                continue
            self.left = self.left[used:]
            if not isinstance(found, answer):
                raise WireError(f"the broker answered {found!r} where {answer.__name__} was due")
            return found

    def _read(self) -> None:
        more = self.socket.recv(_CHUNK_BYTES)
        if not more:
            raise WireError("the broker closed the connection")
        self.left += more


def encode(body: bytes, *, exchange: str, routing_key: str, properties: pamqp.commands.Basic.Properties, mandatory: bool = True) -> bytes:
    """Encode one publish as its three frames."""
    return b"".join(
        (
            pamqp.frame.marshal(pamqp.commands.Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=mandatory), CHANNEL),
            pamqp.frame.marshal(pamqp.header.ContentHeader(0, len(body), properties), CHANNEL),
            pamqp.frame.marshal(pamqp.body.ContentBody(body), CHANNEL),
        )
    )
