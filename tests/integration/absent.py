"""What a test does when this machine lacks something: it knows no test."""

import os
from typing import NoReturn

import pytest


def stop(reason: str) -> NoReturn:
    """Skip the test; where CI is set, fail it: a run that decides leaves nothing out."""
    if os.environ.get("CI", "") not in {"", "0", "false"}:
        pytest.fail(f"this test cannot run here, and CI leaves none out: {reason}", pytrace=False)
    pytest.skip(reason)
