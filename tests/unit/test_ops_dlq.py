"""Dead letters that hold anything, what a replay changes in one, and how steps and terminals are served."""

import struct
from datetime import UTC, datetime
from typing import Any

import msgspec
import pamqp.commands
import pamqp.header
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagapost_chassis import escaping
from sagapost_ops import errors
from sagapost_ops.dlq import choice, documents, letters, pages, properties, replay, wire

Properties = pamqp.commands.Basic.Properties
AT = datetime(2026, 11, 22, 10, tzinfo=UTC)


def _raw(properties: Properties) -> bytes:
    return pamqp.header.ContentHeader(0, 0, properties).marshal()[12:]


def _letter(raw: bytes, body: bytes = b"{}") -> letters.Letter:
    return letters.read(wire.Delivery(channel=1, tag=1, properties=raw, body=body))


def _headers(raw: bytes) -> dict[str, Any]:
    header = pamqp.header.ContentHeader()
    header.unmarshal(bytes(12) + raw)
    return dict(header.properties.headers or {})


def test_every_kind_of_property_and_header_is_read() -> None:
    """What the library writes, our reader understands."""
    nested: dict[str, Any] = {"list": [1, True, None, "text"], "time": AT, "deep": {"er": {"est": 1}}}
    fields = {"message_id": "m", "correlation_id": "c", "expiration": "5"}
    raw = _raw(Properties(headers=nested, timestamp=AT, message_type="T", delivery_mode=2, priority=3, **fields))

    found = properties.read(raw)

    assert found.faults == ()
    assert found.headers == nested
    assert found.values == {**fields, "type": "T", "delivery_mode": 2, "priority": 3, "timestamp": int(AT.timestamp())}


@given(raw=st.binary(max_size=200), body=st.binary(max_size=50))
def test_no_bytes_can_make_a_letter_unreadable(raw: bytes, body: bytes) -> None:
    """Whatever the properties hold, the letter can be listed, shown in a group, and written as JSON."""
    letter = _letter(raw, body)

    assert msgspec.json.decode(msgspec.json.encode(documents.document("q", letter)))["id"] == letter.id
    assert letters.groups("q", [letter])[0].count == 1


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        (struct.pack(">H", 1 << 12) + b"\x03", "delivery_mode is 3; it can be 1 or 2"),
        (struct.pack(">H", 1 << 7) + b"\x02\xff\xff", "message_id is not UTF-8"),
        (struct.pack(">HQ", 1 << 6, 1 << 50), "timestamp lies after the year 9999"),
        (struct.pack(">H", 1 << 7) + b"\x09m", "the properties end too early: message_id"),
        (struct.pack(">HI", 1 << 13, 4) + b"\x01a?x", "a header is of the unknown kind '?'"),
        (b"", "the properties end too early: unpack_from requires a buffer of at least 2 bytes"),
    ],
)
def test_what_the_services_choke_on_is_named(raw: bytes, fault: str) -> None:
    """The fault is the letter's cause, so that letters with the same one are one group."""
    letter = _letter(raw)

    assert letter.faults[0].startswith(fault)
    assert letter.exception == "Unreadable"
    assert not choice.for_replay([letter], choice.Choice(), 3).chosen
    assert choice.for_discard([letter], choice.Choice()).chosen


def test_a_replay_changes_its_own_headers_and_no_byte_of_the_others() -> None:
    """Attempts, the broker's history and what routes elsewhere go; times, lists and numbers stay as they were written."""
    kept: dict[str, Any] = {"traceparent": "00-ab", "time": AT, "list": [1, 2.5], "big": 1 << 40, "small": 7}
    gone: dict[str, Any] = {
        "x-attempt": 6,
        "x-death": [{"count": 1}],
        "x-first-death-reason": "expired",
        "x-delivery-count": 2,
        "CC": ["other"],
    }
    raw = _raw(
        Properties(headers={**kept, **gone, "x-replay-count": 2, "x-replay-id": "old"}, message_id="m", user_id="somebody", expiration="9")
    )

    again = replay.again(_letter(raw), "new")

    header = pamqp.header.ContentHeader()
    header.unmarshal(bytes(12) + again)
    assert _headers(again) == kept | {"x-replay-count": 3, "x-replay-id": "new"}
    assert (header.properties.message_id, header.properties.user_id, header.properties.expiration) == ("m", None, None)
    assert all(entry in again for entry in (b"\x04time" + b"T" + struct.pack(">Q", int(AT.timestamp())), b"\x05small"))


def test_a_letter_without_headers_gets_its_first() -> None:
    """A message that somebody put into the queue by hand can be replayed too."""
    again = replay.again(_letter(_raw(Properties(message_id="m"))), "new")

    assert _headers(again) == {"x-replay-count": 1, "x-replay-id": "new"}


def test_a_letter_that_the_broker_set_aside_says_so() -> None:
    """Without our headers the broker's reason is the cause; the time of its death is when it failed."""
    letter = _letter(_raw(Properties(headers={"x-death": [{"reason": "delivery_limit", "time": AT, "queue": "q"}]})))

    assert (letter.fingerprint, letter.exception, letter.failed_at) == ("delivery_limit@broker", "delivery_limit", AT)
    assert letter.id.startswith("~")


@pytest.mark.parametrize(
    ("canary", "chosen", "sizes"),
    [((), 45, [20, 20, 5]), ((1, 5, 20), 100, [1, 5, 20, 20, 20, 20, 14]), ((1, 5), 3, [1, 2]), ((), 0, []), ((50,), 20, [20])],
)
def test_steps_are_the_canarys_and_then_twenties(canary: tuple[int, ...], chosen: int, sizes: list[int]) -> None:
    """No step is larger than what is left."""
    found = list(replay.steps(replay.Manner(canary=canary), chosen))

    assert [size for size, _ in found] == sizes
    assert [is_canary for _, is_canary in found] == [number < len(canary) for number in range(len(sizes))]


@pytest.mark.parametrize("name", ["payment_service_queue", "payment_service_queue.dlq"])
def test_a_queue_is_meant_by_either_name(name: str) -> None:
    """The work queue's name or its dead-letter queue's."""
    assert letters.work_queue(name) == "payment_service_queue"


@pytest.mark.parametrize("name", ["", ".dlq", "payment_service_queue.retry.1s", "payment_service_queue.dlq.dlq", "\x1b[2J"])
def test_any_other_queue_is_refused_in_one_harmless_sentence(name: str) -> None:
    """The sentence names the queues there are."""
    with pytest.raises(errors.UnfitError, match="the queues are payment_service_queue, email_service_queue, order_updates_queue") as caught:
        letters.work_queue(name)

    assert "\x1b" not in str(caught.value)


@given(text=st.text())
def test_no_text_can_command_a_terminal(text: str) -> None:
    """No control, format or surrogate character is left, but for line ends."""
    assert all(sign == "\n" or sign.isprintable() or sign.isspace() for sign in escaping.block(text))
    assert not set(escaping.block(text)) & {chr(code) for code in (*range(10), *range(11, 32), *range(127, 160), 0x200F, 0x202E, 0x2066)}


def test_a_number_of_letters_reads_well() -> None:
    """One letter, two letters, and thousands apart."""
    assert [pages.letters_of(number) for number in (0, 1, 2, 1000)] == ["0 letters", "1 letter", "2 letters", "1,000 letters"]
