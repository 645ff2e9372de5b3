"""What a log line says of an exception, and what it keeps to itself."""

import json
import subprocess
import sys

CODE = r"""
from sagapost_chassis import telemetry

def fail(user_email):
    raise ValueError(f"a row is refused\nDETAIL:  Failing row contains ({user_email}).")

telemetry.configure("test")
try:
    fail("somebody@" + "example.com")
except ValueError as exc:
    telemetry.log.error("it.failed", exc_info=exc)
"""


def test_an_exception_is_logged_without_addresses() -> None:
    """Neither the frames' variables nor the further lines of a database's error reach the log."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True, timeout=30)

    assert "somebody@example.com" not in done.stderr
    (found,) = json.loads(done.stderr)["exception"]
    assert (found["exc_type"], found["exc_value"]) == ("ValueError", "a row is refused")
    assert found["frames"]
