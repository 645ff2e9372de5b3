"""The report of one run: Markdown tables and a chart; it must not measure anything."""

import pathlib
from collections.abc import Sequence
from typing import Final

import msgspec

from benchmarks.relay import bench as benches
from benchmarks.relay import plot, summary

_NONE: Final = "-"


class About(msgspec.Struct, frozen=True, kw_only=True):
    """Where and how the figures were taken."""

    command: str
    began_at: str
    took_s: float
    machine: dict[str, str]
    settings: dict[str, str]
    versions: dict[str, str]
    contenders: dict[str, str]
    absent: dict[str, str]
    load_before: str


def markdown(figures: summary.Figures, about: About, options: benches.Options, chart: str) -> str:
    """Write the whole report."""
    parts = [
        f"# Relay benchmark, {about.began_at[:10]}",
        f"![drain and latency]({chart})",
        "Medians of the repetitions of one run, contenders in turn. The machine's own speed drifts: compare within a run, quote ratios.",
        "## Goals",
        _table(("figure", "goal", "measured", "reached"), goal_rows(figures.samples)),
        *_tables(figures),
        "## What went wrong",
        "\n".join(f"- {note}" for note in figures.notes()) or "Nothing.",
        "## Who",
        _pairs(about.contenders | _left_out(about), ("contender", "configuration")),
        "## How",
        _method(options),
        "## Where",
        _pairs(about.machine | about.settings | about.versions | _run(about, options), ("what", "value")),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def panels(figures: summary.Figures) -> list[plot.Panel]:
    """Choose what the chart shows: the drain, and both percentiles at each rate."""
    drain = [(name, figures.median("drain", name, "per_s")) for name in figures.contenders("drain")]
    found = [_panel("drain, messages per second (more is better)", drain, "{:,.0f}")]
    for rate in figures.cases("latency"):
        for key in ("p50_ms", "p99_ms"):
            waits = [(name, figures.median("latency", name, key, rate)) for name in figures.contenders("latency")]
            title = f"commit → received at {rate}/s, {key.removesuffix('_ms')} in ms (less is better)"
            found.append(_panel(title, waits, "{:,.1f}", up=False))
    return [panel for panel in found if panel.bars]


def _panel(title: str, values: Sequence[tuple[str, float | None]], shape: str, *, up: bool = True) -> plot.Panel:
    kinds = {summary.OURS: "ours", "ceiling": "bound"}
    known = sorted(((name, value) for name, value in values if value is not None), key=lambda pair: pair[1], reverse=up)
    return plot.Panel(title=title, shape=shape, bars=tuple(plot.Bar(label=n, value=v, kind=kinds.get(n, "other")) for n, v in known))


def goal_rows(samples: Sequence[benches.Sample]) -> list[tuple[str, str, str, str]]:
    """Give the goals as rows: figure, goal, measured, reached."""
    word = {True: "yes", False: "no", None: _NONE}
    return [(one.name, one.goal, one.measured, word[one.reached]) for one in summary.goals(summary.Figures(samples))]


def _tables(figures: summary.Figures) -> list[str]:
    drain = (("per_s", "{:,.0f}"), ("cpu_us", "{:.0f}"), ("wal_bytes", "{:.0f}"), ("since_start_s", "{:.1f}"), ("dead", "{:,.0f}"))
    drained = ("drain/s", "relay CPU µs/msg", "WAL B/msg", "s from start to last", "dead tuples after")
    waits = (("p50_ms", "{:.2f}"), ("p99_ms", "{:.2f}"), ("max_ms", "{:.1f}"), ("written_per_s", "{:.0f}"), ("relay_cpu_percent", "{:.0f}"))
    waited = ("p50 ms", "p99 ms", "max ms", "written/s", "relay CPU %")
    faults = ("events", "lost", "phantoms", "duplicated", "inversions")
    held = (("per_s", "{:,.0f}"), ("p50_ms", "{:.2f}"), ("p99_ms", "{:.2f}"), ("dead", "{:,.0f}"), ("dead_made", "{:,.0f}"))
    holding = ("drain/s", "p50 ms", "p99 ms", "dead tuples", "rows rewritten or deleted")
    volume = (("per_s", "{:,.0f}"), ("cpu_us", "{:.0f}"), ("resident_mib", "{:.0f}"), ("resident_early_mib", "{:.0f}"))
    volumes = ("drain/s", "relay CPU µs/msg", "resident MiB, highest", "early")
    beside = (("p50_ms", "{:.2f}"), ("p99_ms", "{:.2f}"), ("set_aside", "{:.0f}"))
    odd = ("unroutable", "silently_lost", "set_aside", "waiting", "stalled")
    cost = (("outbox_per_s", "{:,.0f}"), ("plain_per_s", "{:,.0f}"), ("ratio", "{:.3f}"))
    return [
        _section(figures, "Drain", "drain", drain, drained),
        _section(figures, "Commit → received", "latency", (*waits, ("idle_cpu_percent", "{:.1f}")), (*waited, "relay CPU % idle")),
        _section(figures, "Contention", "contention", tuple((key, "{:,.0f}") for key in faults), faults),
        _section(figures, "Unroutable", "unroutable", tuple((key, "{:.0f}") for key in odd), odd),
        _section(figures, "Beside unroutable rows, 200/s", "beside_unroutable", beside, ("p50 ms", "p99 ms", "set aside")),
        _section(figures, "Another session holds a snapshot", "held_snapshot", held, holding),
        _section(figures, "Another session holds a write transaction", "held_write", held, holding),
        _section(figures, "Backlog", "backlog", volume, volumes),
        _section(figures, "Relays side by side", "relays", volume[:2], volumes[:2]),
        _section(figures, "Producer's cost", "cost", cost, ("with outbox.add, tx/s", "with a plain insert, tx/s", "ratio")),
    ]


def _section(figures: summary.Figures, title: str, measure: str, keys: Sequence[tuple[str, str]], names: Sequence[str]) -> str:
    """Make a table with a row for each contender and case; nothing when it was not measured."""
    rows: list[tuple[str, ...]] = []
    for case in figures.cases(measure):
        for name in figures.contenders(measure):
            values = [figures.median(measure, name, key, case) for key, _ in keys]
            if any(value is not None for value in values):
                shown = [_NONE if value is None else shape.format(value) for value, (_, shape) in zip(values, keys, strict=True)]
                rows.append((name, case or _NONE, *shown))
    return f"## {title}\n\n{_table(('', 'case', *names), rows)}" if rows else ""


def _method(options: benches.Options) -> str:
    template = pathlib.Path(__file__).with_name("method.md").read_text(encoding="utf-8")
    return template.format(size_bytes=options.size_bytes, rows=options.rows).strip()


def _run(about: About, options: benches.Options) -> dict[str, str]:
    asked = ", ".join(f"{name} {value}" for name, value in msgspec.to_builtins(options).items())
    return {"load before": about.load_before, "command": f"`{about.command}`", "options": asked, "took": f"{about.took_s:.0f} s"}


def _left_out(about: About) -> dict[str, str]:
    return {name: f"**left out**: {reason}" for name, reason in about.absent.items()}


def _pairs(found: dict[str, str], head: tuple[str, str]) -> str:
    return _table(head, list(found.items()))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    return "\n".join(lines + ["| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows])
