"""How `saga` says what it knows: words for everything the order service can write, advice, streams, wrong calls."""

import io
import pathlib
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import msgspec
import pytest
from rich.console import Console

from sagapost_ops import cli, client, screen
from sagapost_ops.saga import advice, calls, pages, resources, stream, words
from sagapost_order import saga, states, transitions

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
SAGA_ID = "0193b1c2-7d4e-7a10-9f0e-5f2f6c1d8a11"
SAGA = resources.Saga(
    saga_id=SAGA_ID,
    order_id=1042,
    state="paid",
    version=2,
    done=False,
    captured=Decimal("1299.99"),
    refunded=Decimal("0.00"),
    currency="USD",
    deadline_at=NOW + timedelta(seconds=30),
    created_at=NOW - timedelta(minutes=10),
    steps=(resources.Step(name="order", state="done", ms=14), resources.Step(name="payment", state="done", ms=1003, attempts=1)),
)
LISTED = resources.Listed(
    saga_id=SAGA_ID,
    order_id=1042,
    state="compensation_failed",
    stuck=True,
    attention="payment_contradicts_capture",
    captured=Decimal("1299.99"),
    refunded=Decimal("0.00"),
    currency="USD",
    deadline_at=NOW - timedelta(minutes=4),
    created_at=NOW - timedelta(days=3),
)


def _row(event: str, before: str, to: str, **more: str) -> resources.History:
    return msgspec.convert({"seq": 1, "from": before, "to": to, "event": event, "at": NOW, **more}, resources.History)


def _codes(effect: str) -> set[str]:
    """Collect what the transition table's effects of a name write."""
    return {
        cell.cell_contents
        for rules in transitions.TABLE.values()
        for rule in rules
        for does in rule.does
        if getattr(does, "__qualname__", "").startswith(f"{effect}.")
        for cell in getattr(does, "__closure__", ())
    }


def _printed(width: int, found: resources.Saga) -> str:
    console = Console(width=width, file=io.StringIO(), highlight=False)
    pages.show_saga(screen.Screen(console), found, NOW, option="")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_every_state_and_code_of_the_order_service_has_words() -> None:
    """States, and what the transition table writes into `attention` and `reason`, are known here without an import of the service."""
    assert set(words.STATES) == set(states.STATES)
    assert set(states.PARKED) == words.PARKED
    assert set(states.PASSING.values()) <= _codes("attention") == set(words.ATTENTION)
    assert len(_codes("reason")) > 5
    assert _codes("reason") <= set(words.REASONS)


@pytest.mark.parametrize(("before", "event", "to"), saga.edges())
def test_every_legal_edge_is_told_in_a_sentence(before: str, event: str, to: str) -> None:
    """No row of a history shows a bare event name."""
    assert words.happened(_row(event, before, to)) != event


@pytest.mark.parametrize(
    ("row", "who", "said"),
    [
        (_row("OrderCreated", "none", "created", source="http"), "customer", "the order was placed"),
        (_row("PaymentFailed", "created", "compensated", reason="card_declined"), "event", "the payment was declined: card_declined"),
        (_row("EmailSent", "paid", "notified"), "event", "the receipt was sent"),
        (_row("EmailSent", "compensated", "compensated"), "event", "a mail was sent"),
        (_row("EmailSent", "created", "created", mail="receipt"), "event", "the receipt was sent"),
        (_row("EmailSent", "compensated", "compensated", mail="cancellation"), "event", "the cancellation mail was sent"),
        (
            _row("EmailFailed", "compensated", "compensated", mail="cancellation", reason="550"),
            "event",
            "the cancellation mail could not be delivered: 550",
        ),
        (
            _row("Deadline", "compensated", "compensated", source="deadline", mail="cancellation"),
            "clock",
            "the cancellation mail was asked for again",
        ),
        (_row("Deadline", "compensated", "compensated", source="deadline"), "clock", "the last try for the cancellation mail was over"),
        (
            _row("CancelRequested", "paid", "paid", source="http"),
            "customer",
            "asked to cancel the order: noted, the receipt is being sent",
        ),
        (
            _row("Deadline", "paid", "compensating", source="deadline", reason="receipt"),
            "clock",
            "the receipt's time was over, the noted cancellation is applied",
        ),
        (_row("Deadline", "paid", "paid", source="deadline", reason="notify"), "clock", "the receipt was asked for again"),
        (_row("Deadline", "created", "compensating", source="deadline", reason="pay"), "clock", "the time to pay was over"),
        (_row("OperatorRetry", "paid", "paid", source="operator", actor="ann", reason="why"), "operator ann", "had it tried again: why"),
        (
            _row("OperatorRetry", "paid", "paid", source="operator", actor="a\x1b[2Jn", reason="x\ny"),
            "operator a?[2Jn",
            "had it tried again: x y",
        ),
        (_row("PaymentProcessed", "paid", "paid", outcome="ignored"), "event", "the money was captured (changed nothing)"),
        (_row("SomethingNew", "paid", "paid", source="elsewhere"), "elsewhere", "SomethingNew"),
    ],
)
def test_a_row_says_who_did_what_and_why(row: resources.History, who: str, said: str) -> None:
    """Reasons are shown as they were given, except a deadline's kind, which the sentence says; new words are passed through."""
    assert (words.who(row), words.happened(row)) == (who, said)


@pytest.mark.parametrize(
    ("seconds", "said"), [(12, "in 12 s"), (300, "in 5 min"), (-0.5, "now"), (-12, "12 s overdue"), (-240, "4 min overdue")]
)
def test_a_deadline_is_said_from_now(seconds: float, said: str) -> None:
    """In so long, or overdue for so long; within the sweeper's second it is simply now."""
    assert words.due(NOW + timedelta(seconds=seconds), NOW) == said


@pytest.mark.parametrize(
    ("seconds", "said"), [(-1, "0.00 s"), (1.234, "1.23 s"), (61, "1 min 1 s"), (7325, "2 h 2 min"), (180_000, "2 d 2 h")]
)
def test_time_since_the_start_keeps_two_units(seconds: float, said: str) -> None:
    """Hundredths where they matter, days where they do not."""
    assert words.since(seconds) == said


@pytest.mark.parametrize("state", states.STATES)
def test_advice_names_only_actions_that_the_table_has_a_use_for(state: str) -> None:
    """Whatever is advised moves or asks something in that state, and a parked saga is told how to be tried again."""
    names = {
        "retry": states.OPERATOR_RETRY,
        "compensate": states.OPERATOR_COMPENSATE,
        "waive-notify": states.OPERATOR_WAIVE_NOTIFY,
        "mark-refunded": states.OPERATOR_MARK_REFUNDED,
    }
    found = msgspec.structs.replace(SAGA, state=state)

    said = advice.advise(found, NOW, " --port-offset 7")

    commands = [one.command for one in said if one.command]
    assert all(line.startswith("./sagapost saga ") and line.endswith(" --port-offset 7") and "1042 --reason" in line for line in commands)
    cells = [transitions.TABLE[state, names[line.split()[2]]] for line in commands]
    assert not any(rule.ignored for cell in cells for rule in cell)
    assert bool(commands) == (state not in states.DONE)
    if state in states.PARKED:
        assert commands[0] == './sagapost saga retry 1042 --reason "…" --port-offset 7'


def test_money_that_was_not_charged_is_not_said_to_be_kept() -> None:
    """A refund that failed where nothing was charged keeps nobody's money, and the line says so."""
    stuck = msgspec.structs.replace(SAGA, state="compensation_failed", attention="refund_failed")

    assert "the customer's money is still here" in words.attention(stuck)
    assert "money" not in words.attention(msgspec.structs.replace(stuck, captured=Decimal("0.00")))


def test_a_deadline_that_nobody_applies_points_at_the_service() -> None:
    """Half a minute after it nobody sweeps, and no action on this one saga helps that."""
    late = msgspec.structs.replace(SAGA, deadline_at=NOW - timedelta(seconds=31))

    assert advice.advise(late, NOW)[0].command == "./sagapost status"
    assert advice.advise(SAGA, NOW)[0].command is None


@pytest.mark.parametrize("width", [80, 140])
def test_a_saga_fits_the_terminal(width: int) -> None:
    """No line is longer than the terminal, long reasons are wrapped whole, commands stay in one piece."""
    reason = "the mail server is back, its disk had been full since the morning"
    rows = (
        _row("OrderCreated", "none", "created", source="http"),
        _row("OperatorRetry", "notify_failed", "paid", source="operator", actor="ann", reason=reason),
    )

    printed = _printed(width, msgspec.structs.replace(SAGA, history=rows))

    assert max(len(line.rstrip()) for line in printed.splitlines()) <= width
    assert all(word in printed for word in reason.split())
    assert '  ./sagapost saga retry 1042 --reason "…"\n' in printed
    assert ("OperatorRetry" in printed) == (width == 140)


def test_a_long_history_is_cut_to_its_end() -> None:
    """`show` prints the newest rows and says where the others are."""
    rows = tuple(msgspec.structs.replace(_row("Deadline", "paid", "paid", source="deadline"), seq=seq) for seq in range(1, 101))

    printed = _printed(140, msgspec.structs.replace(SAGA, history=rows))

    assert printed.count("the receipt was asked for again") == pages.SHOWN
    assert f"{100 - pages.SHOWN} earlier rows: ./sagapost saga history 1042" in printed


@pytest.mark.parametrize("width", [80, 140])
def test_the_list_fits_the_terminal(width: int) -> None:
    """The longest state, the longest attention and an overdue deadline stand whole at 80 columns; a wide one has the saga's id too."""
    console = Console(width=width, file=io.StringIO(), highlight=False, force_terminal=True, color_system=None)

    pages.show_list(screen.Screen(console), [msgspec.structs.replace(LISTED, stuck=False), LISTED], NOW, more=True, option="")

    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert max(len(line.rstrip()) for line in printed.splitlines()) <= width
    for whole in ("compensation_failed", "4 min overdue", "3 d", "stuck", "see --limit", "./sagapost saga show 1042"):
        assert whole in printed
    assert (SAGA_ID in printed, "1299.99 USD" in printed) == (width == 140, width == 140)


def test_a_stream_is_put_together_from_its_lines() -> None:
    """Comments and heartbeats say nothing, data of several lines are joined, and an event that was cut off does not count."""
    lines = [b": hello\r\n", b"retry: 1000\r\n", b"\r\n", b"id: 1\r\n", b"event: transition\r\n", b"data: {\r\n", b"data: }\r\n", b"\r\n"]
    lines += [b": still here\n", b"\n", b"data:x\n", b"\n", b"event: end\n", b"data: cut\n"]

    found = list(stream.frames(lines))

    assert found == [stream.Frame(event="transition", data="{\n}"), stream.Frame(event="message", data="x")]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("retry", "7"), "say why, with --reason TEXT"),
        (("compensate", "7", "--reason", "  "), "say why, with --reason TEXT"),
        (("waive-notify", "7", "--reason", "x" * 501), "keep the reason to 500 characters"),
        (("mark-refunded", "7", "--reason", "paid by transfer"), "say how the money went back, with --reference TEXT"),
        (("retry", "7", "--reason", "again", "--reference", "T-1"), "No such option"),
        (("show", "laptop"), "'laptop' is neither an order's number nor a saga's id"),
        (("list", "--state", "broken"), "'broken' is not one of 'created'"),
        (("show", "7"), "nothing runs here; start it with: ./sagapost up --detach"),
        (("list",), "nothing runs here; start it with: ./sagapost up --detach"),
    ],
)
def test_a_wrong_call_or_a_missing_stack_is_one_sentence(
    arguments: tuple[str, ...], says: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2 and what to do, before anything is asked of anybody."""
    monkeypatch.setenv("SAGAPOST_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(sys, "argv", ["./sagapost", "saga", *arguments])

    code = cli.run()

    printed = capsys.readouterr()
    assert (code, printed.out, len(printed.err.splitlines())) == (2, "", 1)
    assert says in printed.err


@pytest.mark.parametrize("name", ["list", "show", "history", "retry", "compensate", "waive-notify", "mark-refunded"])
def test_every_command_teaches_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each help holds a line that can be copied, whole at 80 columns."""
    code = cli.main.main(["saga", name, "--help"], prog_name="./sagapost", standalone_mode=False)

    printed = capsys.readouterr().out
    assert code == 0
    examples = [line.strip() for line in printed.splitlines() if line.strip().startswith(f"./sagapost saga {name}")]
    assert examples
    assert all(line.count('"') % 2 == 0 and line.count("'") % 2 == 0 for line in examples)


def test_a_refusal_names_the_wrong_fields() -> None:
    """What a problem says of single fields is printed behind its sentence."""
    body = b'{"title": "Invalid", "detail": "The request is wrong.", "errors": [{"pointer": "/reason", "code": "too_long"}]}'

    assert calls.said(client.Answer(status=422, headers={}, body=body)) == "The request is wrong. /reason: too_long."
