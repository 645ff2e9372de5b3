"""`load`: checkouts at a fixed rate through the gateway, whatever the answers do, with a journal, figures and a report."""

import asyncio
import itertools
import secrets
import time
from pathlib import Path

import rich_click as click

from sagapost_ops import environment, errors, own_stack, screen, state, targets
from sagapost_ops.commands import options
from sagapost_ops.load import figures, journal, page, planning, sending, session, shop


def _mix(_: click.Context, __: click.Parameter, value: str) -> dict[str, float]:
    try:
        return planning.mix(value)
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from exc


@click.command(
    help=f"""Send checkouts at a fixed rate and measure what a customer would see of them.

    Arrivals are planned beforehand and do not wait for answers; a checkout's time counts from its planned moment, so that a slow
    server cannot hide by being asked less. Each has an Idempotency-Key of its own. A call whose connection broke, that timed out or
    that was answered with a 5xx is unknown, and is repeated with the same key until it is known. Then every saga is watched to its end.

    --mix names what the customers do, with weights: {", ".join(planning.METHODS)}.

    Works only on a running development stack of this checkout: it makes real orders. SAGAPOST_API_KEY is sent when it is set.
    Exit code 1 when an outcome stayed unknown, a saga did not end, or a saga's version fell. Ctrl-C ends it early and still reports.

    \b
    ./sagapost load --rps 50 --for 30
    ./sagapost load --rps 200 --for 60 \\
      --mix ok=90,declined=10 --report out.html
    ./sagapost load --rps 20 --for 10 --json | jq .accept_ms
    """
)
@click.option("--rps", type=options.FloatRange(0.1, 5000), required=True, metavar="N", help="Checkouts a second.")
@click.option("--for", "for_s", type=options.FloatRange(0.1, 86_400), required=True, metavar="S", help="Seconds.")
@click.option("--mix", callback=_mix, default="ok=100", show_default=True, metavar="MIX", help="What the customers do: ok=90,declined=10.")
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Write a page with charts; it needs no network.")
@click.option("--journal", "journal_path", type=click.Path(dir_okay=False, path_type=Path), help="File of the journal; otherwise in logs.")
@click.option("--seed", type=click.IntRange(0), help="Repeat the arrivals of another run.")
@click.option("--even", is_flag=True, help="Even gaps between arrivals instead of random ones (Poisson).")
@click.option(
    "--settle",
    "settle_s",
    type=options.FloatRange(0, 86_400),
    default=120,
    show_default=True,
    metavar="S",
    help="Seconds to wait for ends.",
)
@options.port_offset
@options.as_json
def command(
    *,
    rps: float,
    for_s: float,
    mix: dict[str, float],
    report: Path | None,
    journal_path: Path | None,
    seed: int | None,
    even: bool,
    settle_s: float,
    port_offset: int,
    as_json: bool,
) -> None:
    """Send, watch, report."""
    url = targets.need(own_stack.find("load", port_offset), "gateway_url")
    options.check_file(report)
    options.check_file(journal_path)
    chosen = secrets.randbelow(1_000_000) if seed is None else seed
    name = f"load-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"
    planned = itertools.takewhile(lambda one: one.at_s < for_s, planning.checkouts(mix, rps, seed=chosen, run=name, even=even))
    wanted = session.Wanted(planned=planned, rate_per_s=rps, expected=round(rps * for_s), settle_s=settle_s)
    with journal.Journal(journal_path or _journal_of(port_offset, name)) as book:
        load = asyncio.run(_load(url, book, wanted))
    found = figures.figures(load)
    if report is not None:
        how = f"./sagapost load --rps {rps:g} --for {for_s:g} --mix {_text(mix)} --seed {chosen}{' --even' if even else ''}"
        charts = (figures.progress(load, "How far the checkouts had come"), figures.answers(load))
        report.write_text(page.page("Load", how, found, charts), encoding="utf-8")
    if as_json:
        screen.json(found)
    else:
        _show(found, report, chosen)
    _judge(found, interrupted=load.stop.is_set())


async def _load(url: str, book: journal.Journal, wanted: session.Wanted) -> sending.Load:
    async with shop.Shop(url, token=environment.read(environment.API_KEY)) as counter:
        load = sending.Load(counter, book)
        with session.interruptible(load):
            await session.hold(load, wanted, screen.err())
    return load


def _journal_of(port_offset: int, name: str) -> Path:
    logs = state.folder(port_offset) / "logs"
    return (logs if logs.is_dir() else Path.cwd()) / f"{name}.jsonl"


def _text(mix: dict[str, float]) -> str:
    return ",".join(f"{kind}={weight:g}" for kind, weight in mix.items())


def _show(found: figures.Figures, report: Path | None, seed: int) -> None:
    console = screen.out()
    rows = [
        (name, *(f"{value:,.1f}" for value in (times.p50, times.p95, times.p99, times.max)))
        for name, times in (("until the 202", found.accept_ms), ("until the end", found.end_to_end_ms))
    ]
    console.table(("milliseconds", "p50", "p95", "p99", "max"), rows)
    console.spaced(f"a second: offered {found.offered_per_s:g}, accepted {found.accepted_per_s:g}, completed {found.completed_per_s:g}")
    console.table(("outcome", "checkouts"), [(name, f"{number:,}") for name, number in found.outcomes.items()])
    if found.errors:
        console.table(("failed calls", ""), [(name, f"{number:,}") for name, number in found.errors.items()])
    console.spaced(f"seed {seed}, journal {found.journal}{f', report {report}' if report else ''}")


def _judge(found: figures.Figures, *, interrupted: bool) -> None:
    """Fail unless everything is known and has ended, as far as there was time for it.

    Raises:
        FailedError: says what is not.

    """
    if found.went_back:
        raise errors.FailedError(f"{found.went_back} sagas showed an older version than before; the journal names them")
    if found.unsettled and not interrupted:
        raise errors.FailedError(
            f"{found.unsettled} checkouts are unknown or have not ended; the journal names them, ./sagapost saga list too"
        )
