"""`outbox replay` against real databases, and a real relay: what was published, again, once, in order."""

import contextlib
from collections.abc import Generator, Iterator
from typing import Any

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


def test_a_replay_without_yes_shows_and_sends_nothing(box: Box, other: Box, call: Call) -> None:
    """Types and numbers of both databases, how far back the history reaches, and what to add; no row is written."""
    box.add(kind="OrderCreated", times=3)
    box.add(kind="OrderCancelled")
    other.add()
    for one in (box, other):
        one.do(ops_box.PASS)

    page, document = call("replay", "--since", "1h"), call("replay", "--since", "1h", "--json")

    assert page.code == document.code == 0
    assert [(one["rows"], [(kind["type"], kind["rows"]) for kind in one["types"]]) for one in document.json["databases"]] == [
        (4, [("OrderCancelled", 1), ("OrderCreated", 3)]),
        (1, [("PaymentProcessed", 1)]),
    ]
    assert document.json["dry_run"]
    assert "order: 4 confirmed messages" in page.out
    assert "The ring still holds everything since the first message." in page.out
    assert "Nothing was sent. To send it: the same call with --yes" in page.out
    assert box.ask("SELECT count(*) FROM outbox") == [(4,)]


def test_a_replay_appends_confirmed_messages_once_each_in_their_order(box: Box, call: Call) -> None:
    """Copies have new ids and transactions, the same content and a mark; what is under way or set aside is left alone; twice is as once."""
    first = box.add(order=1, times=2)
    aside = box.add(order=2)
    box.add(order=1, shard=3)
    box.set_aside(aside)
    box.do(ops_box.PASS)
    before = [*_content(box, first - 1, aside - 1), *_content(box, aside + 1, aside + 1)]
    highest = box.add(order=4)

    runs = [call("replay", "--since", "1h", "--database", "order", "--yes", "--reason", "it's a $$ \\ test", "--json") for _ in range(2)]
    box.do(ops_box.PASS)
    again = call("replay", "--since", "1h", "--database", "order", "--json")

    copies = list(_content(box, highest + 1, highest + 1000))
    assert [run.json["databases"][0]["replayed"] for run in runs] == [3, 3]
    assert copies == [row | {"headers": row["headers"] | {"x-replay-count": 1}} for row in before] * 2
    assert box.ask("SELECT count(DISTINCT xid) FROM outbox WHERE id > %s", highest) == [(2,)]
    assert again.json["databases"][0]["rows"] == 4  # three, and the one that was under way: the copies are no further messages


def _content(box: Box, first: int, last: int) -> Iterator[dict[str, Any]]:
    names = ("event_id", "shard", "aggregate", "type", "routing_key", "correlation_id", "headers", "payload", "created_at")
    return (dict(zip(names, row, strict=True)) for row in box.ask(ops_box.CONTENT, first, last))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--since", "5h"), [1, 2, 3, 4]),
        (("--since", "150m"), [2, 3, 4]),
        (("--since", "5h", "--until", "150m"), [1]),
        (("--since", "5h", "--order", "2"), [2, 4]),
        (("--since", "5h", "--type", "OrderCreated", "--type", "OrderCancelled"), [1, 3]),
        (("--since", "5h", "--limit", "2"), [1, 2]),
    ],
)
def test_a_replay_sends_what_is_asked_for(arguments: tuple[str, ...], expected: list[int], box: Box, call: Call) -> None:
    """Time, order, type and number each narrow the choice."""
    box.add(order=1, kind="OrderCreated", minutes_ago=180)
    box.add(order=2, minutes_ago=120)
    box.add(order=1, kind="OrderCancelled", minutes_ago=60)
    last = box.add(order=2, minutes_ago=30)
    box.do(ops_box.PASS)

    done = call("replay", *arguments, "--database", "order", "--yes", "--reason", "test")

    sent = box.ask(ops_box.SENT, last)
    assert done.code == 0, done.err
    assert [row[0] for row in sent] == expected


def test_a_long_replay_goes_in_small_transactions_and_keeps_the_order(box: Box, call: Call) -> None:
    """Five hundred rows to a transaction, so that no cursor waits for a long one; ids follow the old order across them."""
    for shard in range(4):
        box.add(shard=shard, times=300)
    last = box.add()
    box.do(ops_box.PASS)

    done = call("replay", "--since", "1h", "--database", "order", "--yes", "--reason", "test")

    old, new = ([row[0] for row in box.ask(ops_box.CONTENT, *between)] for between in ((last - 1200, last), (last + 1, last + 2000)))
    assert done.code == 0
    assert new == old
    assert box.ask("SELECT count(*) FROM outbox WHERE id > %s GROUP BY xid ORDER BY 1", last) == [(201,), (500,), (500,)]
    assert "order: 1,201 messages are in the outbox again" in done.out


def test_a_replay_says_how_far_back_the_ring_reaches(box: Box, call: Call) -> None:
    """After the ring has come round, what is older than its oldest partition is gone, and the dry run says so."""
    box.add()
    box.do(ops_box.PASS)
    box.do("SELECT setval('outbox_ring', 6)")
    box.do("UPDATE outbox_bucket SET opened_at = '2026-11-22T10:00:00Z'::timestamptz + (bucket + 1) % 4 * interval '1 hour'")

    found, page = (call("replay", "--since", "2026-11-20T00:00:00Z", "--database", "order", *more) for more in (("--json",), ()))

    assert found.json["databases"][0]["history_since"] == "2026-11-22T10:01:00Z"
    assert "The ring holds everything since 2026-11-22 10:01:00 UTC; older messages may be gone." in page.out


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--since", "1h"), 3, "no confirmed message matches"),
        (("--since", "1h", "--yes"), 2, "--yes needs a --reason"),
        (("--since", "1h", "--yes", "--reason", " "), 2, "--yes needs a --reason"),
        (("--since", "1h", "--until", "2h"), 2, "--until must be later than --since"),
        (("--since", "soon"), 2, "neither a span like 2h"),
        ((), 2, "Missing option '--since'"),
    ],
)
def test_a_replay_that_cannot_be_meant_is_refused(arguments: tuple[str, ...], code: int, says: str, box: Box, call: Call) -> None:
    """One sentence and the documented exit code; an unconfirmed row is nothing to replay."""
    box.add()

    done = call("replay", *arguments)

    assert done.code == code
    assert says in done.err
    assert box.ask("SELECT count(*) FROM outbox") == [(1,)]


def test_cursors_of_another_cluster_cannot_say_what_to_replay(box: Box, call: Call) -> None:
    """Where the cursors mean nothing, nothing is confirmed: the way out is named."""
    box.add()
    box.do(ops_box.PASS)
    box.do("UPDATE outbox_cursor SET system_identifier = 42")

    done = call("replay", "--since", "1h", "--database", "order")

    assert done.code == 1
    assert "outbox repair --database order" in done.err


@pytest.mark.anyio
async def test_the_relay_publishes_a_replay_with_the_old_message_ids(
    *, box: Box, call: Call, order_db: str, vhost: str, start_service: ops_box.StartService, eventually: ops_box.Eventually
) -> None:
    """What reached the queue before the replay reaches it once more, under the same ids and in the same order."""
    for _ in range(5):
        box.add()
    start_service("relay", {"SAGAPOST_DATABASE_URL": order_db, "SAGAPOST_AMQP_URL": vhost}).wait_ready()
    first = await ops_box.take(vhost, 5)
    await eventually(ops_box.holds(lambda: len(box.published()) == 5), 30)

    done = call("replay", "--since", "1h", "--database", "order", "--yes", "--reason", "test")

    assert done.code == 0, done.err
    assert await ops_box.take(vhost, 5) == first
