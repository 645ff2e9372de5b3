"""`load` against real services: what it says of them is what their databases say."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import uuid

import msgspec
import psycopg
from faults.stack import Stack
from integration import state_folder

from sagapost_ops.load import journal
from sagapost_sandbox.testing import polling


def _start(stack: Stack, folder: pathlib.Path, *arguments: str) -> subprocess.Popen[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SAGAPOST_")}
    line = [sys.executable, "-P", "-m", "sagapost_ops", "load", *arguments, "--journal", str(folder / "journal.jsonl"), "--json"]
    home = folder / "state"
    state_folder.write(home, msgspec.structs.replace(stack.known, gateway_url=stack.running["gateway"].url))
    return subprocess.Popen(
        line,
        env=environ | {"SAGAPOST_STATE": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _orders(stack: Stack, keys: set[str]) -> int:
    with psycopg.connect(str(stack.known.order_database_url)) as conn:
        found = conn.execute("SELECT count(DISTINCT order_id) FROM idempotency_keys WHERE key = ANY(%s)", (list(keys),)).fetchone()
    assert found is not None
    return int(found[0])


def test_a_load_says_of_each_checkout_how_it_ended(stack: Stack, tmp_path: pathlib.Path) -> None:
    """Every arrival is one order with its own key, every saga is seen to its end, and figures, journal, page and databases agree."""
    running = _start(
        stack, tmp_path, "--rps", "15", "--for", "4", "--mix", "ok=6,declined=2,cancelled=2", "--report", str(tmp_path / "r.html")
    )
    out, err = running.communicate(timeout=100)

    assert running.returncode == 0, err
    found = json.loads(out)
    assert {"offered_per_s", "accepted_per_s", "completed_per_s", "accept_ms", "end_to_end_ms", "outcomes", "errors"} < found.keys()
    assert found["accept_ms"].keys() == found["end_to_end_ms"].keys() == {"p50", "p95", "p99", "max"}
    lines = journal.read(tmp_path / "journal.jsonl")
    answered = [line for line in lines if line.what == "checkout" and line.outcome == "ok"]
    ended = {line.key: line for line in lines if line.what == "end"}
    assert found["outcomes"].keys() == {"notified", "compensated"}
    assert sum(found["outcomes"].values()) == len(answered) == len(ended) == _orders(stack, set(ended))
    assert {line.state for line in ended.values() if line.kind == "ok"} == {"notified"}
    assert {line.state for line in ended.values() if line.kind != "ok"} == {"compensated"}
    assert found["went_back"] == 0
    assert "<svg" in (tmp_path / "r.html").read_text()
    stack.accepted += [uuid.UUID(line.saga_id) for line in answered if line.saga_id]
    stack.verified()


def test_ctrl_c_ends_a_load_in_order(stack: Stack, tmp_path: pathlib.Path) -> None:
    """Nothing more is sent, what is under way is answered, and the figures are those of what there was."""
    running = _start(stack, tmp_path, "--rps", "10", "--for", "600")
    path = tmp_path / "journal.jsonl"
    polling.eventually(lambda: path.exists() and len(journal.read(path)) >= 10, 30)

    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)

    assert running.returncode == 0, err
    found = json.loads(out)
    lines = [line for line in journal.read(path) if line.what == "checkout"]
    assert sum(found["outcomes"].values()) == len({line.key for line in lines})
    assert "unknown" not in found["outcomes"]
    assert _orders(stack, {line.key for line in lines}) == len({line.key for line in lines if line.outcome == "ok"})
    stack.verified()
