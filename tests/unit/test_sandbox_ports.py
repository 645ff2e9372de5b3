import ipaddress
import os
import socket
from collections.abc import Generator

import pytest

from sagapost_sandbox import ports


@pytest.fixture(params=[(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, str(ipaddress.IPv4Address(0))), (socket.AF_INET6, "::1")])
def taken(request: pytest.FixtureRequest) -> Generator[int]:
    """Hold a port the way some other program does."""
    family, host = request.param
    with socket.socket(family, socket.SOCK_STREAM) as listener:
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
