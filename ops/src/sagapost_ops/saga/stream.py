"""A saga's history as server-sent events, from any row on, over breaks of the connection; it must not know what a row means."""

import contextlib
import http.client
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Final
from urllib.parse import urlsplit

import msgspec

from sagapost_chassis import urls
from sagapost_ops import client, errors
from sagapost_ops.saga import calls, resources

SILENCE_S: Final = 40.0  # the gateway gives up a stream that says nothing for 30 s
GIVE_UP_S: Final = 60.0
PAUSE_S: Final = 1.0
_END: Final = "end"


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a stream."""

    event: str
    data: str


def frames(lines: Iterable[bytes]) -> Iterator[Frame]:
    """Put the lines of a stream together; comments, ids and what is cut off at the end are left out."""
    event, data = "", list[str]()
    for raw in lines:
        line = raw.decode(errors="replace").rstrip("\r\n")
        if not line:
            if data:
                yield Frame(event=event or "message", data="\n".join(data))
            event, data = "", []
            continue
        name, _, value = line.partition(":")
        if name == "event":
            event = value.removeprefix(" ")
        elif name == "data":
            data.append(value.removeprefix(" "))


def follow(url: str, saga_id: str, after: int, lost: Callable[[], None], *, give_up_s: float = GIVE_UP_S) -> Generator[resources.History]:
    """Give each row behind seq `after` once, as it is written, until the saga is done.

    A stream that breaks is asked for again from the last row on, until there is one; `lost` is called when one breaks. `give_up_s`: seconds
    without any.

    Raises:
        NothingMatchedError: there is no such saga.
        FailedError: the gateway refuses.
        UnfitError: it has been away for too long.

    """
    heard_s, is_lost = time.monotonic(), False
    while True:
        with contextlib.closing(_opened(url, saga_id, after)) as opened:
            for frame in opened:
                heard_s, is_lost = time.monotonic(), False
                if frame is None:
                    continue
                if frame.event == _END:
                    return
                row = calls.decoded(frame.data.encode(), resources.History)
                if row.seq > after:
                    after = row.seq
                    yield row
        if time.monotonic() - heard_s > give_up_s:
            raise errors.UnfitError(f"{urls.shown(url)} has not answered for {give_up_s:.0f} s; see ./sagapost status")
        if not is_lost:
            lost()
        is_lost = True
        time.sleep(PAUSE_S)


def _opened(url: str, saga_id: str, after: int) -> Generator[Frame | None]:
    """Give None once the stream is open, then its events; it just ends when it breaks."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "127.0.0.1", parts.port, timeout=SILENCE_S)
    headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after), **calls.credentials()}
    try:
        connection.request("GET", f"{parts.path.rstrip('/')}/api/ops/sagas/{saga_id}/events", headers=headers)
        answer = connection.getresponse()
        if answer.status != 200:
            _refused(answer, saga_id)
            return
        yield None
        yield from frames(iter(answer.readline, b""))
    except (OSError, http.client.HTTPException):
        return
    finally:
        connection.close()


def _refused(answer: http.client.HTTPResponse, saga_id: str) -> None:
    """Say why there is no stream; what will pass says nothing."""
    whole = client.Answer(status=answer.status, headers={}, body=answer.read())
    with contextlib.suppress(errors.UnfitError):
        calls.checked(whole, missing=f"there is no saga {saga_id}; see: ./sagapost saga list")
