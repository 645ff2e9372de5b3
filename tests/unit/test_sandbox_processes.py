import functools
import os
import pathlib
import signal
import tempfile
import time
from collections.abc import Callable, Generator
from typing import Any

import msgspec
import pytest

from sagapost_sandbox import processes
from sagapost_sandbox.testing import polling, servers

ENV = {"PATH": os.environ["PATH"]}


@pytest.fixture
def spawn(tmp_path: pathlib.Path) -> Generator[Callable[[str], processes.Process]]:
    """Start shell scripts; none survives the test."""
    started: list[processes.Process] = []

    def start(script: str) -> processes.Process:
        started.append(processes.spawn(["sh", "-c", script], log=tmp_path / "log", cwd=tmp_path, env=ENV))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def test_a_program_runs_to_its_end_with_its_output_and_code() -> None:
    """Both streams and the exit code come back."""
    done = processes.run(["sh", "-c", "echo out; echo err >&2; exit 3"])

    assert (done.code, sorted(done.output.split())) == (3, ["err", "out"])


def test_a_program_that_does_not_end_is_killed() -> None:
    """A bounded wait is bounded."""
    started = time.monotonic()

    done = processes.run(["sleep", "60"], timeout_s=0.2)

    assert done.code == -signal.SIGKILL
    assert time.monotonic() - started < 5


def test_a_child_has_its_own_session_and_log(spawn: Callable[[str], processes.Process], tmp_path: pathlib.Path) -> None:
    """Ctrl-C at our terminal does not reach it, and what it writes is in its log."""
    process = spawn("pwd; exec sleep 60")

    assert os.getsid(process.pid) == process.pid != os.getsid(0)
    written = polling.eventually((tmp_path / "log").read_text)
    process.stop(5)
    assert written.strip() == str(tmp_path)


def test_stopping_ends_the_children_too(
    spawn: Callable[[str], processes.Process], tmp_path: pathlib.Path, eventually: Callable[..., Any]
) -> None:
    """A parent that ends on SIGTERM leaves no child behind, not even one that ignores it in a session of its own."""
    process = spawn("setsid sh -c 'trap \"\" TERM; echo $$ > child; while :; do sleep 60; done' & wait")
    eventually(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text())
    child = int((tmp_path / "child").read_text())

    process.stop(5)

    eventually(lambda: processes.identify(child) is None)
    assert process.returncode == -signal.SIGTERM


def test_a_child_that_ignores_sigterm_is_killed(
    spawn: Callable[[str], processes.Process], tmp_path: pathlib.Path, eventually: Callable[..., Any]
) -> None:
    """Stopping always ends."""
    process = spawn("trap '' TERM; touch ready; while :; do sleep 60; done")
    eventually((tmp_path / "ready").exists)

    process.stop(0.2)

    assert not process.running()
    assert process.returncode == -signal.SIGKILL


def test_a_recycled_pid_is_never_taken_for_ours(spawn: Callable[[str], processes.Process], tmp_path: pathlib.Path) -> None:
    """A record whose start time does not fit is nobody's: it is neither found nor signalled."""
    process = spawn("exec sleep 60")
    other = msgspec.structs.replace(process.record, started=process.record.started - 1)
    (tmp_path / "record").write_bytes(msgspec.json.encode(other))

    found = processes.load(tmp_path / "record")

    assert found is None
    assert process.running()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": 1}'])
def test_a_broken_record_is_no_process(tmp_path: pathlib.Path, content: bytes) -> None:
    """A torn file is not a reason to stop working."""
    (tmp_path / "record").write_bytes(content)

    assert processes.load(tmp_path / "record") is None


def test_another_run_finds_the_process_again(spawn: Callable[[str], processes.Process], tmp_path: pathlib.Path) -> None:
    """What was written down is found while it runs, and not any more afterwards."""
    process = spawn("exec sleep 60")
    processes.save(process, tmp_path / "record")

    found = processes.load(tmp_path / "record")
    process.kill()

    assert found is not None
    assert found.record == process.record
    assert processes.load(tmp_path / "record") is None


def test_what_a_killed_run_left_behind_is_ended_by_the_next(
    spawn: Callable[[str], processes.Process], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A supervisor of that run would start its services again; it works in the run's folder, and goes first. Other runs' are left alone."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ended = spawn("exit 0")
    assert ended.wait(5)
    for name, made_by in (("left", ended), ("other", processes.Process(_own()))):
        (tmp_path / f"{servers.PREFIX}{name}" / "state").mkdir(parents=True)
        processes.save(made_by, tmp_path / f"{servers.PREFIX}{name}" / "made-by.pid")
    left, other = (spawn(f"cd {tmp_path}/{servers.PREFIX}{name}/state && exec sleep 60") for name in ("left", "other"))
    for name, process in (("left", left), ("other", other)):
        polling.eventually(functools.partial(_sleeps_in, process, tmp_path / f"{servers.PREFIX}{name}" / "state"))

    with servers.run_folder() as folder:
        assert folder.parent == tmp_path
        assert not left.running()
        assert other.running()
        assert not (tmp_path / f"{servers.PREFIX}left").exists()


def _own() -> processes.Record:
    record = processes.identify(os.getpid())
    assert record is not None
    return record


def _sleeps_in(process: processes.Process, folder: pathlib.Path) -> bool:
    return pathlib.Path(f"/proc/{process.pid}/cwd").readlink() == folder
