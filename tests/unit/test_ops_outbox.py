"""What needs a person, and how times are read and written."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from sagapost_ops.outbox import queries, stats, times

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
HELD = [
    queries.Shard(shard=shard, owner="relay-1", epoch=1, lease_s=7.5, strikes=0, suspect=None, is_ours=True, backlog=3, oldest_s=0.2)
    for shard in range(4)
]
WELL = stats.Stats(database="order", shards=HELD, partitions=[], history_since=None, aside=[], relays=["relay-1"])


def _with(shard: int, **changes: object) -> stats.Stats:
    shards = [msgspec.structs.replace(line, **changes) if line.shard == shard else line for line in HELD]
    return msgspec.structs.replace(WELL, shards=shards)


def _aside(state: str, rows: int) -> stats.Stats:
    return msgspec.structs.replace(WELL, aside=[queries.Aside(state=state, reason="nacked", rows=rows, oldest_s=1)])


@pytest.mark.parametrize(
    "found",
    [WELL, _with(1, lease_s=-14.0), _with(2, oldest_s=59.0, backlog=10_001), _aside("waiting", 5)],
    ids=["well", "a lease just ran out", "a young backlog", "messages that are tried again"],
)
def test_what_mends_itself_needs_nobody(found: stats.Stats) -> None:
    """A lease about to be taken over, a backlog under way and a message that is tried again are no reason to call anybody."""
    assert stats.attention(found) == []


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (_with(2, owner=None, lease_s=None), "order: nobody holds shard 2 although a relay is alive; see ./sagapost logs relay-order"),
        (_with(1, lease_s=-200.0), "order: the lease of shard 1 ran out 3 min ago and nobody took it over from relay-1"),
        (_with(3, oldest_s=601.0), "order: shard 3 has rows that have waited for 10 min; is the broker up?"),
        (_aside("parked", 1), "order: 1 message is parked; see ./sagapost outbox list --state parked --database order"),
        (_aside("parked", 2), "order: 2 messages are parked"),
        (msgspec.structs.replace(WELL, relays=[]), "order: no relay is alive, nothing is published; see ./sagapost status"),
        (msgspec.structs.replace(WELL, shards=HELD[:3]), "order: no cursor for shard 3, whose rows are never published"),
        (_with(0, is_ours=False), "order: the cursors were written in another PostgreSQL cluster"),
    ],
)
def test_what_needs_a_person_is_one_sentence_with_what_to_do(found: stats.Stats, says: str) -> None:
    """Each fault is said once, names its shard, and ends with a command."""
    said = stats.attention(found)

    assert len(said) == 1
    assert said[0].startswith(says)
    assert "./sagapost" in said[0]


def test_a_foreign_cursor_is_the_root_of_the_rest() -> None:
    """Without a relay every shard is free and late; the one sentence that helps is not buried under those."""
    foreign = [msgspec.structs.replace(line, owner=None, lease_s=None, oldest_s=9999.0, is_ours=False) for line in HELD]

    said = stats.attention(msgspec.structs.replace(WELL, shards=foreign, relays=[]))

    assert len(said) == 1
    assert "outbox repair --database order" in said[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30m", NOW - timedelta(minutes=30)),
        ("1d12h", NOW - timedelta(days=1, hours=12)),
        ("45s", NOW - timedelta(seconds=45)),
        ("2026-11-22T10:30:00Z", NOW - timedelta(hours=1, minutes=30)),
        ("2026-11-22T10:30", NOW - timedelta(hours=1, minutes=30)),
        ("2026-11-22T12:30:00+02:00", NOW - timedelta(hours=1, minutes=30)),
    ],
)
def test_a_moment_is_a_span_before_now_or_a_time(text: str, expected: datetime) -> None:
    """A span counts back from now; a time without a zone is UTC."""
    assert times.moment(text, NOW) == expected


@pytest.mark.parametrize("text", ["", "yesterday", "2", "2w", "h", "-2h", "2 h", "٣h", "99999d"])
def test_anything_else_is_no_moment(text: str) -> None:
    """The error shows both forms."""
    with pytest.raises(ValueError, match="neither a span like 2h"):
        times.moment(text, NOW)


@pytest.mark.parametrize(
    ("seconds", "written"), [(-3, "0 s"), (0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (172_800, "2 d")]
)
def test_a_span_is_written_in_one_unit(seconds: float, written: str) -> None:
    """Two of a unit at least, so that nothing is rounded away by half."""
    assert times.span(seconds) == written
