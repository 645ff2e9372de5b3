"""The pure heart of the relay: which transactions ended between two snapshots."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagapost_relay import snapshot


def _text(ended: set[int], begun: int) -> str:
    """Write the snapshot of a history in which ids 1..begun were handed out and `ended` of them ended, as PostgreSQL does."""
    running = [xid for xid in range(1, begun + 1) if xid not in ended]
    xmax = max(ended, default=0) + 1
    below = [xid for xid in running if xid < xmax]
    xmin = min(below, default=xmax)
    return f"{xmin}:{xmax}:{','.join(map(str, below))}"


@given(st.lists(st.sets(st.integers(1, 30)), min_size=2, max_size=8))
def test_windows_cover_every_transaction_exactly_once(steps: list[set[int]]) -> None:
    """Whatever ends between polls, in any order, lies in exactly one window: nothing is lost, nothing comes twice."""
    ended: set[int] = set()
    lo = snapshot.parse(snapshot.EMPTY)
    seen: list[int] = []

    for step in steps:
        ended |= step
        hi = snapshot.parse(_text(ended, 30))
        window = [xid for start, end in snapshot.ended_between(lo, hi) for xid in range(start, end)]
        assert set(window) <= ended
        seen += window
        lo = hi

    assert sorted(seen) == sorted(ended)


def test_a_transaction_that_ran_at_the_last_poll_is_found_when_it_ends() -> None:
    """A late commit with a small id lies in the next window, which an id cursor would have passed."""
    lo, hi = snapshot.parse("5:10:5,7"), snapshot.parse("7:12:7,11")

    assert snapshot.ended_between(lo, hi) == [(5, 6), (10, 11)]


def test_a_snapshot_of_the_past_is_refused() -> None:
    """A cursor ahead of the server means a restore or another cluster: reading on would lose rows."""
    with pytest.raises(ValueError, match="lies before"):
        snapshot.ended_between(snapshot.parse("20:20:"), snapshot.parse("10:12:10"))


def test_what_is_no_snapshot_is_refused() -> None:
    """A damaged cursor is an error, not an empty window."""
    with pytest.raises(ValueError, match=r"."):
        snapshot.parse("not a snapshot")
