"""Compares the clocks of both databases and of this machine; it must not know what a difference would do."""

import time
from typing import Final

import msgspec

from sagapost_ops import database

LIMIT_S: Final = 5.0
_CLOCK: Final = "SELECT extract(epoch FROM clock_timestamp())::float8"
_LOOKS: Final = 3


class Skew(msgspec.Struct, frozen=True, kw_only=True):
    """How far each database's clock is ahead of this machine's, and order's of payment's; in seconds, to within `within_s`."""

    order_s: float
    payment_s: float
    apart_s: float
    within_s: float

    def sentences(self) -> tuple[str, ...]:
        """Return a sentence for each difference above `LIMIT_S`."""
        said = []
        if abs(self.apart_s) - self.within_s > LIMIT_S:
            said.append(f"the order database's clock is {_text(self.apart_s)} of the payment database's: set both by NTP")
        for name, ahead_s in (("order", self.order_s), ("payment", self.payment_s)):
            if abs(ahead_s) - self.within_s > LIMIT_S:
                said.append(f"the {name} database's clock is {_text(ahead_s)} of this machine's: set both by NTP")
        return tuple(said)


def compare(order: database.Connection, payment: database.Connection) -> Skew:
    """Read both clocks; of several looks the quickest counts."""
    (order_s, order_within), (payment_s, payment_within) = _ahead(order), _ahead(payment)
    return Skew(
        order_s=round(order_s, 3),
        payment_s=round(payment_s, 3),
        apart_s=round(order_s - payment_s, 3),
        within_s=round(order_within + payment_within, 3),
    )


def _ahead(conn: database.Connection) -> tuple[float, float]:
    looks = [_look(conn) for _ in range(_LOOKS)]
    return min(looks, key=lambda look: look[1])


def _look(conn: database.Connection) -> tuple[float, float]:
    began = time.time()
    row = conn.execute(_CLOCK).fetchone()
    ended = time.time()
    return (float(row[0]) if row else began) - (began + ended) / 2, (ended - began) / 2


def _text(ahead_s: float) -> str:
    return f"{abs(ahead_s):,.1f} s {'ahead' if ahead_s > 0 else 'behind'}"
