"""Each database has one history of migrations, without a fork: two that were made side by side are noticed before they meet a database."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2] / "migrations"
REVISION = re.compile(r'^revision = "(\w+)"$', re.MULTILINE)
DOWN = re.compile(r'^down_revision = "?(\w+)"?$', re.MULTILINE)


@pytest.mark.parametrize("database", ["order", "payment"])
def test_migrations_are_one_chain(database: str) -> None:
    """Numbers follow one another, each file bears its own, and each names the one before it."""
    files = sorted((ROOT / database).glob("*.py"))
    found = [(REVISION.findall(text), DOWN.findall(text)) for text in (path.read_text(encoding="utf-8") for path in files)]

    names = [f"{database}_{number:04}" for number in range(1, len(files) + 1)]
    assert [revisions for revisions, _ in found] == [[name] for name in names]
    assert [downs for _, downs in found] == [["None"], *([name] for name in names[:-1])]
    assert [path.name[:4] for path in files] == [name[-4:] for name in names]
