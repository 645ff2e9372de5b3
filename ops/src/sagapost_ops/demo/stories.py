"""The stories as data: what is bought and cancelled, how it must end, and what is said of it; it does nothing."""

from typing import Final, Literal

import msgspec

When = Literal["done", "charging"]


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """What a demo does and how it must end: the saga's state, what the provider moved, which mails were sent.

    `cancelled` says when the customer cancels: when the order is done, or while the card is being charged. `poisoned`: the order
    is too large for a rule that somebody gave payment's database, and is a dead letter until that is mended.
    """

    payment_method: str
    says: str
    state: str
    moved: tuple[str, ...]
    mails: tuple[str, ...]
    cancelled: When | None = None
    cancels: str = ""
    poisoned: bool = False
    why: str = ""


STORIES: Final = {
    "happy": Story(
        payment_method="pm_card_ok",
        says="The customer pays and gets a receipt.",
        state="notified",
        moved=("charge",),
        mails=("receipt",),
    ),
    "decline": Story(
        payment_method="pm_card_declined",
        says="The card is declined: the order is cancelled, nothing is charged, the customer is told.",
        state="compensated",
        moved=(),
        mails=("cancellation",),
    ),
    "cancel": Story(
        payment_method="pm_card_ok",
        says="The customer pays, gets a receipt, and then cancels: the money goes back, and a mail says so.",
        cancelled="done",
        cancels="The order is finished. Now its customer cancels it; for half an hour that is allowed.",
        state="compensated",
        moved=("charge", "refund"),
        mails=("receipt", "cancellation"),
        why="Why this is safe: that the order is being cancelled is in the database before anybody is asked for the money. The order "
        "service asks until payment confirms, over any crash or outage, and payment asks the provider under one idempotency key "
        "for each order, so that it refunds once however often it is asked.",
    ),
    "late-payment": Story(
        payment_method="pm_slow",
        says="The customer cancels while the provider is still charging the card; the money is taken after the order was given up.",
        cancelled="charging",
        cancels="The charge is under way and takes about six seconds. The customer does not wait for it and cancels.",
        state="compensated",
        moved=("charge", "refund"),
        mails=("cancellation",),
        why="Why this is safe: payment notes the cancellation in the order's row while the charge is under way, and whoever learns that "
        "the charge went through finds the note and gives the money back. Had the cancellation come first, the note would have "
        "been a tombstone, and the card would never have been charged. In any order: one charge and one refund at most, net 0.",
    ),
    "poison": Story(
        payment_method="pm_card_ok",
        says="A bad rule in payment's database makes the order's message fail until it is a dead letter; mended and replayed, it is paid.",
        poisoned=True,
        state="notified",
        moved=("charge",),
        mails=("receipt",),
        why="Why this is safe: a message leaves a queue only when the next one has confirmed that it holds it, on the way up the ladder, "
        "to the dead letters and back. A replay goes to the queue it came from and to nobody else, under its old message id, so that "
        "payment would recognise what it has processed; the provider's idempotency key is the order's, however often it is tried.",
    ),
}
