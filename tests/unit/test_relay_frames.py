"""What the relay writes by hand, held against what the client makes of the same message."""

import json
from datetime import UTC, datetime
from typing import Any

import pamqp.frame
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import body, commands, header

from sagapost_chassis import amqp
from sagapost_relay import blocks, frames

CHANNEL = 7
FRAME_MAX = 4096
FULL = FRAME_MAX - 8
SIZES = (0, 1, 500, FULL - 1, FULL, FULL + 1, 2 * FULL, 3 * FULL + 17)
HEADERS_MAX = 3000  # with the other properties they fit into a frame; those that do not are refused, which has a test of its own
CONTENT = bytes(range(256)) * (3 * FULL // 256 + 2)

texts = st.text(max_size=60)
short = st.one_of(st.text("abcABC.0-é€\U0001f600", max_size=60), st.text(st.characters(max_codepoint=127), max_size=255))
headers = st.dictionaries(
    st.text(min_size=1, max_size=30),
    st.one_of(
        texts, st.text(min_size=250, max_size=300), st.integers(-(2**63), 2**63 - 1), st.sampled_from((0, -1, 127, 128, 65535, 65536))
    ),
    max_size=10,
).filter(lambda table: len(json.dumps(table, ensure_ascii=False).encode()) < HEADERS_MAX)


@st.composite
def outbox_rows(draw: st.DrawFn) -> blocks.Row:
    """Draw a row as the outbox may hold it; `headers` is JSON text with or without escapes, as PostgreSQL and others write it."""
    payload = CONTENT[: draw(st.sampled_from(SIZES))]
    return blocks.Row(
        id=1,
        shard=0,
        event_id=str(draw(st.uuids())),
        type=draw(short),
        routing_key=draw(st.text("ab.é", max_size=60)),
        correlation_id=draw(short),
        headers=json.dumps(draw(headers), ensure_ascii=draw(st.booleans())),
        payload=payload,
        size_bytes=len(payload),
        created_s=draw(st.integers(0, 4_000_000_000)) + draw(st.sampled_from((0.0, 0.25, 0.999999))),
    )


ROW = blocks.Row(
    id=1, shard=0, event_id="e", type="T", routing_key="a.b", correlation_id="c", headers="{}", payload=b"{}", size_bytes=2, created_s=1e9
)
_row = ROW._replace


def _as_the_client_does(row: blocks.Row) -> list[bytes]:
    message = amqp.make_message(
        row.payload or b"",
        message_id=row.event_id,
        type_name=row.type,
        correlation_id=row.correlation_id,
        time=datetime.fromtimestamp(row.created_s, UTC),
        headers=json.loads(row.headers),
    )
    publish = commands.Basic.Publish(exchange="events", routing_key=row.routing_key, mandatory=True)
    parts = [message.body[start : start + FULL] for start in range(0, len(message.body), FULL)]
    content = header.ContentHeader(properties=message.properties, body_size=len(message.body))
    wanted: list[pamqp.frame.FrameTypes] = [publish, content, *map(body.ContentBody, parts)]
    return [pamqp.frame.marshal(frame, CHANNEL) for frame in wanted]


def _decode(data: bytes) -> list[Any]:
    found: list[Any] = []
    while data:
        consumed, channel, frame = pamqp.frame.unmarshal(data)
        assert channel == CHANNEL
        assert consumed <= FRAME_MAX
        data = data[consumed:]
        match frame:
            case header.ContentHeader():
                found.append((frame.weight, frame.body_size, dict(frame.properties)))
            case body.ContentBody():
                found.append(frame.value)
            case commands.Basic.Publish():
                found.append(dict(frame))
            case _:
                raise AssertionError(frame)
    return found


def _encoder(frame_max: int = FRAME_MAX) -> frames.Encoder:
    return frames.Encoder(channel=CHANNEL, exchange="events", frame_max=frame_max)


@given(st.lists(outbox_rows(), max_size=4))
def test_rows_are_written_as_the_client_would_write_them(rows: list[blocks.Row]) -> None:
    """Method, properties, headers and body frames decode to the same values, and every frame takes as many bytes."""
    encoder = _encoder()

    for _ in range(2):  # the second time from what it remembers
        written = encoder.encode(rows)

        expected = b"".join(frame for row in rows for frame in _as_the_client_does(row))
        assert _decode(written) == _decode(expected)
        assert len(written) == len(expected)  # a table's entries may stand in another order, and nothing may be wider


def test_numbers_keep_the_width_that_consumers_know() -> None:
    """A number in the headers takes as few bytes as the client gives it, to the bit."""
    values = (0, 1, -1, 127, 128, -129, 65535, 65536, -(2**31), 2**32 - 1, 2**32, -(2**63))

    for value in values:
        row = _row(headers=json.dumps({"n": value}))
        assert _encoder().encode((row,)) == b"".join(_as_the_client_does(row))


def test_an_empty_body_has_no_body_frame() -> None:
    """A message ends with its header when there is no body: a body frame of nothing would be an error at the broker."""
    found = _decode(_encoder().encode((_row(payload=b""), _row(payload=b"x"))))

    assert [type(frame) for frame in found] == [dict, tuple, dict, tuple, bytes]


def test_a_broker_without_a_limit_gets_frames_of_the_usual_size() -> None:
    """A frame_max of 0 means no limit, and not frames of minus eight bytes."""
    row = _row(payload=bytes(frames.FRAME_MAX_BYTES - 7))

    assert _encoder(frame_max=0).encode((row,)) == _encoder(frame_max=frames.FRAME_MAX_BYTES).encode((row,))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (_row(payload=None), "no payload"),
        (_row(headers="[]"), "Expected `object`"),
        (_row(headers='{"a": null}'), "Expected `int | str`"),
        (_row(headers='{"a": {"b": 1}}'), "Expected `int | str`"),
        (_row(headers='{"a": 9223372036854775808}'), "Unsupported numeric value"),
        (_row(headers=json.dumps({"é" * 65: "x"})), "takes 130 bytes, and a name has room for 128"),
        (_row(headers='{"CC": "order.order.created"}'), "the header CC"),
        (_row(headers='{"BCC": 1}'), "the header BCC"),
        (_row(headers=json.dumps({"a": "x" * FRAME_MAX})), "a frame holds 4088"),
        (_row(correlation_id="é" * 128), "takes 256 bytes, and AMQP has room for 255"),
        (_row(type="t" * 256), "takes 256 bytes, and AMQP has room for 255"),
        (_row(routing_key="k" * 256), "takes 256 bytes, and AMQP has room for 255"),
        (_row(created_s=-1.5), "not created between 1970 and 9999"),
        (_row(created_s=253_402_300_800.0), "not created between 1970 and 9999"),
        (_row(created_s=float("inf")), "infinity"),
    ],
)
def test_a_row_that_cannot_be_a_message_is_named_and_takes_no_other_with_it(bad: blocks.Row, reason: str) -> None:
    """The error says which row and why; what stands around it can be written afterwards as if it had not been there."""
    encoder = _encoder()
    good = _row()

    with pytest.raises(frames.RefusedError) as caught:
        encoder.encode((good, good, bad, good))

    assert caught.value.index == 2
    assert reason in str(caught.value)
    assert encoder.encode((good,)) == b"".join(_as_the_client_does(good))


def test_what_an_encoder_remembers_is_bounded() -> None:
    """A column that holds another value in every row fills no memory."""
    encoder = _encoder()
    rows = [
        _row(routing_key=f"key.{n}", type=f"T{n}", headers=json.dumps({f"h{n}": n, f"s{n}": "x"})) for n in range(2 * frames.CACHED + 10)
    ]

    encoder.encode(rows)

    sizes = [len(value) for value in vars(encoder).values() if isinstance(value, dict)]
    assert len(sizes) == 4
    assert max(sizes) <= frames.CACHED
