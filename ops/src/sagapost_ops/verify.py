"""Evaluates every invariant over both databases, the broker, the provider and the mailbox; it changes nothing."""

import time
from collections.abc import Callable
from datetime import datetime
from typing import Final

import msgspec

from sagapost_ops import clocks, evidence, parts, targets
from sagapost_ops.invariants import broker, history, mails, messages, money, orders
from sagapost_ops.invariants.outcome import Check, Expectations, Outcome, PartCheck, Tally

Progress = Callable[[int, int], None]

SHOWN: Final = 20
_AGAIN_S: Final = 0.3
_ALL_SAGAS: Final = "SELECT count(*) FROM sagas"
_ALL_PAYMENTS: Final = "SELECT count(*) FROM payments"
_INVARIANTS: Final[tuple[tuple[int, str, tuple[Check, ...], tuple[PartCheck, ...]], ...]] = (
    (
        1,
        "every order has one saga, announced once",
        (orders.one_saga_each, orders.told_once, orders.numbers_are_new, orders.one_order_each_key, orders.accepted_are_there),
        (orders.status_follows_saga,),
    ),
    (2, "every saga has ended, or waits for a person", (orders.all_have_ended,), ()),
    (
        3,
        "the money that moved is the money of the live orders, once each",
        (money.no_capture_after_the_end, money.one_result),
        (
            money.payments_match_orders,
            money.ledger_matches_status,
            money.ledger_matches_sagas,
            money.provider_matches_ledger,
            money.duplicates_went_back,
            money.cancellations_took_effect,
        ),
    ),
    (4, "one amount: lines, order, payment, mail", (orders.lines_add_up,), (money.mails_name_the_amount,)),
    (
        5,
        "one receipt for each paid order, none after its refund, one mail for each cancelled one",
        (mails.announcements, mails.duplicates, mails.no_receipt_after_a_refund),
        (mails.receipts, mails.cancellations),
    ),
    (
        6,
        "each history is whole, legal, and adds up to its saga",
        (),
        (history.contiguous, history.legal, history.adds_up, history.applied_once),
    ),
    (
        7,
        "everything was published, and processed once",
        (
            messages.published,
            messages.cursors_mean_something,
            messages.set_aside,
            messages.processed,
            messages.answered_once,
            messages.inbox_matches_history,
            messages.dead_letters,
        ),
        (history.was_taken_in,),
    ),
    (
        8,
        "nothing is left in the broker or open in a database",
        (broker.queues_are_empty, broker.nothing_is_held, broker.somebody_listens, broker.nothing_is_open),
        (),
    ),
)


class Invariant(msgspec.Struct, frozen=True, kw_only=True):
    """One invariant: how many things were looked at, a sentence for each that is wrong, and which checks had nobody to ask.

    `unjudged` things are older than what the outbox still holds, so that one check at least could not tell.
    """

    id: int
    name: str
    ok: bool
    checked: int
    violations: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    unjudged: int = 0


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All invariants at one moment; ok when all of them hold. `notes` are what breaks none of them and should be known.

    `left_out` is what was not looked at because of `since`.
    """

    ok: bool
    invariants: tuple[Invariant, ...]
    notes: tuple[str, ...] = ()
    since: datetime | None = None
    left_out: tuple[str, ...] = ()


def run(
    where: targets.Targets,
    expected: Expectations | None = None,
    *,
    settle_s: float = 0,
    shown: int = SHOWN,
    since: datetime | None = None,
    progress: Progress = lambda _done, _all: None,
) -> Report:
    """Evaluate everything, and again for up to `settle_s` seconds until all of it holds; each invariant names `shown` violations.

    The invariants are those of a system at rest, so that what is still under way looks like a violation. With `since` only orders that
    changed then or later, or that have not ended, are looked at. `progress` is called with the sagas that were looked at, and all of them.

    Raises:
        UnfitError: a database, the broker or a ledger cannot be asked.
        FailedError: a database gave up in the middle.

    """
    deadline = time.monotonic() + settle_s
    while True:
        with evidence.gathered(where, since) as found:
            report = _evaluate(found, expected or Expectations(), shown, progress)
        if report.ok or time.monotonic() > deadline:
            return report
        time.sleep(_AGAIN_S)


def _evaluate(found: evidence.Evidence, expected: Expectations, shown: int, progress: Progress) -> Report:
    outcomes = {check.__name__: check(found, expected) for _, _, checks, _ in _INVARIANTS for check in checks}
    walked = _Walked()
    for part in parts.walk(found):
        walked.add(part, expected)
        progress(walked.sagas, found.sagas)
    if not walked.outcomes:
        walked.add(parts.Part(found, {}), expected)
    outcomes |= {name: None if tally is None else tally.outcome() for name, tally in walked.outcomes.items()}
    invariants = tuple(_invariant(number, name, _named(whole, each, outcomes), shown) for number, name, whole, each in _INVARIANTS)
    notes = [one.note for one in outcomes.values() if one is not None and one.note]
    return Report(
        ok=all(invariant.ok for invariant in invariants),
        invariants=invariants,
        notes=(*clocks.compare(found.order, found.payment).sentences(), *notes),
        since=found.since,
        left_out=_left_out(found, walked),
    )


class _Walked:
    """What the walk over all sagas has found so far."""

    def __init__(self) -> None:
        self.sagas = 0
        self.payments = 0
        self.outcomes: dict[str, Tally | None] = {}  # None: there is nothing to ask

    def add(self, part: parts.Part, expected: Expectations) -> None:
        """Run every check of sagas over one page."""
        self.sagas += len(part.sagas)
        self.payments += len(part.payments)
        for check in (check for _, _, _, checks in _INVARIANTS for check in checks):
            found = check(part, expected)
            tally = self.outcomes.setdefault(check.__name__, None if found is None else Tally())
            if found is not None and tally is not None:
                tally.add(found)


def _left_out(found: evidence.Evidence, walked: _Walked) -> tuple[str, ...]:
    """Return what was not looked at, in sentences; nothing without `since`."""
    if found.since is None:
        return ()
    sagas = found.count(found.order, _ALL_SAGAS) - walked.sagas
    payments = found.count(found.payment, _ALL_PAYMENTS) - walked.payments
    before = f"before {found.since:%Y-%m-%d %H:%M:%S} UTC"
    return (
        f"{sagas} orders that ended {before} and did not change since, with their histories, mails and money",
        f"{payments} payments of such orders, or that were over {before}",
        f"idempotency keys, messages and inbox rows of {before}",
    )


def _named(whole: tuple[Check, ...], each: tuple[PartCheck, ...], outcomes: dict[str, Outcome | None]) -> dict[str, Outcome | None]:
    return {name: outcomes[name] for name in (*(check.__name__ for check in whole), *(check.__name__ for check in each))}


def _invariant(number: int, name: str, outcomes: dict[str, Outcome | None], shown: int) -> Invariant:
    done = [outcome for outcome in outcomes.values() if outcome is not None]
    violations = [sentence for outcome in done for sentence in outcome.violations]
    more = len(violations) - shown + sum(outcome.more for outcome in done)
    return Invariant(
        id=number,
        name=name,
        ok=not violations,
        checked=sum(outcome.checked for outcome in done),
        violations=(*violations[:shown], *([f"and {more} more"] if more > 0 else [])),
        skipped=tuple(check for check, outcome in outcomes.items() if outcome is None),
        unjudged=sum(outcome.unjudged for outcome in done),
    )
