"""The provider's requests, answers and ledger lines; plain data without rules."""

from decimal import Decimal

import msgspec


class ChargeRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Take money; `reference` is the caller's own name for the purpose."""

    amount: str
    currency: str
    reference: str
    payment_method: str


class RefundRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Give money of a charge back, all or part."""

    amount: str
    currency: str
    reference: str
    charge: str


class Charge(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a charge."""

    charge_id: str
    reference: str
    amount: Decimal
    currency: str
    at: str
    status: str = "succeeded"


class Refund(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a refund."""

    refund_id: str
    charge_id: str
    reference: str
    amount: Decimal
    currency: str
    at: str
    status: str = "succeeded"


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A charge as the look-up shows it."""

    charge_id: str
    reference: str
    amount: Decimal
    currency: str
    at: str
    status: str
    refunded: Decimal
    refunds: tuple[Refund, ...]


class Charges(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a look-up by reference."""

    charges: tuple[Found, ...]


class Movement(msgspec.Struct, frozen=True, kw_only=True):
    """Money that really moved: one line of the ledger."""

    kind: str
    reference: str
    charge_id: str
    amount: Decimal
    currency: str
    at: str


class Entry(Movement, frozen=True, kw_only=True):
    """A line on disk: the movement, and what it takes to answer a repetition of its request after a restart."""

    id: str
    key: str
    fingerprint: str


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why not, for machines and for people."""

    code: str
    message: str


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """The body of every error answer."""

    error: Refusal


class Declined(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the second file: a final no, kept because a repetition gets the same answer."""

    key: str
    fingerprint: str
    refusal: Refusal


class Behaviour(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How it misbehaves with every request; a field that is left out goes back to what it was at the start.

    `refund_failures`: how often the refunds of one reference are answered with 503 before it goes through; `refund_declined`: the code
    with which every refund is refused until told otherwise; `refunds_unchecked`: more may be given back than was charged;
    `charged_amount`: what every charge takes, and says that it took; `answered_amount`: what it says, whatever it took;
    `keep_errors`: the first answer under a key is kept, an error included, and repeated for as long as the process lives (not shown
    while it is left out).
    """

    delay_s: float | None = None
    failure_rate: float = 0.0
    ignore_idempotency_keys: bool = False
    down: bool = False
    refund_failures: int = 0
    refund_declined: str | None = None
    refunds_unchecked: bool = False
    charged_amount: Decimal | None = None
    answered_amount: Decimal | None = None
    keep_errors: bool | msgspec.UnsetType = msgspec.UNSET
