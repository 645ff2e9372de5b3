"""`dlq replay`: to the original queue alone, published before acknowledged, once at a time, at the pace and in the steps asked for."""

import functools
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Generator

import pytest
from integration import test_ops_dlq_desk as desks
from integration.test_ops_dlq_desk import Desk, Start

from sagapost_contracts import topology
from sagapost_ops.dlq import replay, shelf
from sagapost_sandbox.testing import services

QUEUE = topology.PAYMENT_QUEUE
DLQ = f"{QUEUE}.dlq"
KILLS = int(os.environ.get("SAGAPOST_TEST_DLQ_KILLS", "3"))
REALLY = ("--yes", "--reason", "test", "--json")
DEADLINE_S = 30.0
# one after the other, of eight letters
CHOICES = (
    (("--id", desks.MESSAGE_ID.format(2), "--id", desks.MESSAGE_ID.format(4)), [2, 4]),
    (("--since", "2026-11-22T10:04:00Z", "--until", "2026-11-22T10:06:00Z"), [5]),
    (("--group", "ValueError@a.py:b"), [6]),
    (("--all", "--event-type", "CancelPayment"), [7]),
    (("--order", "3"), [3]),
    (("--all", "--limit", "1"), [1]),
)


@pytest.fixture
def desk(
    order_db: str, payment_db: str, vhost: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Generator[Desk]:
    """Give letters and the command line."""
    with desks.opened(order_db, payment_db, vhost, monkeypatch, capsys) as made:
        yield made


def test_a_dry_run_says_what_would_move_and_moves_nothing(desk: Desk) -> None:
    """Without --yes, and with --dry-run beside it: numbers and causes, no message, no record."""
    put = desk.put(3)

    page, found = desk.call("replay", QUEUE, "--all"), desk.call("replay", DLQ, "--all", "--dry-run", *REALLY)

    assert page.code == found.code == 0
    assert f"{DLQ}: 3 letters to send to {QUEUE}" in page.out
    assert "Nothing was moved. To replay: the same call with --yes" in page.out
    contract = {"replay_id": None, "matched": 3, "replayed": 0, "failed_again": 0, "stopped": False, "dry_run": True}
    assert {name: found.json[name] for name in contract} == contract
    assert desk.ids() == put
    assert desk.depth(QUEUE) == 0
    assert desk.ask("SELECT 1 FROM dlq_runs") == []


def test_a_replay_reaches_the_original_queue_alone_as_the_same_message(desk: Desk) -> None:
    """Id, type, body and foreign headers stay, the count of attempts is fresh, the replay is counted and named; nobody else sees it."""
    put = desk.put(
        2, headers={"x-replay-count": 1, "CC": [topology.EMAIL_QUEUE], "x-death": [{"queue": QUEUE, "reason": "expired", "count": 1}]}
    )
    before = desk.peek()

    done = desk.replay("--all")

    after = desk.peek(QUEUE)
    assert (done.code, done.json["matched"], done.json["replayed"], done.json["stopped"]) == (0, 2, 2, False)
    assert [one.id for one in after] == put
    assert [one.body for one in after] == [one.body for one in before]
    headers = {name: value for name, value in before[0].headers.items() if name not in {"x-attempt", "CC", "x-death", "x-delivery-count"}}
    assert after[0].headers == headers | {"x-replay-count": 2, "x-replay-id": done.json["replay_id"]}
    assert after[0].properties.message_type == "OrderCreated"
    assert after[0].properties.delivery_mode == 2
    assert after[0].properties.timestamp == desks.START
    depths = {queue.name: desk.depth(queue.name) for queue in topology.queues() if desk.depth(queue.name)}
    assert depths == {QUEUE: 2, topology.EMAIL_QUEUE: 2}, "CC took both there when they were put, and not again"


def test_a_replay_is_recorded(desk: Desk) -> None:
    """Who, why, when, what was asked for, how many, and each message id with what became of it."""
    put = desk.put(3)

    done = desk.replay("--all", "--limit", "2", "--actor", "ada")

    run = desk.ask(
        "SELECT id::text, kind, queue, actor, reason, choice->'limit', state, matched, moved, ended_at > started_at FROM dlq_runs"
    )
    assert run == [(done.json["replay_id"], "replay", QUEUE, "ada", "test", 2, "done", 3, 2, True)]
    assert desk.ask("SELECT number, message_id, type, fingerprint, state FROM dlq_letters ORDER BY number") == [
        (number, put[number - 1], "OrderCreated", "TimeoutError@provider.py:charge", "replayed") for number in (1, 2)
    ]
    assert desk.ids() == put[2:]


def test_what_does_not_match_keeps_its_place(desk: Desk) -> None:
    """Each way to choose takes exactly what it says, and the others lie there in their old order."""
    put = [*desk.put(4), *desk.put(2, fingerprint="ValueError@a.py:b"), *desk.put(1, kind="CancelPayment"), *desk.put(1)]
    left = list(put)

    for arguments, moved in CHOICES:
        done = desk.replay(*arguments)
        chosen = [put[number - 1] for number in moved]
        left = [one for one in left if one not in chosen]
        assert done.code == 0, done.err
        assert [one.id for one in desk.peek(QUEUE, take=True)] == chosen
        assert desk.ids() == left


def test_letters_keep_their_order_on_many_channels(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large queue is held by several channels; what stays comes back in the old order all the same."""
    monkeypatch.setattr(shelf, "_A_CHANNEL", 4)
    put = [*desk.put(9), *desk.put(1, kind="CancelPayment"), *desk.put(9)]

    done = desk.replay("--event-type", "CancelPayment")

    assert done.code == 0, done.err
    assert desk.ids(QUEUE) == [put[9]]
    assert desk.ids() == [*put[:9], *put[10:]]


def test_letters_that_were_replayed_too_often_are_left_and_counted(desk: Desk) -> None:
    """Three times by default, otherwise as often as --max-replays says; nothing but such letters is nothing to do."""
    often = desk.put(2, headers={"x-replay-count": 3})
    fresh = desk.put(1)

    first, second = desk.replay("--all"), desk.replay("--all")
    third = desk.replay("--all", "--max-replays", "4", "--limit", "1")

    assert (first.json["matched"], first.json["replayed"], first.json["over_max_replays"]) == (3, 1, 2)
    assert second.code == 3
    assert "2 were replayed 3 times or more" in second.err
    assert third.json["replayed"] == 1
    assert desk.ids(QUEUE) == [*fresh, often[0]]


def test_a_second_replay_of_the_same_changes_nothing(desk: Desk) -> None:
    """When the dead-letter queue is empty there is nothing to replay: exit code 3."""
    put = desk.put(25)

    first, second = desk.replay("--all"), desk.replay("--all")

    assert first.code == 0
    assert second.code == 3
    assert desk.depth() == 0
    assert desk.ids(QUEUE) == put


def test_the_rate_is_kept(desk: Desk) -> None:
    """10/s is ten a second, within a tenth: never more, and fewer only where the machine stalls, which it does not three times."""
    assert any(_span_s(desk) <= 3.1 * 1.1 for _ in range(3))


def test_a_letter_that_arrives_later_is_not_touched(desk: Desk) -> None:
    """What matches but came after the start is still a dead letter when the replay has ended."""
    early = desk.put(20)
    child = desk.spawn("replay", QUEUE, "--all", "--rate", "5/s", "--settle", "0", *REALLY)
    _until(lambda: desk.depth(QUEUE) > 0, child)

    late = desk.put(3)
    assert child.wait(DEADLINE_S) == 0

    assert desk.ids(QUEUE) == early
    assert desk.ids() == late


def test_a_second_run_on_a_queue_is_refused_by_name(desk: Desk) -> None:
    """It is told who is at it, since when, under which id, and moves nothing; another queue is free."""
    desk.put(40)
    elsewhere = desk.put(1, queue=topology.EMAIL_QUEUE)
    child = desk.spawn("replay", QUEUE, "--all", "--rate", "1/s", "--actor", "ada", "--settle", "0", *REALLY)
    _until(lambda: desk.depth(QUEUE) > 0, child)
    ((replay_id,),) = desk.ask("SELECT id::text FROM dlq_runs WHERE state = 'running'")

    again = desk.replay("--all", "--actor", "bob")
    discard = desk.call("discard", QUEUE, "--all", *REALLY)
    other = desk.replay("--all", queue=topology.EMAIL_QUEUE)

    assert again.code == discard.code == 1
    for refused in (again, discard):
        assert f"ada has a replay running on {QUEUE} since 20" in refused.err
        assert replay_id in refused.err
        assert "nothing was moved" in refused.err
    assert other.code == 0
    assert desk.ids(topology.EMAIL_QUEUE) == elsewhere
    assert desk.ask("SELECT count(*) FROM dlq_runs WHERE queue = %s", QUEUE) == [(1,)]


def test_a_letter_that_cannot_be_routed_is_still_a_dead_letter(desk: Desk) -> None:
    """Without its work queue nothing is acknowledged, nothing goes elsewhere, and the record says so."""
    put = desk.put(3)
    desk.drop(QUEUE)

    done = desk.replay("--all")

    assert done.code == 1
    assert "there is no such queue; see ./sagapost topology check" in done.err
    assert desk.ids() == put
    assert desk.ask("SELECT state, moved FROM dlq_runs") == [("failed", 0)]
    assert desk.ask("SELECT DISTINCT state FROM dlq_letters") == [("left",)]


def test_a_canary_stops_when_it_fails_again(desk: Desk, start_service: Start, provider: services.Service) -> None:
    """One is sent, comes back from the consumer, and the rest stays: exit code 1 and why."""
    desk.put(30, kind="NobodyKnowsThis")
    desk.start_payment(start_service, provider)

    done = desk.call("replay", QUEUE, "--all", "--canary", "1,5,20", "--stop-on-fail", "20%", *REALLY)

    assert done.code == 1
    assert "1 of 1 failed again" in done.err
    contract = {"matched": 30, "replayed": 1, "failed_again": 1, "stopped": True, "dry_run": False}
    assert {name: done.json[name] for name in contract} == contract
    assert desk.depth() == 30
    assert [one.headers.get("x-replay-count") for one in desk.peek()] == [None] * 29 + [1]
    assert desk.ask("SELECT state, moved, came_back FROM dlq_runs") == [("stopped", 1, 1)]


def test_a_canary_that_is_processed_lets_the_rest_follow(
    desk: Desk, start_service: Start, provider: services.Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step by step the payments' inbox is asked; in the end every letter has its effect once, and none is left."""
    monkeypatch.setattr(replay, "LOOK_S", 30)
    desk.put(12)
    desk.start_payment(start_service, provider)

    done = desk.call("replay", QUEUE, "--all", "--canary", "1,5", *REALLY)

    assert (done.code, done.json["replayed"], done.json["failed_again"], done.json["unsettled"]) == (0, 12, 0, 0), done.err
    assert desk.depth() == 0
    assert desk.ask_payment("SELECT count(*), count(*) FILTER (WHERE status = 'captured') FROM payments")[0][0] == 12


def test_a_canary_that_nobody_consumes_stops(desk: Desk) -> None:
    """Neither processed nor back is no success: the rest stays when the wait is over."""
    put = desk.put(3)

    done = desk.call("replay", QUEUE, "--all", "--canary", "1", "--settle", "0.5", *REALLY)

    assert done.code == 1
    assert "1 of 1 are neither processed nor back; is the consumer up?" in done.err
    assert desk.ids() == put[1:]


def test_for_the_email_service_to_stay_away_is_enough(desk: Desk) -> None:
    """It has no database to ask: what has not come back when the wait is over counts as processed."""
    put = desk.put(3, queue=topology.EMAIL_QUEUE)

    done = desk.call("replay", topology.EMAIL_QUEUE, "--all", "--canary", "1", "--settle", "0.5", *REALLY)

    assert (done.code, done.json["replayed"], done.json["unsettled"]) == (0, 3, 0), done.err
    assert desk.ids(topology.EMAIL_QUEUE) == put


def test_without_a_canary_failures_stop_it_after_twenty(
    desk: Desk, start_service: Start, provider: services.Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The share of those that failed again is looked at after every 20."""
    monkeypatch.setattr(replay, "LOOK_S", 30)
    desk.put(45, kind="NobodyKnowsThis")
    desk.start_payment(start_service, provider)

    done = desk.call("replay", QUEUE, "--all", "--stop-on-fail", "50%", *REALLY)

    assert done.code == 1
    assert (done.json["replayed"], done.json["failed_again"], done.json["not_reached"]) == (20, 20, 25)
    assert desk.depth() == 45


def test_kill_9_between_publish_and_acknowledgement_doubles_no_effect(desk: Desk, start_service: Start, provider: services.Service) -> None:
    """The letter is in both queues then; the next run ends the record of the first, takes it again, and each order is paid once."""
    put = desk.put(5)
    killed = desk.spawn("replay", QUEUE, "--all", *REALLY, crash="dlq.after_publish:3")
    assert killed.wait(DEADLINE_S) == -signal.SIGKILL
    assert desk.ids(QUEUE) == put[:3]
    _until(lambda: desk.depth() == 3, None)

    done = desk.replay("--all")

    assert (done.code, done.json["replayed"]) == (0, 3), done.err
    assert desk.ids(QUEUE) == [*put[:3], *put[2:]]
    assert desk.ask("SELECT state, ended_at IS NOT NULL FROM dlq_runs ORDER BY started_at") == [("broken_off", True), ("done", True)]
    letters = "SELECT DISTINCT l.state FROM dlq_letters AS l JOIN dlq_runs AS r ON r.id = run_id WHERE r.state = 'broken_off'"
    assert desk.ask(letters) == [("unknown",)]
    _each_is_paid_once(desk, start_service, provider, 5)


def test_kill_9_anywhere_and_again_loses_and_doubles_nothing(desk: Desk, start_service: Start, provider: services.Service) -> None:
    """However often it dies, the last run finds the rest: the dead-letter queue is empty, and each order is paid once."""
    orders = 30 + 10 * KILLS
    put = desk.put(orders)
    dice = random.Random(20)
    for _ in range(KILLS):
        begun = len(desk.ask("SELECT 1 FROM dlq_runs"))
        child = desk.spawn("replay", QUEUE, "--all", "--rate", "10/s", "--settle", "0", *REALLY)
        _until(functools.partial(_has_more_runs, desk, begun), child)
        _outlive(child, dice.uniform(0, 0.25))
        child.kill()
        child.wait(DEADLINE_S)
    _until(lambda: desk.consumers() == 0, None)

    done = desk.replay("--all")

    assert done.code == 0, done.err
    assert desk.depth() == 0
    assert set(desk.ids(QUEUE)) == set(put)
    assert desk.ask("SELECT count(*) FROM dlq_runs WHERE state = 'running'") == [(0,)]
    _each_is_paid_once(desk, start_service, provider, orders)


def test_an_interrupted_replay_says_how_far_it_came(desk: Desk) -> None:
    """Ctrl-C: exit code 130, a record that has ended, and every letter in one of the two queues."""
    put = desk.put(40)
    child = desk.spawn("replay", QUEUE, "--all", "--rate", "2/s", *REALLY)
    _until(lambda: desk.depth(QUEUE) > 0, child)

    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=DEADLINE_S)

    assert child.returncode == 130
    assert "letters; the others are still dead letters; call again" in err
    _until(lambda: desk.depth(QUEUE) + desk.depth() >= len(put), None)
    assert {*desk.ids(QUEUE), *desk.ids()} == set(put)
    assert desk.ask("SELECT state, detail FROM dlq_runs") == [("failed", "interrupted")]


def _each_is_paid_once(desk: Desk, start: Start, provider: services.Service, orders: int) -> None:
    """Let payment work off its queue, and see one inbox row, one payment and one charge an order."""
    service = desk.start_payment(start, provider)
    _until(lambda: desk.depth(QUEUE) == 0 and desk.ask_payment("SELECT count(*) FROM inbox") == [(orders,)], None)
    assert service.terminate() == 0
    assert desk.depth() == 0
    assert desk.ask_payment("SELECT count(*) FROM payments") == [(orders,)]
    assert desk.ask_payment("SELECT kind, count(*), count(DISTINCT order_id) FROM ledger GROUP BY kind") == [("capture", orders, orders)]


def _span_s(desk: Desk) -> float:
    """Replay 41 letters at 10/s, and give the seconds from the tenth to the last, which the record follows every ten: 31 gaps."""
    desk.put(41)
    done = desk.replay("--all", "--rate", "10/s")
    assert done.json["replayed"] == 41
    query = "SELECT EXTRACT(epoch FROM max(at) - min(at))::float FROM dlq_letters WHERE run_id::text = %s"
    ((span_s,),) = desk.ask(query, done.json["replay_id"])
    assert span_s >= 3.1 * 0.9
    return float(span_s)


def _has_more_runs(desk: Desk, than: int) -> bool:
    return len(desk.ask("SELECT 1 FROM dlq_runs")) > than


def _until(condition: Callable[[], bool], child: "subprocess.Popen[str] | None") -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        assert child is None or child.poll() is None, child.communicate()


def _outlive(child: "subprocess.Popen[str]", span_s: float) -> None:
    """Let a process live so long at most."""
    try:
        child.wait(span_s)
    except subprocess.TimeoutExpired:
        return
