import ipaddress
import os
import socket
import subprocess
import sys
from collections.abc import Generator

import pytest

from sagapost_sandbox import ports


@pytest.fixture(params=[(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, str(ipaddress.IPv4Address(0))), (socket.AF_INET6, "::1")])
def taken(request: pytest.FixtureRequest) -> Generator[int]:
    """Hold a port the way some other program does."""
    family, host = request.param
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as every server does: connections may have ended there lately
        listener.bind((host, ports.trial(1)[0]))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_taken_port_is_not_free_and_its_owner_has_a_name(taken: int) -> None:
    """Whichever address of this machine is taken, the port is, and the message says by whom."""
    pid = os.getpid()

    assert not ports.is_free(taken)
    assert ports.owner(taken) is not None
    assert f"port {taken} is taken by " in ports.describe_taken(taken)
    assert f"(pid {pid})" in ports.describe_taken(taken)


def test_a_port_that_others_were_given_is_named_with_who_opened_it() -> None:
    """A supervisor hands its ports on to processes that come and go; ids go round, so that one of theirs may be the lower one."""
    with (
        socket.create_server(("127.0.0.1", ports.trial(1)[0])) as listener,
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[listener.fileno()]) as child,
    ):
        said = ports.describe_taken(listener.getsockname()[1])
        oldest = [ports.eldest(pids) for pids in ((child.pid, os.getpid()), (os.getpid(), child.pid))]
        child.kill()

    assert f"(pid {os.getpid()})" in said
    assert oldest == [os.getpid()] * 2
    assert ports.eldest([child.pid]) is None


def test_the_next_free_port_skips_taken_and_avoided_ones(taken: int) -> None:
    """A taken port moves on to the next one."""
    first = ports.next_free(taken)
    second = ports.next_free(taken, {first})

    assert taken < first < second


def test_a_free_port_has_no_owner() -> None:
    """Nobody is named for a port that nobody holds."""
    port = ports.trial(1)[0]

    assert ports.is_free(port)
    assert ports.owner(port) is None


def test_trial_ports_differ() -> None:
    """Servers of one test do not get the same port twice."""
    assert len(set(ports.trial(20))) == 20


def test_no_port_is_chosen_twice_before_it_is_listened_on() -> None:
    """Services of a stack get their ports one by one, long before they listen."""
    assert len({ports.trial(1)[0] for _ in range(300)}) == 300


def test_two_processes_never_choose_the_same_port() -> None:
    """A test's service that is down for a restart does not find its port taken by another worker's."""
    line = [sys.executable, "-c", "from sagapost_sandbox import ports; print(*ports.trial(200)); input()"]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        theirs = set(map(int, other.stdout.readline().split()))

        ours = {ports.trial(1)[0] for _ in range(600)}

        other.communicate("\n")
    assert len(theirs) == 200
    assert not ours & theirs
