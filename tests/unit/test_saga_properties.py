"""Any order and any repetition of events: the rules that the database checks hold, and the history tells the row."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import hypothesis
import msgspec
import pytest
from hypothesis import strategies

from sagapost_order import domain, errors, saga, states

AT = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
AMOUNTS = tuple(Decimal(text) for text in ("100.00", "40.00", "99.99", "100.01"))

EVENTS = strategies.builds(
    states.Event,
    name=strategies.sampled_from(states.EVENTS),
    at=strategies.just(AT),
    amount=strategies.sampled_from(AMOUNTS),
    payment_version=strategies.integers(0, 4),
    code=strategies.sampled_from((None, "code")),
    template=strategies.sampled_from(("receipt", "receipt", "cancellation", "newsletter")),
    permanent=strategies.booleans(),
)


def new_saga() -> domain.Saga:
    """Make a saga as a checkout leaves it."""
    facts = saga.first_facts(AT, 900)
    return domain.Saga(
        **msgspec.structs.asdict(facts),
        id=UUID(int=1),
        order_id=1,
        state=states.CREATED,
        version=1,
        amount=AMOUNTS[0],
        currency="USD",
        trace_id=None,
        pay_before=AT + timedelta(seconds=900),
        created_at=AT,
        updated_at=AT,
    )


def run(heard: list[states.Event]) -> list[saga.Step]:
    """Let a saga hear events one after another."""
    row, steps = new_saga(), list[saga.Step]()
    for event in heard:
        steps += saga.decide(row, event)
        row = steps[-1].after
    return steps


def history(steps: list[saga.Step]) -> list[domain.HistoryRow]:
    """Write the history that the steps leave."""
    first = domain.HistoryRow(
        seq=1,
        from_state=states.NONE,
        to_state=states.CREATED,
        event=states.ORDER_CREATED,
        outcome="applied",
        source="http",
        actor=None,
        reason=None,
        facts=saga.first_facts(AT, 900),
        at=AT,
    )
    return [
        first,
        *(
            domain.HistoryRow(
                seq=step.after.version,
                from_state=step.before.state,
                to_state=step.after.state,
                event=step.event,
                outcome=step.outcome,
                source="event",
                actor=None,
                reason=step.reason,
                facts=saga.facts_of(step.after),
                at=AT,
            )
            for step in steps
        ),
    ]


@hypothesis.given(strategies.lists(EVENTS, max_size=12))
def test_any_events_keep_the_checks_of_the_table(heard: list[states.Event]) -> None:
    """Whatever comes in whatever order, no row is made that the database would refuse."""
    for step in run(heard):
        row = step.after
        assert Decimal(0) <= row.refunded <= row.captured
        assert row.state != states.COMPENSATED or row.captured == row.refunded
        assert row.state not in {states.PAID, states.NOTIFIED} or row.captured > row.refunded
        assert row.state != states.NOTIFIED or row.deadline_at is None
        assert row.state in states.DONE or row.deadline_at is not None
        assert (row.deadline_at is None) == (row.deadline_kind is None)
        assert row.cancel_noted is None or row.state in states.OPEN


@hypothesis.given(strategies.lists(EVENTS, max_size=12))
def test_any_events_leave_legal_edges_and_growing_facts(heard: list[states.Event]) -> None:
    """Every step is an edge that the database knows; sums, the payment's version and the mails' times never go back."""
    legal = set(saga.edges())
    for step in run(heard):
        before, after = step.before, step.after
        assert (before.state, step.event, after.state) in legal
        assert after.captured >= before.captured
        assert after.refunded >= before.refunded
        assert after.payment_version >= before.payment_version
        assert before.notified_at in {None, after.notified_at}
        assert before.cancellation_sent_at in {None, after.cancellation_sent_at}
        assert after.version == before.version + 1


@hypothesis.given(strategies.lists(EVENTS, max_size=12))
def test_folding_any_history_gives_the_row(heard: list[states.Event]) -> None:
    """State, version and facts can be read from the history alone."""
    steps = run(heard)
    row = steps[-1].after if steps else new_saga()

    assert saga.fold(history(steps)) == (row.state, row.version, saga.facts_of(row))


@hypothesis.given(strategies.lists(EVENTS, max_size=12))
def test_every_entry_into_compensated_tells_the_customer_once(heard: list[states.Event]) -> None:
    """An order that ends cancelled sends OrderCancelled when it ends, and at no other time."""
    for step in run(heard):
        entered = step.after.state == states.COMPENSATED != step.before.state
        assert step.emits.count(states.ORDER_CANCELLED) == (1 if entered else 0)


@hypothesis.given(strategies.permutations(["PaymentProcessed", "EmailSent"] * 2))
def test_any_order_of_the_happy_events_ends_notified(names: list[str]) -> None:
    """Payment and receipt, each twice, in any order: the saga ends notified and nothing is emitted."""
    heard = [states.Event(name=name, at=AT, amount=AMOUNTS[0], payment_version=1) for name in names]

    steps = run(heard)

    assert steps[-1].after.state == states.NOTIFIED
    assert all(step.emits == () for step in steps)


@hypothesis.given(
    strategies.lists(
        strategies.builds(
            states.Event,
            name=strategies.sampled_from(("PaymentProcessed", "PaymentRefunded")),
            at=strategies.just(AT),
            amount=strategies.just(AMOUNTS[0]),
            payment_version=strategies.integers(1, 2),
        ),
        max_size=8,
    )
)
def test_repeating_all_events_changes_nothing(heard: list[states.Event]) -> None:
    """Facts are monotonic: what was heard once can be heard again in the same order without another sum or another state."""
    consistent = [msgspec.structs.replace(event, payment_version=1 if event.name == "PaymentProcessed" else 2) for event in heard]
    once = run(consistent)
    twice = run(consistent + consistent)

    if once:
        first, second = once[-1].after, twice[-1].after
        assert (second.state, second.captured, second.refunded) == (first.state, first.captured, first.refunded)


def _rows() -> list[domain.HistoryRow]:
    names = ("PaymentProcessed", "PaymentProcessed", "EmailSent")
    return history(run([states.Event(name=name, at=AT, amount=AMOUNTS[0], payment_version=1) for name in names]))


@pytest.mark.parametrize(
    "broken",
    [
        lambda rows: rows[:2] + rows[3:],
        lambda rows: [rows[0], rows[3], rows[2], rows[1]],
        lambda rows: [rows[0], msgspec.structs.replace(rows[1], from_state="paid"), *rows[2:]],
        lambda rows: [*rows[:3], msgspec.structs.replace(rows[3], event="PaymentFailed")],
        lambda rows: [*rows[:3], msgspec.structs.replace(rows[3], facts=domain.Facts(deadline_at=AT + timedelta(1)))],
    ],
    ids=["gap", "order", "start", "edge", "shrinking sum"],
)
def test_broken_history_does_not_fold(broken: object) -> None:
    """A history with a gap, a swap, an illegal edge or a sum that shrinks is refused."""
    assert callable(broken)
    with pytest.raises(errors.IllegalEventError):
        saga.fold(broken(_rows()))
