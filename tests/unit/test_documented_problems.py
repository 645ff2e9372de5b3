"""docs/http-api.md lists every problem type with its status, and no other."""

import pathlib
import re

from sagapost_gateway import problem_types

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "http-api.md"


def test_every_problem_type_is_documented_with_its_status() -> None:
    """A client that reads the page knows every error that the API can answer."""
    section = PAGE.read_text(encoding="utf-8").split("\n## Errors\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\d{3}) \| (.*) \|$", section, re.MULTILINE)

    told = {slug: int(status) for status, row in rows for slug in re.findall(r"`/problems/([a-z-]+)`", row)}

    assert told == {slug: kind.status for slug, kind in problem_types.KINDS.items()}
