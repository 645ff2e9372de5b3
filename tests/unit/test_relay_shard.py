"""One shard in a relay's hands, without a database or a broker: where it stands, what goes next, and what is set aside."""

from collections.abc import Sequence

import pytest

from sagapost_relay import blocks, queries, shard, snapshot
from sagapost_relay.blocks import Outcome

START = queries.Position(lo=snapshot.parse(snapshot.EMPTY), hi=None, last_id=0)
HI = snapshot.parse("100:100:")
LATER = snapshot.parse("200:200:")
SOON = float("inf")


def _shard(*, strikes: int = 0, suspect: int | None = None) -> shard.Shard:
    cursor = queries.Cursor(shard=0, lo=snapshot.EMPTY, hi=None, last_id=0, epoch=1, strikes=strikes, suspect=suspect, system_identifier=1)
    return shard.Shard(cursor, SOON)


def _row(row_id: int, *, size_bytes: int = 2) -> blocks.Row:
    payload = b"{}" if size_bytes == 2 else None
    return blocks.Row(row_id, 0, f"e{row_id}", "T", "a.b", "c", "{}", payload, size_bytes, 1e9)


def _fly(its: shard.Shard, row_ids: Sequence[int], hi: snapshot.Snapshot = HI, *, limit: int = 10) -> list[blocks.Block]:
    """Plan and launch a page as the pump does; give the blocks in flight of it."""
    launched = [its.launch(flight, lambda: None) for flight in its.plan([_row(row_id) for row_id in row_ids], hi, limit)]
    return [block for block in launched if block is not None]


def _ids(flown: Sequence[blocks.Block]) -> list[int]:
    return [row.id for block in flown for row in block.rows]


def _confirm(flown: Sequence[blocks.Block]) -> None:
    for block in flown:
        block.settle(0, len(block.rows), Outcome.CONFIRMED)


def test_a_page_shorter_than_its_limit_ends_the_window() -> None:
    """What was asked for and not there is not there: the next poll begins a window of its own."""
    its = _shard()

    _confirm(_fly(its, [3, 5], limit=3))
    its.settle()

    assert its.at == its.read == queries.Position(lo=HI, hi=None, last_id=0)


def test_a_full_page_continues_the_window() -> None:
    """As many rows as asked for: there may be more up to the same snapshot, whatever the present one is by then."""
    its = _shard()

    _confirm(_fly(its, [3, 5], limit=2))
    its.settle()
    middle = its.at
    _confirm(_fly(its, [9], LATER, limit=2))
    its.settle()

    assert middle == queries.Position(lo=START.lo, hi=HI, last_id=5)
    assert its.at == queries.Position(lo=HI, hi=None, last_id=0)


def test_a_window_that_ends_with_an_empty_page_is_stored_as_ended() -> None:
    """An open window in a stored cursor keeps the ring from turning, even when nothing ever comes again."""
    its = _shard()
    _confirm(_fly(its, [3, 5], limit=2))
    its.settle()
    its.store(its.at, [])

    assert _fly(its, [], limit=2) == []
    its.settle()

    assert its.at == queries.Position(lo=HI, hi=None, last_id=0)
    assert its.dirty()


def test_a_position_moves_only_over_what_is_settled_in_order() -> None:
    """The second half of a page is confirmed first: nothing moves until the first half is."""
    its = _shard()
    first, second = _fly(its, [1, 2, 3, 4])

    _confirm([second])
    assert (its.settle(), its.at) == ([], START)
    first.settle(0, 1, Outcome.CONFIRMED)
    assert (its.settle(), its.at) == ([], START)
    first.settle(1, 2, Outcome.CONFIRMED)

    assert its.settle() == [first, second]
    assert its.at == its.read == queries.Position(lo=HI, hi=None, last_id=0)


def test_the_halves_of_a_page_are_settled_one_by_one() -> None:
    """Once the first half is confirmed a restart does not repeat it."""
    its = _shard()
    first, _ = _fly(its, [1, 2, 3])

    _confirm([first])
    its.settle()

    assert its.at == queries.Position(lo=START.lo, hi=HI, last_id=2)


def test_a_lost_channel_goes_back_to_the_first_row_without_an_answer() -> None:
    """Nothing that was in flight is passed; what was settled before stays so."""
    its = _shard()
    first, _ = _fly(its, [1, 2, 3, 4])
    _confirm([first])
    its.settle()

    its.lose(None, 0)

    assert its.read == its.at == queries.Position(lo=START.lo, hi=HI, last_id=2)
    assert _ids(_fly(its, [3, 4], LATER)) == [3, 4]


def test_what_was_confirmed_out_of_order_is_not_published_again() -> None:
    """After a loss only rows without a confirm go out again, and the position passes the others with them."""
    its = _shard()
    first, second = _fly(its, [1, 2, 3, 4])
    first.settle(1, 2, Outcome.CONFIRMED)
    _confirm([second])

    its.lose(None, 0)
    again = _fly(its, [1, 2, 3, 4])
    _confirm(again)
    its.settle()

    assert _ids(again) == [1]
    assert its.at == queries.Position(lo=HI, hi=None, last_id=0)


def test_what_was_confirmed_stays_known_through_a_second_loss() -> None:
    """Two losses in a row change nothing about a row that the broker has."""
    its = _shard()
    first, _ = _fly(its, [1, 2, 3])
    first.settle(1, 2, Outcome.CONFIRMED)
    its.lose(None, 0)
    _fly(its, [1, 2, 3])

    its.lose(None, 0)

    assert _ids([block for row_id in (1, 2, 3) for block in _fly(its, [row_id], limit=1)]) == [1, 3]


@pytest.mark.parametrize(
    ("outcome", "detail", "reason", "hopeless"),
    [
        (Outcome.RETURNED, "312 NO_ROUTE", "unroutable", False),
        (Outcome.NACKED, "", "nacked", False),
        (Outcome.REFUSED, "a header is too long", "refused", True),
    ],
)
def test_what_the_broker_does_not_take_is_set_aside_and_passed(outcome: Outcome, detail: str, reason: str, *, hopeless: bool) -> None:
    """One bad row does not stop the others; why it was bad is kept for whoever looks at it."""
    its = _shard()
    (block,) = _fly(its, [1])

    if detail:
        block.settle_one(0, outcome, detail)
    else:
        block.settle(0, 1, outcome)
    its.settle()

    (aside,) = its.aside
    assert (aside.row.id, aside.reason, aside.hopeless) == (1, reason, hopeless)
    assert aside.detail == (detail or "a queue rejected it: it is full, or has no leader")
    assert its.at.lo == HI


def test_a_row_that_is_too_large_is_set_aside_in_its_place() -> None:
    """It is never sent; its neighbours are, and the position passes all of them together."""
    its = _shard()
    flights = its.plan([_row(1), _row(2, size_bytes=1 << 21), _row(3)], HI, 10)
    flown = [block for flight in flights if (block := its.launch(flight, lambda: None)) is not None]

    assert (_ids(flown), its.aside) == ([1, 3], [])
    _confirm(flown)
    its.settle()

    (aside,) = its.aside
    assert (aside.row.id, aside.reason, aside.hopeless) == (2, "too-large", True)
    assert str(1 << 21) in aside.detail


@pytest.mark.parametrize("strikes", range(5))
def test_after_two_strikes_rows_go_one_by_one(strikes: int) -> None:
    """Two owners in a row ended with rows in flight: from then on the next end names its row."""
    its = _shard(strikes=strikes)

    assert its.careful == (strikes >= 2)
    assert its.limit(256) == (1 if strikes >= 2 else 256)


def test_one_row_at_a_time_means_one_in_flight() -> None:
    """Going row by row, nothing is read before the row in flight is settled."""
    its = _shard(strikes=2)
    (block,) = _fly(its, [1], limit=1)

    assert its.limit(256) == 0
    _confirm([block])
    its.settle()
    assert its.limit(256) == 1


def test_care_ends_after_as_many_rows_as_can_have_been_in_flight() -> None:
    """The row to blame was among those in flight: once as many have passed, it is behind."""
    its = _shard(strikes=2)

    for row_id in range(1, shard.UNCONFIRMED_MAX + 1):
        assert its.careful
        _confirm(_fly(its, [row_id], limit=1))
        its.settle()

    assert its.limit(256) == 256


def test_two_channels_lost_in_a_row_make_it_careful() -> None:
    """A channel that dies twice over the same rows may die of one of them; a confirm in between says that it does not."""
    its = _shard()
    _fly(its, [1, 2])
    its.lose("406 PRECONDITION_FAILED", 0)
    _confirm(_fly(its, [1, 2]))
    its.settle()
    _fly(its, [3, 4])
    its.lose("406 PRECONDITION_FAILED", 0)
    assert not its.careful

    _fly(its, [3, 4])
    its.lose("406 PRECONDITION_FAILED", 0)

    assert its.careful


def test_a_channel_lost_with_nothing_in_flight_accuses_nobody() -> None:
    """Idle connections die too."""
    its = _shard()

    for _ in range(5):
        its.lose(None, 0)

    assert not its.careful


def test_a_lone_row_whose_channel_the_broker_closes_is_set_aside() -> None:
    """The broker said why, and there was only one row to say it of."""
    its = _shard(strikes=2)
    _fly(its, [1], limit=1)

    its.lose("406 PRECONDITION_FAILED - inequivalent", 0)

    (aside,) = its.aside
    assert (aside.row.id, aside.reason, aside.detail) == (1, "refused", "406 PRECONDITION_FAILED - inequivalent")
    assert not aside.hopeless
    assert its.at == its.read == queries.Position(lo=START.lo, hi=HI, last_id=1)
    assert its.dirty()


def test_a_lone_row_that_was_confirmed_is_not_to_blame() -> None:
    """A channel that closes after the confirm did not die of the row: it is not published again."""
    its = _shard(strikes=2)
    _confirm(_fly(its, [1], limit=1))

    its.lose("406 PRECONDITION_FAILED", 0)

    assert its.aside == []
    assert _fly(its, [1], limit=1) == []


def test_a_lone_row_lost_without_a_word_is_set_aside_after_several_losses() -> None:
    """A connection may be lost for any reason; when it is always the same row, that is the reason."""
    its = _shard(strikes=2)

    for _ in range(shard.LONELY - 1):
        assert _ids(_fly(its, [1], limit=1)) == [1]
        its.lose(None, 0)
    assert its.aside == []
    _fly(its, [1], limit=1)
    its.lose(None, 0)

    (aside,) = its.aside
    assert (aside.row.id, aside.reason) == (1, "refused")
    assert its.at.last_id == 1


def test_the_suspect_of_the_cursor_is_set_aside_unsent() -> None:
    """It was in flight alone when a relay ended: it must not end this one before the others are through."""
    its = _shard(strikes=3, suspect=1)

    assert _fly(its, [1], limit=1) == []
    its.settle()

    (aside,) = its.aside
    assert (aside.row.id, aside.reason, aside.hopeless) == (1, "crash-suspect", False)
    assert _ids(_fly(its, [2], limit=1)) == [2]


@pytest.mark.parametrize("strikes", [0, 2])
def test_a_channel_closed_for_another_reason_accuses_no_row(strikes: int) -> None:
    """No such exchange, access refused: rows are neither set aside for it nor sent one by one."""
    its = _shard(strikes=strikes)

    for _ in range(2 * shard.LONELY):
        _fly(its, [1], limit=1)
        its.lose("404 NOT_FOUND - no exchange", 0, to_blame=False)

    assert (its.aside, its.at) == ([], START)
    assert its.careful == (strikes == 2)


def test_rows_that_the_broker_has_passed_by_are_given_up_in_time() -> None:
    """One queue without a leader does not hold up the others: what was sent long ago, before something answered, is set aside."""
    its = _shard()
    first, second = _fly(its, [1, 2, 3, 4])
    first.sent_at = second.sent_at = 100.0
    second.settle(0, 1, Outcome.CONFIRMED)

    assert its.expire(100.0)
    its.settle()

    assert [(aside.row.id, aside.reason, aside.hopeless) for aside in its.aside] == [(1, "nacked", False), (2, "nacked", False)]
    assert (list(second.outcomes), its.at.last_id) == ([Outcome.CONFIRMED, Outcome.UNKNOWN], 2)


@pytest.mark.parametrize(("sent_at", "answered"), [(100.0, 0), (101.0, 1)], ids=["nothing was answered", "not long ago"])
def test_rows_are_not_given_up_without_a_reason(sent_at: float, answered: int) -> None:
    """A broker that answers for nothing may be gone, and one that was asked a moment ago may still answer."""
    its = _shard()
    first, second = _fly(its, [1, 2, 3, 4])
    first.sent_at = second.sent_at = sent_at
    second.settle(0, answered, Outcome.CONFIRMED)

    assert not its.expire(100.0)

    assert first.left == 2


def test_no_time_runs_while_the_broker_takes_nothing() -> None:
    """Under an alarm the waiting of all that is in flight begins anew, not only that of the first."""
    its = _shard()
    flown = _fly(its, [1, 2, 3, 4])

    its.excuse(7e9)

    assert [block.sent_at for block in flown] == [7e9, 7e9]


@pytest.mark.parametrize("batch", [1, 100, 256, shard.UNCONFIRMED_MAX])
def test_never_more_unconfirmed_than_allowed(batch: int) -> None:
    """However eager the pump is, what may have to be repeated stays bounded."""
    its = _shard()
    flown: list[blocks.Block] = []

    while limit := its.limit(batch):
        first = len(_ids(flown)) + 1
        flown += _fly(its, range(first, first + limit), limit=limit)

    assert shard.UNCONFIRMED_MAX - batch < len(_ids(flown)) <= shard.UNCONFIRMED_MAX


def test_nothing_is_read_while_leaving_or_waiting() -> None:
    """A shard that is being given back takes nothing more, nor one whose channel has just been refused."""
    leaving, waiting = _shard(), _shard()
    leaving.leaving = True
    waiting.lose(None, 3600)

    assert (leaving.limit(256), waiting.limit(256)) == (0, 0)


def test_emptiness_is_passed_in_memory_only() -> None:
    """Empty windows cost no write; the first row after them brings the position along."""
    its = _shard()

    its.skip(HI)
    assert (its.at.lo, its.read.lo, its.dirty()) == (HI, HI, False)
    _confirm(_fly(its, [1], LATER))
    its.settle()

    assert (its.at.lo, its.dirty()) == (LATER, True)


def test_emptiness_does_not_carry_the_position_over_rows_in_flight() -> None:
    """An empty window behind rows without an answer moves the reading only."""
    its = _shard()
    flown = _fly(its, [1])

    its.skip(LATER)

    assert (its.at, its.read.lo) == (START, LATER)
    _confirm(flown)
    its.settle()
    assert its.at.lo == HI


def test_what_is_settled_while_a_position_is_stored_is_stored_next() -> None:
    """A store takes what was there when it began: what came meanwhile is neither forgotten nor taken for stored."""
    its = _shard()
    first, second = _fly(its, [1, 2])
    first.settle_one(0, Outcome.RETURNED, "312 NO_ROUTE")
    its.settle()
    at, some = its.at, tuple(its.aside)
    second.settle_one(0, Outcome.RETURNED, "312 NO_ROUTE")
    its.settle()

    its.store(at, some)

    assert (its.stored, its.dirty()) == (at, True)
    assert [aside.row.id for aside in its.aside] == [2]
    its.store(its.at, tuple(its.aside))
    assert (its.dirty(), its.idle(), its.aside) == (False, True, [])
