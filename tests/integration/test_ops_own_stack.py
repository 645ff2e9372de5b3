"""Commands that make orders or faults work on the running stack of this checkout only; a second, real database stays as it was."""

import pathlib
import socket
import sys
from collections.abc import Callable, Generator, Mapping

import psycopg
import pytest
from integration import state_folder

from sagapost_ops import cli, errors, own_stack, probes, targets
from sagapost_sandbox.testing import polling, services

STORIES = (["demo", "happy"], ["demo", "poison"], ["demo", "cancel"], ["load", "--rps", "1", "--for", "1"])
SECRET = "5d0c82e1b7f94a36d1e0b85f27c4936a"
StartService = Callable[[str, Mapping[str, str]], services.Service]
CHAOS = ["chaos", "--checkouts", "1", "--kills", "1", "--port-offset", "38000"]
PICTURE = """
SELECT (SELECT array_agg(conname::text ORDER BY conname) FROM pg_constraint WHERE conrelid = 'payments'::regclass),
       (SELECT count(*) FROM payments), (SELECT xact_commit > 0 FROM pg_stat_database WHERE datname = current_database())
"""


@pytest.fixture
def other() -> Generator[socket.socket]:
    """Listen where another shop's server would: whoever connects is noticed."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0)
        yield listening


def _call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["./sagapost", *arguments])
    code = cli.run()
    return code, capsys.readouterr().err


def _address(listening: socket.socket) -> str:
    return f"127.0.0.1:{listening.getsockname()[1]}"


def _untouched(listening: socket.socket) -> bool:
    try:
        listening.accept()
    except BlockingIOError:
        return True
    return False


def _picture(url: str) -> object:
    with psycopg.connect(url) as conn:
        return conn.execute(PICTURE).fetchone()


@pytest.mark.parametrize("arguments", [*STORIES, CHAOS], ids=" ".join)
@pytest.mark.parametrize("mode", ["production", " Production", "prod", "a file"])
def test_production_is_refused(
    *,
    other: socket.socket,
    arguments: list[str],
    mode: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With SAGAPOST_ENV=production, in a file too, or anything that is no mode, nothing is connected to: exit code 2 and one sentence."""
    state_folder.write(tmp_path / "state", targets.Targets(gateway_url=f"http://{_address(other)}"), monkeypatch)
    (tmp_path / "mode").write_text("production\n")
    monkeypatch.setenv(*(("SAGAPOST_ENV_FILE", str(tmp_path / "mode")) if mode == "a file" else ("SAGAPOST_ENV", mode)))

    code, said = _call(monkeypatch, capsys, arguments)

    assert (code, len(said.splitlines())) == (2, 1)
    assert f"SAGAPOST_ENV {'is production' if mode in {'production', 'a file'} else 'must be development or production'}" in said
    assert _untouched(other)


@pytest.mark.parametrize("arguments", STORIES, ids=" ".join)
def test_a_stack_in_production_mode_is_refused(
    arguments: list[str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stack that was started in production mode is refused, although the caller's own environment does not say so."""
    state_folder.write(tmp_path / "state", targets.Targets(), monkeypatch, env="production")

    code, said = _call(monkeypatch, capsys, arguments)

    assert (code, "the running stack is in production mode" in said) == (2, True)


@pytest.mark.parametrize(("mode", "is_refused"), [("production", True), ("development", False)])
def test_the_mode_is_what_the_running_gateway_says(
    *, start_service: StartService, mode: str, is_refused: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real gateway serves production although neither the caller's environment nor the state file says so: it is asked, and refused."""
    gateway = start_service("gateway", {"SAGAPOST_ENV": mode, "SAGAPOST_PAGE_PORT": "0", "SAGAPOST_INTERNAL_SECRET": SECRET})
    polling.eventually(lambda: probes.mode(gateway.port) == mode, 20)
    state_folder.write(tmp_path / "state", targets.Targets(gateway_url=gateway.url), monkeypatch)

    refused = ""
    try:
        own_stack.find("demo", 0)
    except errors.UnfitError as exc:
        refused = exc.message

    assert ("the running stack is in production mode" in refused) == is_refused
    assert bool(refused) == is_refused


@pytest.mark.parametrize("arguments", STORIES, ids=" ".join)
@pytest.mark.parametrize("runs", [True, False], ids=["a stack runs", "nothing runs"])
def test_a_second_database_is_refused_and_stays_as_it_was(
    *,
    payment_db: str,
    other: socket.socket,
    arguments: list[str],
    runs: bool,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The environment names a real payment database that is not the stack's: no statement is run there, or anywhere else."""
    if runs:
        state_folder.write(tmp_path / "state", targets.Targets(gateway_url=f"http://{_address(other)}"), monkeypatch)
    else:
        monkeypatch.setenv("SAGAPOST_STATE", str(tmp_path / "none"))
    before = _picture(payment_db)
    monkeypatch.setenv("SAGAPOST_PAYMENT_DATABASE_URL", payment_db)

    code, said = _call(monkeypatch, capsys, arguments)

    assert (code, len(said.splitlines())) == (2, 1)
    assert "SAGAPOST_PAYMENT_DATABASE_URL" in said
    assert _untouched(other)
    assert _picture(payment_db) == before


@pytest.mark.parametrize(
    ("variable", "address"),
    [
        ("SAGAPOST_ORDER_DATABASE_URL", "postgresql://a:b@127.0.0.1:{other}/order_db"),
        ("SAGAPOST_ORDER_DATABASE_URL", "postgresql://a:b@127.0.0.1:{own}/another_db"),
        ("SAGAPOST_ORDER_DATABASE_URL", "postgresql://a:b@127.0.0.1:{own}/order_db?hostaddr=192.0.2.1"),
        ("SAGAPOST_ORDER_DATABASE_URL", "postgresql://a:b@127.0.0.1:{own}/order_db?host=db.example"),
        ("SAGAPOST_ORDER_DATABASE_URL", "postgresql://a:b@127.0.0.1:{own},db.example:{own}/order_db"),
        ("SAGAPOST_ORDER_DATABASE_URL", "no address at all"),
        ("SAGAPOST_AMQP_URL", "amqp://a:b@127.0.0.1:{other}/"),
        ("SAGAPOST_AMQP_URL", "amqp://a:b@127.0.0.1:{own}/another"),
        ("SAGAPOST_GATEWAY_URL", "https://shop.example"),
        ("SAGAPOST_GATEWAY_URL", "http://127.0.0.1:{other}"),
        ("SAGAPOST_GATEWAY_URL", "http://127.0.0.1:99999999"),
        ("PGHOSTADDR", "192.0.2.1"),
        ("PGSERVICE", "shop"),
    ],
)
def test_every_address_must_be_the_stack_s(
    *, other: socket.socket, variable: str, address: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One variable that leads elsewhere is enough: another port, database or virtual host, or a way around the host's name."""
    with socket.create_server(("127.0.0.1", 0)) as own:
        state_folder.write(tmp_path / "state", _at(_address(own)), monkeypatch)
        monkeypatch.setenv(variable, address.format(own=own.getsockname()[1], other=other.getsockname()[1]))

        with pytest.raises(errors.UnfitError, match=variable):
            own_stack.find("demo", 0)
    assert _untouched(other)


def test_variables_that_name_the_stack_itself_are_accepted(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name for this machine is as good as its address, and the role does not matter: the stack's own addresses are used."""
    where = _at("127.0.0.1:1")
    state_folder.write(tmp_path / "state", where, monkeypatch)
    monkeypatch.setenv("SAGAPOST_GATEWAY_URL", "http://localhost:1/")
    monkeypatch.setenv("SAGAPOST_ORDER_DATABASE_URL", "postgresql://reader:pw@localhost:1/order_db")

    assert own_stack.find("demo", 0) == where


def test_chaos_refuses_addresses_because_it_would_not_use_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    """A campaign starts a stack of its own; who names another shop's database means something else."""
    monkeypatch.setenv("SAGAPOST_STATE", str(tmp_path / "none"))
    monkeypatch.setenv("SAGAPOST_ORDER_DATABASE_URL", "postgresql://a:b@db.example/order_db")

    code, said = _call(monkeypatch, capsys, CHAOS)

    assert (code, "SAGAPOST_ORDER_DATABASE_URL" in said) == (2, True)


def _at(place: str) -> targets.Targets:
    return targets.Targets(
        gateway_url=f"http://{place}",
        order_database_url=f"postgresql://nobody@{place}/order_db",
        payment_database_url=f"postgresql://nobody@{place}/payment_db",
        amqp_url=f"amqp://nobody:nothing@{place}/",
        management_url=f"http://{place}",
        provider_url=f"http://{place}",
        mailbox_url=f"http://{place}",
    )
