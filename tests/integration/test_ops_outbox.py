"""`outbox stats`, `list` and `retry` against real databases: what there is, what stands aside, what is tried again."""

import contextlib
import re
from collections.abc import Generator

import pytest
from integration import ops_box
from integration.ops_box import Box, Call


@pytest.fixture
def box(order_db: str) -> Generator[Box]:
    """Give the order database's outbox."""
    with contextlib.closing(Box(order_db)) as made:
        yield made


@pytest.fixture
def other(payment_db: str) -> Generator[Box]:
    """Give the payment database's outbox."""
    with contextlib.closing(Box(payment_db)) as made:
        yield made


@pytest.fixture
def call(order_db: str, payment_db: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Give what calls the command line on both databases."""
    return ops_box.caller(order_db, payment_db, monkeypatch, capsys)


def test_an_outbox_that_is_well_needs_nobody(box: Box, other: Box, call: Call) -> None:
    """With every shard held and a row under way nothing is asked of anybody, and the page shows cursors, ring and relays."""
    for one in (box, other):
        one.do(ops_box.HOLD)
    box.add(shard=2)

    found, page = call("stats", "--json"), call("stats")

    assert (found.code, found.json["attention"]) == (0, [])
    order = found.json["databases"][0]
    assert [(line["shard"], line["owner"], line["backlog"]) for line in order["shards"]] == [
        (0, "relay-1", 0),
        (1, "relay-1", 0),
        (2, "relay-1", 1),
        (3, "relay-1", 0),
    ]
    assert 3500 < order["shards"][0]["lease_s"] <= 3600
    assert [line["is_current"] for line in order["partitions"]] == [True, False, False, False]
    assert order["history_since"] is None
    assert order["relays"] == ["relay-1"]
    assert "Nothing needs a person." in page.out
    assert "everything since the first message" in page.out


def test_what_nobody_publishes_is_counted_and_said(box: Box, call: Call) -> None:
    """Backlog, age, set aside and free shards of a database without a relay, each in the numbers and in a sentence."""
    box.set_aside(box.add())
    box.do(ops_box.PASS)
    box.add(shard=1, minutes_ago=10, times=3)

    found, page = call("stats", "--database", "order", "--json"), call("stats", "--database", "order")

    (order,) = found.json["databases"]
    assert [line["backlog"] for line in order["shards"]] == [0, 3, 0, 0]
    assert 600 <= order["shards"][1]["oldest_s"] < 660
    assert [(line["state"], line["reason"], line["rows"]) for line in order["aside"]] == [("parked", "unroutable", 1)]
    assert len(found.json["attention"]) == 3
    for says in ("no relay is alive", "shard 1 has rows that have waited for 10 min", "1 message is parked"):
        assert says in page.out


def test_a_window_under_way_counts_from_where_it_has_come(box: Box, call: Call) -> None:
    """Rows of the window that are behind the cursor are done, those before it are not; so are those behind the window."""
    first = box.add(times=3) - 2
    box.do("UPDATE outbox_cursor SET hi = pg_current_snapshot(), last_id = %s", first + 1)
    box.add(times=5)

    found = call("stats", "--database", "order", "--json")

    assert found.json["databases"][0]["shards"][0]["backlog"] == 1 + 5


def test_a_long_backlog_is_not_counted_to_the_end(box: Box, call: Call) -> None:
    """Ten thousand and more is what a glance needs to know."""
    box.add(times=10_050)

    assert call("stats", "--database", "order", "--json").json["databases"][0]["shards"][0]["backlog"] == 10_001
    assert "10000+" in call("stats", "--database", "order").out


def test_what_stands_aside_is_listed_without_what_it_says(box: Box, other: Box, call: Call) -> None:
    """Filters choose; neither the page nor the document holds the message's body, which may name a customer."""
    parked, waiting = box.add(order=7), box.add()
    box.set_aside(parked)
    box.set_aside(waiting, "waiting", "nacked")
    other.set_aside(other.add(kind="PaymentFailed"), "parked", "refused")

    pages = [call("list"), call("list", "--state", "parked"), call("list", "--reason", "refused"), call("list", "--limit", "1")]
    document = call("list", "--json", "--database", "order", "--type", "PaymentProcessed")

    assert [page.code for page in pages] == [0, 0, 0, 0]
    shown = [re.findall(r"^(order|payment) \d+  (\w+) of \S+  (\w+): (\S+),", page.out, re.MULTILINE) for page in pages]
    everything = [
        ("order", "PaymentProcessed", "parked", "unroutable"),
        ("order", "PaymentProcessed", "waiting", "nacked"),
        ("payment", "PaymentFailed", "parked", "refused"),
    ]
    assert shown == [everything, everything[::2], everything[2:], everything[::2]]
    assert "order: and 1 more" in pages[3].out
    assert [(line["id"], line["aggregate"], line["detail"]) for line in document.json["databases"][0]["messages"]] == [
        (parked, "order-7", "NO_ROUTE"),
        (waiting, "order-1", "NO_ROUTE"),
    ]
    assert "somebody@example.com" not in "".join(run.out for run in (*pages, document))


def test_a_list_of_nothing_says_so(call: Call) -> None:
    """Exit code 3, and still a document for a script."""
    found = call("list", "--json")

    assert (found.code, [line["total"] for line in found.json["databases"]]) == (3, [0, 0])
    assert found.err == "sagapost: no message that the broker did not take matches\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--all",), [1, 2, 3]),
        (("--reason", "unroutable"), [1, 3]),
        (("--reason", "unroutable", "--type", "PaymentFailed"), [3]),
        (("--database", "order", "--id", "{0}", "--id", "{1}"), [1, 2]),
    ],
)
def test_what_is_chosen_is_tried_again_from_the_first_try_on(arguments: tuple[str, ...], expected: list[int], box: Box, call: Call) -> None:
    """The chosen rows are due at once with no try counted, the others stay as they were, and who must publish them is said."""
    ids = [box.add(), box.add(), box.add(kind="PaymentFailed")]
    for row_id, reason, state in zip(ids, ("unroutable", "nacked", "unroutable"), ("parked", "waiting", "parked"), strict=True):
        box.set_aside(row_id, state, reason)

    done = call("retry", *(argument.format(*ids) for argument in arguments))

    due = box.ask("SELECT id FROM outbox_parked WHERE state = 'waiting' AND attempts = 0 AND retry_at <= now() ORDER BY id")
    untouched = box.ask("SELECT id FROM outbox_parked WHERE attempts = 7 AND retry_at > now()")
    assert done.code == 0
    assert [row[0] for row in due] == [ids[number - 1] for number in expected]
    assert len(untouched) == 3 - len(expected)
    assert f"order: {len(expected)} message" in done.out
    assert "order: no relay is alive, so nothing is sent yet; see ./sagapost status" in done.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "choose what to try again"),
        (("--all", "--reason", "nacked"), "choose what to try again"),
        (("--id", "1"), "with --id say --database order or --database payment"),
    ],
)
def test_a_retry_of_nothing_in_particular_is_a_wrong_call(arguments: tuple[str, ...], says: str, box: Box, call: Call) -> None:
    """Nothing is chosen by default, and a number alone could mean two messages: exit code 2, nothing changes."""
    box.set_aside(box.add())

    done = call("retry", *arguments)

    assert done.code == 2
    assert says in done.err
    assert box.ask("SELECT state, attempts FROM outbox_parked") == [("parked", 7)]


def test_a_retry_that_matches_nothing_is_code_3(box: Box, call: Call) -> None:
    """Neither success nor failure."""
    box.set_aside(box.add())

    assert call("retry", "--reason", "nacked").code == 3
