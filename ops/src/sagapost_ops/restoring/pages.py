"""What `restored` prints."""

from typing import Final

from rich.console import Console
from rich.text import Text

from sagapost_ops import screen
from sagapost_ops.restoring import order_side, payment_side, queries

SHOWN: Final = 50


def show_order(console: Console, found: order_side.Found, *, refund: bool) -> None:
    """Print what the order database lost."""
    if found.lift_to is None:
        console.print(f"Order numbers: the next one is above {found.last_number}, payment knows none above {found.highest_known}.")
    else:
        console.print(
            f"Order numbers: {found.last_number} was given out last, payment knows {found.highest_known}; "
            f"the next one will be above {found.lift_to}."
        )
    console.print(f"Messages of payment that the order database lost: {len(found.messages)}; they are published again.")
    if not found.orphans:
        console.print("Payments without an order: none.")
        return
    what = "each is refunded" if refund else "with --refund each is refunded"
    console.print(f"\nPayments without an order: {len(found.orphans)}; {what}, and its customer gets a cancellation mail.")
    console.print(_orphans(found.orphans))
    if len(found.orphans) > SHOWN:
        console.print(f"and {len(found.orphans) - SHOWN} more; --json lists all")


def show_order_done(console: Console, found: order_side.Found, done: order_side.Done) -> None:
    """Print what was done."""
    console.print(f"\n{done.replayed} messages are published again, {done.refunding} lost orders are being cancelled and refunded.")
    moved = {one.order_id: done.numbers[str(one.saga_id)] for one in found.orphans if str(one.saga_id) in done.numbers}
    for before, now in moved.items():
        if before != now:
            console.print(f"  order {before} is now {now}: another order has its number")
    console.print("Follow them with: ./sagapost saga list --state compensating · ./sagapost verify", style="dim")


def show_payment(console: Console, found: payment_side.Found) -> None:
    """Print what the payment database lost."""
    rows = [
        ("sagas without a payment whose order is told again", str(found.waiting + len(found.forgotten))),
        ("cancelled sagas whose payment is cancelled again", str(len(found.cancelled))),
        ("messages of the order service that are published again", str(len(found.messages))),
    ]
    console.print(screen.table(("what the payment database lost", ""), rows))
    for saga in found.forgotten[:SHOWN]:
        console.print(Text(f"  order {saga.id} is {saga.state}, and its message has left the outbox", style="dim"), soft_wrap=True)


def show_payment_done(console: Console, done: payment_side.Done) -> None:
    """Print what was done."""
    console.print(
        f"\n{done.cancelled} cancellations and {done.announced} orders are told again, {done.replayed} messages are published again. "
        "Payment asks the provider what it took.",
        soft_wrap=True,
    )


def _orphans(orphans: tuple[queries.Orphan, ...]) -> object:
    rows = [
        (str(one.order_id), str(one.saga_id), one.status, f"{one.amount} {one.currency}", f"{one.created_at:%Y-%m-%d %H:%M:%S}")
        for one in orphans[:SHOWN]
    ]
    return screen.table(("order", "saga", "payment", "amount", "since"), rows)
