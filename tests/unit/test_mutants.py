"""The negative controls fit this tree; whether each is caught, .ci/mutants says."""

import difflib
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
TEST = "tests/unit/test_relay_leases.py::test_who_is_not_alive_gets_nothing"
DIFF = "".join(difflib.unified_diff([], ["a new file\n"], "/dev/null", "b/relay/new.txt"))


def _mutants(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-P", str(ROOT / ".ci" / "mutants"), *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=110)


def test_every_patch_fits_this_tree_and_names_tests_that_exist() -> None:
    """A patch that no longer applies, or a test that was renamed, is noticed with the change that did it."""
    done = _mutants("--check")

    assert (done.returncode, done.stderr) == (0, "")


def test_every_mutant_stands_in_the_document() -> None:
    """Who reads what was proved reads what is proved now."""
    told = re.findall(r"^\| `([a-z-]+)` \|", (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8"), re.MULTILINE)

    assert sorted(told) == sorted(path.stem for path in (ROOT / "tests" / "mutants").glob("*.patch"))


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ("Takes nothing away.\n", "it has no line `Caught-by: "),
        (f"Caught-by: {TEST}\n", "must say which safeguard"),
        (f"Takes nothing away.\nCaught-by: {TEST}s\n", f"{TEST}s does not exist"),
        (f"Takes nothing away.\nCaught-by: {TEST.replace('leases', 'lease')}\n", "test_relay_lease.py"),
        (f"Takes nothing away.\nCaught-by: {TEST}[0]\n\n--- a/README.md\n+++ b/README.md\n@@ -1 +1 @@\n-gone\n+new\n", "does not apply"),
    ],
)
def test_a_patch_that_proves_nothing_is_refused(tmp_path: pathlib.Path, head: str, said: str) -> None:
    """Without a sentence, a test that is there, or a change that can be made, there is nothing to be caught."""
    (tmp_path / "wrong.patch").write_text(f"{head}\n{DIFF}", encoding="utf-8")

    done = _mutants("--check", "--patches", str(tmp_path))

    assert done.returncode == 1
    assert said in done.stderr
