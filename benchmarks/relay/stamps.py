"""The mark in each measured message: sequence, aggregate and number at one place of the body; must not know who relays it."""

import json
import re
from typing import Final

MARK: Final = b"@bench:"
# Bodies are ASCII, so the first 0xCE behind a mark is the end of its AMQP frame: the message has arrived whole.
ARRIVED: Final = re.compile(rb"@bench:(\d{10}):(\d{6}):(\d{8})[^\xce]*\xce")
ROUTED: Final = "payment.bench.measured"
UNROUTED: Final = "payment.bench.nobody"
SAGA: Final = "00000000-0000-4000-8000-000000000000"
SMALLEST_BYTES: Final = 140
LARGEST_BYTES: Final = 100_000  # one body frame of RabbitMQ's default frame_max


def stamp(sequence: int, aggregate: int, number: int) -> str:
    """Write the mark of one message; `number` counts within its aggregate."""
    return f"@bench:{sequence:010}:{aggregate:06}:{number:08}"


def fields(sequence: int, aggregate: int, number: int, size_bytes: int) -> dict[str, str | int]:
    """Give the fields of a message whose compact JSON is `size_bytes` long."""
    found: dict[str, str | int] = {
        "order_id": 1_000_000 + aggregate,
        "saga_id": SAGA,
        "stamp": stamp(sequence, aggregate, number),
        "pad": "",
    }
    return found | {"pad": "x" * (size_bytes - len(_encode(found)))}


def body(sequence: int, aggregate: int, number: int, size_bytes: int) -> bytes:
    """Encode one message."""
    return _encode(fields(sequence, aggregate, number, size_bytes))


def _encode(found: dict[str, str | int]) -> bytes:
    return json.dumps(found, separators=(",", ":")).encode()
