"""What is promised names its tests, and the tests are there: in README.md, docs/reliability.md and SECURITY.md."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
TEST = re.compile(r"`(?:tests/)?((?:unit|integration|faults|e2e|contracts)/test_\w+\.py)::(test_\w+)`")


def _rows(page: str, head: str) -> list[str]:
    """Return the rows of the table under a head; its second line is dashes."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(head)) + 2
    end = next(number for number in range(start, len(lines)) if not lines[number].startswith("| "))
    return lines[start:end]


def _items(page: str, head: str) -> list[str]:
    section = (ROOT / page).read_text(encoding="utf-8").split(f"\n## {head}\n")[1].split("\n## ")[0]
    return [line for line in section.splitlines() if line.startswith("- ")]


PROMISES = [
    *_rows("README.md", "| promised |"),
    *_rows("docs/reliability.md", "| promise | exact words |"),
    *_items("SECURITY.md", "What is promised"),
]


@pytest.mark.parametrize("promise", PROMISES, ids=[re.sub(r"\W+", "-", one)[:40] for one in PROMISES])
def test_a_promise_names_a_test_that_exists(promise: str) -> None:
    """A sentence that nobody can see fail is no promise: each names at least one test function, and each that is named is there."""
    named = TEST.findall(promise)

    assert named != []
    for file, function in named:
        tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}, file


def test_there_are_promises_to_look_at() -> None:
    """A table that moved, or lost its rows, does not make this file pass."""
    assert len(PROMISES) >= 20
