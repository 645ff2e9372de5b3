"""`chaos`: the schedule that a seed decides, and what its report counts as proof."""

from collections import Counter

import pytest

from sagapost_chassis import crashpoints
from sagapost_ops import verify
from sagapost_ops.chaos import faults, judging, report, rig, schedule
from sagapost_ops.load import journal, planning


def test_the_seed_decides_who_dies_when_and_where() -> None:
    """The same seed gives the same deaths in the same order; another one gives others."""
    assert schedule.plan(7, 200) == schedule.plan(7, 200)
    assert schedule.plan(7, 200).deaths != schedule.plan(8, 200).deaths


@pytest.mark.parametrize(("kills", "points", "each"), [(30, None, 1), (200, None, 4), (1000, None, 20), (30, 3, 3)])
def test_every_crash_point_is_planned_and_every_process_dies(kills: int, points: int | None, each: int) -> None:
    """Each name of the registry stands there as often as asked, with a process that passes it; and everybody is also just killed."""
    planned = schedule.plan(1, kills, points)

    at_points = Counter(death.point for deaths in planned.deaths.values() for death in deaths if death.way == "point")
    assert at_points == dict.fromkeys(crashpoints.NAMES, each) == planned.points
    for name, deaths in planned.deaths.items():
        assert all(name in schedule.OWNERS[death.point.partition(".")[0]] for death in deaths if death.way == "point")
        assert name == schedule.REPLAY or any(death.way == "kill" for death in deaths)
    assert planned.kills >= kills
    assert planned.kills < kills + 40


def test_both_relays_die_at_the_relays_points() -> None:
    """A point that two processes pass is not left to one of them."""
    planned = schedule.plan(1, 30)

    assert all(any(death.way == "point" for death in planned.deaths[name]) for name in ("relay-order", "relay-payment"))


def test_a_point_without_an_owner_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new crash point cannot be left out of the campaign by accident."""
    monkeypatch.setattr(crashpoints, "NAMES", (*crashpoints.NAMES, "refunds.after_call"))

    with pytest.raises(ValueError, match=r"refunds\.after_call"):
        schedule.plan(1, 30)


def test_a_run_lasts_long_enough_for_its_deaths() -> None:
    """Without --minutes a thousand deaths get twenty minutes, a few get one."""
    assert schedule.minutes(10_000, 1000) == pytest.approx(20)
    assert schedule.minutes(300, 30) == pytest.approx(1)


def test_a_planned_point_that_did_not_fire_makes_the_run_invalid() -> None:
    """Too few deaths at a point are named; as many as planned, or more, are not."""
    planned = {"order.after_commit": 2, "email.after_accept": 1}

    assert list(report.short(planned, {"order.after_commit": 2, "email.after_accept": 3})) == []
    assert list(report.short(planned, {"order.after_commit": 1, "email.after_accept": 1})) == [
        "order.after_commit fired 1 times, planned were 2"
    ]


@pytest.mark.parametrize(
    ("sent", "copies", "unexplained", "deaths"),
    [
        ((12.0,), 0, 0, 0),
        ((12.0, 25.0), 1, 0, 1),
        ((12.0, 13.0), 1, 1, 0),
        ((21.2, 30.0), 1, 0, 1),
        ((21.5, 30.0), 1, 1, 0),
        ((12.0, 25.0, 26.0), 2, 1, 1),
    ],
)
def test_a_second_copy_is_explained_only_by_a_death_between_the_two(
    sent: tuple[float, ...], copies: int, unexplained: int, deaths: int
) -> None:
    """One process never sends a mail twice: it lived from 10 to 20, the next one from 21 on, and sent nothing in its first moments."""
    lives = (rig.Life(name="email", started_at=10, ended_at=20, how="kill"), rig.Life(name="email", started_at=21))
    mails = [judging.Mail(message_id="<receipt-1@x>", created=journal.instant(at)) for at in sent]

    found = judging.copies(mails, lives)

    assert (found[0], len(found[1]), found[2]) == (copies, unexplained, deaths)


def test_one_death_explains_one_second_copy() -> None:
    """A process of the campaign has one mail in hand: two that came twice by one death are one too many."""
    lives = (rig.Life(name="email", started_at=10, ended_at=20, how="kill"), rig.Life(name="email", started_at=21))
    mails = [judging.Mail(message_id=f"<receipt-{at % 10:.0f}@x>", created=journal.instant(at)) for at in (12.0, 13.0, 22.0, 23.0)]

    found = judging.copies(mails, lives)

    assert found == (2, ["<receipt-3@x> is the second mail that came twice by one death"], 1)


def test_recovery_is_told_by_the_outages_that_were_measured() -> None:
    """Outages beside other faults do not count, and none is no number."""
    outages = [faults.Outage(server="order-db", killed_at=0, open_at=1, first_s=first) for first in (0.3, None, 0.1, 0.9)]

    assert report.recovery(outages, "order-db") == report.Recovery(measured=3, median_s=0.3, max_s=0.9)
    assert report.recovery(outages, "rabbitmq") == report.Recovery(measured=0, median_s=None, max_s=None)


def test_a_broken_invariant_is_a_reason() -> None:
    """Each violation is named with its invariant."""
    broken = verify.Invariant(id=3, name="money", ok=False, checked=1, violations=("order 1 was charged twice",))

    assert list(report.broken(verify.Report(ok=False, invariants=(broken,)))) == ["invariant 3 (money): order 1 was charged twice"]


def test_the_usual_mix_holds_what_makes_every_point_be_passed() -> None:
    """Refunds need cancellations; second looks need late and flaky payments."""
    mix = planning.mix(schedule.MIX)

    assert {"ok", "declined", "flaky", "late", "cancelled"} <= mix.keys()
