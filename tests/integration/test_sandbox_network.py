import os
import pathlib
import socket
from collections.abc import Generator

import pytest
from integration import absent

from sagapost_sandbox import errors
from sagapost_sandbox.testing import network, polling

ADDRESS = "10.77.0.9"
SILENCE_S = 0.5


@pytest.fixture
def wire(tmp_path: pathlib.Path) -> Generator[network.Wire]:
    """Give a wire; who is not root needs a kernel that lets users make namespaces."""
    made = network.Wire(tmp_path)
    try:
        made.__enter__()
    except errors.NoNamespaceError as exc:
        if os.geteuid() == 0:
            raise
        absent.stop(str(exc))
    yield made
    made.__exit__()


def test_what_is_sent_on_a_cut_wire_vanishes_without_an_error_and_comes_when_it_is_mended(wire: network.Wire) -> None:
    """Neither end hears anything: no bytes, no end, no reset, no ICMP; a new connection is neither made nor refused."""
    with wire.listen(ADDRESS) as listener, wire.client() as near, wire.client() as late:
        near.connect(listener.getsockname())
        far, _ = listener.accept()
        with far:
            for one in (near, far, late):
                one.settimeout(SILENCE_S)
            wire.cut(ADDRESS)
            near.sendall(b"there")
            far.sendall(b"back")

            for one in (near, far):
                with pytest.raises(TimeoutError):
                    one.recv(9)
            with pytest.raises(TimeoutError):
                late.connect(listener.getsockname())
            assert wire.connections(ADDRESS) == {near.getsockname()[1]}
            assert near.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0

            wire.mend(ADDRESS)
            for one in (near, far):
                one.settimeout(polling.DEADLINE_S)
            assert (near.recv(9), far.recv(9)) == (b"back", b"there")


def test_the_network_of_this_machine_is_left_alone(wire: network.Wire) -> None:
    """No address and no device of the wire is to be seen here."""
    with wire.listen(ADDRESS), socket.socket() as here, pytest.raises(OSError, match="assign requested address"):
        here.bind((ADDRESS, 0))

    assert "wire" not in [name for _, name in socket.if_nameindex()]
