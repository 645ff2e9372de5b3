"""What the relay tells Prometheus."""

import bisect
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import prometheus_client
from prometheus_client import core, registry

from sagapost_relay.blocks import Row

PUBLISHED: Final = prometheus_client.Counter("sagapost_relay_published_total", "Rows confirmed by the broker")
RETURNED: Final = prometheus_client.Counter("sagapost_relay_returned_total", "Rows that no queue was bound for")
NACKED: Final = prometheus_client.Counter("sagapost_relay_nacked_total", "Rows that a queue rejected")
REPUBLISHED: Final = prometheus_client.Counter("sagapost_relay_republished_total", "Rows in flight on a channel that died: published again")
RETRIED: Final = prometheus_client.Counter("sagapost_relay_retried_total", "Attempts for rows that were set aside")
FENCED: Final = prometheus_client.Counter("sagapost_relay_fenced_total", "Shards found in another relay's hands")
ROTATIONS: Final = prometheus_client.Counter("sagapost_relay_rotations_total", "Turns of the ring")
ROTATION_BLOCKED: Final = prometheus_client.Gauge("sagapost_relay_rotation_blocked", "1 while the ring is due to turn and cannot")
BROKER_BLOCKED: Final = prometheus_client.Gauge("sagapost_relay_broker_blocked", "1 while the broker takes no messages (an alarm)")
EPOCH: Final = prometheus_client.Gauge("sagapost_relay_lease_epoch", "Fencing token of each shard held here", ["shard"])
UNSERVED: Final = prometheus_client.Gauge(
    "sagapost_relay_shards_unserved", "Shards of this database that no relay holds under a lease that can be believed"
)
BACKLOG: Final = prometheus_client.Gauge("sagapost_relay_backlog_rows", "Rows not settled yet, counted up to 10,000", ["shard"])
OLDEST: Final = prometheus_client.Gauge("sagapost_relay_oldest_unconfirmed_seconds", "Age of the first row not settled yet", ["shard"])
PARKED: Final = prometheus_client.Gauge("sagapost_relay_parked_rows", "Rows set aside, by state and reason", ["state", "reason"])


class Latency(registry.Collector):
    """A histogram that takes a whole block at once: observing row by row would cost as much as encoding it."""

    BOUNDS: Final = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0)

    def __init__(self) -> None:
        self._counts = [0] * (len(self.BOUNDS) + 1)
        self._sum_s = 0.0

    def observe(self, rows: Sequence[Row]) -> None:
        """Count how long ago these rows were made."""
        now = time.time()
        for row in rows:
            age_s = now - row.created_s
            self._counts[bisect.bisect_left(self.BOUNDS, age_s)] += 1
            self._sum_s += age_s

    def collect(self) -> Iterable[core.Metric]:
        """Give the histogram in Prometheus' cumulative form."""
        totals: Iterator[int] = itertools.accumulate(self._counts)
        bounds = [*(str(bound) for bound in self.BOUNDS), "+Inf"]
        yield core.HistogramMetricFamily(
            "sagapost_relay_confirm_seconds",
            "From a row's creation in its transaction to the broker's confirm",
            buckets=list(zip(bounds, totals, strict=True)),
            sum_value=self._sum_s,
        )


LATENCY: Final = Latency()
prometheus_client.REGISTRY.register(LATENCY)
