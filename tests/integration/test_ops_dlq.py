"""`dlq list`, `groups`, `show`, `export` and `discard`: everything can be read and taken out, and looking changes nothing."""

import base64
import json
import pathlib
import socket
import struct
import uuid
from collections.abc import Generator

import pytest
from integration import test_ops_dlq_desk as desks
from integration.test_ops_dlq_desk import Desk

from sagapost_contracts import topology
from sagapost_sandbox import management
from sagapost_sandbox.testing import polling, servers

QUEUE = topology.PAYMENT_QUEUE
DLQ = f"{QUEUE}.dlq"


def _nested(levels: int) -> bytes:
    inner = b""
    for _ in range(levels):
        inner = b"\x01aF" + struct.pack(">I", len(inner)) + inner
    return inner


def _flagged(*fields: tuple[int, bytes]) -> bytes:
    return struct.pack(">H", sum(1 << bit for bit, _ in fields)) + b"".join(raw for _, raw in fields)


NEST = _nested(2000)
POISON = {
    "message_id is not UTF-8": _flagged((7, b"\x04\xff\xfe\x80x")),
    "type is not UTF-8": _flagged((5, b"\x02\xc3\x28")),
    "timestamp lies after the year 9999": _flagged((6, struct.pack(">Q", 1 << 40))),
    "headers are nested deeper than 100 levels": _flagged((13, struct.pack(">I", len(NEST)) + NEST)),
}

REFUSED = (
    (("replay", "nonsense", "--all"), 2, "there is no queue 'nonsense'; the queues are payment_service_queue"),
    (("show", "payment_service_queue.dlq.dlq"), 2, "there is no queue"),
    (("replay", QUEUE), 2, "choose letters: --id, --group or --all"),
    (("replay", QUEUE, "--all", "--id", "1"), 2, "exclude each other"),
    (("replay", QUEUE, "--all", "--since", "soon"), 2, "neither a span like 2h"),
    (("replay", QUEUE, "--all", "--since", "1h", "--until", "2h"), 2, "--until must be later than --since"),
    (("replay", QUEUE, "--all", "--rate", "fast"), 2, "no rate like 10/s"),
    (("replay", QUEUE, "--all", "--rate", "0/s"), 2, "no rate like 10/s"),
    (("replay", QUEUE, "--all", "--canary", "1,,5"), 2, "no list of steps like 1,5,20"),
    (("replay", QUEUE, "--all", "--stop-on-fail", "101%"), 2, "no share like 20%"),
    (("replay", QUEUE, "--all", "--yes"), 2, "--yes needs a --reason"),
    (("replay", QUEUE, "--all", "--event-type", "Nonsense"), 2, "Invalid value for '--event-type'"),
    (("discard", QUEUE, "--all", "--yes", "--reason", " "), 2, "--yes needs a --reason"),
    (("replay", QUEUE, "--id", "nobody", "--yes", "--reason", "test"), 3, "no dead letter of payment_service_queue matches"),
    (("replay", "email_service_queue", "--all"), 3, "no dead letter of email_service_queue matches"),
    (("groups", "email_service_queue"), 3, "there are no dead letters"),
)


@pytest.fixture
def desk(
    order_db: str, payment_db: str, vhost: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Generator[Desk]:
    """Give letters and the command line."""
    with desks.opened(order_db, payment_db, vhost, monkeypatch, capsys) as made:
        yield made


def test_list_shows_every_queue_also_empty_ones(desk: Desk) -> None:
    """Depth, the oldest letter's time and the cause of most, with exactly the documented keys."""
    desk.put(1, says="once", fingerprint="ValueError@handlers.py:on_order_created")
    desk.put(2)

    found, page = desk.call("list", "--json"), desk.call("list")

    assert found.code == page.code == 0
    assert found.rows == [
        {"queue": DLQ, "depth": 3, "oldest": "2026-11-22T10:01:00Z", "top_failure": "TimeoutError@provider.py:charge"},
        {"queue": "email_service_queue.dlq", "depth": 0, "oldest": None, "top_failure": None},
        {"queue": "order_updates_queue.dlq", "depth": 0, "oldest": None, "top_failure": None},
    ]
    assert "2 x TimeoutError@provider.py:charge" in page.out


def test_groups_are_causes_with_the_shortest_message_and_the_span_of_time(desk: Desk) -> None:
    """One entry a fingerprint: exception, shortest message, number, first and last seen, most replays; the largest first."""
    desk.put(1, fingerprint="ValueError@a.py:b", says="alone")
    desk.put(1, says="the provider did not answer within 10 seconds")
    desk.put(1, says="no answer", headers={"x-replay-count": 2})

    found = desk.call("groups", "--json")

    assert found.code == 0
    assert found.rows == [
        {
            "queue": DLQ,
            "fingerprint": "TimeoutError@provider.py:charge",
            "exception": "TimeoutError",
            "message": "no answer",
            "count": 2,
            "first_seen": "2026-11-22T10:02:00Z",
            "last_seen": "2026-11-22T10:03:00Z",
            "replayed": 2,
        },
        {
            "queue": DLQ,
            "fingerprint": "ValueError@a.py:b",
            "exception": "ValueError",
            "message": "alone",
            "count": 1,
            "first_seen": "2026-11-22T10:01:00Z",
            "last_seen": "2026-11-22T10:01:00Z",
            "replayed": 0,
        },
    ]


def test_looking_changes_neither_number_nor_order(desk: Desk) -> None:
    """After every command that only looks, the same letters lie there in the same order."""
    put = desk.put(30)

    for arguments in (("list",), ("groups",), ("show", QUEUE, "--limit", "5"), ("replay", QUEUE, "--all"), ("discard", QUEUE, "--all")):
        assert desk.call(*arguments).code == 0
        assert desk.ids() == put


def test_show_is_whole_and_harmless_on_a_terminal(desk: Desk) -> None:
    """Headers and body are printed, and what a terminal would obey is an escape."""
    desk.put(1, says="bad \x1b]0;title\x07 \u202e", body=b'{"order_id": 7, "note": "\x1b[2J\xc2\x9b"}')

    page, found = desk.call("show", QUEUE), desk.call("show", DLQ, "--json")

    assert page.code == 0
    assert not any(sign in page.out for sign in ("\x1b]", "\x1b[2J", "\x9b", "\x07", "\u202e"))
    assert "\\x1b]0;title\\x07 \\u202e" in page.out
    assert "x-original-routing-key: order.order.created" in page.out
    assert "\\x1b[2J" in page.out
    assert found.rows[0]["headers"]["x-attempt"] == 6
    assert found.rows[0]["body"].startswith('{"order_id": 7')


def test_what_no_client_can_read_is_listed_exported_and_discarded(desk: Desk, tmp_path: pathlib.Path) -> None:
    """Letters with poison properties have groups of their own, lines in an export, and go when they are discarded; others stay."""
    before = desk.put(2)
    for properties in POISON.values():
        desk.raw(DLQ, properties, b"\xff\x00poison")
    after = desk.put(2)
    out = tmp_path / "out.jsonl"

    found = {group["message"]: group["fingerprint"] for group in desk.call("groups", "--json").rows if group["exception"] == "Unreadable"}
    exported = desk.call("export", QUEUE, "--out", str(out))

    assert set(found) == set(POISON)
    assert exported.code == 0
    assert len(out.read_text().splitlines()) == 4 + len(POISON)
    for number, (fault, fingerprint) in enumerate(found.items()):
        _discarded(desk, fault, fingerprint, tmp_path / f"{number}.jsonl")
    assert desk.ids() == before + after


def _discarded(desk: Desk, fault: str, fingerprint: str, kept: pathlib.Path) -> None:
    shown = desk.call("show", QUEUE, "--group", fingerprint)
    tried = desk.replay("--group", fingerprint)
    gone = desk.call("discard", QUEUE, "--group", fingerprint, "--out", str(kept), "--yes", "--reason", "poison", "--json")

    line = json.loads(kept.read_text())
    assert f"cannot be read by the services: {fault}" in shown.out
    assert tried.code == 3
    assert "1 cannot be read by any service" in tried.err
    assert gone.json["discarded"] == 1
    assert base64.b64decode(line["body_base64"]) == b"\xff\x00poison"
    assert base64.b64decode(line["properties_base64"]).count(POISON[fault][-3:])  # beside them, the broker counts deliveries


def test_an_export_leaves_the_letters_and_overwrites_no_file(desk: Desk, tmp_path: pathlib.Path) -> None:
    """One JSON document a line, readable by its owner only; a second export into the same file is refused."""
    put = desk.put(3)
    out = tmp_path / "letters.jsonl"

    first, second = desk.call("export", QUEUE, "--out", str(out), "--json"), desk.call("export", QUEUE, "--out", str(out))

    assert first.json == {"queue": DLQ, "exported": 3, "out": str(out)}
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == put
    assert out.stat().st_mode & 0o777 == 0o600
    assert second.code == 2
    assert "is there already" in second.err
    assert desk.ids() == put


def test_a_discard_is_recorded_and_kept_in_a_file(desk: Desk, tmp_path: pathlib.Path) -> None:
    """Only what was chosen goes; the record names who, why, what was asked for and each message id."""
    put = desk.put(4)
    out = tmp_path / "kept.jsonl"

    dry = desk.call("discard", QUEUE, "--id", put[1], "--json")
    done = desk.call(
        *("discard", QUEUE, "--id", put[1], "--id", put[3], "--out", str(out), "--actor", "ada", "--yes", "--reason", "a test's", "--json")
    )

    assert dry.json["dry_run"]
    assert (dry.json["would_discard"], dry.json["discarded"]) == (1, 0)
    assert (done.code, done.json["discarded"], done.json["dry_run"]) == (0, 2, False)
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == [put[1], put[3]]
    assert desk.ids() == [put[0], put[2]]
    run = desk.ask("SELECT id::text, kind, queue, actor, reason, choice->'ids', state, matched, moved FROM dlq_runs")
    assert run == [(done.json["run_id"], "discard", QUEUE, "ada", "a test's", [put[1], put[3]], "done", 2, 2)]
    assert desk.ask("SELECT message_id, state FROM dlq_letters ORDER BY number") == [(put[1], "discarded"), (put[3], "discarded")]


def test_a_discard_whose_file_cannot_be_written_discards_nothing(desk: Desk, tmp_path: pathlib.Path) -> None:
    """The file comes first: when it fails, every letter is still there and the record says why."""
    put = desk.put(2)

    done = desk.call("discard", QUEUE, "--all", "--out", str(tmp_path / "no" / "such.jsonl"), "--yes", "--reason", "test")

    assert done.code == 2
    assert "cannot be written" in done.err
    assert desk.ids() == put
    assert desk.ask("SELECT state, moved FROM dlq_runs") == [("failed", 0)]


def test_a_call_that_cannot_be_meant_moves_nothing(desk: Desk) -> None:
    """One clear sentence, the documented exit code, and every letter where it was."""
    put = desk.put(2)

    for arguments, code, says in REFUSED:
        done = desk.call(*arguments)
        assert done.code == code, arguments
        assert says in done.err
        assert len(done.err.splitlines()) == 1
        assert desk.ids() == put


@pytest.mark.parametrize("arguments", [("list",), ("replay", QUEUE, "--all", "--yes", "--reason", "test")], ids=["list", "replay"])
def test_a_broker_that_is_down_is_one_sentence(arguments: tuple[str, ...], desk: Desk) -> None:
    """Exit code 2, the address without its password, and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    done = desk.call(*arguments, SAGAPOST_AMQP_URL=f"amqp://somebody:secret@127.0.0.1:{port}/")

    assert done.code == 2
    assert done.err.startswith(f"sagapost: the broker at amqp://127.0.0.1:{port}/ does not answer; start it")
    assert len(done.err.splitlines()) == 1


def test_a_user_without_rights_moves_nothing(desk: Desk, broker: servers.Broker) -> None:
    """Neither a wrong password nor a user who may read but not publish moves a letter, and each is told so in one sentence."""
    put = desk.put(2)
    vhost, user = desk.vhost.rpartition("/")[2], f"reader-{uuid.uuid4().hex[:8]}"
    api = broker.management
    management.request(api, "PUT", f"/api/users/{user}", {"password": "reader", "tags": ""})
    management.request(api, "PUT", f"/api/permissions/{vhost}/{user}", {"configure": "^$", "write": "^$", "read": ".*"})
    where = desk.vhost.rpartition("@")[2]

    tried = [
        desk.call("replay", QUEUE, "--all", "--settle", "0", "--yes", "--reason", "test", SAGAPOST_AMQP_URL=f"amqp://{login}@{where}")
        for login in (f"{user}:wrong", f"{user}:reader")
    ]
    management.request(api, "DELETE", f"/api/users/{user}")

    assert [one.code for one in tried] == [2, 2]
    assert "refuses the connection" in tried[0].err
    assert "does not permit this" in tried[1].err
    assert all(len(one.err.splitlines()) == 1 for one in tried)
    polling.eventually(lambda: desk.depth() == len(put), 30)  # what was held returns when the broker has closed the connection
    assert desk.ids() == put


def test_a_database_that_is_down_moves_nothing(desk: Desk) -> None:
    """No record, no replay: exit code 2 and every letter where it was."""
    put = desk.put(2)

    done = desk.call(
        *("replay", QUEUE, "--all", "--yes", "--reason", "test"), SAGAPOST_ORDER_DATABASE_URL="postgresql://nobody@127.0.0.1:1/nothing"
    )

    assert done.code == 2
    assert "cannot be used" in done.err
    assert desk.ids() == put
