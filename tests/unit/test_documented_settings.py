"""The tables of settings cannot age: what the code reads, with which default, is what docs/settings.md says."""

import pathlib
import re

import documented_settings
import pytest

ROOT = pathlib.Path(__file__).parents[2]
# told in other tables: what only tests, benchmarks and campaigns read
TESTS_ONLY = re.compile(r"SAGAPOST_(?:FAULTS|FUZZ|TRIALS|PROMOTIONS|LEADERS|HUNG_S|ROLLING_\w+|NAME)\Z")


@pytest.mark.parametrize("section", documented_settings.known())
def test_a_section_names_what_is_read_with_its_default(section: str) -> None:
    """Every field of the process's settings, no other variable, each with the default of the code and a sentence."""
    told = documented_settings.told()

    assert section in told, f"docs/settings.md needs a section: ## {section}"
    assert {name: default for name, (default, _) in told[section].items()} == documented_settings.known()[section]
    assert all(len(what) > 2 for _, what in told[section].values())


def test_no_section_is_left_over() -> None:
    """A process that is gone leaves no table behind."""
    assert list(documented_settings.told()) == list(documented_settings.known())


def test_what_sources_read_stands_on_the_page() -> None:
    """Whatever is written out in a source, the entry point or a compose file is in a section, or is a port or password by name."""
    read: set[str] = set()
    for path in (*ROOT.glob("*/src/**/*.py"), ROOT / "sagapost", *ROOT.glob("compose*.yaml")):
        read |= documented_settings.mentioned(path.read_text(encoding="utf-8"))

    assert {name for name in read - documented_settings.names() if not TESTS_ONLY.match(name)} == set()


@pytest.mark.parametrize("page", ["README.md", "ARCHITECTURE.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))])
def test_no_page_names_a_setting_that_is_not_there(page: str) -> None:
    """A variable that was renamed or removed is renamed or removed everywhere."""
    named = documented_settings.mentioned((ROOT / page).read_text(encoding="utf-8"))

    assert {name for name in named - documented_settings.names() if not TESTS_ONLY.match(name)} == set()
