"""Each program started in production mode as development has it: it does not start, says why, and says no secret."""

import contextlib
import socket
import subprocess
from collections.abc import Callable, Mapping

import httpx
import pytest

from sagapost_ops import plan, roles
from sagapost_ops.topology import accounts
from sagapost_sandbox import ports
from sagapost_sandbox.testing import polling, services

Start = Callable[[str, Mapping[str, str]], services.Service]
SECRET = "5d0c82e1b7f94a36d1e0b85f27c4936a"
PORTS = plan.choose_ports(plan.Options(), lambda port, _: port)


@pytest.mark.parametrize(
    ("unit", "named"),
    [
        ("gateway", {"SAGAPOST_INTERNAL_SECRET"}),
        ("order", {"SAGAPOST_DATABASE_URL", "SAGAPOST_AMQP_URL", "SAGAPOST_INTERNAL_SECRET"}),
        ("payment", {"SAGAPOST_DATABASE_URL", "SAGAPOST_AMQP_URL", "SAGAPOST_PROVIDER_URL"}),
        ("email", {"SAGAPOST_AMQP_URL", "SAGAPOST_SMTP_TLS", "SAGAPOST_INTERNAL_SECRET"}),
        ("relay-order", {"SAGAPOST_DATABASE_URL", "SAGAPOST_AMQP_URL"}),
        ("provider", {"the sandbox's payment provider moves no money; it is for development and tests only"}),
        ("mailbox", {"the sandbox's mailbox delivers no mail; it is for development and tests only"}),
    ],
)
def test_a_program_with_development_s_settings_does_not_start(
    start_service: Start, tmp_path_factory: pytest.TempPathFactory, unit: str, named: set[str]
) -> None:
    """What `./sagapost up` gives it is refused with exit code 2: every weak setting by name, no password in what is written."""
    home = tmp_path_factory.mktemp("home")
    made = next(one for one in plan.make(plan.Options(), PORTS, home).units if one.name == unit)

    service = start_service(made.arguments[0], made.environ | {"SAGAPOST_ENV": "production"})

    assert service.wait() == 2
    lines = service.logs().splitlines()
    assert {line.removeprefix("refused in production: ").partition(": ")[0] for line in lines} == named
    passwords = {roles.development_password(role.name) for role in roles.ROLES} | {accounts.development_password(unit)}
    assert [line for line in lines if any(password in line for password in passwords)] == []


@pytest.mark.parametrize(("env", "status", "kind"), [("development", 200, "text/html"), ("production", 404, "application/problem+json")])
def test_the_page_that_sells_without_a_key_is_development_s(start_service: Start, env: str, status: int, kind: str) -> None:
    """A browser is no place for an API key: in production there is no shop page, neither on its own port nor on the API's."""
    page_port = ports.trial(1)[0]
    gateway = start_service("gateway", {"SAGAPOST_ENV": env, "SAGAPOST_PAGE_PORT": str(page_port), "SAGAPOST_INTERNAL_SECRET": SECRET})
    root = {"Accept": "text/html"}
    with httpx.Client(base_url=gateway.url, timeout=20) as client:
        polling.eventually(lambda: _is_there(client), 20)
        shop, start = client.get("/shop"), client.get("/", headers=root)

    assert (shop.status_code, shop.headers["content-type"].partition(";")[0]) == (status, kind)
    assert start.headers["content-type"].startswith("text/html") == (env == "development")
    polling.eventually(lambda: _answers(page_port) == (env == "development"), 10)


def _is_there(client: httpx.Client) -> bool:
    try:
        return client.get("/health/live").status_code == 200
    except httpx.TransportError:
        return False


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


def test_secrets_stand_in_no_command_line(start_service: Start, order_db: str, vhost: str) -> None:
    """Settings come from the environment or from files: /proc/PID/cmdline, which everybody may read, holds none."""
    service = start_service("order", {"SAGAPOST_DATABASE_URL": order_db, "SAGAPOST_AMQP_URL": vhost}).wait_ready()

    shown = subprocess.run(["/bin/ps", "-o", "args=", "-p", str(service.pid)], capture_output=True, text=True, check=True, timeout=10)

    assert "sagapost_order" in shown.stdout
    assert "order_password" not in shown.stdout


def test_a_service_runs_on_secrets_from_files(
    start_service: Start, order_db: str, vhost: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Both addresses with their passwords from mounted files: it becomes ready, and its environment holds no password."""
    folder = tmp_path_factory.mktemp("secrets")
    (folder / "database").write_text(f"{order_db}\n", encoding="utf-8")
    (folder / "broker").write_text(f"{vhost}\n", encoding="utf-8")

    service = start_service(
        "order", {"SAGAPOST_DATABASE_URL_FILE": str(folder / "database"), "SAGAPOST_AMQP_URL_FILE": str(folder / "broker")}
    )

    service.wait_ready()
    assert not any("order_password" in value for value in service.env.values())
