"""A campaign's result as JSON, Markdown and a chart; it must not run or judge anything."""

import math
import os
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from sagapost_ops import plot, verify
from sagapost_ops.chaos import faults, judging, rig, schedule
from sagapost_ops.load import figures, sending

_COLOURS: Final = {"order-db": plot.BLUE, "payment-db": plot.AMBER, "rabbitmq": plot.RED}


class Recovery(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds from the moment a server's port took work again, over the outages beside which nothing else was killed."""

    measured: int
    median_s: float | None
    max_s: float | None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What `chaos --json` prints; ok only when nothing was lost or doubled and every planned crash point fired."""

    ok: bool
    seed: int
    checkouts: int
    kills: int
    crash_points: dict[str, int]
    lost: int
    double_charges: int
    double_refunds: int
    duplicate_mails: int
    unexplained_mails: int
    mail_gap_deaths: int
    invented: int
    contradicted: int
    unknown: int
    went_back: int
    reasons: tuple[str, ...]
    minutes: float
    settled_s: float
    kills_by_process: dict[str, int]
    planned_points: dict[str, int]
    first_202: Recovery
    first_confirm: Recovery
    dead_letters_made: int
    accepted: int
    outcomes: dict[str, int]
    errors: dict[str, int]
    accept_ms: figures.Times
    end_to_end_ms: figures.Times
    invariants: tuple[verify.Invariant, ...]
    mix: str
    versions: dict[str, str]
    cores: int
    load_before: float


class Course(msgspec.Struct, frozen=True, kw_only=True):
    """What a campaign left behind: enough to report on it; `load_before` is the machine's load average when it began."""

    seed: int
    mix: str
    planned: schedule.Schedule
    done: faults.Faults
    lives: tuple[rig.Life, ...]
    load: sending.Load
    settled_s: float
    verdict: judging.Verdict
    invariants: verify.Report
    versions: dict[str, str]
    load_before: float


def report(course: Course) -> Report:
    """Put the result together."""
    found, verdict = figures.figures(course.load), course.verdict
    fired = {name: course.done.fired[name] for name in course.planned.points}
    by_process = _kills(course)
    reasons = (*verdict.reasons, *broken(course.invariants), *short(course.planned.points, fired), *_others(found))
    return Report(
        ok=not reasons,
        seed=course.seed,
        checkouts=len(course.load.courses),
        kills=sum(by_process.values()),
        crash_points=fired,
        lost=verdict.lost,
        double_charges=verdict.double_charges,
        double_refunds=verdict.double_refunds,
        duplicate_mails=verdict.duplicate_mails,
        unexplained_mails=verdict.unexplained_mails,
        mail_gap_deaths=verdict.mail_gap_deaths,
        invented=verdict.invented,
        contradicted=verdict.contradicted,
        unknown=verdict.unknown,
        went_back=found.went_back,
        reasons=reasons,
        minutes=round(course.load.lasted_s / 60, 1),
        settled_s=round(course.settled_s, 1),
        kills_by_process=by_process,
        planned_points=course.planned.points,
        first_202=recovery(course.done.outages, "order-db"),
        first_confirm=recovery(course.done.outages, "rabbitmq"),
        dead_letters_made=course.done.replays.made,
        accepted=sum(one.outcome == "ok" for one in course.load.courses),
        outcomes=found.outcomes,
        errors=found.errors,
        accept_ms=found.accept_ms,
        end_to_end_ms=found.end_to_end_ms,
        invariants=course.invariants.invariants,
        mix=course.mix,
        versions=course.versions,
        cores=os.cpu_count() or 1,
        load_before=course.load_before,
    )


def _kills(course: Course) -> dict[str, int]:
    died = [life.name for life in course.lives if life.how in rig.KILLED]
    counted = {name: died.count(name) for name in (*schedule.SERVICES, *schedule.SERVERS)}
    return counted | {schedule.REPLAY: course.done.replays.deaths}


def broken(found: verify.Report) -> Iterable[str]:
    """Name each violation with its invariant."""
    return (f"invariant {one.id} ({one.name}): {sentence}" for one in found.invariants for sentence in one.violations)


def short(planned: dict[str, int], fired: dict[str, int]) -> Iterable[str]:
    """Name the crash points at which too few processes died: a run without them proves nothing."""
    return (f"{name} fired {fired[name]} times, planned were {number}" for name, number in planned.items() if fired[name] < number)


def _others(found: figures.Figures) -> Iterable[str]:
    if found.went_back:
        yield f"{found.went_back} sagas showed an older version than before"
    if found.unsettled:
        yield f"{found.unsettled} checkouts are unknown or have not ended"


def recovery(outages: Sequence[faults.Outage], server: str) -> Recovery:
    """Sum up how soon work went on after a server's measured outages."""
    times = sorted(outage.first_s for outage in outages if outage.server == server and outage.first_s is not None)
    middle = times[math.ceil(len(times) / 2) - 1] if times else None
    return Recovery(measured=len(times), median_s=middle, max_s=times[-1] if times else None)


def chart(course: Course, title: str) -> str:
    """Draw how far the checkouts had come, with the servers' outages shaded and a stroke for each death below."""
    began, load = course.load.began_at, course.load
    shades = tuple(
        plot.Shade(
            label=f"{server} away",
            colour=colour,
            stretches=tuple((one.killed_at - began, one.open_at - began) for one in course.done.outages if one.server == server),
        )
        for server, colour in _COLOURS.items()
    )
    marks = tuple(
        plot.Marks(
            label=name,
            colour=plot.GREY,
            at=tuple(life.ended_at - began for life in course.lives if life.name == name and life.how in rig.KILLED),
        )
        for name in schedule.SERVICES
    )
    drawn = msgspec.structs.replace(figures.progress(load, title), shades=shades, marks=marks, height=460)
    return plot.svg((drawn,))


def markdown(found: Report, command: str, picture: str) -> str:
    """Write the report for people."""
    processes = "\n".join(f"| {name} | {number} |" for name, number in found.kills_by_process.items())
    points = "\n".join(f"| `{name}` | {number} |" for name, number in found.crash_points.items())
    invariants = "\n".join(f"| {one.id} | {one.name} | {one.checked:,} | {'yes' if one.ok else 'NO'} |" for one in found.invariants)
    outcomes = ", ".join(f"{number:,} {name}" for name, number in found.outcomes.items())
    reasons = "".join(f"- {sentence}\n" for sentence in found.reasons)
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    return f"""# Chaos, seed {found.seed}: {"nothing lost, nothing doubled" if found.ok else "FAILED"}

`{command}`

{found.checkouts:,} checkouts in {found.minutes:g} minutes ({found.mix}), {found.kills:,} times kill -9. {versions}; {found.cores} cores,
load average before the start {found.load_before:.1f}.

![how far the checkouts had come]({picture})

{reasons}
| | |
| --- | --- |
| accepted (202) | {found.accepted:,} |
| orders lost | {found.lost} |
| orders that nobody asked for | {found.invented} |
| keys answered with two orders, or refused and yet an order | {found.contradicted} |
| outcomes unknown at the end | {found.unknown} |
| charged twice | {found.double_charges} |
| refunded twice | {found.double_refunds} |
| second copies of a mail | {found.duplicate_mails}, by {found.mail_gap_deaths} deaths of the email process with mails in hand |
| of these without a death of the email process between the copies | {found.unexplained_mails} |
| sagas seen going back | {found.went_back} |
| ended | {outcomes} |
| after the last arrival everything was at rest in | {found.settled_s:g} s |
| first 202 after the order database took sessions again | {_said(found.first_202)} |
| first confirm after the broker's port opened again | {_said(found.first_confirm)} |
| answer (202), p50 / p99, repetitions included | {found.accept_ms.p50:,.0f} / {found.accept_ms.p99:,.0f} ms |
| end, p50 / p99 | {found.end_to_end_ms.p50:,.0f} / {found.end_to_end_ms.p99:,.0f} ms |

| kill -9 of | times |
| --- | --- |
{processes}

| died at its crash point | times |
| --- | --- |
{points}

| | invariant | looked at | holds |
| --- | --- | --- | --- |
{invariants}
"""


def _said(found: Recovery) -> str:
    if found.median_s is None:
        return "not measured"
    return f"median {found.median_s:.2f} s, at most {found.max_s:.2f} s ({found.measured} outages beside which nothing else was killed)"
