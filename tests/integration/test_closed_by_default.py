"""Each program started in development mode on an address that other machines reach: it does not start, and says what to do."""

import os
import pathlib
import socket
import sys
from collections.abc import Callable, Mapping

import httpx
import msgspec
import pytest

from sagapost_ops import plan, probes
from sagapost_sandbox import ports, processes
from sagapost_sandbox.testing import polling, services

Start = Callable[[str, Mapping[str, str]], services.Service]
PORTS = plan.choose_ports(plan.Options(), lambda port, _: port)
PROGRAMS = ("gateway", "order", "payment", "email", "relay-order", "relay-payment", "provider", "mailbox")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7"])
@pytest.mark.parametrize("unit", PROGRAMS)
def test_a_program_in_development_mode_does_not_listen_where_others_reach_it(
    start_service: Start, tmp_path: pathlib.Path, unit: str, host: str
) -> None:
    """With the settings of `up` and another host: exit code 2, one sentence with the way out, and nothing listens."""
    made = next(one for one in plan.make(plan.Options(), PORTS, tmp_path).units if one.name == unit)

    service = start_service(made.arguments[0], made.environ | {"SAGAPOST_HOST": host, "SAGAPOST_PORT": str(ports.trial(1)[0])})

    assert service.wait() == 2
    (line,) = service.logs().splitlines()
    assert line.startswith(f"refused in development: SAGAPOST_HOST={host}: other machines can reach {host}")
    assert "SAGAPOST_DEVELOPMENT_ON_ANY_ADDRESS=yes" in line


@pytest.mark.parametrize(("opened", "answers"), [("", False), ("yes", True)])
def test_a_handed_over_socket_is_held_to_the_same(tmp_path: pathlib.Path, opened: str, *, answers: bool) -> None:
    """A socket that LISTEN_FDS hands over is bound already: its own address counts, not SAGAPOST_HOST."""
    log = tmp_path / "gateway.log"
    with socket.create_server(("0.0.0.0", 0)) as held:
        port = held.getsockname()[1]
        mine = {"SAGAPOST_HOST": "127.0.0.1", "SAGAPOST_PORT": str(port), "SAGAPOST_PAGE_PORT": "0"}
        environ = {"PATH": os.environ["PATH"], "SAGAPOST_DEVELOPMENT_ON_ANY_ADDRESS": opened} | mine
        line = [sys.executable, "-m", "sagapost_gateway"]
        process = processes.spawn(line, log=log, cwd=tmp_path, env=environ, sockets=[(str(port), held)])
        try:
            if answers:
                polling.eventually(lambda: probes.mode(port) == "development", 20)
            else:
                assert process.wait(20)
                assert process.returncode == 2
                assert "refused in development: a socket that was handed over" in processes.tail(log)
        finally:
            process.kill()


@pytest.mark.parametrize("mode", ["development", "production"])
def test_the_mode_can_be_seen(start_service: Start, mode: str) -> None:
    """`GET /health`, the other health paths and what `./sagapost status` asks say in which mode a process runs."""
    secret = "5d0c82e1b7f94a36d1e0b85f27c4936a"
    gateway = start_service("gateway", {"SAGAPOST_ENV": mode, "SAGAPOST_PAGE_PORT": "0", "SAGAPOST_INTERNAL_SECRET": secret})

    polling.eventually(lambda: probes.mode(gateway.port) == mode, 20)
    with httpx.Client(base_url=gateway.url, timeout=20) as client:
        shown = {path: msgspec.json.decode(client.get(path).content)["mode"] for path in ("/", "/health", "/health/live", "/health/ready")}

    assert shown == dict.fromkeys(shown, mode)
