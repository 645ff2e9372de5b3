"""From samples to figures: medians, ratios, goals; pure, it must not know how anything was measured."""

import functools
import operator
import statistics
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from benchmarks.relay import bench as benches

OURS: Final = "sagapost"
PEERS: Final = ("txoutbox-tuned", "txoutbox", "faststream-outbox-tuned", "faststream-outbox")
RECIPE: Final = "skip_locked"
RATES: Final = ("200", "1000")
_WRITTEN: Final = 0.97


class Goal(msgspec.Struct, frozen=True, kw_only=True):
    """One figure to reach; `reached` is None when it was not measured."""

    name: str
    goal: str
    measured: str
    reached: bool | None


class Figures:
    """The samples of one run, asked by measure, contender and case."""

    def __init__(self, samples: Iterable[benches.Sample]) -> None:
        self.samples = list(samples)

    def values(self, measure: str, contender: str, key: str, case: str = "") -> list[float]:
        """Every repetition's value."""
        return [
            one.values[key]
            for one in self.samples
            if (one.measure, one.contender, one.case) == (measure, contender, case) and key in one.values
        ]

    def median(self, measure: str, contender: str, key: str, case: str = "") -> float | None:
        """Give the median over the repetitions; None when there is none."""
        found = self.values(measure, contender, key, case)
        return statistics.median(found) if found else None

    def ratio(self, measure: str, key: str, over: tuple[str, str], under: tuple[str, str]) -> float | None:
        """Give the median of the repetitions' ratios between two (contender, case)."""
        pairs = [
            (_of(self.samples, measure, over, repeat, key), _of(self.samples, measure, under, repeat, key))
            for repeat in sorted({one.repeat for one in self.samples})
        ]
        ratios = [upper / lower for upper, lower in pairs if upper is not None and lower]
        return statistics.median(ratios) if ratios else None

    def contenders(self, measure: str) -> list[str]:
        """Who took part, in order of appearance."""
        return list(dict.fromkeys(one.contender for one in self.samples if one.measure == measure))

    def cases(self, measure: str) -> list[str]:
        """Which cases there were, in order."""
        return sorted({one.case for one in self.samples if one.measure == measure}, key=lambda case: (len(case), case))

    def notes(self) -> list[str]:
        """Say what went wrong, a line for each kind."""
        found = {f"{one.measure} {one.case} {one.contender}: {one.note}".replace("  ", " "): None for one in self.samples if one.note}
        return [*found, *self._slow_writers()]

    def _slow_writers(self) -> list[str]:
        """Name the writers that did not write as fast as they should have: those figures are of a lighter load."""
        found: list[str] = []
        for rate in self.cases("latency"):
            for name in self.contenders("latency"):
                written = self.median("latency", name, "written_per_s", rate)
                if written is not None and written < _WRITTEN * float(rate):
                    found.append(f"latency {rate} {name}: its writer wrote {written:.0f}/s only")
        return found

    def wrong(self, contender: str, key: str) -> int:
        """Sum a count of faults over all measures."""
        return int(sum(one.values.get(key, 0) for one in self.samples if one.contender == contender))


def _of(samples: list[benches.Sample], measure: str, who: tuple[str, str], repeat: int, key: str) -> float | None:
    for one in samples:
        if (one.measure, one.contender, one.case, one.repeat) == (measure, *who, repeat):
            return one.values.get(key)
    return None


def document(figures: Figures) -> dict[str, Any]:
    """Give the figures in the shape that `bench relay --json` promises, and more keys."""
    backlog = figures.cases("backlog")
    return {
        "drain": {"per_s": _round(figures.median("drain", OURS, "per_s"))},
        "ceiling": {"per_s": _round(figures.median("drain", "ceiling", "per_s"))},
        "peers": {
            name: {"per_s": _round(figures.median("drain", name, "per_s"))}
            for name in figures.contenders("drain")
            if name not in {OURS, "ceiling"}
        },
        "latency": {
            rate: {key: _round(figures.median("latency", OURS, key, rate), 2) for key in ("p50_ms", "p99_ms")}
            for rate in figures.cases("latency")
        },
        **{held: _held(figures, held) for held in ("held_snapshot", "held_write")},
        "backlog": {"ratio": _round(figures.ratio("backlog", "per_s", (OURS, backlog[-1]), (OURS, backlog[0])), 3) if backlog else None},
        "cost": {"ratio": _round(figures.median("cost", OURS, "ratio"), 3)},
        "relays": {count: {"per_s": _round(figures.median("relays", OURS, "per_s", count))} for count in figures.cases("relays")},
        "unroutable": {"silently_lost": _round(figures.median("unroutable", OURS, "silently_lost"))},
        **{key: figures.wrong(OURS, key) for key in ("lost", "duplicated", "inversions")},
        "goals": goals(figures),
        "notes": figures.notes(),
    }


def _held(figures: Figures, measure: str) -> dict[str, float | None]:
    ratios = {key: figures.ratio(measure, key, (OURS, "with"), (OURS, "without")) for key in ("per_s", "p50_ms", "p99_ms")}
    return {
        "ratio": _round(ratios["per_s"], 3),
        "p50_ratio": _round(ratios["p50_ms"], 3),
        "p99_ratio": _round(ratios["p99_ms"], 3),
        "dead": _round(figures.median(measure, OURS, "dead", "with")),
    }


def goals(figures: Figures) -> list[Goal]:
    """Compare with the figures of the design."""
    best_peer = max((figures.median("drain", name, "per_s") or 0 for name in PEERS), default=0) or None
    ours = figures.median("drain", OURS, "per_s")
    found = [
        _goal("drain, one relay", "≥ 25,000/s", ours, lambda at: at >= 25_000, "{:,.0f}/s"),
        _goal(
            "drain against the best Python peer",
            "≥ 4 times",
            ours / best_peer if ours and best_peer else None,
            lambda at: at >= 4,
            "{:.2f} times",
        ),
        _goal(
            "drain against the SKIP LOCKED recipe",
            "≥ 2.5 times",
            figures.ratio("drain", "per_s", (OURS, ""), (RECIPE, "")),
            lambda at: at >= 2.5,
            "{:.2f} times",
        ),
        _goal(
            "drain against the ceiling (same messages, encoded beforehand)",
            "≥ 60 %",
            figures.ratio("drain", "per_s", (OURS, ""), ("ceiling", "")),
            lambda at: at >= 0.6,
            "{:.0%}",
        ),
    ]
    for rate, p50_ms, p99_ms in (("1000", 2.5, 8.0), ("200", 2.0, 5.0)):
        found += _latency_goals(figures, rate, p50_ms, p99_ms)
    for measure, name in (("held_snapshot", "beside a read-only snapshot"), ("held_write", "beside an open write transaction")):
        held = _held(figures, measure)
        found += [
            _goal(f"throughput {name}", "≥ 95 % of without", held["ratio"], lambda at: at >= 0.95, "{:.1%}"),
            _goal(f"p50 latency {name}", "≤ 105 % of without", held["p50_ratio"], lambda at: at <= 1.05, "{:.1%}"),
            _goal(f"p99 latency {name}", "≤ 105 % of without", held["p99_ratio"], lambda at: at <= 1.05, "{:.1%}"),
            _goal(f"dead tuples of the outbox {name}", "0", held["dead"], lambda at: at == 0, "{:.0f}"),
        ]
    return found + _other_goals(figures)


def _latency_goals(figures: Figures, rate: str, p50_ms: float, p99_ms: float) -> list[Goal]:
    found: list[Goal] = []
    for key, limit_ms in (("p50_ms", p50_ms), ("p99_ms", p99_ms)):
        ours = figures.median("latency", OURS, key, rate)
        name = f"commit → received, {key.removesuffix('_ms')} at {rate}/s"
        found.append(_goal(name, f"≤ {limit_ms:g} ms", ours, functools.partial(operator.ge, limit_ms), "{:.2f} ms"))
        others = [(at, one) for one in PEERS if (at := figures.median("latency", one, key, rate)) is not None]
        if ours is not None and others:
            best, who = min(others)
            measured = f"{ours:.2f} ms against {best:.2f} ms of {who}"
            found.append(Goal(name=f"{name}, ahead of every peer", goal="less", measured=measured, reached=ours < best))
    return found


def _other_goals(figures: Figures) -> list[Goal]:
    backlog = figures.cases("backlog")
    ratio = figures.ratio("backlog", "per_s", (OURS, backlog[-1]), (OURS, backlog[0])) if len(backlog) > 1 else None
    grown = None
    if len(backlog) > 1:
        late, early = (figures.median("backlog", OURS, key, backlog[-1]) for key in ("resident_mib", "resident_early_mib"))
        grown = late / early if late and early else None
    contention = [figures.median("contention", OURS, key) for key in ("lost", "phantoms", "inversions")]
    cost = figures.median("cost", OURS, "ratio")
    lost = figures.median("unroutable", OURS, "silently_lost")
    beside = figures.ratio("beside_unroutable", "p99_ms", (OURS, "with"), (OURS, "without"))
    return [
        _goal(
            "a checkout's transaction against one with a plain insert",
            "≥ 95 %",
            cost,
            lambda at: at >= 0.95,
            "{:.1%}",
        ),
        _goal("a large backlog's rate against a small one's", "≥ 80 %", ratio, lambda at: at >= 0.8, "{:.1%}"),
        _goal("resident memory in the large backlog, highest against early", "flat (≤ 110 %)", grown, lambda at: at <= 1.1, "{:.0%}"),
        _goal("inversions, losses and phantoms under contention", "0", _sum(contention), lambda at: at == 0, "{:.0f}"),
        _goal("unroutable, silently lost", "0 of 30", lost, lambda at: at == 0, "{:.0f}"),
        _goal("p99 latency of others beside unroutable rows", "≤ 105 % of without", beside, lambda at: at <= 1.05, "{:.1%}"),
        Goal(name="kill -9, SIGSTOP, TCP cut", goal="0 lost, 0 inversions", measured="by the fault tests, not here", reached=None),
    ]


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _goal(name: str, goal: str, value: float | None, test: Callable[[float], bool], shape: str) -> Goal:
    if value is None:
        return Goal(name=name, goal=goal, measured="not measured", reached=None)
    return Goal(name=name, goal=goal, measured=shape.format(value), reached=test(value))


def _round(value: float | None, digits: int = 0) -> float | None:
    if value is None:
        return None
    return round(value, digits) if digits else round(value)
