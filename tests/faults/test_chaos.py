"""A short campaign of `chaos`, the one that runs at every change; SEED repeats one, SAGAPOST_TEST_CHAOS="10000 1000" makes it long."""

import json
import os
import pathlib
import secrets
import subprocess
import sys

import pytest
from e2e import shop_stack
from integration import leak_search

from sagapost_chassis import crashpoints
from sagapost_sandbox.testing import polling

SEED = int(os.environ.get("SEED") or secrets.randbelow(1_000_000))
CHECKOUTS, KILLS = (os.environ.get("SAGAPOST_TEST_CHAOS") or "200 24").split()
# more of what leads to refunds and deadlines than customers do, so that a short run passes every crash point
MIX = "ok=80,declined=5,flaky=3,late=2,cancelled=10"
pytestmark = pytest.mark.timeout(3600 if int(KILLS) > 100 else 600)


def test_nothing_is_lost_or_doubled_while_everything_is_killed(tmp_path: pathlib.Path, run_folder: pathlib.Path) -> None:
    """Every process, both databases and the broker get kill -9 under load, every crash point fires, and all books agree afterwards."""
    line = ["--seed", str(SEED), "--checkouts", CHECKOUTS, "--kills", KILLS, "--mix", MIX, "--out", str(tmp_path / "out"), "--json"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SAGAPOST_")}
    base = run_folder / "campaign" / "state"

    done = subprocess.run(
        [sys.executable, "-P", "-m", "sagapost_ops", "chaos", *line, "--port-offset", str(shop_stack.Stack(base).offset)],
        env=environ | {"SAGAPOST_STATE": str(base)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, f"SEED={SEED}\n{done.stderr}\n{done.stdout[-4000:]}"
    found = json.loads(done.stdout)
    assert (found["ok"], found["lost"], found["double_charges"], found["double_refunds"]) == (True, 0, 0, 0)
    assert found["seed"] == SEED
    assert found["kills"] >= int(KILLS)
    assert found["accepted"] == found["checkouts"] >= int(CHECKOUTS)
    assert set(found["crash_points"]) == set(crashpoints.NAMES)
    assert all(found["crash_points"].values())
    assert all(found["kills_by_process"].values())
    assert sum(found["outcomes"][end] for end in ("notified", "compensated")) == found["accepted"]
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".json", ".md", ".svg"]
    assert not list(base.parent.glob("state-*")), "the stack's folder goes with it"


def test_a_campaign_that_is_ended_takes_its_stack_with_it(run_folder: pathlib.Path) -> None:
    """Exit code 130, and neither a process nor a server of the stack is left."""
    base = run_folder / "chaos" / "state"
    offset = shop_stack.Stack(base).offset
    home = base.with_name(f"{base.name}-chaos-{offset}")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SAGAPOST_")}
    line = [sys.executable, "-P", "-m", "sagapost_ops", "chaos", "--port-offset", str(offset), "--out", str(run_folder)]

    with subprocess.Popen(line, env=environ | {"SAGAPOST_STATE": str(base)}, stderr=subprocess.DEVNULL) as campaign:
        polling.eventually((home / "logs" / "gateway.log").exists, 100)
        campaign.terminate()
        code = campaign.wait(60)

    assert code == 130
    assert leak_search.command_lines(home) == {}
