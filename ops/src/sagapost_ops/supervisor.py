"""Owns the processes of one stack: starts them, restarts what dies, stops all in reverse order; it must not know what they do."""

import concurrent.futures
import contextlib
import fcntl
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from types import FrameType
from typing import Final, ParamSpec, TypedDict

import msgspec

from sagapost_chassis import sink
from sagapost_ops import board, control, drivers, environment, plan, program, state, versions
from sagapost_sandbox import errors, logfiles, processes

PLAN_FILE: Final = "plan.json"
LOCK_FILE: Final = "lock"
START_TRIES: Final = 5
_WATCH_EVERY_S: Final = 0.2
_STEADY_S: Final = 10.0  # what lived this long has recovered: its next restart is quick again
_JOIN_S: Final = 15.0
_KEEP_EVERY_S: Final = 1.0
_TAIL_LINES: Final = 12
_TAIL_BYTES: Final = 100_000
_ROUTINE: Final = '"level": "info"'  # of a process that goes on beside the one that failed

Report = Callable[[str], None]
P = ParamSpec("P")


class LogBounds(TypedDict):
    """When a log is turned over, and how many of those before it are kept."""

    size_bytes: int
    kept: int


class AlreadyRunningError(Exception):
    """Another supervisor holds this folder."""


class Supervisor:
    """One stack while it runs; a thread for each unit keeps that unit alive."""

    def __init__(self, home: Path, wanted: plan.Plan, report: Report) -> None:
        self._home = home
        self._units = wanted.units
        self._report = _quiet(report)
        self._logs = log_bounds()
        self._drivers = {unit.name: drivers.make(unit, wanted.ports, home) for unit in wanted.units}
        self._ready = {unit.name: threading.Event() for unit in wanted.units}
        self._threads = {unit.name: threading.Thread(target=self._keep, args=(unit,), daemon=True) for unit in wanted.units}
        self._stopping = threading.Event()
        self._signals = 0
        self._failure = ""
        self._board = board.Board(home, wanted, versions.of_stack(), _ourselves())
        self._desk = control.Desk(home, self._restart, self._stopping)

    def run(self, on_ready: Callable[[], None]) -> str:
        """Run the stack until a signal; return the reason when it could not be started, otherwise nothing."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        try:
            self._supervise(on_ready)
        except Exception as exc:  # whatever it is, what was started must not be left running
            self._failure = self._failure or f"the supervisor failed: {type(exc).__name__}: {exc}"
        finally:
            self._stopping.set()
            self._end_all()
        return self._failure

    def _supervise(self, on_ready: Callable[[], None]) -> None:
        for thread in self._threads.values():
            thread.start()
        while not self._stopping.wait(0.1):
            if all(event.is_set() for event in self._ready.values()):
                self._open_desk()
                self._board.phase("ready")
                # in a thread of its own: a terminal that takes nothing, or is gone, must not keep this one from stopping
                threading.Thread(target=_quiet(on_ready), daemon=True).start()
                while not self._stopping.wait(_KEEP_EVERY_S):
                    self._board.refresh()
                    self._turn_over()
                self._desk.close(_JOIN_S)

    def _open_desk(self) -> None:
        try:
            self._desk.open()
        except OSError as exc:
            self._report(f"./sagapost restart cannot reach this supervisor: {exc}")

    def _turn_over(self) -> None:
        for unit in self._units:
            logfiles.turn_over(state.log_of(self._home, unit.name), reopened=unit.how == "program", **self._logs)
        logfiles.turn_over(state.log_of(self._home, "supervisor"), reopened=True, **self._logs)

    def _end_all(self) -> None:
        self._report("stopping")
        self._board.phase("stopping", self._failure)
        self._stop()
        if self._failure:
            self._board.phase("failed", self._failure)
        else:
            self._board.remove()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._signals += 1
        self._stopping.set()
        if self._signals > 1:  # whoever asks twice does not want to wait for anything to drain
            threading.Thread(target=self._kill, daemon=True).start()

    def _keep(self, unit: plan.Unit) -> None:
        """Keep one unit alive until the stack stops."""
        failures = 0
        while self._requirements_are_met(unit):
            began = time.monotonic()
            try:
                self._drivers[unit.name].start(self._stopping)
                ended = self._live(unit)
            except Exception as exc:  # whatever is wrong with one unit must not silently end the thread that watches it
                if self._stopping.is_set() or self._gives_up(unit, exc, failures + 1):
                    return
                self._report(f"{unit.name} did not start: {exc}")
            else:
                if not ended:
                    return
                self._report(f"{unit.name} ended and is started again")
            failures = 1 if time.monotonic() - began > _STEADY_S else failures + 1
            self._stopping.wait(backoff_s(failures))

    def _requirements_are_met(self, unit: plan.Unit) -> bool:
        for name in unit.requires:
            while not self._ready[name].wait(0.1):
                if self._stopping.is_set():
                    return False
        return not self._stopping.is_set()

    def _live(self, unit: plan.Unit) -> bool:
        """Watch a unit that has become ready; True when it ended and shall be started again."""
        if self._stopping.is_set():
            return False
        driver = self._drivers[unit.name]
        self._board.process(unit.name, driver.record())
        if not self._ready[unit.name].is_set():
            self._report(f"{unit.name} is ready")
        self._ready[unit.name].set()
        if unit.how == "task":
            return False
        while not self._stopping.wait(_WATCH_EVERY_S):
            if driver.record() is None:
                self._board.process(unit.name, None)
                return True
        return False

    def _restart(self, wanted: control.Restart) -> Generator[control.Step]:
        """Replace units one by one; the first that fails keeps its old process, and those after it stay as they are."""
        for unit in wanted.units:
            if self._stopping.is_set():
                return
            yield control.Step(service=unit.name, state="starting")
            driver = self._drivers.get(unit.name)
            try:
                if not isinstance(driver, program.Program):
                    raise errors.StartError(f"this stack was started without {unit.name}")
                done = driver.replace(unit, wanted.python, self._stopping)
            except (errors.SandboxError, OSError) as exc:
                said = self._explained(unit.name, exc)
                self._report(f"{unit.name} was not replaced: {said}")
                yield control.Step(service=unit.name, state="failed", error=said)
                return
            self._board.process(unit.name, done.new, wanted.version)
            self._report(f"{unit.name} was replaced: {done.new.pid} instead of {done.old.pid if done.old else 'none'}")
            yield control.Step(
                service=unit.name,
                state="done",
                old_pid=done.old.pid if done.old else None,
                pid=done.new.pid,
                ready_s=done.ready_s,
                drained_s=done.drained_s,
            )

    def _explained(self, name: str, exc: Exception) -> str:
        log = state.log_of(self._home, name)
        said = [line for line in processes.tail(log, _TAIL_BYTES).splitlines() if _ROUTINE not in line]
        return "\n  ".join((f"{exc}; the end of {log}:", *said[-_TAIL_LINES:]))

    def _gives_up(self, unit: plan.Unit, exc: Exception, failures: int) -> bool:
        """Tell whether the whole start has failed: not once a unit was ready, and not for one that was killed or stumbled."""
        if self._ready[unit.name].is_set():
            return False
        if isinstance(exc, program.DiedError) and exc.code != 2 and failures < START_TRIES:
            return False
        self._failure = self._explained(unit.name, exc)
        self._stopping.set()
        return True

    def _stop(self) -> None:
        for stage in sorted({unit.stage for unit in self._units}, reverse=True):
            names = [unit.name for unit in self._units if unit.stage == stage]
            with concurrent.futures.ThreadPoolExecutor(max_workers=len(names)) as pool:
                list(pool.map(self._end, names))

    def _end(self, name: str) -> None:
        if self._threads[name].is_alive():
            self._threads[name].join(_JOIN_S)  # a database half way through its start is easier to stop after it
        try:
            self._drivers[name].stop()
        except Exception as exc:  # whatever is wrong with one of them, the others must end, too
            self._report(f"{name} did not stop: {exc}")

    def _kill(self) -> None:
        for name, driver in self._drivers.items():
            try:
                driver.kill()
            except Exception as exc:  # whatever is wrong with one of them, the others must end, too
                self._report(f"{name} did not stop: {exc}")


def _quiet(tell: Callable[P, None]) -> Callable[P, None]:
    """Return what does the same and never raises: whom it is told may be gone."""

    def told(*arguments: P.args, **named: P.kwargs) -> None:
        with contextlib.suppress(Exception, SystemExit):  # rich ends the program when its pipe is closed
            tell(*arguments, **named)

    return told


def log_bounds(environ: Mapping[str, str] = os.environ) -> LogBounds:
    """Return the bounds of the services' logs: SAGAPOST_LOG_BYTES and SAGAPOST_LOGS_KEPT, or what logfiles has.

    Raises:
        UnfitError: one of them cannot be read.

    """

    def number(name: str, usual: int) -> int:
        text = environment.read(name, environ)
        return int(text) if text.isdecimal() and int(text) > 0 else usual

    return LogBounds(size_bytes=number("SAGAPOST_LOG_BYTES", logfiles.BYTES), kept=number("SAGAPOST_LOGS_KEPT", logfiles.KEPT))


def backoff_s(failures: int) -> float:
    """Give the wait before the next start: 0.2 s, doubled for each failure in a row, at most 5 s."""
    return min(5.0, 0.2 * 2.0 ** min(failures - 1, 6))


def _ourselves() -> processes.Record:
    found = processes.identify(os.getpid())
    if found is None:
        raise errors.StartError("/proc is not mounted; the supervisor cannot name itself")
    return found


@contextlib.contextmanager
def alone(home: Path) -> Generator[None]:
    """Hold the folder for as long as the block runs; the lock goes with the process, however that ends.

    Raises:
        AlreadyRunningError: another supervisor has it.

    """
    with (home / LOCK_FILE).open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise AlreadyRunningError from exc
        yield


def save(home: Path, wanted: plan.Plan) -> None:
    """Write the plan down, for a supervisor that is started by itself and for commands that come later."""
    state.replace(home / PLAN_FILE, msgspec.json.encode(wanted))


def saved(home: Path) -> plan.Plan | None:
    """Read the plan of the stack in this folder; None when it was made by another version."""
    try:
        return msgspec.json.decode((home / PLAN_FILE).read_bytes(), type=plan.Plan)
    except (OSError, msgspec.MsgspecError):
        return None


def main(arguments: list[str]) -> int:
    """Supervise the stack of the folder that is the only argument, writing what happens to standard error."""
    lines = sink.standard_error()

    def report(sentence: str) -> None:
        lines.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {sentence}")

    home = Path(arguments[0])
    wanted = msgspec.json.decode((home / PLAN_FILE).read_bytes(), type=plan.Plan)
    try:
        with alone(home):
            failure = Supervisor(home, wanted, report).run(lambda: report("everything is ready"))
    except AlreadyRunningError:
        report("another supervisor has this folder")
        return 2
    if failure:
        report(failure)
    return 1 if failure else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
