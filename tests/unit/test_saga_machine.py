"""The table among duplicates, drops, late money and refusals: every short story, and long ones at random, ends truthfully."""

from decimal import Decimal
from typing import Final

import hypothesis
import msgspec
import pytest
from hypothesis import strategies
from unit import saga_world
from unit.saga_world import World

from sagapost_order import deadlines, domain, rules, saga, states, transitions

DEPTH: Final = 9  # the design asks for 6; worlds that are alike are counted once, so that 9 cost half a second
STEPS: Final = 500
STORIES: Final = 200
_LEGAL: Final = frozenset(saga.edges())


def check(before: World, after: World) -> None:
    """Assert what holds after everything that happens."""
    row, provider = after.row, after.provider
    assert 0 <= provider.refunds <= provider.charges <= 1
    assert Decimal(0) <= row.refunded <= row.captured <= saga_world.FULL
    assert row.state != states.COMPENSATED or row.captured == row.refunded
    assert row.state not in {states.PAID, states.NOTIFIED} or row.captured > row.refunded
    assert row.state != states.NOTIFIED or row.deadline_at is None
    assert row.state in states.DONE or row.deadline_at is not None
    assert (row.deadline_at is None) == (row.deadline_kind is None)
    if "receipt" in after.mails - before.mails:  # no customer has a receipt that was accepted after the refund was decided
        assert before.row.state in states.OPEN
    for step in after.steps[len(before.steps) :]:
        assert (step.before.state, step.event, step.after.state) in _LEGAL
        if step.before.state in states.DONE and step.after.state != step.before.state:
            assert (step.before.state, step.event) in saga_world.LEFT


def settle(world: World, *, lost: bool = False) -> World:
    """Mend everything and let all that was sent arrive, with deadlines and second looks, until nothing changes any more.

    `lost`: what was on its way before has been dropped for good, and only what is sent from now on arrives; but a refund that
    was refused for good is heard of, for then nobody but the saga asks again.
    """
    if lost:
        refused = frozenset(message for message in world.to_order if message[0] == states.REFUND_FAILED)
        world = msgspec.structs.replace(world, to_payment=frozenset(), to_email=frozenset(), to_order=refused)
    for _ in range(60):
        before = world
        for action in saga_world.actions(world, mended=True):
            after = saga_world.happen(world, action)
            check(world, after)
            world = after
        if world.key() == before.key() and world.row.deadline_at is None:
            return world
    raise AssertionError(f"{world.row.state} after every deadline and every message: {world.key()}")


def assert_truthful(world: World) -> None:
    """Assert that the end says what the provider says: sold is captured once and receipted, anything else is neutral and told."""
    kept = world.provider.charges - world.provider.refunds
    assert world.row.state in states.DONE
    assert world.row.captured - world.row.refunded == kept * saga_world.FULL
    assert kept == (1 if world.row.state == states.NOTIFIED else 0)
    if world.row.state == states.NOTIFIED:
        assert "receipt" in world.mails
    else:
        assert "cancellation" in world.mails or world.row.attention is not None


def history(world: World) -> list[domain.HistoryRow]:
    """Write the history that the steps leave."""
    first = saga_world.new().row
    rows = [(states.NONE, states.CREATED, states.ORDER_CREATED, "applied", saga.facts_of(first))]
    rows += [(step.before.state, step.after.state, step.event, step.outcome, saga.facts_of(step.after)) for step in world.steps]
    return [
        domain.HistoryRow(
            seq=seq,
            from_state=start,
            to_state=end,
            event=event,
            outcome=outcome,
            source="event",
            actor=None,
            reason=None,
            facts=facts,
            at=saga_world.AT,
        )
        for seq, (start, end, event, outcome, facts) in enumerate(rows, start=1)
    ]


def assert_told(world: World) -> None:
    """Assert that the history tells the row, but for a deadline that was put off without a row."""
    state, version, facts = saga.fold(history(world))
    known = saga.facts_of(world.row)
    assert (state, version) == (world.row.state, world.row.version)
    assert msgspec.structs.replace(facts, deadline_at=known.deadline_at, deadline_kind=known.deadline_kind) == known


def every_story() -> None:
    """Tell all orders of up to nine things that can happen, with duplicates and drops: worlds that cannot be told apart count once."""
    known = {saga_world.new().key()}
    worlds = reached = [saga_world.new()]
    for _ in range(DEPTH):
        found: list[World] = []
        for world in reached:
            for action in saga_world.actions(world):
                after = saga_world.happen(world, action)
                if after.key() not in known:
                    check(world, after)
                    known.add(after.key())
                    found.append(after)
        worlds, reached = worlds + found, found
    assert len(known) > 5000
    for world in worlds[:1500] + worlds[1500::4]:
        for lost in (False, True):
            assert_truthful(settle(world, lost=lost))
        assert_told(world)


def test_every_short_story_ends_truthfully() -> None:
    """Whatever happens first, in whatever order, however often or never: the books agree at the end."""
    every_story()


@pytest.mark.parametrize(
    ("cell", "rule"),
    [
        ((states.PAID, states.CANCEL_REQUESTED), rules.Rule(to=states.COMPENSATED)),
        ((states.COMPENSATING, states.EMAIL_SENT), rules.Rule(to=states.NOTIFIED)),
        ((states.COMPENSATING, states.DEADLINE), rules.Rule(does=(deadlines.still_parked,))),
        ((states.CREATED, states.DEADLINE), rules.Rule(does=(deadlines.expect_payment,))),
        ((states.PAID, states.DEADLINE), rules.Rule(does=(deadlines.notify_later,))),
        ((states.PAID, states.CANCEL_REQUESTED), transitions.TABLE[states.CREATED, states.OPERATOR_COMPENSATE][-1]),
    ],
    ids=["cancelled at once", "receipt wins", "cancelled once", "no timeout", "asked once", "no wait for receipt"],
)
def test_the_stories_tell_a_broken_table(cell: tuple[str, str], rule: rules.Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these mistakes in one cell is found by a story."""
    monkeypatch.setitem(transitions.TABLE, cell, (rule,))

    with pytest.raises(AssertionError):
        every_story()


@hypothesis.settings(max_examples=STORIES, deadline=None)
@hypothesis.given(strategies.binary(min_size=STEPS, max_size=STEPS))
def test_long_stories_end_truthfully(tape: bytes) -> None:
    """Each byte chooses what happens next: 200 stories of 500 steps, each of which must end as the provider's books say."""
    world = saga_world.new()
    for number in tape:
        possible = list(saga_world.actions(world))
        after = saga_world.happen(world, possible[number % len(possible)])
        check(world, after)
        world = after
    assert_told(world)
    lost = tape[0] % 2 == 1
    assert_truthful(settle(world, lost=lost))


@pytest.mark.parametrize("ending", sorted(states.DONE))
def test_stories_reach_every_ending(ending: str) -> None:
    """The stories are not all of one kind."""
    happy = [
        ("payment", "OrderCreated", "ok"),
        ("order", "PaymentProcessed", "2"),
        ("ask",),
        ("send", "ok"),
        ("order", "EmailSent", "0"),
    ]
    sad = [("payment", "OrderCreated", "hangs"), ("hear", "CancelRequested"), ("payment", "CancelPayment", "ok"), ("books",)]
    world = saga_world.new()
    for action in happy if ending == states.NOTIFIED else sad:
        world = saga_world.happen(world, action)

    ended = settle(world)

    assert ended.row.state == ending
    assert ended.provider.charges == 1
