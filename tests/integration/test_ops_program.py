"""One program under the supervisor: its process is replaced, fails to be, or dies, and who connects meanwhile is not refused."""

import concurrent.futures
import contextlib
import http.client
import os
import pathlib
import signal
import socket
import sys
import threading
from collections.abc import Generator

import msgspec
import pytest

from sagapost_ops import plan, program, state
from sagapost_sandbox import errors, ports, processes
from sagapost_sandbox.testing import polling

PATH = "/health/live"


@pytest.fixture
def unit(tmp_path: pathlib.Path) -> plan.Unit:
    """Describe a service that needs no other: the payment provider, with metrics, as if it were one of ours."""
    port, metrics = ports.trial(2)
    variables = {"SAGAPOST_PORT": str(port), "SAGAPOST_METRICS_PORT": str(metrics), "SAGAPOST_PROVIDER_LEDGER": str(tmp_path / "ledger")}
    return plan.Unit(
        name="provider",
        how="program",
        stage=3,
        arguments=("sagapost_sandbox.provider",),
        environ=variables,
        port=port,
        listens=(port, metrics),
    )


@pytest.fixture
def running(unit: plan.Unit, tmp_path: pathlib.Path) -> Generator[program.Program]:
    """Run it."""
    state.prepare(tmp_path / "home")
    made = program.Program(unit, tmp_path / "home")
    made.start(threading.Event())
    try:
        yield made
    finally:
        made.kill()


def pid(running: program.Program) -> int:
    """Give the pid of the process that counts."""
    record = running.record()
    assert record is not None
    return record.pid


def get(connection: http.client.HTTPConnection) -> tuple[int, str | None]:
    """Ask once; give the status, and what is to become of the connection."""
    connection.request("GET", PATH)
    answer = connection.getresponse()
    answer.read()
    return answer.status, answer.getheader("Connection")


def replaced(running: program.Program, unit: plan.Unit) -> program.Replaced:
    """Replace its process by another one of this interpreter."""
    return running.replace(unit, sys.executable, threading.Event())


def test_a_replacement_refuses_nobody(running: program.Program, unit: plan.Unit) -> None:
    """Whoever connects, before, between and after, is answered; in the end the new process is the only one."""
    before, over = pid(running), threading.Event()

    def ask() -> list[int]:
        answers: list[int] = []
        while not over.is_set():
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", unit.port, timeout=20)) as connection:
                answers.append(get(connection)[0])
        return answers

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask) for _ in range(2)]
        try:
            done = replaced(running, unit)
        finally:
            over.set()

    assert {status for one in asking for status in one.result()} == {200}
    assert done.old is not None
    assert (done.old.pid, done.new.pid) == (before, pid(running))
    assert processes.identify(before) != done.old
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", unit.listens[1], timeout=20)) as scrape:
        scrape.request("GET", "/metrics")
        assert b"process_start_time_seconds" in scrape.getresponse().read()


def test_what_is_connected_when_the_end_begins_is_still_answered(running: program.Program, unit: plan.Unit) -> None:
    """A request that is only on its way, on a new or a kept connection, gets its answer, and the connection ends behind it."""
    fresh, kept = (http.client.HTTPConnection("127.0.0.1", unit.port, timeout=20) for _ in range(2))
    fresh.connect()
    with contextlib.closing(fresh), contextlib.closing(kept):
        assert get(kept) == (200, None)

        os.kill(pid(running), signal.SIGTERM)
        answers = [get(fresh)]
        while answers[-1] == (200, None):  # it has not begun to end yet
            answers.append(get(fresh))
        answers.append(get(kept))

        assert answers[-2:] == [(200, "close")] * 2


def test_a_process_that_does_not_become_ready_changes_nothing(running: program.Program, unit: plan.Unit) -> None:
    """The old one goes on, the new one is gone, and it is said why."""
    before = pid(running)
    wrong = msgspec.structs.replace(unit, environ={**unit.environ, "SAGAPOST_PROVIDER_DELAY_S": "soon"})

    with pytest.raises(program.DiedError, match="provider ended with exit code 2"):
        replaced(running, wrong)

    assert pid(running) == before
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", unit.port, timeout=20)) as connection:
        assert get(connection)[0] == 200


def test_between_two_processes_who_connects_waits(running: program.Program, unit: plan.Unit) -> None:
    """A process is killed: a request made before the next one is there is answered by it."""
    os.kill(pid(running), signal.SIGKILL)
    polling.eventually(lambda: running.record() is None)

    with (
        contextlib.closing(http.client.HTTPConnection("127.0.0.1", unit.port, timeout=20)) as connection,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        connection.request("GET", PATH)
        pool.submit(running.start, threading.Event()).result()
        assert connection.getresponse().status == 200


def test_what_is_stopped_refuses(running: program.Program, unit: plan.Unit) -> None:
    """No socket stays open behind a service that was told to end."""
    running.stop()

    assert all(ports.is_free(port) for port in unit.listens)


def test_a_port_that_somebody_has_is_named(unit: plan.Unit, tmp_path: pathlib.Path) -> None:
    """The sentence says which port, and of what."""
    state.prepare(tmp_path / "home")
    taken = program.Program(unit, tmp_path / "home")
    with (
        socket.create_server(("127.0.0.1", unit.port)),
        pytest.raises(errors.StartError, match=f"port {unit.port} of provider cannot be used"),
    ):
        taken.start(threading.Event())
