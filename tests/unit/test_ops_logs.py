"""Log lines made readable."""

from sagapost_ops import loglines

LINE = (
    '{"at": "2026-11-22T10:41:07.412345Z", "level": "info", "event": "message.handled", "service": "order", "order_id": 7, "outcome": "ok"}'
)


def _plain(line: loglines.Line) -> str:
    return "".join(part if isinstance(part, str) else part.text for part in loglines.pretty(line))


def test_a_json_line_becomes_time_service_event_and_fields() -> None:
    """What a person looks for first stands first."""
    line = loglines.parse("order", LINE, "")

    assert _plain(line) == "10:41:07.412 order          message.handled  order_id=7  outcome=ok"


def test_a_line_that_is_not_json_is_shown_as_it_is_at_the_moment_of_the_line_before() -> None:
    """A traceback stays where it belongs when logs are merged by time."""
    lines = loglines.parse_all("order", [LINE, "Traceback (most recent call last):", "[1, 2]"])

    assert [line.at for line in lines] == ["2026-11-22T10:41:07.412345Z"] * 3
    assert _plain(lines[1]) == "order          Traceback (most recent call last):"
    assert _plain(lines[2]) == "order          [1, 2]"
