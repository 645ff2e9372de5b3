"""The registry of crash points and the code agree."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sagapost_chassis import crashpoints

ROOT = Path(__file__).parents[2]


def test_every_point_in_the_code_is_in_the_registry_and_the_other_way_round() -> None:
    """A new point without its name in the registry, and so without its fault test, fails here."""
    sources = [path.read_text() for path in ROOT.glob("*/src/**/*.py")]

    used = {name for source in sources for name in re.findall(r'crashpoint\("([a-z_.]+)"\)', source)}

    assert used == set(crashpoints.NAMES)


def _run(plan: str, calls: int) -> subprocess.CompletedProcess[str]:
    code = f"for _ in range({calls}): asyncio.run(crashpoints.crashpoint('saga.after_commit'))"
    command = [sys.executable, "-c", "import asyncio; from sagapost_chassis import crashpoints\n" + code]
    environment = {**os.environ, "SAGAPOST_CRASH": plan}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=30)


@pytest.mark.parametrize(
    ("plan", "calls", "code"),
    [
        ("", 1, 0),
        ("order.after_commit", 1, 0),
        ("saga.after_commit", 1, -signal.SIGKILL),
        ("saga.after_commit:2", 1, 0),
        ("saga.after_commit:2", 2, -signal.SIGKILL),
        ("saga.after_commit:raise", 1, 1),
        ("saga.after_commit:sleep=0.01", 1, 0),
    ],
)
def test_a_point_fires_only_as_told(plan: str, calls: int, code: int) -> None:
    """Without its name in SAGAPOST_CRASH a point does nothing; with it, it dies at the hit it was told."""
    assert _run(plan, calls).returncode == code


def test_a_misspelt_point_is_refused_with_the_list() -> None:
    """A campaign with a wrong name must not look like one that survived."""
    done = _run("saga.after_comit", 1)

    assert done.returncode == 1
    assert "saga.after_commit" in done.stderr
