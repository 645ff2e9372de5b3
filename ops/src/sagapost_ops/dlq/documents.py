"""Letters as JSON, for scripts and for files; whatever a letter holds, its line can be read back. No broker, no database."""

import base64
import os
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import msgspec

from sagapost_chassis import escaping
from sagapost_ops import errors
from sagapost_ops.dlq import letters


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """One letter: `body` when it is text, otherwise `body_base64`; `properties_base64` when they cannot be read in full."""

    queue: str
    id: str
    type: str
    order_id: int | None
    fingerprint: str
    exception: str
    message: str
    first_failed_at: datetime | None
    failed_at: datetime | None
    attempt: int
    replays: int
    faults: tuple[str, ...]
    properties: dict[str, Any]
    headers: dict[str, Any]
    body: str | None
    body_base64: str | None
    properties_base64: str | None


def document(queue: str, letter: letters.Letter) -> Document:
    """Give everything that a letter holds."""
    raw = letter.delivery.body
    text = _text(raw)
    return Document(
        queue=queue,
        id=letter.id,
        type=letter.type,
        order_id=letter.order_id,
        fingerprint=letter.fingerprint,
        exception=letter.exception,
        message=letter.message,
        first_failed_at=letter.first_failed_at,
        failed_at=letter.failed_at,
        attempt=letter.attempt,
        replays=letter.replays,
        faults=letter.faults,
        properties=letter.properties.values,
        headers=letter.properties.headers,
        body=text,
        body_base64=base64.b64encode(raw).decode() if text is None else None,
        properties_base64=base64.b64encode(letter.delivery.properties).decode() if letter.faults else None,
    )


def export(path: str, queue: str, chosen: Iterable[letters.Letter]) -> int:
    """Write letters to a new file, one JSON document a line, and have it on the disk; only its owner may read it.

    Raises:
        UnfitError: it is there already, or cannot be written.

    """
    number = 0
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            for letter in chosen:
                file.write(escaping.document(msgspec.json.encode(document(queue, letter)).decode()).encode() + b"\n")
                number += 1
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError as exc:
        raise errors.UnfitError(f"{path} is there already; name another file") from exc
    except OSError as exc:
        raise errors.UnfitError(f"{path} cannot be written: {exc.strerror}; name another file") from exc
    return number


def _text(raw: bytes) -> str | None:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None
