"""How far the clocks of the order service and of payment's database are apart, as arriving messages show; it must not know the saga."""

import time
from collections.abc import Mapping
from typing import Final

import prometheus_client

from sagapost_chassis import consuming
from sagapost_contracts import events

WINDOW_S: Final = 30.0
_BUCKET_S: Final = 5.0

SKEW: Final = prometheus_client.Gauge(
    "sagapost_clock_skew_seconds", "Clock of payment's database minus clock of the order service or its database, whichever is further off"
)


class Skew:
    """The estimate of one process.

    A message shows two times of the order side: when the order service sent it (the envelope), and when its database stored the order
    (`pay_before` minus `pay_within_s`). By how much payment's database is later is the skew plus the time that the message took. That
    time is never negative, so that the least difference of the last `WINDOW_S` seconds is the estimate: a queue only adds. While all
    messages come out of a long queue, after an outage, the estimate is too high by the time of the quickest.
    """

    def __init__(self, max_s: float) -> None:
        self._max_s = max_s
        self._ahead_s: float | None = None  # payment's database, compared with this process
        self._least: dict[str, dict[int, float]] = {}

    def set_clock(self, database_s: float) -> None:
        """Store what payment's database says that the time is, in seconds since 1970."""
        self._ahead_s = database_s - time.time()

    def observe(self, delivery: consuming.Delivery) -> None:
        """Compare a message's times with the clock of payment's database; nothing is known before that was asked."""
        if self._ahead_s is None:
            return
        now_s = time.time() + self._ahead_s
        self.note("service", now_s - delivery.time.timestamp(), time.monotonic())
        order = delivery.message
        if isinstance(order, events.OrderCreated) and order.pay_within_s is not None:
            self.note("database", now_s - (order.pay_before.timestamp() - order.pay_within_s), time.monotonic())
        SKEW.set(self.estimate_s())

    def note(self, clock: str, later_s: float, at_s: float) -> None:
        """Store one difference; `at_s` is the time of a clock that only goes forward."""
        least, bucket = self._least.setdefault(clock, {}), int(at_s / _BUCKET_S)
        least[bucket] = min(later_s, least.get(bucket, later_s))
        for old in [known for known in least if known <= bucket - WINDOW_S / _BUCKET_S]:
            del least[old]

    def estimate_s(self) -> float:
        """Return the seconds that payment's database is ahead of the clock that differs most; 0 while no message has come."""
        return max((min(least.values()) for least in self._least.values()), key=abs, default=0.0)

    async def check(self) -> bool:
        """Return whether the clocks are close enough."""
        return abs(self.estimate_s()) <= self._max_s

    def observing(self, routes: Mapping[type[events.Message], consuming.Handler]) -> dict[type[events.Message], consuming.Handler]:
        """Return handlers that first compare the clocks."""
        return {cls: self._observing(handle) for cls, handle in routes.items()}

    def _observing(self, handle: consuming.Handler) -> consuming.Handler:
        async def handler(delivery: consuming.Delivery) -> None:
            self.observe(delivery)
            await handle(delivery)

        return handler
