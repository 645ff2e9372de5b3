"""The relay benchmark without servers: its mark, its device fed byte by byte, its figures, report and chart."""

import importlib
import json
import pathlib
from types import ModuleType
from typing import Any
from xml.parsers import expat

import msgspec
import pytest
import rich_click as click

from sagapost_ops import cli, state
from sagapost_ops.commands import bench as command

ROOT = pathlib.Path(__file__).parents[2]
RATES = {"sagapost": (26_000.0, 25_000.0, 30_000.0), "skip_locked": (9_000.0, 10_000.0, 12_000.0), "txoutbox-tuned": (6_000.0,) * 3}


@pytest.fixture(autouse=True)
def _checkout_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"benchmarks.relay.{name}")


def _samples() -> list[Any]:
    sample = _module("bench").Sample
    found = [
        sample(measure="drain", contender=name, repeat=repeat, values={"per_s": rate, "cpu_us": 17, "lost": 0, "duplicated": 1})
        for name, rates in RATES.items()
        for repeat, rate in enumerate(rates)
    ]
    found += [sample(measure="drain", contender="ceiling", repeat=repeat, values={"per_s": 40_000.0}) for repeat in range(3)]
    found += [
        sample(measure="latency", contender=name, case="1000", repeat=0, values={"p50_ms": at, "p99_ms": 4 * at, "written_per_s": written})
        for name, at, written in (("sagapost", 2.0, 1000.0), ("txoutbox-tuned", 2.8, 800.0))
    ]
    found += [
        sample(measure="held_write", contender="sagapost", case=case, repeat=0, values={"per_s": rate, "p50_ms": 2, "p99_ms": 5, "dead": 0})
        for case, rate in (("with", 24_000.0), ("without", 24_500.0))
    ]
    return [*found, sample(measure="contention", contender="horizon", repeat=0, note="ContenderError: it | stands still")]


def _read_xml(text: str) -> None:
    is_final = True
    expat.ParserCreate().Parse(text, is_final)


def _stream(messages: list[tuple[int, int, int]]) -> bytes:
    """Bytes as a broker sends them: frames that are nobody's business, then a body's frame."""
    stamps = _module("stamps")
    return b"".join(b"\x01\x00\x01<deliver>\xce\x02<header>\xce\x03" + stamps.body(*one, 300) + b"\xce" for one in messages)


def test_the_message_is_the_same_bytes_for_everybody() -> None:
    """What a peer is given to publish is byte for byte what Sagapost's own types encode, and as long as was asked for."""
    stamps, measured = _module("stamps"), _module("measured")
    fields = stamps.fields(7, 3, 2, 300)

    ours = msgspec.json.encode(msgspec.convert(fields, measured.Measured))

    assert ours == stamps.body(7, 3, 2, 300)
    assert len(ours) == 300


@pytest.mark.parametrize("step", [1, 7, 313, 4096])
def test_the_device_counts_the_same_however_the_bytes_are_cut(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads of any size and buffers that end within a message lose nothing and count nothing twice."""
    sink = _module("sink")
    monkeypatch.setattr(sink, "BUFFER_BYTES", 5000)
    wanted = [(number, number % 3, number // 3) for number in range(60)]
    stream = _stream(wanted)
    recorder = sink.Recorder()

    for at in range(0, len(stream), step):
        left = stream[at : at + step]
        while left:
            space = recorder.space()
            size = min(len(left), len(space))
            space[:size] = left[:size]
            recorder.came(size, float(at))
            left = left[size:]
    seen_before_parsing = recorder.count
    recorder.parse()

    assert seen_before_parsing == 60
    assert list(zip(recorder.sequences, recorder.aggregates, recorder.numbers, strict=True)) == wanted
    assert list(recorder.times) == sorted(recorder.times)


def test_confirms_are_counted_in_whatever_order_they_come() -> None:
    """Single confirms ahead of a multiple one, cut anywhere, are neither forgotten nor counted twice."""
    ceiling, wire = _module("ceiling"), _module("wire")
    commands, frame = importlib.import_module("pamqp.commands"), importlib.import_module("pamqp.frame")
    tags = ((3, False), (5, False), (4, True), (6, False), (9, True))
    stream = b"".join(frame.marshal(commands.Basic.Ack(tag, multiple), wire.CHANNEL) for tag, multiple in tags)
    confirms, seen = ceiling.Confirms(b""), []

    for at in range(0, len(stream), 5):
        confirms.read(stream[at : at + 5])
        seen.append(confirms.count)

    assert sorted(set(seen)) == [0, 1, 2, 5, 6, 9]
    assert seen == sorted(seen)


def test_figures_have_the_promised_shape_and_are_medians() -> None:
    """`bench relay --json` gives the documented keys; rates are medians and ratios are medians of each repetition's ratio."""
    summary = _module("summary")

    document = json.loads(msgspec.json.encode(summary.document(summary.Figures(_samples()))))

    assert document["drain"] == {"per_s": 26_000}
    assert document["ceiling"] == {"per_s": 40_000}
    assert document["peers"] == {"skip_locked": {"per_s": 10_000}, "txoutbox-tuned": {"per_s": 6_000}}
    assert document["latency"] == {"1000": {"p50_ms": 2.0, "p99_ms": 8.0}}
    assert document["held_write"]["ratio"] == pytest.approx(0.98, abs=0.001)
    assert document["held_snapshot"]["ratio"] is None
    assert document["backlog"] == {"ratio": None}
    assert (document["lost"], document["duplicated"], document["inversions"]) == (0, 3, 0)


def test_a_goal_is_reached_missed_or_not_measured() -> None:
    """Each figure of the design says which of the three it is; what was not measured is never called reached."""
    summary = _module("summary")

    reached = {goal.name: goal.reached for goal in summary.goals(summary.Figures(_samples()))}

    assert reached["drain, one relay"] is True
    assert reached["drain against the SKIP LOCKED recipe"] is True
    assert reached["commit → received, p99 at 1000/s"] is True
    assert reached["commit → received, p50 at 1000/s, ahead of every peer"] is True
    assert reached["throughput beside an open write transaction"] is True
    assert reached["throughput beside a read-only snapshot"] is None
    slower = [msgspec.structs.replace(one, values=one.values | {"per_s": 100.0}) for one in _samples() if one.contender == "sagapost"]
    assert {goal.name: goal.reached for goal in summary.goals(summary.Figures(slower))}["drain, one relay"] is False


def test_the_report_names_goals_faults_and_who_was_left_out(tmp_path: pathlib.Path) -> None:
    """Whoever reads it learns what was reached, what failed, which writer was too slow, and who could not take part and why."""
    run, report, bench, summary = (_module(name) for name in ("run", "report", "bench", "summary"))
    samples = _samples()
    about = report.About(
        command="./sagapost bench relay",
        began_at="2026-01-02T03:04:05+00:00",
        took_s=1.0,
        machine={"processor": "two"},
        settings={"fsync": "on"},
        versions={"txoutbox": "0.2.2"},
        contenders={"sagapost": "this project"},
        absent={"faststream-outbox": "could not be installed: no index"},
        load_before="0.1",
    )
    raw = run.Raw(about=about, options=bench.Options(), summary=summary.document(summary.Figures(samples)), samples=samples)

    path = run.write(raw, tmp_path)

    text = path.read_text()
    assert path.name == "relay-2026-01-02.md"
    assert "| drain, one relay | ≥ 25,000/s | 26,000/s | yes |" in text
    assert "contention horizon: ContenderError: it | stands still" in text
    assert "latency 1000 txoutbox-tuned: its writer wrote 800/s only" in text
    assert "faststream-outbox | **left out**: could not be installed: no index |" in text
    assert "| fsync | on |" in text
    assert msgspec.json.decode(path.with_suffix(".json").read_bytes(), type=run.Raw).samples == samples
    _read_xml(path.with_suffix(".svg").read_text())


def test_the_chart_is_well_formed_and_needs_no_background() -> None:
    """A bar each, escaped labels, ours and the bound in colours of their own, and one that is far out cut instead of all others."""
    plot = _module("plot")
    bars = tuple(plot.Bar(label=f"<{name}>", value=value, kind=kind) for name, value, kind in [("a", 1, "ours"), ("b", 2, "other")])
    far = plot.Bar(label="far", value=500.0, kind="bound")

    svg = plot.svg([plot.Panel(title="rates & more", bars=(*bars, far))])

    _read_xml(svg)
    assert svg.count("<rect") == 3
    assert "&lt;a&gt;" in svg
    assert "rates &amp; more" in svg
    assert "500 (cut)" in svg
    assert "background" not in svg
    assert len({line.split('fill="')[1] for line in svg.splitlines() if line.startswith("<rect")}) == 3


def test_the_command_knows_what_the_benchmark_measures() -> None:
    """`--only` offers exactly the measures that there are."""
    assert tuple(_module("run").MEASURES) == command.MEASURES


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["bench", "relay", "--only", "drain,nonsense"], "nonsense is not measured; choose from drain"),
        (["bench", "relay", "--bytes", "5"], "5 is not in the range"),
    ],
)
def test_a_wrong_call_is_refused_before_anything_starts(arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown measure or an impossible size is exit code 2 at once."""
    monkeypatch.setattr(state, "checkout", lambda: pytest.fail("it went on"))

    with pytest.raises(click.UsageError, match=says):
        cli.main.main(arguments, prog_name="./sagapost", standalone_mode=False)


def test_without_a_checkout_the_command_says_so(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmarks are no part of an installation: one sentence and exit code 2."""
    monkeypatch.setattr(state, "checkout", lambda: tmp_path)

    with pytest.raises(click.ClickException, match="run this from a checkout") as failed:
        cli.main.main(["bench", "relay", "--quick"], prog_name="./sagapost", standalone_mode=False)

    assert failed.value.exit_code == 2
