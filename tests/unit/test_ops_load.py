"""`load`: plans that a seed repeats, answers sorted into done, refused and unknown, customers who repeat what is unknown, and figures."""

import asyncio
import contextlib
import itertools
import pathlib
import re
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from sagapost_ops import plot
from sagapost_ops.load import figures, journal, page, planning, sending, shop, watching

pytestmark = pytest.mark.anyio
START = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
Answer = Callable[[str, int], bytes | None]  # of a key and the number of its call; None cuts the connection
ACCEPTED = b'{"id": 7, "saga_id": "0193b1c2-7d4e-7a10-9f0e-5f2f6c1d8a11"}'


def _plan(seed: int = 1, rate: float = 50, text: str = "ok=90,declined=10", run: str = "r") -> "itertools.islice[planning.Checkout]":
    return itertools.islice(planning.checkouts(planning.mix(text), rate, seed=seed, run=run), 2000)


def test_a_seed_repeats_the_whole_plan() -> None:
    """Moments, kinds and pauses are the same again; the keys are those of the run, so that no run answers another's."""
    first, again, other = list(_plan(1)), list(_plan(1, run="s")), list(_plan(2))

    assert [(one.at_s, one.kind) for one in first] == [(one.at_s, one.kind) for one in again]
    assert [one.at_s for one in first] != [one.at_s for one in other]
    assert len({one.key for one in first} | {one.key for one in again}) == 4000


def test_arrivals_have_the_rate_and_the_mix_that_were_asked_for() -> None:
    """2,000 arrivals at 50 a second take about 40 s, and a tenth of them is declined."""
    made = list(_plan())

    assert made[-1].at_s == pytest.approx(40, rel=0.1)
    assert Counter(one.kind for one in made)["declined"] == pytest.approx(200, rel=0.25)
    even = itertools.islice(planning.checkouts({"ok": 1}, 50, seed=1, run="r", even=True), 10)
    assert [one.at_s for one in even] == [pytest.approx(number / 50) for number in range(1, 11)]


def test_each_kind_is_a_payment_method_and_a_cancelled_one_is_cancelled_within_seconds() -> None:
    """The body is the same at each repetition and holds nothing that looks like a card number."""
    kinds = {one.kind: one for one in _plan(text=",".join(f"{kind}=1" for kind in planning.METHODS))}

    assert {kind: one.body()["payment_method"] for kind, one in kinds.items()} == planning.METHODS
    assert 0 < kinds["cancelled"].cancel_after_s <= planning.CANCEL_WITHIN_S
    assert kinds["ok"].cancel_after_s == 0
    assert all(one.body() == one.body() and not re.search(rb"\d{13}", msgspec.json.encode(one.body())) for one in kinds.values())


@pytest.mark.parametrize("text", ["", "ok", "ok=", "ok=-1", "ok=nan", "ok=inf", "ok=0", "ok=1,ok=2", "gold=1", "ok=1;declined=2"])
def test_a_wrong_mix_is_refused(text: str) -> None:
    """An unknown kind, a missing, negative or endless weight, a kind twice, or nothing at all."""
    with pytest.raises(ValueError, match=r"none of|name=number|above 0"):
        planning.mix(text)


@pytest.mark.parametrize(
    ("status", "slug", "outcome"),
    [
        (202, "", "ok"),
        (200, "", "ok"),
        (400, "malformed-request", "refused"),
        (409, "order-not-cancellable", "refused"),
        (409, "idempotency-in-progress", "unknown"),
        (422, "price-changed", "refused"),
        (429, "rate-limited", "refused"),
        (503, "overloaded", "refused"),
        (503, "circuit-open", "refused"),
        (503, "order-service-unavailable", "unknown"),
        (504, "upstream-timeout", "unknown"),
        (500, "", "unknown"),
        (302, "", "unknown"),
    ],
)
def test_an_answer_is_unknown_unless_it_says_what_happened(status: int, slug: str, outcome: str) -> None:
    """Refused is only what was refused before the order service was asked, or by it; any other 5xx may have made an order."""
    answer = shop.sort(status, msgspec.json.encode({"type": f"/problems/{slug}", "detail": "x"}) if slug else b"<html>")

    assert answer.outcome == outcome
    assert answer.error.startswith("" if outcome == "ok" else str(status))


def test_percentiles_are_values_that_occurred() -> None:
    """The nearest rank: of a hundred values p99 is the ninety-ninth, of one it is that one, of none it is 0."""
    assert figures.times([float(number) for number in range(1, 101)]) == figures.Times(p50=50, p95=95, p99=99, max=100)
    assert figures.times([7.0]) == figures.Times(p50=7, p95=7, p99=7, max=7)
    assert figures.times([]) == figures.Times()


@contextlib.asynccontextmanager
async def _gateway(answer: Answer, hold: int = 0) -> AsyncGenerator[tuple[str, list[str]]]:
    """Answer checkouts as told, none of them before `hold` have come; give the address and the keys in the order of the calls."""
    keys: list[str] = []
    enough = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = re.search(rb"(?i)content-length: (\d+)", head)
                await reader.readexactly(int(length.group(1)) if length else 0)
                found = re.search(rb"(?i)idempotency-key: (\S+)", head)
                key = found.group(1).decode() if found else ""
                keys.append(key)
                if len(keys) >= hold:
                    enough.set()
                await enough.wait()
                said = answer(key, keys.count(key))
                if said is None:
                    break
                writer.write(said)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", keys


def _http(status: str, body: bytes = b"{}") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


async def _load(url: str, path: pathlib.Path, number: int, *, patient: bool = False) -> sending.Load:
    with journal.Journal(path / "journal.jsonl") as book:
        async with shop.Shop(url) as counter:
            load = sending.Load(counter, book, patient=patient)
            await load.run(itertools.islice(planning.checkouts({"ok": 1}, 500, seed=1, run="t"), number))
    return load


async def test_arrivals_do_not_wait_for_answers(tmp_path: pathlib.Path) -> None:
    """A gateway that answers nobody before it has heard of everybody is asked by everybody, and the wait counts from the planned moment."""
    async with _gateway(lambda *_: _http("202 Accepted", ACCEPTED), hold=100) as (url, keys):
        load = await _load(url, tmp_path, 100)

    assert len(set(keys)) == len(keys) == 100
    assert {course.outcome for course in load.courses} == {"ok"}
    assert all(course.planned_at == load.began_at + course.checkout.at_s for course in load.courses)
    first = min(load.courses, key=lambda course: course.planned_at)
    # a loop may wake up a moment early: its timers count whole milliseconds
    assert first.accepted_at - max(course.planned_at for course in load.courses) >= -0.002


async def test_what_is_unknown_is_repeated_with_its_key_until_it_is_known(tmp_path: pathlib.Path) -> None:
    """A cut connection and a 503 of the order service are followed by the same key again; the journal has each answer."""
    script = {1: None, 2: _http("503 Unavailable", b'{"type": "/problems/order-service-unavailable"}')}

    async with _gateway(lambda _, call: script.get(call, _http("202 Accepted", ACCEPTED))) as (url, keys):
        load = await _load(url, tmp_path, 3)

    assert Counter(keys) == {f"t-{number}": 3 for number in range(3)}
    lines = [line for line in journal.read(load.journal.path) if line.key == "t-0"]
    assert [(line.attempt, line.outcome, line.order_id) for line in lines] == [(1, "unknown", None), (2, "unknown", None), (3, "ok", 7)]
    assert load.errors == {"connection-lost": 3, "503 order-service-unavailable": 3}


async def test_a_refusal_for_now_does_not_settle_what_was_unknown(tmp_path: pathlib.Path) -> None:
    """After a cut connection a 429 tells nothing of the first call: the key goes on until there is an answer."""
    script = {1: None, 2: _http("429 Too Many Requests", b'{"type": "/problems/rate-limited"}')}

    async with _gateway(lambda _, call: script.get(call, _http("202 Accepted", ACCEPTED))) as (url, keys):
        load = await _load(url, tmp_path, 1)

    assert len(keys) == 3
    assert load.courses[0].outcome == "ok"


@pytest.mark.parametrize(("patient", "calls"), [(False, 1), (True, 2)])
async def test_only_a_patient_customer_comes_back_after_a_refusal(tmp_path: pathlib.Path, *, patient: bool, calls: int) -> None:
    """A 503 of an overloaded gateway began no order: the usual customer of a load counts it and goes."""
    script = {1: _http("503 Unavailable", b'{"type": "/problems/overloaded"}')}

    async with _gateway(lambda _, call: script.get(call, _http("202 Accepted", ACCEPTED))) as (url, keys):
        load = await _load(url, tmp_path, 1, patient=patient)

    assert len(keys) == calls
    assert load.courses[0].outcome == ("ok" if patient else "refused")


def _saga(state: str, version: int, *rows: tuple[str, str, int]) -> shop.Saga:
    history = tuple(shop.Row(to=to, event=event, at=START + timedelta(seconds=at)) for to, event, at in rows)
    return shop.Saga(state=state, version=version, done=state in {"notified", "compensated"}, history=history)


def _course(number: int = 0) -> sending.Course:
    checkout = planning.Checkout(number=number, at_s=0, kind="ok", key=f"t-{number}")
    return sending.Course(checkout=checkout, planned_at=START.timestamp(), outcome="ok", accepted_at=START.timestamp() + 0.01)


def test_times_are_those_of_the_history_and_not_of_the_look() -> None:
    """Paid and ended when the saga says so; what comes behind the end moves neither."""
    course = _course()

    rows = (("created", "OrderCreated", 0), ("paid", "PaymentProcessed", 1), ("notified", "EmailSent", 2), ("notified", "EmailSent", 9))
    watching.take(course, _saga("notified", 4, *rows))

    assert (course.paid_at - course.planned_at, course.ended_at - course.planned_at) == (1, 2)
    assert (course.done, course.went_back) == (True, False)


@pytest.mark.parametrize(
    ("seen", "later"),
    [
        (_saga("paid", 2), _saga("created", 1)),
        (_saga("notified", 3, ("notified", "EmailSent", 2)), _saga("paid", 2)),
        (_saga("notified", 3, ("notified", "EmailSent", 2)), _saga("compensating", 5)),
    ],
)
def test_a_saga_that_goes_back_is_noticed(seen: shop.Saga, later: shop.Saga) -> None:
    """A version that falls, or an end that was none."""
    course = _course()
    watching.take(course, seen)
    assert not course.went_back

    watching.take(course, later)

    assert course.went_back


async def test_the_figures_count_each_checkout_once(tmp_path: pathlib.Path) -> None:
    """Notified, refused, unknown, unfinished: their sum is what was offered; times are of those that came so far."""
    load = sending.Load(shop.Shop("http://127.0.0.1:1"), journal.Journal(tmp_path / "j"))
    load.lasted_s, load.began_at = 2.0, START.timestamp()
    load.courses = [_course(number) for number in range(5)]
    for number in (0, 1):
        watching.take(load.courses[number], _saga("notified", 3, ("notified", "EmailSent", 1 + number)))
    load.courses[2].outcome, load.courses[3].outcome = "refused", "unknown"

    found = figures.figures(load)

    assert found.outcomes == {"notified": 2, "refused": 1, "unfinished": 1, "unknown": 1}
    assert (found.offered_per_s, found.accepted_per_s, found.completed_per_s, found.unsettled) == (2.5, 1.5, 2.0, 2)
    assert (found.accept_ms.max, found.end_to_end_ms.p50, found.end_to_end_ms.max) == (10, 1000, 2000)
    names = ["offered_per_s", "accepted_per_s", "completed_per_s", "accept_ms", "end_to_end_ms", "outcomes", "errors"]
    assert list(msgspec.to_builtins(found))[: len(names)] == names


async def test_the_report_needs_no_network(tmp_path: pathlib.Path) -> None:
    """One file: its charts are drawn in it, and the only address in it is the name of SVG's language."""
    load = sending.Load(shop.Shop("http://127.0.0.1:1"), journal.Journal(tmp_path / "j"))
    load.courses, load.lasted_s, load.began_at = [_course()], 1.0, START.timestamp()
    load.count("<script>")

    text = page.page("Load", "how", figures.figures(load), (figures.progress(load, "T"), figures.answers(load)))

    assert set(re.findall(r"https?://[^\"' ]+", text)) == {"http://www.w3.org/2000/svg"}
    assert "<polyline" in text
    assert "<script>" not in text


def test_a_line_that_was_cut_off_is_left_out_of_the_journal(tmp_path: pathlib.Path) -> None:
    """The process may be killed while it writes: what is whole counts."""
    path = tmp_path / "journal.jsonl"
    line = journal.Line(what="checkout", number=1, key="k", kind="ok", planned_at=START, at=START)
    with journal.Journal(path) as book:
        book.write(line)
    with path.open("ab") as file:
        file.write(b'{"what":"checkout","number":2,')

    assert journal.read(path) == [line]


def test_a_chart_keeps_first_and_last_and_reaches_over_everything() -> None:
    """Lines are thinned between their ends, and axes end on a round number above the largest value."""
    points = [(float(number), float(number * number)) for number in range(5000)]

    kept = plot.thinned(points, 100)

    assert (len(kept), kept[0], kept[-1]) == (100, points[0], points[-1])
    assert [plot.nice(value) for value in (5, 60, 61, 1199.9, 0)] == [1, 10, 20, 200, plot.nice(0)]
