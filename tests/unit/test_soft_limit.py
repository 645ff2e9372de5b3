"""A test that hangs ends alone, and a report for a CI is written."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
CONFTEST = """
import pytest, soft_limit

@pytest.fixture
def anyio_backend():
    return "asyncio"

def pytest_collection_modifyitems(config, items):
    soft_limit.apply(items, float(config.getini("timeout")), share=0.1)
"""
TESTS = """
import asyncio, pytest

pytestmark = pytest.mark.anyio

@pytest.mark.timeout(20)
async def test_that_hangs():
    await asyncio.Event().wait()

async def test_after_it(record_property):
    record_property("figure", 1)
"""


def test_a_test_that_hangs_ends_alone(tmp_path: pathlib.Path) -> None:
    """It fails with the line where it hangs, the one after it runs in the same process, and the JUnit report holds both."""
    (tmp_path / "conftest.py").write_text(CONFTEST, "utf-8")
    (tmp_path / "test_hanging.py").write_text(TESTS, "utf-8")
    report = tmp_path / "report.xml"

    options = ["-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider", f"--junitxml={report}"]
    line = [sys.executable, "-m", "pytest", *options, str(tmp_path)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)

    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "await asyncio.Event().wait()" in done.stdout
    assert 'name="figure" value="1"' in report.read_text("utf-8")
