"""The runner of the negative controls does not take a mutant for caught that is not."""

import difflib
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
SOURCE = "relay/src/sagapost_relay/leases.py"
TEST = "tests/unit/test_relay_leases.py::test_who_is_not_alive_gets_nothing"


def _patch(folder: pathlib.Path, name: str, old: str, new: str) -> None:
    """Write a mutant that puts one text in place of another."""
    before = (ROOT / SOURCE).read_text(encoding="utf-8")
    assert before.count(old) == 1
    after = before.replace(old, new)
    diff = "".join(difflib.unified_diff(before.splitlines(keepends=True), after.splitlines(keepends=True), f"a/{SOURCE}", f"b/{SOURCE}"))
    (folder / f"{name}.patch").write_text(f"Takes something away.\nCaught-by: {TEST}\n\n{diff}", encoding="utf-8")


def test_only_a_test_that_failed_is_a_catch(tmp_path: pathlib.Path) -> None:
    """A change that no test minds survives; one that cannot be imported has broken the tests, not the safeguard."""
    _patch(tmp_path, "noticed", "        return 0\n", "        return 1\n")
    _patch(tmp_path, "harmless", "LEAVE_S: Final = 8.0\n", "LEAVE_S: Final = 9.0\n")
    _patch(tmp_path, "unimportable", "import asyncio\n", "import asyncioo\n")

    line = [sys.executable, "-P", str(ROOT / ".ci" / "mutants"), "--json", "--patches", str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=110)

    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert (found["passed"], found["failed"]) == (1, 2)
    verdicts = {mutant["name"]: (mutant["verdict"], mutant["by"][0]) for mutant in found["mutants"]}
    assert verdicts["noticed"] == ("caught", TEST)
    assert verdicts["harmless"] == ("SURVIVED", TEST)
    assert verdicts["unimportable"][0] == "BROKEN"
    assert "asyncioo" in verdicts["unimportable"][1]
