"""Exact money: a decimal amount with at most two places and an ISO currency; it must not know any provider's minor units."""

import re
from decimal import Decimal
from typing import Final

import msgspec

CURRENCY: Final = "USD"
_AMOUNT: Final = re.compile(r"\A(?:0|[1-9][0-9]{0,9})(?:\.[0-9]{1,2})?\Z")
_CENT: Final = Decimal("0.01")


def parse_amount(text: object) -> Decimal:
    """Read a decimal string of at most 12 digits, two of them after the point, as NUMERIC(12,2) holds it.

    Raises:
        ValueError: a float, a sign, an exponent, a space, NaN, or more digits than fit.

    """
    if isinstance(text, Decimal):
        text = str(text)
    if not isinstance(text, str) or not _AMOUNT.match(text):
        raise ValueError("an amount is a decimal string with at most ten digits and two places")
    return Decimal(text).quantize(_CENT)


class Money(msgspec.Struct, frozen=True, kw_only=True):
    """An amount in one currency; sums refuse another currency."""

    amount: Decimal
    currency: str = CURRENCY

    def __post_init__(self) -> None:
        """Refuse floats, more than two places and unknown currencies, also on decoding."""
        parse_amount(self.amount)
        if self.currency != CURRENCY:
            raise ValueError(f"unknown currency {self.currency!r}")

    def __add__(self, other: "Money") -> "Money":
        if other.currency != self.currency:
            raise ValueError(f"{self.currency} and {other.currency} do not add")
        return Money(amount=self.amount + other.amount, currency=self.currency)

    def __mul__(self, quantity: int) -> "Money":
        return Money(amount=self.amount * quantity, currency=self.currency)
