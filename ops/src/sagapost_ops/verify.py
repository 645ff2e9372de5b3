"""Evaluates every invariant over both databases, the broker, the provider and the mailbox; it changes nothing."""

import time
from typing import Final

import msgspec

from sagapost_ops import clocks, evidence, targets
from sagapost_ops.invariants import broker, history, mails, messages, money, orders
from sagapost_ops.invariants.outcome import Check, Expectations, Outcome

SHOWN: Final = 20
_AGAIN_S: Final = 0.3
_INVARIANTS: Final[tuple[tuple[int, str, tuple[Check, ...]], ...]] = (
    (
        1,
        "every order has one saga, announced once",
        (
            orders.one_saga_each,
            orders.told_once,
            orders.numbers_are_new,
            orders.one_order_each_key,
            orders.accepted_are_there,
            orders.status_follows_saga,
        ),
    ),
    (2, "every saga has ended, or waits for a person", (orders.all_have_ended,)),
    (
        3,
        "the money that moved is the money of the live orders, once each",
        (
            money.payments_match_orders,
            money.ledger_matches_status,
            money.ledger_matches_sagas,
            money.provider_matches_ledger,
            money.duplicates_went_back,
            money.cancellations_took_effect,
            money.no_capture_after_the_end,
            money.one_result,
        ),
    ),
    (4, "one amount: lines, order, payment, mail", (money.lines_add_up, money.mails_name_the_amount)),
    (5, "one receipt for each paid order, one mail for each cancelled one", (mails.receipts, mails.cancellations, mails.duplicates)),
    (
        6,
        "each history is whole, legal, and adds up to its saga",
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
    ),
    (
        8,
        "nothing is left in the broker or open in a database",
        (broker.queues_are_empty, broker.nothing_is_held, broker.somebody_listens, broker.nothing_is_open),
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
    """All invariants at one moment; ok when all of them hold. `notes` are what breaks none of them and should be known."""

    ok: bool
    invariants: tuple[Invariant, ...]
    notes: tuple[str, ...] = ()


def run(where: targets.Targets, expected: Expectations | None = None, *, settle_s: float = 0, shown: int = SHOWN) -> Report:
    """Evaluate everything, and again for up to `settle_s` seconds until all of it holds; each invariant names `shown` violations.

    The invariants are those of a system at rest, so that what is still under way looks like a violation.

    Raises:
        UnfitError: a database, the broker or a ledger cannot be asked.

    """
    deadline = time.monotonic() + settle_s
    while True:
        report = _evaluate(where, expected or Expectations(), shown)
        if report.ok or time.monotonic() > deadline:
            return report
        time.sleep(_AGAIN_S)


def _evaluate(where: targets.Targets, expected: Expectations, shown: int) -> Report:
    with evidence.gathered(where) as found:
        invariants = tuple(_invariant(number, name, _outcomes(checks, found, expected), shown) for number, name, checks in _INVARIANTS)
        notes = clocks.compare(found.order, found.payment).sentences()
    return Report(ok=all(invariant.ok for invariant in invariants), invariants=invariants, notes=notes)


def _outcomes(checks: tuple[Check, ...], found: evidence.Evidence, expected: Expectations) -> dict[str, Outcome | None]:
    return {check.__name__: check(found, expected) for check in checks}


def _invariant(number: int, name: str, outcomes: dict[str, Outcome | None], shown: int) -> Invariant:
    done = [outcome for outcome in outcomes.values() if outcome is not None]
    violations = [sentence for outcome in done for sentence in outcome.violations]
    more = len(violations) - shown
    return Invariant(
        id=number,
        name=name,
        ok=not violations,
        checked=sum(outcome.checked for outcome in done),
        violations=(*violations[:shown], *([f"and {more} more"] if more > 0 else [])),
        skipped=tuple(check for check, outcome in outcomes.items() if outcome is None),
        unjudged=sum(outcome.unjudged for outcome in done),
    )
