"""`bench`: runs what the checkout's benchmarks folder measures; the measuring itself lies there, and is no part of an installation."""

import importlib
import pathlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Final

import rich_click as click

from sagapost_ops import errors, screen, state
from sagapost_ops.commands import options
from sagapost_sandbox import errors as sandbox_errors
from sagapost_sandbox import packages

MEASURES: Final = (
    "drain",
    "latency",
    "contention",
    "unroutable",
    "beside_unroutable",
    "held_snapshot",
    "held_write",
    "backlog",
    "relays",
    "cost",
)


@click.group(
    help="""Measure, beside what others do, on servers of its own.

    \b
    ./sagapost bench relay --quick
    ./sagapost bench relay --only drain,latency --repeat 3
    """
)
def command() -> None:
    """Choose a benchmark."""


def _only(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...]:
    chosen = tuple(value.split(",")) if value else MEASURES
    if unknown := [name for name in chosen if name not in MEASURES]:
        raise click.BadParameter(f"{', '.join(unknown)} is not measured; choose from {', '.join(MEASURES)}")
    return chosen


@command.command(
    help="""Measure the relay: drain, latency, order, and what holds it up, beside a ceiling, the usual recipe and other packages.

    PostgreSQL and RabbitMQ are started for it and go with it; report, chart and raw samples lie in --out. A whole run takes
    about an hour, --quick some minutes.

    \b
    ./sagapost bench relay --quick
    ./sagapost bench relay --only drain --contenders sagapost,skip_locked
    """
)
@click.option("--quick", is_flag=True, help="Once, and about a tenth of everything: a smoke test.")
@click.option("--only", callback=_only, metavar="NAMES", help=f"Some of: {', '.join(MEASURES)}.")
@click.option("--contenders", metavar="NAMES", default="", help="Only these, by the names in the report.")
@click.option("--repeat", type=click.IntRange(1, 100), default=5, show_default=True, help="Repetitions; the report shows medians.")
@click.option("--rows", type=click.IntRange(1000, 1_000_000), default=30_000, show_default=True, help="Rows of a drain.")
@click.option("--bytes", "size_bytes", type=click.IntRange(200, 100_000), default=300, show_default=True, help="Size of a body.")
@click.option("--seconds", type=options.FloatRange(1, 600), default=10.0, show_default=True, help="How long a writer writes at each rate.")
@click.option("--infra", type=click.Choice(("native", "docker")), default="native", show_default=True, help="Where the servers come from.")
@click.option("--out", type=click.Path(file_okay=False, path_type=pathlib.Path), help="Folder of the report; default: benchmarks/results.")
@options.as_json
def relay(
    *,
    quick: bool,
    only: tuple[str, ...],
    contenders: str,
    repeat: int,
    rows: int,
    size_bytes: int,
    seconds: float,
    infra: str,
    out: pathlib.Path | None,
    as_json: bool,
) -> None:
    """Hand over to benchmarks/relay and print what it found."""
    run, bench, report = _modules(infra, "run", "bench", "report")
    asked = bench.Options(repeat=repeat, rows=rows, size_bytes=size_bytes, seconds=seconds, infra=infra)
    options.check_folder(out or run.RESULTS)
    home = state.folder(0)
    state.prepare(home)
    try:
        raw, path = run.run(
            run.quick(asked) if quick else asked,
            only,
            tuple(filter(None, contenders.split(","))),
            out=out or run.RESULTS,
            home=home / "bench-venv",
            command=f"./sagapost {' '.join(sys.argv[1:])}",
            show=screen.err().is_terminal,
        )
    except sandbox_errors.SandboxError as exc:
        raise errors.UnfitError(str(exc)) from exc
    if as_json:
        screen.json(raw.summary | {"report": str(path)})
    else:
        _say(report.goal_rows(raw.samples), path)
    if not any(one.contender == "sagapost" and one.values for one in raw.samples):
        raise errors.FailedError(f"Sagapost's own relay could not be measured; {path} says why")


def _modules(infra: str, *names: str) -> Sequence[ModuleType]:
    """Import the benchmark from the checkout.

    Raises:
        UnfitError: this is no checkout, or the machine lacks the servers.

    """
    root = state.checkout()
    if not (root / "benchmarks" / "relay").is_dir():
        raise errors.UnfitError("there are no benchmarks here; run this from a checkout of the repository")
    if infra == "native":
        try:
            packages.ensure(lambda line: screen.err().line(line))
        except sandbox_errors.SandboxError as exc:
            raise errors.UnfitError(str(exc)) from exc
    sys.path.insert(0, str(root))
    return [importlib.import_module(f"benchmarks.relay.{name}") for name in names]


def _say(goals: Sequence[Sequence[str]], path: pathlib.Path) -> None:
    console = screen.out()
    console.table(("figure", "goal", "measured", "reached"), [row for row in goals if row[3] != "-"])
    console.spaced(f"{path}")
