"""Small HTTP calls that wait for their answer; it must not know what is asked."""

import http.client
from types import TracebackType
from typing import Final, Self, TypeVar
from urllib.parse import urlsplit

import msgspec

from sagapost_chassis import urls
from sagapost_ops import errors

TIMEOUT_S: Final = 35.0  # longer than the longest wait that the gateway grants

T = TypeVar("T")


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Status, headers with lower-case names, and body."""

    status: int
    headers: dict[str, str]
    body: bytes


class Client:
    """One kept connection to one server."""

    def __init__(self, url: str, timeout_s: float = TIMEOUT_S) -> None:
        self._shown = urls.shown(url).rstrip("/")
        parts = urlsplit(url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname or "127.0.0.1", parts.port, timeout=timeout_s)
        self._prefix = parts.path.rstrip("/")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self._connection.close()

    def call(self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None) -> Answer:
        """Send one request, with a body as JSON if there is one.

        Raises:
            UnfitError: nobody answers.

        """
        content = None if body is None else msgspec.json.encode(body)
        kind = {} if body is None else {"Content-Type": "application/json"}
        try:
            self._connection.request(method, self._prefix + path, content, kind | (headers or {}))
            answer = self._connection.getresponse()
            return Answer(status=answer.status, headers={name.lower(): value for name, value in answer.getheaders()}, body=answer.read())
        except (OSError, http.client.HTTPException) as exc:
            self._connection.close()
            raise errors.UnfitError(f"{self._shown} does not answer ({type(exc).__name__}); see ./sagapost status") from exc

    def get(self, path: str, kind: type[T]) -> T:
        """Read one JSON document as `kind`.

        Raises:
            UnfitError: nobody answers, or the answer is another than expected.

        """
        answer = self.call("GET", path)
        if answer.status != 200:
            raise errors.UnfitError(f"{self._shown}{path} answered {answer.status}: {answer.body[:200].decode(errors='replace')}")
        try:
            return msgspec.json.decode(answer.body, type=kind)
        except msgspec.MsgspecError as exc:
            raise errors.UnfitError(f"{self._shown}{path} answered something else than expected: {exc}") from exc
