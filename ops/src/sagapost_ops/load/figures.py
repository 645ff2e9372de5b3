"""What a load's figures are made of: rates, percentiles, outcomes; it must not know how they were gathered or are shown."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from sagapost_ops import plot
from sagapost_ops.load import planning, sending

UNFINISHED = "unfinished"


class Times(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds."""

    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    max: float = 0.0


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What `load --json` prints.

    A checkout's times count from the moment it was planned for, so that waiting for a slow server is not left out. `outcomes` has
    each checkout once; `errors` counts calls. `completed_per_s` is the rate from the first end of a saga to the last.
    """

    offered_per_s: float
    accepted_per_s: float
    completed_per_s: float
    accept_ms: Times
    end_to_end_ms: Times
    outcomes: dict[str, int]
    errors: dict[str, int]
    went_back: int
    journal: str

    @property
    def unsettled(self) -> int:
        """How many checkouts are unknown or have not ended."""
        return self.outcomes.get("unknown", 0) + self.outcomes.get(UNFINISHED, 0)


def percentile(ordered: Sequence[float], share: float) -> float:
    """Give the smallest value that `share` (0 to 1) of all are not above: the nearest rank."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def times(values_ms: Iterable[float]) -> Times:
    """Give the percentiles of some times, to a hundredth of a millisecond."""
    ordered = sorted(values_ms)
    p50, p95, p99 = (round(percentile(ordered, share), 2) for share in (0.5, 0.95, 0.99))
    return Times(p50=p50, p95=p95, p99=p99, max=round(ordered[-1], 2) if ordered else 0.0)


def outcome(course: sending.Course) -> str:
    """Give the one word for a checkout: its saga's last state, refused, unknown, or unfinished."""
    if course.outcome != "ok":
        return course.outcome
    return course.state if course.done else UNFINISHED


def figures(load: sending.Load) -> Figures:
    """Sum a load up."""
    accepted = [course for course in load.courses if course.outcome == "ok"]
    ended = [course for course in accepted if course.done]
    usual = [course for course in ended if course.checkout.kind != planning.CANCELLED]  # a cancellation comes when the customer wants
    return Figures(
        offered_per_s=_per_s(len(load.courses), load.lasted_s),
        accepted_per_s=_per_s(len(accepted), max(load.lasted_s, _span_s(course.accepted_at for course in accepted))),
        completed_per_s=_per_s(len(ended), _span_s(course.ended_at for course in ended) or load.lasted_s),
        accept_ms=times(_ms(course.accepted_at - course.planned_at) for course in accepted),
        end_to_end_ms=times(_ms(course.ended_at - course.planned_at) for course in usual),
        outcomes=dict(sorted(Counter(outcome(course) for course in load.courses).items())),
        errors=dict(sorted(load.errors.items())),
        went_back=sum(course.went_back for course in load.courses),
        journal=str(load.journal.path),
    )


def progress(load: sending.Load, title: str) -> plot.Chart:
    """Draw how many checkouts had come how far at each moment; the lines meet where everything has ended."""
    accepted = [course for course in load.courses if course.outcome == "ok"]
    stages = (
        ("accepted", plot.BLUE, _rising(load, (course.accepted_at for course in accepted))),
        ("paid or declined", plot.AMBER, _rising(load, (course.paid_at for course in accepted))),
        ("notified or compensated", plot.GREEN, _rising(load, (course.ended_at for course in accepted))),
    )
    end = max(points[-1][0] for _, _, points in stages)
    lines = tuple(plot.Line(label=label, colour=colour, points=(*points, (end, points[-1][1]))) for label, colour, points in stages)
    return plot.Chart(title=title, x_label="seconds", y_label="checkouts", lines=lines)


def answers(load: sending.Load) -> plot.Chart:
    """Draw the time until the 202 as the load went on."""
    taken = [
        (course.planned_at - load.began_at, _ms(course.accepted_at - course.planned_at)) for course in load.courses if course.accepted_at
    ]
    width_s = max(0.5, load.lasted_s / 100)
    bins: dict[int, list[float]] = {}
    for at, value_ms in taken:
        bins.setdefault(int(at / width_s), []).append(value_ms)
    ordered = [((number + 0.5) * width_s, sorted(values)) for number, values in sorted(bins.items())]
    shares = (("p50", 0.5, plot.GREEN), ("p95", 0.95, plot.AMBER), ("p99", 0.99, plot.RED))
    lines = tuple(
        plot.Line(label=name, colour=colour, points=tuple((at, percentile(values, share)) for at, values in ordered))
        for name, share, colour in shares
    )
    return plot.Chart(title="Time from the planned moment to the 202", x_label="seconds", y_label="milliseconds", lines=lines, height=300)


def _rising(load: sending.Load, moments: Iterable[float]) -> tuple[plot.Point, ...]:
    ordered = sorted(moment - load.began_at for moment in moments if moment)
    return ((0.0, 0.0), *((max(0.0, moment), float(number)) for number, moment in enumerate(ordered, 1)))


def _ms(seconds: float) -> float:
    return max(0.0, seconds * 1000)


def _per_s(number: int, seconds: float) -> float:
    return round(number / seconds, 2) if seconds > 0 else 0.0


def _span_s(moments: Iterable[float]) -> float:
    found = list(moments)
    return max(found) - min(found) if found else 0.0
