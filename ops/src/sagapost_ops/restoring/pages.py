"""What `restored` prints."""

from typing import Final

from sagapost_ops import screen
from sagapost_ops.restoring import order_side, payment_side, queries

SHOWN: Final = 50


def show_order(console: screen.Screen, found: order_side.Found, *, refund: bool) -> None:
    """Print what the order database lost."""
    if found.lift_to is None:
        console.line(f"Order numbers: the next one is above {found.last_number}, payment knows none above {found.highest_known}.")
    else:
        console.line(
            f"Order numbers: {found.last_number} was given out last, payment knows {found.highest_known}; "
            f"the next one will be above {found.lift_to}."
        )
    console.line(f"Messages of payment that the order database lost: {len(found.messages)}; they are published again.")
    _show_unaware(console, found.unaware)
    if not found.orphans:
        console.line("Payments without an order: none.")
        return
    what = "each is refunded" if refund else "with --refund each is refunded"
    console.spaced(f"Payments without an order: {len(found.orphans)}; {what}, and its customer gets a cancellation mail.")
    _show_orphans(console, found.orphans)
    if len(found.orphans) > SHOWN:
        console.line(f"and {len(found.orphans) - SHOWN} more; --json lists all")


def show_order_done(console: screen.Screen, found: order_side.Found, done: order_side.Done) -> None:
    """Print what was done."""
    console.spaced(f"{done.replayed} messages are published again, {done.refunding} lost orders are being cancelled and refunded.")
    if done.asked:
        console.line(f"Payment is asked again about {done.asked} orders: one whose money went back is cancelled.")
    moved = {one.order_id: done.numbers[str(one.saga_id)] for one in found.orphans if str(one.saga_id) in done.numbers}
    for before, now in moved.items():
        if before != now:
            console.line(f"  order {before} is now {now}: another order has its number")
    console.line("Follow them with: ./sagapost saga list --state compensating · ./sagapost verify", style="dim")


def show_payment(console: screen.Screen, found: payment_side.Found) -> None:
    """Print what the payment database lost."""
    rows = [
        ("sagas without a payment whose order is announced again", str(found.waiting + len(found.forgotten))),
        ("cancelled sagas whose payment is cancelled again", str(len(found.cancelled))),
        ("messages of the order service that are published again", str(len(found.messages))),
    ]
    console.table(("what the payment database lost", ""), rows)
    for saga in found.forgotten[:SHOWN]:
        console.line(f"  order {saga.id} is {saga.state}, and its message has left the outbox", style="dim")


def show_payment_done(console: screen.Screen, done: payment_side.Done) -> None:
    """Print what was done."""
    console.spaced(
        f"{done.cancelled} cancellations and {done.announced} orders are announced again, {done.replayed} messages are published again. "
        "Payment asks the provider what it took."
    )


def _show_unaware(console: screen.Screen, unaware: tuple[queries.Payment, ...]) -> None:
    if not unaware:
        console.line("Orders that do not know how their payment stands: none.")
        return
    console.spaced(f"Orders that do not know how their payment stands: {len(unaware)}; payment is asked again, and they follow its answer.")
    rows = [(str(one.order_id), str(one.saga_id), str(one.state), one.status, f"{one.amount} {one.currency}") for one in unaware[:SHOWN]]
    console.table(("order", "saga", "state", "payment", "amount"), rows)
    if len(unaware) > SHOWN:
        console.line(f"and {len(unaware) - SHOWN} more; --json lists all")


def _show_orphans(console: screen.Screen, orphans: tuple[queries.Payment, ...]) -> None:
    rows = [
        (str(one.order_id), str(one.saga_id), one.status, f"{one.amount} {one.currency}", f"{one.created_at:%Y-%m-%d %H:%M:%S}")
        for one in orphans[:SHOWN]
    ]
    console.table(("order", "saga", "payment", "amount", "since"), rows)
