"""A short campaign of `chaos`, the one that runs at every change; SEED repeats one, SAGAPOST_TEST_CHAOS="10000 1000" makes it long."""

import json
import os
import pathlib
import secrets
import subprocess
import sys

import pytest
from e2e import shop_stack

from sagapost_chassis import crashpoints

SEED = int(os.environ.get("SEED") or secrets.randbelow(1_000_000))
CHECKOUTS, KILLS = (os.environ.get("SAGAPOST_TEST_CHAOS") or "250 30").split()
# more of what leads to refunds and deadlines than customers do, so that a short run passes every crash point
MIX = "ok=80,declined=5,flaky=3,late=2,cancelled=10"
pytestmark = pytest.mark.timeout(3600 if int(KILLS) > 100 else 600)


def test_nothing_is_lost_or_doubled_while_everything_is_killed(tmp_path: pathlib.Path) -> None:
    """Every process, both databases and the broker get kill -9 under load, every crash point fires, and all books agree afterwards."""
    line = ["--seed", str(SEED), "--checkouts", CHECKOUTS, "--kills", KILLS, "--mix", MIX, "--out", str(tmp_path / "out"), "--json"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SAGAPOST_")}

    done = subprocess.run(
        [sys.executable, "-P", "-m", "sagapost_ops", "chaos", *line, "--port-offset", str(shop_stack.Stack(tmp_path / "state").offset)],
        env=environ | {"SAGAPOST_STATE": str(tmp_path / "state")},
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
    assert not list(tmp_path.glob("state-*")), "the stack's folder goes with it"
