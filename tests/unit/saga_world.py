"""A whole checkout without any process: the real transition table between a customer, payment, provider, mail and a bad network.

Payment, provider and mail are written out here a second time, from the design and not from the code. A message that was sent
may arrive any number of times, in any order, or never; a call to the provider may be answered, refused, lost after the money
moved, or hang and move the money at any later time.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final
from uuid import UUID

import msgspec

from sagapost_order import domain, errors, saga, states

AT: Final = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
FULL: Final = Decimal("100.00")
WINDOW_S: Final = 900
POLICY: Final = states.Policy(notify_attempts=1, compensate_attempts=1)
PAYMENT_EVENTS: Final = frozenset({"PaymentProcessed", "PaymentFailed", "PaymentVoided", "PaymentRefunded", "RefundFailed"})
RECEIPTS: Final = frozenset({"PaymentProcessed", "RequestNotification"})
# what the email service reports: the event, the mail, and whether a failure is for good
MAIL_EVENTS: Final = {
    "CancellationSent": ("EmailSent", "cancellation", True),
    "CancellationFailed": ("EmailFailed", "cancellation", True),
    "CancellationLater": ("EmailFailed", "cancellation", False),
    "ReceiptLater": ("EmailFailed", "receipt", False),
}
# email reports a failure before it asks again, and the inbox knows a message that comes twice
_FAILURES: Final = frozenset({("EmailFailed", 0), ("ReceiptLater", 0)})
# what payment answers to an order whose payment has ended
ANSWERS: Final = {
    "captured": "PaymentProcessed",
    "failed": "PaymentFailed",
    "voided": "PaymentVoided",
    "refunded": "PaymentRefunded",
}
# which finished sagas may go on, and what for
LEFT: Final = {
    ("notified", "CancelRequested"),
    ("notified", "OperatorCompensate"),
    ("notified", "PaymentRefunded"),
    ("compensated", "PaymentProcessed"),
    ("compensated", "RefundFailed"),
}


class Payment(msgspec.Struct, frozen=True, kw_only=True):
    """What payment knows; '' is no row."""

    status: str = ""
    version: int = 0
    is_cancelled: bool = False
    uncertain: bool = False


class Provider(msgspec.Struct, frozen=True, kw_only=True):
    """What really moved; `hanging`: a call is on its way that may still move money."""

    charges: int = 0
    refunds: int = 0
    hanging: bool = False
    declined: bool = False


class World(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is, with all that was ever sent; `mails` names the accepted ones, `sending` is a receipt on its way."""

    row: domain.Saga
    now: datetime = AT
    payment: Payment = Payment()
    provider: Provider = Provider()
    to_payment: frozenset[str] = frozenset({"OrderCreated"})
    to_email: frozenset[str] = frozenset()
    to_order: frozenset[tuple[str, int]] = frozenset()
    mails: frozenset[str] = frozenset()
    sending: bool = False
    steps: tuple[saga.Step, ...] = ()

    def key(self) -> object:
        """Give what tells this world from others for everything that can still happen; clocks and versions do not."""
        row = self.row
        seen = (row.state, row.captured, row.refunded, row.payment_version, row.notified_at is None, row.attempts, row.deadline_kind)
        late = self.now > row.pay_before, self.now > row.created_at + timedelta(seconds=POLICY.cancel_window_s)
        rest = (self.payment, self.provider, self.to_payment, self.to_email, self.to_order, self.mails, self.sending)
        mails = row.cancellation_sent_at is None, row.cancel_noted, row.receipt_until is None
        return seen, late, row.reason is None, row.attention, mails, rest


def new() -> World:
    """Make the world right after a checkout."""
    row = domain.Saga(
        **msgspec.structs.asdict(saga.first_facts(AT, WINDOW_S)),
        id=UUID(int=1),
        order_id=1,
        state=states.CREATED,
        version=1,
        amount=FULL,
        currency="USD",
        trace_id=None,
        pay_before=AT + timedelta(seconds=WINDOW_S),
        created_at=AT,
        updated_at=AT,
    )
    return World(row=row)


def actions(world: World, *, mended: bool = False) -> Iterator[tuple[str, ...]]:
    """List what can happen now; in a mended world provider and mail server do as they are told, and nobody asks for more."""
    outcomes = ("ok",) if mended else ("ok", "declined", "lost", "hangs", "no refund", "refund later")
    for name in sorted(world.to_payment):
        yield from (("payment", name, outcome) for outcome in outcomes)
    if world.payment.status:
        yield from (("look", outcome) for outcome in outcomes)
    for name in sorted(world.to_email):
        if name in RECEIPTS:
            yield from () if world.sending or _FAILURES & world.to_order else (("ask",),)
        else:
            yield from (("email", name, outcome) for outcome in (("ok",) if mended else ("ok", "refused", "later")))
    if world.sending or mended:
        yield from (("send", outcome) for outcome in (("ok",) if mended else ("ok", "refused", "later")))
    yield from (("order", name, str(version)) for name, version in sorted(world.to_order))
    if world.provider.hanging:
        yield ("books",)
    if world.row.deadline_at is not None:
        yield ("deadline",)
    if not mended:
        yield from (("hear", name) for name in (states.CANCEL_REQUESTED, states.OPERATOR_RETRY, states.OPERATOR_COMPENSATE))


def happen(world: World, action: tuple[str, ...]) -> World:
    """Let one thing happen."""
    match action:
        case ("email" | "ask" | "send", *_):
            found = _happen_to_mail(world, action)
        case ("payment", "OrderCreated", outcome):
            found = _created(world, outcome)
        case ("payment", _, outcome):
            found = _cancel(world, outcome)
        case ("look", outcome):
            found = _look(world, outcome)
        case ("books",):
            found = _book(world)
        case ("order", name, version):
            heard, template, permanent = MAIL_EVENTS.get(name, (name, "receipt", True))
            world = msgspec.structs.replace(world, to_order=world.to_order - (_FAILURES & {(name, int(version))}))
            event = states.Event(name=heard, at=world.now, policy=POLICY, amount=FULL, template=template, permanent=permanent)
            found = hear(world, msgspec.structs.replace(event, payment_version=int(version)))
        case ("deadline",) if world.row.deadline_at is None:
            found = world
        case ("deadline",):
            now = max(world.now, world.row.deadline_at or world.now)
            is_sending = world.sending and world.row.receipt_until is not None and now < world.row.receipt_until
            due = msgspec.structs.replace(world, now=now, sending=is_sending)
            found = hear(due, states.Event(name=states.DEADLINE, at=due.now, policy=POLICY))
        case _:
            found = hear(world, states.Event(name=action[1], at=world.now, policy=POLICY))
    return found


def _happen_to_mail(world: World, action: tuple[str, ...]) -> World:
    match action:
        case ("ask",):
            return _ask(world)
        case ("send", outcome):
            return _send(world, outcome)
        case _:
            return _tell_of_end(world, action[-1])


def hear(world: World, event: states.Event) -> World:
    """Let the saga hear something; what the table has no cell for changes nothing."""
    try:
        heard = saga.decide(world.row, event)
    except errors.IllegalEventError:
        return world
    steps = tuple(step for step in heard if step.outcome != "unheard")
    if not steps:  # no row: only what is waited for may have changed
        after = heard[-1].after
        row = msgspec.structs.replace(
            world.row, deadline_at=after.deadline_at, deadline_kind=after.deadline_kind, receipt_until=after.receipt_until
        )
        return msgspec.structs.replace(world, row=row)
    emitted = {
        "RequestCancellation" if name == "RequestNotification" and step.mail == "cancellation" else name
        for step in steps
        for name in step.emits
    }
    return msgspec.structs.replace(
        world,
        row=steps[-1].after,
        steps=world.steps + steps,
        to_payment=world.to_payment | (emitted & {"OrderCreated", "CancelPayment"}),
        to_email=world.to_email | (emitted & {"RequestNotification", "RequestCancellation", "OrderCancelled"}),
    )


def _book(world: World) -> World:
    """Let a call that has been on its way arrive: the provider charges under one key once."""
    provider = world.provider
    charges = min(1, provider.charges + (not provider.declined))
    return msgspec.structs.replace(world, provider=msgspec.structs.replace(provider, charges=charges, hanging=False))


def _created(world: World, outcome: str) -> World:
    if world.payment.status in ANSWERS:
        return _tell(world, ANSWERS[world.payment.status])
    if world.payment.status:
        return _look(world, outcome)
    fresh = msgspec.structs.replace(world, payment=Payment(status="processing", version=1))
    if world.now >= world.row.pay_before:
        return _move(fresh, "voided", "PaymentVoided")
    return _charge(fresh, outcome)


def _cancel(world: World, outcome: str) -> World:
    match world.payment.status:
        case "":
            return _tell(msgspec.structs.replace(world, payment=Payment(status="voided", version=1)), "PaymentVoided")
        case "processing":
            return msgspec.structs.replace(world, payment=msgspec.structs.replace(world.payment, is_cancelled=True))
        case "captured":
            return _refund(_move(world, "refunding"), outcome)
        case "refunding":
            return _refund(world, outcome)
        case "refunded":
            return _tell(world, "PaymentRefunded")
        case _:
            return _tell(world, "PaymentVoided")


def _look(world: World, outcome: str) -> World:
    payment, provider = world.payment, world.provider
    if payment.status == "refunding":
        return _refund(world, outcome)
    if payment.status != "processing":
        is_late = payment.status in {"voided", "failed"} and payment.uncertain and provider.charges > provider.refunds
        return _refund(_move(world, "refunding"), outcome) if is_late else world
    doubted = msgspec.structs.replace(world, payment=msgspec.structs.replace(payment, uncertain=True))
    if provider.charges:
        return _captured(doubted, outcome)
    if payment.is_cancelled or world.now >= world.row.pay_before:
        return _move(doubted, "voided", "PaymentVoided")
    return _charge(doubted, outcome)


def _charge(world: World, outcome: str) -> World:
    provider = world.provider
    if provider.declined or outcome == "declined":
        refused = msgspec.structs.replace(world, provider=msgspec.structs.replace(provider, declined=not provider.charges))
        is_cancelled = world.payment.is_cancelled
        return _move(refused, "voided", "PaymentVoided") if is_cancelled else _move(refused, "failed", "PaymentFailed")
    if outcome == "hangs":
        doubted = msgspec.structs.replace(world.payment, uncertain=True)
        return msgspec.structs.replace(world, payment=doubted, provider=msgspec.structs.replace(provider, hanging=True))
    charged = msgspec.structs.replace(world, provider=msgspec.structs.replace(provider, charges=1, hanging=False))
    return charged if outcome == "lost" else _captured(charged, outcome)


def _captured(world: World, outcome: str) -> World:
    if world.payment.is_cancelled:
        return _refund(_move(world, "refunding"), outcome)
    return _move(world, "captured", "PaymentProcessed")


def _refund(world: World, outcome: str) -> World:
    if outcome == "no refund" and not world.provider.refunds:  # one that was made before is found
        return _move(world, "captured", "RefundFailed")
    if outcome in {"refund later", "hangs"}:
        return world
    back = msgspec.structs.replace(world, provider=msgspec.structs.replace(world.provider, refunds=1))
    return back if outcome == "lost" else _move(back, "refunded", "PaymentRefunded")


def _move(world: World, status: str, event: str = "") -> World:
    payment = msgspec.structs.replace(world.payment, status=status, version=world.payment.version + 1)
    moved = msgspec.structs.replace(world, payment=payment)
    return _tell(moved, event) if event else moved


def _tell(world: World, event: str) -> World:
    told = msgspec.structs.replace(world, to_order=world.to_order | {(event, world.payment.version)})
    receipt = {"PaymentProcessed"} if event == "PaymentProcessed" else set[str]()
    return msgspec.structs.replace(told, to_email=told.to_email | receipt)


def _ask(world: World) -> World:
    """Let email ask whether it may send the receipt."""
    asked = hear(world, states.Event(name=states.RECEIPT_ASKED, at=world.now, policy=POLICY))
    return msgspec.structs.replace(asked, sending=asked.row.receipt_until is not None)


def _send(world: World, outcome: str) -> World:
    """Let the mail server answer, if it has a receipt."""
    if not world.sending:
        return world
    done = msgspec.structs.replace(world, sending=False)
    if outcome != "ok":
        failed = "EmailFailed" if outcome == "refused" else "ReceiptLater"
        return msgspec.structs.replace(done, to_order=world.to_order | {(failed, 0)})
    return msgspec.structs.replace(done, mails=world.mails | {"receipt"}, to_order=world.to_order | {("EmailSent", 0)})


def _tell_of_end(world: World, outcome: str) -> World:
    if outcome != "ok":
        failed = "CancellationFailed" if outcome == "refused" else "CancellationLater"
        return msgspec.structs.replace(world, to_order=world.to_order | {(failed, 0)})
    return msgspec.structs.replace(world, mails=world.mails | {"cancellation"}, to_order=world.to_order | {("CancellationSent", 0)})
