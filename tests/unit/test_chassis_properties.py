"""Properties that the client cannot read or write: repaired one by one, whatever the bytes."""

import struct
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import pytest
from aiormq import connection
from aiormq.abc import DeliveredMessage
from hypothesis import given
from hypothesis import strategies as st
from integration import poison_frames
from pamqp import header
from pamqp.commands import Basic

from sagapost_chassis import arrivals, lenient, properties
from sagapost_contracts import envelope

TOP = struct.pack(">HHQ", 60, 0, 7)
FULL = Basic.Properties(
    content_type="application/json",
    content_encoding="utf-8",
    headers={"schema-version": 1, "x-attempt": 3, "nested": {"a": [1, "b", None, True]}, "at": datetime(2026, 1, 1, tzinfo=UTC)},
    delivery_mode=2,
    priority=3,
    correlation_id="c",
    reply_to="r",
    expiration="1000",
    message_id="m",
    timestamp=datetime(2026, 1, 1, tzinfo=UTC),
    message_type="CancelPayment",
    app_id="a",
)
GOOD = header.ContentHeader(0, 7, FULL).marshal()


def _read(payload: bytes) -> header.ContentHeader:
    found = header.ContentHeader()
    found.unmarshal(payload)
    return found


def test_what_the_client_can_read_is_not_touched() -> None:
    """A good header comes out byte for byte."""
    assert properties.repaired(GOOD) == GOOD


@pytest.mark.parametrize("kind", ["message id", "type", "timestamp", "nested headers"])
def test_one_unreadable_property_costs_no_other(kind: str) -> None:
    """The poison is named, everything else is as it was sent, and the body's length too."""
    payload = TOP + poison_frames.poisoned(kind, "m", "CancelPayment")
    with pytest.raises((ValueError, RecursionError)):
        _read(payload)

    found = _read(properties.repaired(payload))

    values = dict(found.properties)
    headers: Any = values.pop("headers")
    name = poison_frames.PROPERTIES[kind][0]
    good = {"content_type": "application/json", "delivery_mode": 2, "message_id": "m", "message_type": "CancelPayment"}
    assert found.body_size == 7
    assert {key: value for key, value in values.items() if value not in {None, ""}} == {k: v for k, v in good.items() if k != name}
    assert headers.pop(properties.UNREADABLE).startswith(poison_frames.REASONS[kind].removeprefix("unreadable properties: "))
    assert headers == ({} if name == "headers" else {"schema-version": 1})


def test_of_a_poisoned_header_table_the_other_entries_are_kept() -> None:
    """A replayed or retried message with one unreadable header still tells its attempt and its replay."""
    entries = b"".join(
        (
            poison_frames.short(b"x-attempt") + b"I" + struct.pack(">i", 3),
            poison_frames.short(b"deep") + b"F" + poison_frames.nested(2_000),
            poison_frames.short(b"late") + b"T" + struct.pack(">Q", 2**63),
            poison_frames.short(b"x-replay-id") + b"S" + poison_frames.long(b"r-1"),
        )
    )
    payload = TOP + poison_frames.listed({"headers": poison_frames.long(entries)})

    headers: Any = _read(properties.repaired(payload)).properties.headers

    reason = headers.pop(properties.UNREADABLE)
    assert headers == {"x-attempt": 3, "x-replay-id": "r-1"}
    assert "'deep': nested too deep" in reason
    assert "'late': " in reason


@given(st.data())
def test_no_bytes_that_a_broker_frames_are_left_unreadable(data: st.DataObject) -> None:
    """Whatever bytes are changed behind the flags, the client reads what comes out, or it is what went in and was cut short."""
    changed = bytearray(GOOD)
    for place in data.draw(st.lists(st.integers(14, len(GOOD) - 1), max_size=8)):
        changed[place] = data.draw(st.integers(0, 255))

    _read(properties.repaired(bytes(changed)))


@given(st.binary(max_size=300))
def test_repairing_never_raises(payload: bytes) -> None:
    """The reader of the connection would die of it."""
    properties.repaired(payload)


@given(
    st.dictionaries(
        st.text(max_size=200),
        st.recursive(
            st.one_of(
                st.none(),
                st.booleans(),
                st.integers(-(2**70), 2**70),
                st.floats(),
                st.text(max_size=20),
                st.binary(max_size=20),
                st.decimals(),
                st.datetimes(),
            ),
            lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
        ),
        max_size=8,
    )
)
def test_whatever_a_header_holds_can_be_written(headers: dict[str, Any]) -> None:
    """What is put into a copy never makes the client raise while it publishes."""
    kept = properties.fitting({name: properties.writable(value) for name, value in headers.items()})

    header.ContentHeader(0, 0, Basic.Properties(headers=kept)).marshal()


def test_headers_that_fill_a_frame_leave_room_for_ours() -> None:
    """The largest go first, the others stay, and their number is said."""
    kept = properties.fitting({"large": "x" * 100_000, "x-attempt": 2, "medium": "y" * 60_000})

    assert kept == {"x-attempt": 2, "medium": "y" * 60_000, properties.LEFT_OUT: 1}


def test_a_text_is_made_of_anything() -> None:
    """An exception whose text cannot be had, or cannot be encoded, does not stop the message from being set aside."""

    class BrokenError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert properties.text(BrokenError()) == "(BrokenError without a text: RuntimeError)"
    assert properties.text("\ud800") == "\\ud800"
    assert len(properties.text("x" * 9_000)) == 500


def test_a_fingerprint_names_the_exception_and_the_innermost_frame_of_ours() -> None:
    """Dead letters of one cause can be told from those of another."""
    with pytest.raises(envelope.UndecodableError) as caught:
        envelope.decode("NoSuchThing", 1, b"{}")

    assert arrivals.fingerprint(caught.value) == "UndecodableError@envelope.py:decode"
    assert arrivals.fingerprint(ValueError("never raised")) == "ValueError@?"


def test_a_copy_carries_no_counts_of_the_brokers_and_goes_to_nobody_else() -> None:
    """A count that is carried on would look like deliveries of the copy, and CC and BCC are for the broker to act on."""
    headers: Any = {"x-delivery-count": 3, "x-acquired-count": 2, "x-death": [], "x-first-death-queue": "q", "CC": ["a"], "BCC": ["b"]}
    found = Basic.Properties(headers={**headers, "x-replay-id": "r-1"}, message_id="m")
    channel: Any = None
    arrival = arrivals.Arrival(
        DeliveredMessage(Basic.Deliver("c", 1, exchange="", routing_key="k"), header.ContentHeader(0, 1, found), b"b", channel)
    )

    copy = arrivals.copy(arrival, {"x-attempt": 2})

    assert copy.headers == {"x-replay-id": "r-1", "x-attempt": 2}
    assert (arrival.deliveries, copy.message_id, copy.body) == (3, "m", b"b")


def test_the_installed_client_is_one_that_reading_leniently_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails when an upgrade changes what lenient.py stands on: then read the client again, and TESTED follows."""
    assert lenient.unsupported() is None

    for name in lenient.TESTED:
        with monkeypatch.context() as changed:
            changed.setattr(metadata, "version", lambda wanted, name=name: "99.1" if wanted == name else lenient.TESTED[wanted][0])
            assert str(lenient.unsupported()).startswith(f"{name} 99.1 is installed")
    with monkeypatch.context() as changed:
        changed.delattr(connection.FrameReceiver, "get_frame")
        assert lenient.unsupported() == "FrameReceiver.get_frame no longer uses at_eof"
