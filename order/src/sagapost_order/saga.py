"""The saga as a table: (state, event) gives the new state, the facts and what is emitted; no I/O, no clock, no broker."""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Literal

import msgspec

from sagapost_contracts import events, money
from sagapost_order import domain, errors, rules, states, transitions
from sagapost_order.rules import Rule
from sagapost_order.states import Event, Policy


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One history row to be: the saga before and after, and what is emitted with it; one that is `unheard` leaves no row.

    `mail`: the template of the mail that was sent, failed or is asked for.
    """

    event: str
    outcome: Literal["applied", "ignored", "unheard"]
    before: domain.Saga
    after: domain.Saga
    reason: str | None
    emits: tuple[str, ...]
    mail: str | None = None


def event_of(message: events.Message, at: datetime, policy: Policy = states.POLICY) -> Event:
    """Reduce a message to what the table looks at; `at` is the database's time."""
    event = Event(name=type(message).__name__, at=at, policy=policy)
    match message:
        case events.PaymentProcessed() | events.PaymentRefunded():
            return msgspec.structs.replace(
                event, amount=money.parse_amount(message.amount), currency=message.currency, payment_version=message.payment_version
            )
        case events.PaymentFailed() | events.PaymentVoided():
            return msgspec.structs.replace(event, payment_version=message.payment_version, code=message.code)
        case events.RefundFailed():
            return msgspec.structs.replace(
                event,
                amount=money.parse_amount(message.amount),
                currency=message.currency,
                payment_version=message.payment_version,
                code=message.code,
                permanent=message.permanent,
            )
        case events.EmailSent():
            return msgspec.structs.replace(event, template=message.template)
        case events.EmailFailed():
            return msgspec.structs.replace(event, template=message.template, code=message.code, permanent=message.permanent)
        case _:
            raise errors.IllegalEventError(f"{event.name} is nothing a saga hears")


def decide(saga: domain.Saga, event: Event) -> tuple[Step, ...]:
    """Look the event up and give the history rows that follow, at least one.

    Raises:
        IllegalEventError: the table has no cell, or no rule of the cell holds.

    """
    first = _step(saga, event)
    if first.after.state != states.PAID or first.before.state == states.PAID or first.after.notified_at is None:
        return (first,)
    # the receipt was reported before the payment: hear it now
    return first, _step(first.after, Event(name=states.EMAIL_SENT, at=event.at, clock=event.clock, policy=event.policy))


def edges() -> tuple[tuple[str, str, str], ...]:
    """List the legal edges (from, event, to) in order, from 'none' on."""
    found = {(states.NONE, states.ORDER_CREATED, states.CREATED)}
    for (state, event), cell in transitions.TABLE.items():
        found |= {(state, event, rule.to or state) for rule in cell if not rule.unheard}
    return tuple(sorted(found))


def edges_sql(known: Collection[tuple[str, str, str]] = ()) -> str:
    """Write the legal edges that are not known yet as the statement that a migration runs."""
    rows = ",\n".join(f"    ('{start}', '{event}', '{end}')" for start, event, end in edges() if (start, event, end) not in known)
    return (
        "-- The legal edges of the saga, written from the transition table in code; a test compares the two.\n"
        f"INSERT INTO saga_transitions (from_state, event, to_state) VALUES\n{rows};\n"
    )


def first_facts(at: datetime, pay_window_s: float, behind_s: float = 0) -> domain.Facts:
    """Give the facts of a saga that begins now: after a third of the time to pay, payment is asked again.

    `behind_s`: how long the oldest unpaid order has waited. Where that is more than a tenth of the third, payment is late for everybody
    and knows of this order last: it is asked again after two thirds, because to ask before would only lengthen the queue.
    """
    third_s = pay_window_s / 3
    wait_s = third_s if behind_s <= third_s / 10 else 2 * third_s
    return domain.Facts(deadline_kind=states.NUDGE, deadline_at=at + timedelta(seconds=wait_s))


def order_status(saga: domain.Saga) -> str:
    """Return the order's status that goes with a saga's state; a cancellation that is noted counts."""
    return states.ORDER_STATUS[states.COMPENSATING if saga.cancel_noted else saga.state]


def facts_of(saga: domain.Saga) -> domain.Facts:
    """Give the facts of a saga's row, as its history keeps them."""
    return msgspec.convert(saga, domain.Facts, from_attributes=True)


def fold(history: Sequence[domain.HistoryRow]) -> tuple[str, int, domain.Facts]:
    """Read state, version and facts from a history alone.

    Raises:
        IllegalEventError: a gap, a row that does not start where the last one ended, an illegal edge, a sum that shrinks.

    """
    state, facts = states.NONE, domain.Facts()
    legal = frozenset(edges())
    for seq, row in enumerate(history, start=1):
        if row.seq != seq or row.from_state != state or (row.from_state, row.event, row.to_state) not in legal:
            raise errors.IllegalEventError(f"row {row.seq} ({row.from_state} -{row.event}-> {row.to_state}) does not follow {state}")
        if row.facts.captured < facts.captured or row.facts.refunded < facts.refunded:
            raise errors.IllegalEventError(f"row {row.seq} takes back what an earlier one knew")
        state, facts = row.to_state, row.facts
    return state, len(history), facts


def _step(saga: domain.Saga, event: Event) -> Step:
    rule = _rule(saga, event)
    after = saga
    for effect in rule.does:
        after = effect(after, event)
    target = rule.to or saga.state
    if target != saga.state:
        after = _enter(after, target, event)
    return Step(
        event=event.name,
        outcome="unheard" if rule.unheard else "ignored" if rule.ignored else "applied",
        before=saga,
        after=msgspec.structs.replace(after, state=target, version=saga.version + 1, updated_at=event.at),
        reason=event.code,
        emits=rule.emits,
        mail=_mail_of(event, target, rule),
    )


def _mail_of(event: Event, state: str, rule: Rule) -> str | None:
    if event.name in {states.EMAIL_SENT, states.EMAIL_FAILED}:
        return event.template
    if states.REQUEST_NOTIFICATION not in rule.emits:
        return None
    return events.CANCELLATION if state == states.COMPENSATED else events.RECEIPT


def _rule(saga: domain.Saga, event: Event) -> Rule:
    for rule in transitions.TABLE.get((saga.state, event.name), ()):
        if all(guard(saga, event) for guard in rule.when):
            return rule
    raise errors.IllegalEventError(f"{event.name} has no place in a saga that is {saga.state}")


def _enter(saga: domain.Saga, state: str, event: Event) -> domain.Saga:
    attention = None if saga.attention == states.PASSING.get(saga.state) else saga.attention
    entered = msgspec.structs.replace(saga, attempts=0, attention=attention)
    if state in states.OPEN and saga.cancel_noted:
        return entered  # it waits for the receipt, in whatever state
    if state not in states.OPEN:
        entered = msgspec.structs.replace(entered, cancel_noted=None, receipt_until=None)
    waited = event.at - saga.created_at if saga.state == states.CREATED else timedelta()
    kind, wait_s = rules.deadline_of(state, event.policy, waited.total_seconds())
    if state == states.COMPENSATED and saga.cancellation_sent_at:
        kind = None
    return msgspec.structs.replace(entered, deadline_kind=kind, deadline_at=event.now + timedelta(seconds=wait_s) if kind else None)
