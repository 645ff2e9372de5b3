"""Standard error that takes nothing, or not now: the sink drops, counts and says so, and never raises or waits."""

import fcntl
import json
import os
import pathlib
import pty
import subprocess
import sys
import threading
from typing import IO

import pytest

from sagapost_chassis import sink
from sagapost_sandbox.testing import polling

LOGGING = r"""
import logging, sys
from sagapost_chassis import sink, telemetry
telemetry.configure("test")
for number in range(int(sys.argv[1])):
    telemetry.log.warning("it.happened", number=number, filling="x" * 100)
    logging.getLogger("library").error("%s of %s", number, sys.argv[1])
class Unshowable:
    def __repr__(self):
        raise ZeroDivisionError
telemetry.log.error("it.cannot_be_shown", value=Unshowable())
logging.getLogger("library").error("%d", "no number")
print(int(sink.LOST._value.get()))
"""


def _lost(lines: int, stderr: IO[bytes] | int) -> int:
    """Log in a process with this standard error, and return how many lines it says it lost."""
    done = subprocess.run(
        [sys.executable, "-c", LOGGING, str(lines)], stdout=subprocess.PIPE, text=True, check=True, timeout=60, stderr=stderr
    )
    return int(done.stdout)


def test_a_full_device_loses_lines_and_nothing_else() -> None:
    """Every line of ours and of the libraries' is counted, and the program comes to its end."""
    with pathlib.Path("/dev/full").open("wb") as full:
        assert _lost(10, stderr=full) == 22


def test_a_closed_pipe_loses_lines_and_nothing_else() -> None:
    """No reader: each line is counted, and the program comes to its end."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        assert _lost(10, stderr=writing) == 22
    finally:
        os.close(writing)


def test_a_process_without_standard_error_goes_on() -> None:
    """Closed before the start: each line is counted, and none goes into a file that was opened under the number 2."""
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-c", LOGGING, "10"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=60,
    )
    assert int(done.stdout) == 22


def test_a_closed_terminal_loses_lines_and_nothing_else() -> None:
    """The terminal's other end is closed: each write is an I/O error, which is counted."""
    master, slave = pty.openpty()
    os.close(master)
    try:
        assert _lost(10, stderr=slave) == 22
    finally:
        os.close(slave)


def test_a_pipe_that_nobody_reads_stops_nobody() -> None:
    """A full pipe: what does not fit is kept up to a bound, what is beyond it is counted, and the program comes to its end."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    try:
        assert 10_000 < _lost(20_000, stderr=writing) < 40_000
    finally:
        os.close(reading)
        os.close(writing)


def test_a_reader_that_comes_late_gets_whole_lines_in_order() -> None:
    """What waited while nobody read is written when somebody does, line by line, with a line that says how many were lost."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    made = sink.Sink(writing, lambda lost: f"lost {lost}")
    line = "x" * 1000
    sent = 2 * sink.ROOM_BYTES // len(line)
    for number in range(sent):
        made.write(f"{number} {line}")
    read: list[bytes] = []

    def drain() -> None:
        with os.fdopen(reading, "rb") as file:
            while b"at last" not in b"".join(read[-1:]):
                read.append(file.readline())

    thread = threading.Thread(target=drain)
    thread.start()
    polling.eventually(made.idle)
    made.write("at last")
    thread.join(30)
    os.close(writing)

    lines = [one.decode().rstrip("\n") for one in read]
    kept = [one for one in lines if one.endswith(line)]
    assert [int(one.partition(" ")[0]) for one in kept] == list(range(len(kept)))
    assert [one for one in lines if one not in kept] == [f"lost {sent - len(kept)}", "at last"]


@pytest.mark.parametrize("room", [0, 1, 30, 64, 65, 100])
def test_a_file_that_has_room_again_goes_on_with_whole_lines(room: int, tmp_path: pathlib.Path) -> None:
    """A line that was torn by the end of the room stands by itself, and the next ones follow with the number of those lost."""
    log = tmp_path / "log"
    code = r"""
import resource, sys
from sagapost_chassis import telemetry
telemetry.configure("test")
def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
limit(int(sys.argv[1]))
for number in range(5):
    telemetry.log.warning("it.happened", number=number)
limit(resource.RLIM_INFINITY)
telemetry.log.warning("it.is_over")
"""
    with log.open("ab") as stderr:
        subprocess.run([sys.executable, "-c", code, str(room)], stderr=stderr, check=True, timeout=60)

    whole = [json.loads(line) for line in log.read_text("utf-8").splitlines() if line.endswith("}")]
    assert [line["event"] for line in whole] == ["log.lines_lost", "it.is_over"]
    assert whole[0]["number"] == 5


def test_a_log_file_that_was_turned_over_is_followed(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is renamed under the process: what it writes afterwards is in a new file of the old name, and no line is lost."""
    monkeypatch.setattr(sink, "LOOK_S", 0.0)
    log, older = tmp_path / "it.log", tmp_path / "it.1.log"
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    made = sink.Sink(descriptor)
    made.write("one")
    log.rename(older)
    made.write("two")
    made.write("three")
    os.close(descriptor)

    assert (older.read_text("utf-8"), log.read_text("utf-8")) == ("one\n", "two\nthree\n")
    assert log.stat().st_mode & 0o777 == 0o640
