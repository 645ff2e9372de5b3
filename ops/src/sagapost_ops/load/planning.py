"""When each checkout is to be made and how it is paid, decided by a seed before anything is sent; it must not know any server."""

import random
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

METHODS: Final = {
    "ok": "pm_card_ok",
    "declined": "pm_card_declined",
    "insufficient": "pm_card_insufficient_funds",
    "flaky": "pm_flaky",
    "slow": "pm_slow",
    "hang": "pm_hang",
    "late": "pm_late",
    "error_after_charge": "pm_error_after_charge",
    "cancelled": "pm_card_ok",
}
CANCELLED: Final = "cancelled"
CANCEL_WITHIN_S: Final = 3.0
# what the catalogue is seeded with; a price that has changed is refused with 422
_CARTS: Final = (((1, 1, "1299.99"),), ((2, 1, "49.99"),), ((3, 1, "149.99"), (2, 2, "49.99")))


class Dice(random.Random):
    """Chance that a seed repeats; never for secrets."""


class Checkout(msgspec.Struct, frozen=True, kw_only=True):
    """One planned checkout: `at_s` after the beginning; a cancelled one is cancelled `cancel_after_s` after its answer."""

    number: int
    at_s: float
    kind: str
    key: str
    cancel_after_s: float = 0.0

    def body(self) -> dict[str, object]:
        """Give what is sent, the same at each repetition."""
        items = [
            {"product_id": product, "quantity": number, "price": price} for product, number, price in _CARTS[self.number % len(_CARTS)]
        ]
        buyer = {"user_id": self.number + 1, "user_email": f"buyer-{self.number}@example.com"}
        return {**buyer, "items": items, "payment_method": METHODS[self.kind]}


def mix(text: str) -> dict[str, float]:
    """Read `ok=90,declined=10`: the weight of each kind.

    Raises:
        ValueError: says which part is wrong, and what the kinds are.

    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = part.strip().partition("=")
        if name not in METHODS or name in weights:
            raise ValueError(f"{name!r} is none of {', '.join(METHODS)}, or stands there twice")
        try:
            weights[name] = float(weight or "nan")
        except ValueError:
            weights[name] = -1
        if not 0 <= weights[name] < float("inf"):
            raise ValueError(f"{part.strip()!r} is not name=number")
    if not sum(weights.values()):
        raise ValueError("one weight at least must be above 0")
    return weights


def checkouts(weights: Mapping[str, float], rate_per_s: float, *, seed: int, run: str, even: bool = False) -> Iterator[Checkout]:
    """Plan checkouts without end: Poisson arrivals, or even ones; `run` makes the keys differ from those of another run."""
    dice = Dice(seed)
    kinds, shares = list(weights), list(weights.values())
    at_s = 0.0
    number = 0
    while True:
        at_s += 1 / rate_per_s if even else dice.expovariate(rate_per_s)
        (kind,) = dice.choices(kinds, shares)
        pause_s = dice.uniform(0, CANCEL_WITHIN_S) if kind == CANCELLED else 0.0
        yield Checkout(number=number, at_s=at_s, kind=kind, key=f"{run}-{number}", cancel_after_s=pause_s)
        number += 1
