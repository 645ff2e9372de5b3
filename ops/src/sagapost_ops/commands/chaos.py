"""`chaos`: a campaign of kill -9 on a stack of its own, and the proof that every order came out of it whole."""

import asyncio
import secrets
import time
from pathlib import Path
from typing import Final

import msgspec
import rich_click as click

from sagapost_ops import errors, own_stack, plan, screen, state, supervisor
from sagapost_ops.chaos import campaign, report, schedule
from sagapost_ops.commands import down, options
from sagapost_ops.load import planning
from sagapost_sandbox import errors as sandbox_errors
from sagapost_sandbox import packages, ports

OFFSET: Final = 4000


def _mix(_: click.Context, __: click.Parameter, value: str) -> dict[str, float]:
    try:
        return planning.mix(value)
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from exc


@click.command(
    help=f"""Kill every process again and again while customers check out, then prove that no order was lost or doubled.

    A stack of its own is started on ports {OFFSET} higher and taken down at the end. Under an open-loop load, kill -9 hits gateway,
    order, payment, email, both relays, both databases and the broker, and processes die at every named crash point. Provider
    and mailbox live on: their ledgers are the truth. Then everything runs again, each saga must end, and the journal of the
    customers is compared with both databases, the provider's ledger and the mailbox, beside all invariants of verify.

    The seed decides what dies, where and how long after what; how fast this machine starts a process again it does not decide.
    Exit code 0 only when nothing is lost or doubled and every planned crash point fired. Report, chart and JSON lie in --out.

    \b
    ./sagapost chaos --seed 1 --checkouts 300 --kills 30
    ./sagapost chaos --seed 7 --checkouts 10000 --kills 1000   # 20 minutes
    ./sagapost chaos --seed 7 --kills 30 --keep --json | jq .reasons
    """
)
@click.option("--seed", type=click.IntRange(0), help="Repeat the schedule of another run.")
@click.option("--checkouts", type=click.IntRange(1, 1_000_000), default=300, show_default=True, metavar="N", help="At least so many.")
@click.option("--kills", type=click.IntRange(1, 100_000), default=30, show_default=True, metavar="K", help="At least so many deaths.")
@click.option("--minutes", type=options.FloatRange(0.2, 600), metavar="M", help="How long; otherwise as the kills need.")
@click.option("--points", type=click.IntRange(0, 10_000), metavar="N", help="How often each crash point; otherwise one in 50 kills.")
@click.option("--mix", callback=_mix, default=schedule.MIX, show_default=True, metavar="MIX", help="What the customers do.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder of the report; default: benchmarks/results.")
@click.option("--keep", is_flag=True, help="Keep data and logs, and say how to look at them.")
@click.option(
    "--port-offset",
    type=click.IntRange(1, plan.HIGHEST_OFFSET),
    default=OFFSET,
    show_default=True,
    metavar="N",
    help="Where its own stack stands.",
)
@options.as_json
def command(
    *,
    seed: int | None,
    checkouts: int,
    kills: int,
    minutes: float | None,
    points: int | None,
    mix: dict[str, float],
    out: Path | None,
    keep: bool,
    port_offset: int,
    as_json: bool,
) -> None:
    """Run a campaign, write its report, fail when a promise was broken."""
    own_stack.refuse_production("chaos")
    own_stack.refuse_addresses("chaos")
    folder = out or state.checkout() / "benchmarks" / "results"
    options.check_folder(folder)
    chosen = secrets.randbelow(1_000_000) if seed is None else seed
    wanted = campaign.Wanted(
        seed=chosen,
        checkouts=checkouts,
        minutes=minutes or round(schedule.minutes(checkouts, kills), 1),
        mix=mix,
        planned=schedule.plan(chosen, kills, points),
    )
    home = _prepared(port_offset)
    settings = plan.Options(port_offset=port_offset, payment_delay_s=0, email_delay_s=0)
    made = plan.make(settings, plan.choose_ports(settings, ports.next_free), home)
    try:
        with supervisor.alone(home):
            course = asyncio.run(campaign.run(wanted, made, home, screen.err()))
    except supervisor.AlreadyRunningError as exc:
        raise errors.UnfitError("another campaign runs in this folder; choose another --port-offset") from exc
    except sandbox_errors.SandboxError as exc:
        raise errors.UnfitError(f"the stack did not start: {exc}") from exc
    found = report.report(course)
    asked = f"--seed {chosen} --checkouts {checkouts} --kills {kills} --minutes {wanted.minutes:g}"
    asked += f" --points {points}" if points is not None else ""
    asked += f" --mix {found.mix}" if mix != planning.mix(schedule.MIX) else ""
    path = _write(found, course, f"./sagapost chaos {asked}", folder)
    if found.ok and not keep:
        down.remove(home)
    else:
        base = home.with_name(home.name.removesuffix(f"-{port_offset}"))
        look = f"SAGAPOST_STATE={base} ./sagapost up --port-offset {port_offset}"
        screen.err().line(f"Data, logs and the customers' journal stay in {home}; to look at them: {look}")
    _say(found, path, as_json=as_json)


def _prepared(port_offset: int) -> Path:
    """Make the folder of the stack; what an earlier campaign left there goes.

    Raises:
        UnfitError: a stack runs there, a port is taken, or servers are missing.

    """
    usual = state.folder(0)
    home = usual.with_name(f"{usual.name}-chaos-{port_offset}")  # never where `up` keeps somebody's data
    if state.is_supervised(state.read(home)) or state.is_supervised(state.read(state.folder(port_offset))):
        raise errors.UnfitError(f"a stack runs at --port-offset {port_offset}; choose another one")
    for name, port in plan.public_ports(port_offset).items():
        if not ports.is_free(port):
            raise errors.UnfitError(f"{ports.describe_taken(port)}, and {name} needs it; choose another --port-offset")
    try:
        packages.ensure(lambda line: screen.err().line(line))
    except sandbox_errors.SandboxError as exc:
        raise errors.UnfitError(str(exc)) from exc
    down.remove(home)
    state.prepare(home)
    return home


def _write(found: report.Report, course: report.Course, line: str, folder: Path) -> Path:
    name = f"chaos-{time.strftime('%Y-%m-%d', time.gmtime())}-seed-{found.seed}"
    (folder / f"{name}.json").write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    (folder / f"{name}.svg").write_text(report.chart(course, f"Checkouts while everything is killed, seed {found.seed}"), encoding="utf-8")
    (folder / f"{name}.md").write_text(report.markdown(found, line, f"{name}.svg"), encoding="utf-8")
    return folder / f"{name}.md"


def _say(found: report.Report, path: Path, *, as_json: bool) -> None:
    """Print the result.

    Raises:
        FailedError: a promise was broken, or the run proves nothing.

    """
    if as_json:
        screen.json(found)
    else:
        console = screen.out()
        rows = [
            (name.replace("_", " "), f"{getattr(found, name):,}")
            for name in ("checkouts", "accepted", "kills", "lost", "double_charges", "double_refunds", "duplicate_mails", "went_back")
        ]
        console.table(("", ""), rows)
        console.table(("kill -9 of", "times"), [(name, str(number)) for name, number in found.kills_by_process.items()])
        console.table(("died at", "times"), [(name, str(number)) for name, number in found.crash_points.items()])
        console.spaced(f"{path}")
    if not found.ok:
        raise errors.FailedError("; ".join(found.reasons[:5]))
