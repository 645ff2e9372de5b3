"""One run of the relay benchmark from servers to report; how each figure is taken is written in measures/."""

import os
import pathlib
import platform
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from rich import progress

from benchmarks.relay import bench as benches
from benchmarks.relay import contenders, environment, plot, report, running, summary, world
from benchmarks.relay.measures import contention, drain, held, latency, odd, volume

Measure = Callable[[benches.Bench, int], Iterator[benches.Sample]]
MEASURES: Final[Mapping[str, Measure]] = {
    "drain": drain.measure,
    "latency": latency.measure,
    "contention": contention.measure,
    "unroutable": odd.unroutable,
    "beside_unroutable": odd.beside,
    "held_snapshot": held.snapshot,
    "held_write": held.write,
    "backlog": volume.backlog,
    "relays": volume.relays,
    "cost": odd.cost,
}
RESULTS: Final = contenders.ROOT / "benchmarks" / "results"


class Raw(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a report is made of, as it is kept beside it."""

    about: report.About
    options: benches.Options
    summary: dict[str, Any]
    samples: list[benches.Sample]


def quick(options: benches.Options) -> benches.Options:
    """Shrink a run to a smoke test: once, and a tenth of everything."""
    return msgspec.structs.replace(options, repeat=1, rows=min(options.rows, 10_000), backlog_rows=100_000, seconds=3.0, contention_s=4.0)


def run(
    options: benches.Options, only: Sequence[str], names: Sequence[str], *, out: pathlib.Path, home: pathlib.Path, command: str, show: bool
) -> tuple[Raw, pathlib.Path]:
    """Measure, and leave report, chart and raw samples in `out`; give the samples and the report's path.

    `home` is where the peers' environment is kept. Everything that was started is ended, also on SIGINT and SIGTERM.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began, began_s = datetime.now(UTC), time.monotonic()
    load = " ".join(f"{one:.2f}" for one in os.getloadavg())
    everyone, absent = _everyone(home, names)
    with _progress(show) as bars, world.open_world(options.infra) as here:
        task = bars.add_task("starting", total=options.repeat * len(only))
        templates: dict[str, str] = {}
        for one in everyone:
            try:
                templates[one.name] = running.prepare(one, here, options.size_bytes)
            except running.ContenderError as exc:
                absent[one.name] = str(exc)
        bench = benches.Bench(
            options=options,
            world=here,
            contenders=tuple(one for one in everyone if one.name in templates),
            templates=templates,
            tell=lambda line: bars.update(task, description=line),
        )
        settings, samples = here.settings(), list(_measure(bench, only, lambda: bars.advance(task)))
    about = report.About(
        command=command,
        began_at=began.isoformat(timespec="seconds"),
        took_s=time.monotonic() - began_s,
        machine=_machine(),
        settings=settings,
        versions=environment.versions(),
        contenders={one.name: one.note for one in bench.contenders},
        absent=absent,
        load_before=load,
    )
    figures = summary.Figures(samples)
    raw = Raw(about=about, options=options, summary=summary.document(figures), samples=samples)
    return raw, write(raw, out)


def write(raw: Raw, out: pathlib.Path) -> pathlib.Path:
    """Leave report, chart and raw samples in a folder; give the report's path."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"relay-{raw.about.began_at[:10]}.md"
    figures = summary.Figures(raw.samples)
    path.with_suffix(".json").write_bytes(msgspec.json.format(msgspec.json.encode(raw), indent=1) + b"\n")
    path.with_suffix(".svg").write_text(plot.svg(report.panels(figures)), encoding="utf-8")
    path.write_text(report.markdown(figures, raw.about, raw.options, path.with_suffix(".svg").name), encoding="utf-8")
    return path


def _measure(bench: benches.Bench, only: Sequence[str], advance: Callable[[], None]) -> Iterator[benches.Sample]:
    drain.warm_up(bench)
    for name in only:
        for repeat in range(bench.options.repeat):
            yield from MEASURES[name](bench, repeat)
            advance()


def _everyone(home: pathlib.Path, names: Sequence[str]) -> tuple[list[contenders.Contender], dict[str, str]]:
    """List the contenders that were asked for, and those that cannot take part with the reason."""
    found, absent = [contenders.SAGAPOST, contenders.SKIP_LOCKED, contenders.HORIZON], dict[str, str]()
    peers = contenders.peers(home / "bin" / "python")
    if not names or any(one.name in names for one in peers):
        try:
            found += contenders.peers(environment.ensure(home))
        except environment.MissingError as exc:
            absent = {one.name: f"could not be installed: {exc}" for one in peers}
    return [one for one in found if not names or one.name in names], absent


def _machine() -> dict[str, str]:
    cpus = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    model = next((line.partition(":")[2].strip() for line in cpus if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return {
        "processor": f"{os.cpu_count()} of {model}",
        "memory": f"{memory:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
    }


def _progress(show: bool) -> progress.Progress:
    columns = (progress.SpinnerColumn(), progress.TextColumn("{task.description}"), progress.BarColumn(), progress.TimeElapsedColumn())
    return progress.Progress(*columns, disable=not show, transient=True)
