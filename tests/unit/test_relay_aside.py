"""When a shard sets rows aside: only what the broker has passed by, and what several relays have died beside."""

import time

import pytest

from sagapost_relay import queries, snapshot
from sagapost_relay.blocks import Block, Outcome, Row
from sagapost_relay.shard import Shard


def _row(number: int) -> Row:
    return Row(number, 0, f"event-{number}", "t", "k", "c", "{}", b"{}", 2, 0.0)


@pytest.fixture
def blocks() -> tuple[Shard, list[Block]]:
    """Give a shard with four rows in flight, in two blocks."""
    shard = Shard(queries.Cursor(shard=0, lo="1:1:", hi=None, last_id=0, epoch=1, system_identifier=1), float("inf"))
    flights = shard.plan([_row(number) for number in range(1, 5)], snapshot.parse("9:9:"), 256)
    launched = [shard.launch(flight, lambda: None) for flight in flights]
    return shard, [block for block in launched if block is not None]


def test_rows_behind_the_last_answer_are_not_given_up(blocks: tuple[Shard, list[Block]]) -> None:
    """A connection that went silent in the middle of a block has not passed the rest of it by: set aside, it would come out of order."""
    shard, (first, _) = blocks
    first.settle(0, 1, Outcome.CONFIRMED)

    given_up = shard.expire(time.monotonic())

    shard.settle()
    assert not given_up
    assert shard.aside == []


def test_rows_that_the_broker_has_passed_by_are_given_up(blocks: tuple[Shard, list[Block]]) -> None:
    """A queue without a leader answers nothing while others do: its rows are set aside, those after the last answer wait on."""
    shard, (first, second) = blocks
    first.settle(0, 1, Outcome.CONFIRMED)
    second.settle(0, 1, Outcome.CONFIRMED)

    given_up = shard.expire(time.monotonic())

    shard.settle()
    assert given_up
    assert [aside.row.id for aside in shard.aside] == [2]
    assert second.left == 1


def test_rows_that_were_sent_just_now_are_not_given_up(blocks: tuple[Shard, list[Block]]) -> None:
    """Their time is not over, whatever has been answered."""
    shard, (first, second) = blocks
    second.settle(0, 1, Outcome.CONFIRMED)

    assert not shard.expire(time.monotonic() - 60)
    assert first.left == 2


@pytest.mark.parametrize(("strikes", "aside"), [(1, []), (2, []), (3, [1])])
def test_one_end_beside_a_row_does_not_set_it_aside(strikes: int, aside: list[int]) -> None:
    """Relays die for many reasons: only the row beside the last of three ends without any progress is suspected."""
    cursor = queries.Cursor(shard=0, lo="1:1:", hi=None, last_id=0, epoch=1, strikes=strikes, suspect=1, system_identifier=1)
    shard = Shard(cursor, float("inf"))

    (flight,) = shard.plan([_row(1)], snapshot.parse("9:9:"), 256)

    assert [given.row.id for given in flight.aside] == aside
