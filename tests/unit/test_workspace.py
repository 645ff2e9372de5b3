"""What the tree itself promises: names, the email folder, the lists of locks/, declared imports, a POSIX entry point."""

import ast
import email
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging import requirements, utils

ROOT = Path(__file__).parents[2]
MEMBERS = ("contracts", "chassis", "order", "payment", "email", "relay", "gateway", "sandbox", "ops")
IMAGES = MEMBERS[2:]
LISTS = (*IMAGES, "dev", "uv", "build")


def _project(folder: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / folder / "pyproject.toml").read_text())


def _required(entries: list[str]) -> dict[str, requirements.Requirement]:
    parsed = (requirements.Requirement(entry) for entry in entries)
    return {utils.canonicalize_name(one.name): one for one in parsed}


def _needed(member: str) -> dict[str, requirements.Requirement]:
    """Give what a member and the members it asks for declare, by canonical name."""
    declared = _required(_project(member)["project"]["dependencies"])
    for name in list(declared):
        if name.startswith("sagapost-"):
            declared |= _needed(name.removeprefix("sagapost-"))
    return declared


def _pins(name: str) -> dict[str, str]:
    text = (ROOT / "locks" / f"{name}.txt").read_text()
    return dict(re.findall(r"^([a-z0-9-]+)(?:\[[a-z0-9,-]+\])?==([^\s;]+)", text, re.MULTILINE))


def _imported(member: str) -> Iterator[tuple[str, str]]:
    for file in (ROOT / member / "src").rglob("*.py"):
        yield from ((package, file.name) for package in _imports(file))


def _imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


def test_importing_email_gives_the_standard_librarys_package() -> None:
    """The folder email/ must not shadow the package that http, urllib and importlib.metadata are built on."""
    code = "import email, email.message, http.client; print(email.__file__)"

    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    assert Path(found) == Path(sysconfig.get_path("stdlib"), "email", "__init__.py")
    assert email.__file__ == found
    assert not list((ROOT / "email").glob("*.py"))


@pytest.mark.parametrize("member", MEMBERS)
def test_a_member_has_one_name_everywhere(member: str) -> None:
    """Folder, distribution and import package are one name, and the package is typed."""
    assert _project(member)["project"]["name"] == f"sagapost-{member}"
    assert [path.name for path in (ROOT / member / "src").iterdir() if path.is_dir()] == [f"sagapost_{member}"]
    assert (ROOT / member / "src" / f"sagapost_{member}" / "py.typed").is_file()


def test_every_member_is_in_the_workspace_and_installed_for_development() -> None:
    """A member that is missing in one of the root's lists would be neither locked, nor checked, nor tested."""
    root = _project(".")
    linked = sorted(f"sagapost-{member}" for member in MEMBERS)

    assert sorted(path.parent.name for path in ROOT.glob("*/pyproject.toml")) == sorted(MEMBERS)
    assert sorted(root["tool"]["uv"]["workspace"]["members"]) == sorted(MEMBERS)
    assert sorted(root["tool"]["uv"]["sources"]) == linked
    assert sorted(one for one in _required(root["dependency-groups"]["dev"]) if one.startswith("sagapost-")) == linked


@pytest.mark.parametrize("name", [*LISTS, "bench"])
def test_a_list_of_locks_holds_names_versions_and_hashes_only(name: str) -> None:
    """No address, no index, nothing unpinned: the lists are good behind any mirror."""
    line = re.compile(r"[a-z0-9-]+(\[[a-z0-9,-]+\])?==[^\s;:/]+( ; [^:/\\]+)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?")

    lines = (ROOT / "locks" / f"{name}.txt").read_text().splitlines()

    assert lines
    assert [one for one in lines if not line.fullmatch(one)] == []


def test_there_is_one_list_per_image_and_no_other() -> None:
    """The Dockerfile takes locks/$SERVICE.txt; the benchmark's peers have a list of their own."""
    assert sorted(path.stem for path in (ROOT / "locks").glob("*.txt")) == sorted([*LISTS, "bench", "audit"])


@pytest.mark.parametrize("name", LISTS)
def test_the_lists_agree_on_every_version(name: str) -> None:
    """What was tested with the development list is what an image runs."""
    assert _pins(name).items() <= _pins("dev").items()


@pytest.mark.parametrize("image", IMAGES)
def test_a_list_covers_what_its_member_asks_for(image: str) -> None:
    """A requirement that was changed without locks/compile shows here; .ci/run compares the whole resolution."""
    pins = _pins(image)
    asked = {name: one for name, one in _needed(image).items() if not name.startswith("sagapost-")}

    assert {name for name, one in asked.items() if name not in pins or not one.specifier.contains(pins[name])} == set()


@pytest.mark.parametrize("member", MEMBERS)
def test_a_member_imports_only_what_it_declares(member: str) -> None:
    """Contracts stays free of everything but msgspec, and an image's list holds all that its code imports."""
    distributions = metadata.packages_distributions()
    extras = _project(member)["project"].get("optional-dependencies", {}).values()
    allowed = {f"sagapost-{member}", *_needed(member), *(name for extra in extras for name in _required(extra))}
    foreign = {(package, file) for package, file in _imported(member) if package not in sys.stdlib_module_names}

    undeclared = {
        (package, file)
        for package, file in foreign
        if allowed.isdisjoint(utils.canonicalize_name(one) for one in distributions.get(package, [package]))
    }

    assert undeclared == set()


@pytest.mark.parametrize("member", MEMBERS)
def test_a_member_declares_only_what_it_imports(member: str) -> None:
    """A package that nothing imports any more is attack surface and an upgrade risk: it is taken out with the last import."""
    distributions = metadata.packages_distributions()
    used = {utils.canonicalize_name(one) for package, _ in _imported(member) for one in distributions.get(package, [package])}
    project = _project(member)["project"]
    declared = {
        *_required(project["dependencies"]),
        *(name for extra in project.get("optional-dependencies", {}).values() for name in _required(extra)),
    }

    assert declared - used == set()


def test_what_is_no_member_imports_only_what_development_declares() -> None:
    """Tests, benchmarks and migrations: a package that comes in through another one goes when that one drops it."""
    distributions = metadata.packages_distributions()
    group = set(_required(_project(".")["dependency-groups"]["dev"]))
    allowed = group | {name for member in MEMBERS for name in _needed(member)} | {"sagapost-sandbox", "testcontainers"}
    files = [
        path for folder in ("tests", "benchmarks", "migrations") for path in (ROOT / folder).rglob("*.py") if "peers" not in path.parts
    ]
    ours = {path.stem for path in files} | {path.name for path in ROOT.glob("tests/*")} | {"benchmarks"}
    packages = {package for path in files for package in _imports(path)} - sys.stdlib_module_names - ours

    undeclared = {one for one in packages if allowed.isdisjoint(utils.canonicalize_name(name) for name in distributions.get(one, [one]))}

    assert undeclared == set()


def test_contracts_needs_msgspec_only() -> None:
    """The words on the wire must be readable without a broker, a database or a web framework."""
    assert set(_needed("contracts")) == {"msgspec"}


def test_no_folder_of_tests_is_a_package() -> None:
    """In importlib mode a package under tests/ would let one test file import another by accident."""
    assert list((ROOT / "tests").rglob("__init__.py")) == []


@pytest.mark.parametrize("script", ["sagapost", "locks/compile"])
def test_the_scripts_for_everyone_are_posix_sh(script: str) -> None:
    """Debian's sh reads them; where dash is installed it is asked itself."""
    text = (ROOT / script).read_text()
    shell = shutil.which("dash") or "/bin/sh"

    checked = subprocess.run([shell, "-n", ROOT / script], capture_output=True, text=True, check=False)

    assert text.startswith("#!/bin/sh\n")
    assert "\nset -eu\n" in text
    assert (checked.returncode, checked.stderr) == (0, "")
    assert (ROOT / script).stat().st_mode & 0o111
