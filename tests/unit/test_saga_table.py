"""Every cell of the saga's table, written out a second time from the design and compared."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pytest

from sagapost_contracts import events
from sagapost_order import domain, errors, rules, saga, states, transitions

AT = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
EARLIER = AT - timedelta(minutes=1)
FULL = Decimal("100.00")
PART = Decimal("40.00")
NONE = Decimal("0.00")

BASE = domain.Saga(
    id=UUID(int=1),
    order_id=1,
    state="created",
    version=3,
    amount=FULL,
    currency="USD",
    trace_id=None,
    created_at=EARLIER,
    updated_at=EARLIER,
    deadline_at=AT,
    deadline_kind="pay",
    pay_before=AT + timedelta(minutes=10),
)


def row(state: str, **facts: object) -> domain.Saga:
    """Make a saga's row."""
    return msgspec.structs.replace(BASE, state=state, **facts)


def ended(state: str, **facts: object) -> domain.Saga:
    """Make the row of a saga that is done."""
    return row(state, deadline_at=None, deadline_kind=None, **facts)


# a typical row of each state
CREATED = row("created")
PAID = row("paid", captured=FULL, payment_version=1, deadline_kind="notify")
NOTIFIED = ended("notified", captured=FULL, payment_version=1, notified_at=EARLIER)
COMPENSATING = row("compensating", reason="timeout", deadline_kind="compensate")
CAPTURED = row("compensating", reason="timeout", captured=FULL, payment_version=1, deadline_kind="compensate")
DECLINED = ended("compensated", reason="declined", payment_version=1)
REFUNDED = ended("compensated", reason="cancelled", captured=FULL, refunded=FULL, payment_version=2)
UNSENT = row("notify_failed", captured=FULL, payment_version=1, attention="receipt_failed", deadline_kind="notify")
STUCK = row(
    "compensation_failed", captured=FULL, payment_version=2, attention="refund_failed", reason="timeout", deadline_kind="compensate"
)
STUCK_EMPTY = msgspec.structs.replace(STUCK, captured=NONE)
SETTLED: dict[str, Any] = {"attention": None}
NUDGED = row("created", deadline_kind="nudge")
ASKED = row("created", deadline_kind="answer")
TELLING = row("compensated", reason="cancelled", captured=FULL, refunded=FULL, payment_version=2, deadline_kind="cancellation")
UNTIL = AT + timedelta(minutes=3)
TOO_FAR = AT + timedelta(hours=1)


def leased(before: domain.Saga, until: datetime = UNTIL) -> domain.Saga:
    """Make a row whose receipt is being sent."""
    return msgspec.structs.replace(before, receipt_until=until)


def noted(before: domain.Saga) -> domain.Saga:
    """Make a row whose cancellation waits for its receipt."""
    return msgspec.structs.replace(before, receipt_until=UNTIL, cancel_noted="cancelled", deadline_kind="receipt", deadline_at=UNTIL)


def tried(before: domain.Saga, attempts: int) -> domain.Saga:
    """Make a row that has seen so many attempts."""
    return msgspec.structs.replace(before, attempts=attempts)


def begun(seconds: int) -> dict[str, Any]:
    """Give the facts of a cancellation that has just begun."""
    return {"attempts": 0, "deadline_kind": "compensate", "deadline_at": AT + timedelta(seconds=seconds)}


def event(name: str, **fields: object) -> states.Event:
    """Make an event."""
    return msgspec.structs.replace(states.Event(name=name, at=AT), **fields)


PAY = event("PaymentProcessed", amount=FULL, payment_version=1)
PAY_AGAIN = event("PaymentProcessed", amount=FULL, payment_version=3)
PAY_PART = event("PaymentProcessed", amount=PART, payment_version=1)
FAIL = event("PaymentFailed", payment_version=1, code="card_declined")
FAIL_OLD = event("PaymentFailed", payment_version=0, code="card_declined")
FAIL_NEW = event("PaymentFailed", payment_version=2, code="card_declined")
VOID = event("PaymentVoided", payment_version=1, code="tombstone")
REFUND = event("PaymentRefunded", amount=FULL, payment_version=2)
REFUND_PART = event("PaymentRefunded", amount=PART, payment_version=2)
NO_REFUND = event("RefundFailed", payment_version=2, code="closed")
NO_REFUND_YET = event("RefundFailed", payment_version=2, code="busy", permanent=False)
SENT = event("EmailSent")
TOLD = event("EmailSent", template="cancellation")
OTHER_MAIL = event("EmailSent", template="newsletter")
UNDELIVERED = event("EmailFailed", code="550")
DELAYED = event("EmailFailed", code="421", permanent=False)
UNTOLD = event("EmailFailed", template="cancellation", code="550")
TOLD_LATER = event("EmailFailed", template="cancellation", code="421", permanent=False)
ASK = event("ReceiptAsked")
HELD = event("Deadline", unsent="waiting")
ASIDE = event("Deadline", unsent="parked")

CANCEL = event("CancelRequested")
TOO_LATE = event("CancelRequested", policy=states.Policy(cancel_window_s=30))
DUE = event("Deadline")
RETRY = event("OperatorRetry", code="mended")
COMPENSATE = event("OperatorCompensate", code="asked by phone")
WAIVE = event("OperatorWaiveNotify", code="told by phone")
MARK = event("OperatorMarkRefunded", code="by bank (reference 7)")
OR_REFUND = states.Policy(notify_failure="refund")

IGN = "ignored"
UNHEARD = "unheard"
TELL = ("OrderCancelled",)
UNDO = ("CancelPayment",)
REMIND = ("RequestNotification",)
ANNOUNCE = ("OrderCreated",)
MISMATCH: dict[str, Any] = {"attention": "amount_mismatch"}
CONTRADICTION: dict[str, Any] = {"attention": "payment_contradicts_capture"}
STRANGE: dict[str, Any] = {"attention": "unexpected_refund_failure"}
REVERSED: dict[str, Any] = {"captured": FULL, "refunded": FULL, "reason": "provider_reversal", "payment_version": 2}
PARTIAL: dict[str, Any] = {"captured": FULL, "refunded": PART, "attention": "partial_refund"}
NOTED: dict[str, Any] = {"notified_at": AT}
TOLD_NOW: dict[str, Any] = {"cancellation_sent_at": AT}

NOW_NOTED: dict[str, Any] = {"cancel_noted": "cancelled", "deadline_kind": "receipt", "deadline_at": UNTIL}
UNDONE: dict[str, Any] = {"reason": "cancelled", "cancel_noted": None, "receipt_until": None, **begun(5)}
TO_TELL: dict[str, Any] = {"deadline_kind": "cancellation", "deadline_at": AT + timedelta(seconds=60)}

CLOCK_AND_PEOPLE = (states.CANCEL_REQUESTED, states.RECEIPT_ASKED, states.DEADLINE, *states.OPERATOR)

# before, event, what follows (None: ignored), emitted, facts that change
Cell = tuple[domain.Saga, states.Event, str, tuple[str, ...], dict[str, Any]]
CELLS: list[Cell] = [
    (
        CREATED,
        PAY,
        "paid",
        (),
        {"captured": FULL, "payment_version": 1, "deadline_kind": "notify", "deadline_at": AT + timedelta(seconds=60)},
    ),
    (PAID, PAY, IGN, (), {}),
    (PAID, PAY_AGAIN, IGN, (), {}),
    (NOTIFIED, PAY, IGN, (), {}),
    (COMPENSATING, PAY, "compensating", (), {"captured": FULL, "payment_version": 1, "reason": "timeout"}),
    (DECLINED, PAY, IGN, (), {}),
    (DECLINED, PAY_AGAIN, "compensating", UNDO, {"captured": FULL, "attention": "late_capture", "deadline_kind": "compensate"}),
    (REFUNDED, PAY, IGN, (), {}),
    (REFUNDED, PAY_AGAIN, IGN, (), {}),
    (UNSENT, PAY, IGN, (), {}),
    (STUCK, PAY, "compensation_failed", (), {"captured": FULL}),
    (CREATED, PAY_PART, "compensating", UNDO, {"captured": PART, "reason": "amount_mismatch", **MISMATCH}),
    (PAID, PAY_PART, "paid", (), {"captured": FULL, **MISMATCH}),
    (NOTIFIED, PAY_PART, "notified", (), {"captured": FULL, **MISMATCH}),
    (COMPENSATING, PAY_PART, "compensating", (), {"captured": PART}),
    (DECLINED, PAY_PART, IGN, (), {}),
    (UNSENT, PAY_PART, "notify_failed", (), {"captured": FULL, "attention": "receipt_failed"}),
    (STUCK_EMPTY, PAY_PART, "compensation_failed", (), {"captured": PART}),
    (CREATED, FAIL, "compensated", TELL, {"captured": NONE, "reason": "declined", "payment_version": 1, **TO_TELL}),
    (PAID, FAIL_OLD, "paid", (), CONTRADICTION),
    (PAID, FAIL, "paid", (), CONTRADICTION),
    (PAID, FAIL_NEW, "paid", (), CONTRADICTION),
    (NOTIFIED, FAIL_NEW, "notified", (), CONTRADICTION),
    (COMPENSATING, FAIL, "compensated", TELL, {"reason": "timeout", **TO_TELL}),
    (CAPTURED, FAIL_NEW, "compensating", (), {"payment_version": 2}),
    (DECLINED, FAIL, IGN, (), {}),
    (UNSENT, FAIL_NEW, "notify_failed", (), {"attention": "receipt_failed"}),
    (STUCK_EMPTY, FAIL_NEW, "compensated", TELL, SETTLED),
    (STUCK, FAIL_NEW, "compensation_failed", (), {}),
    (CREATED, VOID, "compensated", TELL, {"reason": "expired"}),
    (leased(CREATED), VOID, "created", (), {**NOW_NOTED, "cancel_noted": "expired", **CONTRADICTION}),
    (leased(CREATED), FAIL, "created", (), {**NOW_NOTED, "cancel_noted": "declined", **CONTRADICTION}),
    (row("created", captured=PART), VOID, "compensating", UNDO, {"reason": "expired", **CONTRADICTION}),
    (row("created", captured=PART), FAIL, "compensating", UNDO, {"reason": "declined", **CONTRADICTION}),
    (row("created", captured=FULL), REFUND_PART, "created", (), PARTIAL),
    (PAID, VOID, "paid", (), CONTRADICTION),
    (NOTIFIED, VOID, "notified", (), CONTRADICTION),
    (COMPENSATING, VOID, "compensated", TELL, {"reason": "timeout"}),
    (CAPTURED, VOID, "compensating", (), {}),
    (DECLINED, VOID, IGN, (), {}),
    (UNSENT, VOID, "notify_failed", (), {"attention": "receipt_failed"}),
    (STUCK_EMPTY, VOID, "compensated", TELL, SETTLED),
    (STUCK, VOID, "compensation_failed", (), {}),
    (CREATED, REFUND, "compensated", TELL, REVERSED),
    (PAID, REFUND, "compensated", TELL, REVERSED),
    (PAID, REFUND_PART, "paid", (), PARTIAL),
    (NOTIFIED, REFUND, "compensated", TELL, REVERSED),
    (NOTIFIED, REFUND_PART, "notified", (), PARTIAL),
    (COMPENSATING, REFUND, "compensated", TELL, {"captured": FULL, "refunded": FULL, "reason": "timeout"}),
    (CAPTURED, REFUND, "compensated", TELL, {"refunded": FULL, "reason": "timeout"}),
    (CAPTURED, REFUND_PART, "compensating", (), {"refunded": PART, "attention": None}),
    (DECLINED, REFUND, "compensated", (), {"captured": FULL, "refunded": FULL}),
    (UNSENT, REFUND, "compensated", TELL, {**REVERSED, "attention": None}),
    (UNSENT, REFUND_PART, "notify_failed", (), {"refunded": PART}),
    (STUCK, REFUND, "compensated", TELL, {"refunded": FULL, **SETTLED}),
    (STUCK, REFUND_PART, "compensation_failed", (), {"refunded": PART}),
    (CREATED, NO_REFUND, "created", (), STRANGE),
    (CREATED, event("RefundFailed", amount=FULL, payment_version=4), "created", (), {"captured": FULL, **STRANGE}),
    (PAID, NO_REFUND, "paid", (), STRANGE),
    (NOTIFIED, NO_REFUND, "notified", (), STRANGE),
    (CAPTURED, NO_REFUND, "compensation_failed", (), {"attention": "refund_failed", "deadline_at": AT + timedelta(seconds=900)}),
    (CAPTURED, NO_REFUND_YET, IGN, (), {}),
    (REFUNDED, NO_REFUND, IGN, (), {}),
    (
        DECLINED,
        event("RefundFailed", amount=FULL, payment_version=3, code="closed"),
        "compensation_failed",
        (),
        {"captured": FULL, "attention": "refund_failed", "deadline_at": AT + timedelta(seconds=900)},
    ),
    (DECLINED, event("RefundFailed", amount=FULL, payment_version=1), IGN, (), {}),
    (COMPENSATING, event("RefundFailed", amount=FULL, payment_version=3), "compensation_failed", (), {"captured": FULL}),
    (STUCK_EMPTY, event("RefundFailed", amount=FULL, payment_version=3), "compensation_failed", (), {"captured": FULL}),
    (UNSENT, NO_REFUND, "notify_failed", (), {"attention": "receipt_failed"}),
    (STUCK, NO_REFUND, "compensation_failed", (), {"attention": "refund_failed"}),
    (CREATED, SENT, "created", (), NOTED),
    (PAID, SENT, "notified", (), {**NOTED, "deadline_at": None, "deadline_kind": None}),
    (NOTIFIED, SENT, IGN, (), {}),
    (COMPENSATING, SENT, "compensating", (), NOTED),
    (DECLINED, SENT, "compensated", (), NOTED),
    (UNSENT, SENT, "notified", (), {**NOTED, **SETTLED}),
    (STUCK, SENT, "compensation_failed", (), {"attention": "refund_failed"}),
    (PAID, TOLD, "paid", (), {"notified_at": None, **TOLD_NOW}),
    (DECLINED, TOLD, "compensated", (), {"notified_at": None, **TOLD_NOW}),
    (TELLING, TOLD, "compensated", (), {"deadline_kind": None, "deadline_at": None, **TOLD_NOW}),
    (ended("compensated", cancellation_sent_at=EARLIER), TOLD, IGN, (), {}),
    (PAID, OTHER_MAIL, IGN, (), {}),
    (CREATED, UNDELIVERED, "created", (), {"attention": None}),
    (PAID, UNDELIVERED, "notify_failed", (), {"attention": "receipt_failed", "deadline_at": AT + timedelta(hours=1)}),
    (PAID, DELAYED, IGN, (), {}),
    (NOTIFIED, UNDELIVERED, IGN, (), {}),
    (COMPENSATING, UNDELIVERED, IGN, (), {}),
    (DECLINED, UNDELIVERED, IGN, (), {}),
    (DECLINED, UNTOLD, "compensated", (), {"attention": "cancellation_failed"}),
    (TELLING, UNTOLD, "compensated", (), {"attention": "cancellation_failed", "deadline_at": None, "deadline_kind": None}),
    (TELLING, TOLD_LATER, IGN, (), {}),
    (leased(PAID), DELAYED, "paid", (), {"receipt_until": None, "deadline_at": AT, "attention": None}),
    (leased(CREATED), DELAYED, "created", (), {"receipt_until": None}),
    (leased(UNSENT), DELAYED, "notify_failed", (), {"receipt_until": None}),
    (leased(PAID), UNDELIVERED, "notify_failed", (), {"receipt_until": None}),
    (noted(CREATED), SENT, "compensating", UNDO, {**NOTED, **UNDONE}),
    (noted(PAID), SENT, "compensating", UNDO, {**NOTED, **UNDONE}),
    (noted(UNSENT), SENT, "compensating", UNDO, {**NOTED, **UNDONE, **SETTLED}),
    (noted(CREATED), DELAYED, "compensating", UNDO, UNDONE),
    (noted(PAID), DELAYED, "compensating", UNDO, UNDONE),
    (noted(PAID), UNDELIVERED, "compensating", UNDO, UNDONE),
    (noted(UNSENT), UNDELIVERED, "compensating", UNDO, UNDONE),
    (leased(CREATED), PAY_PART, "created", (), {"captured": PART, **NOW_NOTED, "cancel_noted": "amount_mismatch", **MISMATCH}),
    (noted(CREATED), PAY, "paid", (), {"captured": FULL, **NOW_NOTED}),
    (leased(CREATED), PAY, "paid", (), {"receipt_until": UNTIL, "deadline_kind": "notify"}),
    (leased(CREATED), CANCEL, "created", (), NOW_NOTED),
    (leased(PAID), CANCEL, "paid", (), {**NOW_NOTED, "reason": None}),
    (leased(UNSENT), CANCEL, "notify_failed", (), NOW_NOTED),
    (leased(PAID, EARLIER), CANCEL, "compensating", UNDO, UNDONE),
    (leased(PAID, AT), CANCEL, "compensating", UNDO, UNDONE),
    (leased(PAID, TOO_FAR), CANCEL, "compensating", UNDO, UNDONE),
    (noted(CREATED), CANCEL, UNHEARD, (), {}),
    (noted(PAID), CANCEL, UNHEARD, (), {}),
    (noted(UNSENT), CANCEL, UNHEARD, (), {}),
    (CREATED, ASK, UNHEARD, (), {"receipt_until": AT + timedelta(seconds=660)}),
    (PAID, ASK, UNHEARD, (), {"receipt_until": AT + timedelta(seconds=660)}),
    (UNSENT, ASK, UNHEARD, (), {"receipt_until": AT + timedelta(seconds=660)}),
    (leased(PAID), ASK, UNHEARD, (), {"receipt_until": AT + timedelta(seconds=660)}),
    (row("created", notified_at=EARLIER), ASK, UNHEARD, (), {"receipt_until": None}),
    (NOTIFIED, ASK, UNHEARD, (), {"receipt_until": None}),
    (COMPENSATING, ASK, UNHEARD, (), {"receipt_until": None}),
    (REFUNDED, ASK, UNHEARD, (), {"receipt_until": None}),
    (STUCK, ASK, UNHEARD, (), {"receipt_until": None}),
    (noted(CREATED), ASK, "compensating", UNDO, UNDONE),
    (noted(PAID), ASK, "compensating", UNDO, UNDONE),
    (noted(UNSENT), ASK, "compensating", UNDO, {**UNDONE, **SETTLED}),
    (noted(CREATED), HELD, "compensating", UNDO, UNDONE),
    (noted(PAID), DUE, "compensating", UNDO, UNDONE),
    (noted(UNSENT), DUE, "compensating", UNDO, UNDONE),
    (leased(PAID), DUE, UNHEARD, (), {"deadline_at": UNTIL, "attempts": 0}),
    (leased(UNSENT), DUE, UNHEARD, (), {"deadline_at": UNTIL, "attempts": 0}),
    (CREATED, HELD, UNHEARD, (), {"deadline_kind": "nudge", "deadline_at": AT + timedelta(seconds=220), "attempts": 0}),
    (NUDGED, HELD, UNHEARD, (), {"deadline_kind": "nudge", "deadline_at": AT + timedelta(seconds=220)}),
    (ASKED, HELD, UNHEARD, (), {"deadline_kind": "nudge", "deadline_at": AT + timedelta(seconds=220)}),
    (PAID, HELD, UNHEARD, (), {"attempts": 0, "deadline_at": AT + timedelta(seconds=60)}),
    (tried(COMPENSATING, 20), HELD, UNHEARD, (), {"attempts": 20, "deadline_at": AT + timedelta(seconds=60)}),
    (TELLING, HELD, UNHEARD, (), {"attempts": 0, "deadline_at": AT + timedelta(seconds=60)}),
    (UNSENT, HELD, UNHEARD, (), {"attempts": 0, "deadline_at": AT + timedelta(hours=1)}),
    (STUCK, HELD, UNHEARD, (), {"attempts": 0, "deadline_at": AT + timedelta(minutes=15)}),
    (ASKED, ASIDE, "created", ANNOUNCE, {"deadline_kind": "nudge", "deadline_at": AT + timedelta(seconds=220)}),
    (UNSENT, UNDELIVERED, "notify_failed", (), {"attention": "receipt_failed"}),
    (STUCK, UNDELIVERED, IGN, (), {}),
    (PAID, event("EmailFailed", policy=OR_REFUND), "compensating", UNDO, {"reason": "receipt_failed", "attention": None}),
    (CREATED, CANCEL, "compensating", UNDO, {"reason": "cancelled", **begun(5)}),
    (PAID, CANCEL, "compensating", UNDO, {"reason": "cancelled", "captured": FULL, **begun(5)}),
    (NOTIFIED, CANCEL, "compensating", UNDO, {"reason": "cancelled", "notified_at": EARLIER, **begun(5)}),
    (COMPENSATING, CANCEL, UNHEARD, (), {}),
    (REFUNDED, CANCEL, UNHEARD, (), {}),
    (UNSENT, CANCEL, "compensating", UNDO, {"reason": "cancelled", **SETTLED}),
    (STUCK, CANCEL, UNHEARD, (), {}),
    (NUDGED, DUE, "created", ANNOUNCE, {"deadline_kind": "pay", "deadline_at": AT + timedelta(minutes=10), "attempts": 0}),
    (
        msgspec.structs.replace(NUDGED, created_at=AT - timedelta(hours=1), pay_before=AT - timedelta(minutes=45)),
        DUE,
        "created",
        ANNOUNCE,
        {"deadline_kind": "pay", "deadline_at": AT + timedelta(minutes=15)},
    ),
    (
        msgspec.structs.replace(NUDGED, created_at=AT - timedelta(minutes=12), pay_before=AT + timedelta(minutes=3)),
        DUE,
        "created",
        ANNOUNCE,
        {"deadline_kind": "pay", "deadline_at": AT + timedelta(minutes=10)},
    ),
    (CREATED, DUE, "created", ANNOUNCE, {"deadline_kind": "answer", "deadline_at": AT + timedelta(seconds=60), "attempts": 0}),
    (ASKED, DUE, "compensating", UNDO, {"reason": "timeout", **begun(5)}),
    (
        msgspec.structs.replace(ASKED, notified_at=EARLIER),
        DUE,
        "created",
        ANNOUNCE,
        {"attempts": 1, "attention": "payment_silent", "deadline_kind": "answer", "deadline_at": AT + timedelta(seconds=220)},
    ),
    (leased(ASKED), DUE, "created", ANNOUNCE, {"attempts": 1, "attention": "payment_silent"}),
    (PAID, DUE, "paid", REMIND, {"attempts": 1, "deadline_at": AT + timedelta(seconds=120)}),
    (tried(PAID, 4), DUE, "paid", REMIND, {"attempts": 5, "deadline_at": AT + timedelta(seconds=60 * 32)}),
    (tried(PAID, 7), DUE, "paid", REMIND, {"attempts": 8, "deadline_at": AT + timedelta(hours=1)}),
    (tried(PAID, 8), DUE, "notify_failed", (), {"attempts": 0, "attention": "receipt_failed", "deadline_at": AT + timedelta(hours=1)}),
    (tried(PAID, 8), event("Deadline", policy=OR_REFUND), "compensating", UNDO, {"reason": "receipt_failed", "attention": None}),
    (COMPENSATING, DUE, "compensating", UNDO, {"attempts": 1, "deadline_at": AT + timedelta(seconds=10)}),
    (tried(COMPENSATING, 19), DUE, "compensating", UNDO, {"attempts": 20, "deadline_at": AT + timedelta(minutes=5)}),
    (tried(COMPENSATING, 20), DUE, "compensation_failed", (), {"attention": "refund_failed", "deadline_at": AT + timedelta(minutes=15)}),
    (tried(UNSENT, 3), DUE, "notify_failed", REMIND, {"attempts": 4, "deadline_at": AT + timedelta(hours=1)}),
    (STUCK, DUE, "compensation_failed", UNDO, {"attempts": 1, "deadline_at": AT + timedelta(minutes=30)}),
    (tried(STUCK, 39), DUE, "compensation_failed", UNDO, {"attempts": 40, "deadline_at": AT + timedelta(days=1)}),
    (tried(STUCK, 40), DUE, UNHEARD, (), {"attempts": 40, "attention": "refund_failed", "deadline_at": AT + timedelta(days=1)}),
    (TELLING, DUE, "compensated", REMIND, {"attempts": 1, "deadline_at": AT + timedelta(seconds=120)}),
    (tried(TELLING, 8), DUE, "compensated", (), {"attention": "cancellation_failed", "deadline_at": None, "deadline_kind": None}),
    (CREATED, RETRY, "created", ANNOUNCE, {"deadline_at": AT}),
    (PAID, RETRY, "paid", REMIND, {"deadline_at": AT}),
    (NOTIFIED, RETRY, IGN, (), {}),
    (COMPENSATING, RETRY, "compensating", UNDO, {"deadline_at": AT}),
    (REFUNDED, RETRY, IGN, (), {}),
    (tried(UNSENT, 3), RETRY, "paid", REMIND, {"attempts": 0, "deadline_at": AT + timedelta(seconds=60), **SETTLED}),
    (tried(STUCK, 99), RETRY, "compensating", UNDO, {**begun(5), **SETTLED}),
    (CREATED, COMPENSATE, "compensating", UNDO, {"reason": "operator", **begun(5)}),
    (PAID, COMPENSATE, "compensating", UNDO, {"reason": "operator"}),
    (NOTIFIED, COMPENSATE, "compensating", UNDO, {"reason": "operator"}),
    (leased(CREATED), COMPENSATE, "created", (), {**NOW_NOTED, "cancel_noted": "operator"}),
    (leased(PAID), COMPENSATE, "paid", (), {**NOW_NOTED, "cancel_noted": "operator"}),
    (leased(UNSENT), COMPENSATE, "notify_failed", (), {**NOW_NOTED, "cancel_noted": "operator"}),
    (noted(PAID), WAIVE, "paid", (), NOW_NOTED),
    (noted(UNSENT), WAIVE, "notify_failed", (), NOW_NOTED),
    (COMPENSATING, COMPENSATE, "compensating", (), {"reason": "timeout"}),
    (REFUNDED, COMPENSATE, IGN, (), {}),
    (UNSENT, COMPENSATE, "compensating", UNDO, {"reason": "operator", **SETTLED}),
    (STUCK, COMPENSATE, "compensation_failed", (), {"attention": "refund_failed"}),
    (CREATED, WAIVE, IGN, (), {}),
    (PAID, WAIVE, "notified", (), {"notified_at": None, "deadline_at": None}),
    (NOTIFIED, WAIVE, IGN, (), {}),
    (COMPENSATING, WAIVE, IGN, (), {}),
    (REFUNDED, WAIVE, IGN, (), {}),
    (UNSENT, WAIVE, "notified", (), {"notified_at": None, **SETTLED}),
    (STUCK, WAIVE, IGN, (), {}),
    (CREATED, MARK, IGN, (), {}),
    (PAID, MARK, IGN, (), {}),
    (NOTIFIED, MARK, IGN, (), {}),
    (CAPTURED, MARK, "compensated", TELL, {"captured": FULL, "refunded": FULL, "reason": "timeout"}),
    (REFUNDED, MARK, IGN, (), {}),
    (UNSENT, MARK, IGN, (), {}),
    (STUCK, MARK, "compensated", TELL, {"refunded": FULL, "reason": "timeout", **SETTLED}),
]


@pytest.mark.parametrize(("before", "heard", "follows", "emits", "facts"), CELLS, ids=lambda value: getattr(value, "name", None))
def test_cell_gives_state_facts_and_messages(
    before: domain.Saga, heard: states.Event, follows: str, emits: tuple[str, ...], facts: dict[str, Any]
) -> None:
    """Each cell of the design leads where the design says, with these facts and these messages and no others."""
    steps = saga.decide(before, heard)

    assert len(steps) == 1
    step = steps[0]
    silent = follows in {IGN, UNHEARD}
    assert step.outcome == (follows if silent else "applied")
    assert step.after.state == (before.state if silent else follows)
    assert step.emits == emits
    assert step.after.version == before.version + 1
    if silent:
        waits = {"deadline_at": before.deadline_at, "deadline_kind": before.deadline_kind} if follows == UNHEARD else {}
        assert msgspec.structs.replace(saga.facts_of(step.after), **waits) == saga.facts_of(before)
    assert {name: getattr(step.after, name) for name in facts} == facts


def test_every_state_and_event_is_a_case() -> None:
    """No cell of the table goes untested, and no event the queue can bring is without a cell."""
    tested = {(before.state, heard.name) for before, heard, *_ in CELLS}

    assert tested == set(transitions.TABLE)
    assert tested == {(state, name) for state in states.STATES for name in (*states.EVENTS, *CLOCK_AND_PEOPLE)} - {
        (states.NOTIFIED, "Deadline")
    }


def test_every_rule_is_reached_by_a_case() -> None:
    """No line of a cell stands there unproved; the lines for mails that are no receipt are the same in every state."""
    proved = {
        (before.state, heard.name, step.outcome, step.after.state) for before, heard, *_ in CELLS for step in saga.decide(before, heard)
    }
    wanted = {
        (state, name, "unheard" if rule.unheard else "ignored" if rule.ignored else "applied", rule.to or state)
        for (state, name), cell in transitions.TABLE.items()
        for rule in cell
        if rules.cancellation not in rule.when and not (rule.ignored and not rule.when and name.startswith(("Email", "RefundFailed")))
    }

    assert wanted <= proved


def test_receipt_before_payment_ends_notified() -> None:
    """A receipt that is reported before its payment is kept, and counts when the payment comes: paid, then notified."""
    early = saga.decide(CREATED, SENT)[0].after

    steps = saga.decide(early, PAY)

    assert [(step.event, step.before.state, step.after.state) for step in steps] == [
        ("PaymentProcessed", "created", "paid"),
        ("EmailSent", "paid", "notified"),
    ]
    assert steps[-1].after.version == early.version + 2
    assert steps[-1].after.deadline_at is None


def test_first_attention_and_first_reason_stand() -> None:
    """An operator sees what went wrong first, a customer why the order ended first."""
    strange = msgspec.structs.replace(CAPTURED, attention="late_capture")

    after = saga.decide(strange, NO_REFUND)[0].after

    assert (after.attention, after.reason) == ("late_capture", "timeout")


def test_event_without_a_cell_is_refused() -> None:
    """What the table does not know is an error that no retry helps, not a guess."""
    with pytest.raises(errors.IllegalEventError):
        saga.decide(CREATED, event("OrderShipped"))


def test_messages_become_events_with_exact_amounts() -> None:
    """The table sees amounts in two places, and of each message what its rules ask for."""
    processed = events.PaymentProcessed(
        order_id=1,
        saga_id=UUID(int=1),
        amount=Decimal("99.9"),
        payment_id=1,
        payment_version=1,
        transaction_id="tx",
        captured_at=AT,
        user_email="a@example.com",
        items=(),
    )
    failed = events.EmailFailed(order_id=1, saga_id=UUID(int=1), template="cancellation", code="550", permanent=False)

    assert str(saga.event_of(processed, AT).amount) == "99.90"
    assert saga.event_of(failed, AT) == event("EmailFailed", template="cancellation", code="550", permanent=False)


def test_commands_are_not_heard() -> None:
    """A command of our own that came back would be a wrong binding, and is refused."""
    with pytest.raises(errors.IllegalEventError):
        saga.event_of(events.CancelPayment(order_id=1, saga_id=UUID(int=1), reason="x", saga_version=1), AT)


@pytest.mark.parametrize(
    ("waited", "wait"),
    [(timedelta(seconds=1), 60), (timedelta(minutes=10), 600), (timedelta(days=2), 3600)],
    ids=["at once", "after an outage", "never longer than the longest wait"],
)
def test_a_receipt_is_waited_for_as_long_as_the_payment_took(waited: timedelta, wait: int) -> None:
    """After an outage many receipts are late, and none comes sooner for being asked for; who enters `paid` again waits as ever."""
    late = msgspec.structs.replace(CREATED, created_at=AT - waited)
    parked = msgspec.structs.replace(UNSENT, created_at=AT - waited)

    (paid,) = saga.decide(late, PAY)
    (mended,) = saga.decide(parked, RETRY)

    assert paid.after.deadline_at == AT + timedelta(seconds=wait)
    assert (mended.after.state, mended.after.deadline_at) == ("paid", AT + timedelta(seconds=60))
