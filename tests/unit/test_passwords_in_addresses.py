"""No command and no service prints a password of an address, or a piece of one, whatever characters it holds."""

import os
import pathlib
import subprocess
import sys
from typing import Final
from urllib.parse import quote

import pytest

from sagapost_chassis import urls
from sagapost_ops import cli

# a password's pieces are words that stand in no sentence
UNCLEAR: Final = (
    *("zebra#quagga", "zebra?quagga", "zebra/quagga", "zebra@quagga", "zebra%quagga", "zebra%00quagga", "zebra quagga", "zebra\tquagga"),
    *(
        "zebra[quagga",
        "zebra]quagga",
        "zebra\u2100quagga",
        "zebra%ffquagga",
        "zebra\\quagga",
        "zebra:1/quagga",
        "#zebra@quagga",
        "zebra@quagga:x/",
        "12345#678",
    ),
)
CLEAR: Final = (*(quote(one, safe="") for one in UNCLEAR if "%" not in one), "zebra:quagga", "zebra&quagga=1", "zebra$quagga'")
VARIABLES: Final = {
    "SAGAPOST_ORDER_DATABASE_URL": "postgresql://user:{}@127.0.0.1:1/order_db",
    "SAGAPOST_PAYMENT_DATABASE_URL": "postgresql://user:{}@127.0.0.1:1/payment_db",
    "SAGAPOST_AMQP_URL": "amqp://user:{}@127.0.0.1:1/",
    "SAGAPOST_MANAGEMENT_URL": "http://user:{}@127.0.0.1:1",
    "SAGAPOST_PROVIDER_URL": "http://user:{}@127.0.0.1:1",
    "SAGAPOST_MAILBOX_URL": "http://user:{}@127.0.0.1:1",
    "SAGAPOST_GATEWAY_URL": "http://user:{}@127.0.0.1:1",
}
COMMANDS: Final = (
    *(["verify", "--settle", "0"], ["migrate", "status"], ["topology", "check"], ["dlq", "list"], ["saga", "list"], ["outbox", "stats"]),
    *(["keys", "list"], ["restored", "--order"], ["demo", "happy"], ["doctor"]),
)
SECRETS: Final = ("zebra", "quagga", "12345", "678")


def _address_all(monkeypatch: pytest.MonkeyPatch, folder: pathlib.Path, password: str) -> None:
    """Set every address, with this password, and a state folder that holds no stack."""
    monkeypatch.setenv("SAGAPOST_STATE", str(folder / "state"))
    for name, url in VARIABLES.items():
        monkeypatch.setenv(name, url.format(password))


def _call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], arguments: list[str]) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["./sagapost", *arguments])
    code = cli.run()
    said = capfd.readouterr()
    return code, said.out + said.err


def _shown(said: str) -> list[str]:
    return [one for one in SECRETS if one in said]


@pytest.mark.parametrize("password", UNCLEAR)
@pytest.mark.parametrize("arguments", COMMANDS[:-1], ids=" ".join)
def test_an_address_that_is_not_clear_is_named_by_its_variable(
    arguments: list[str], password: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every command ends with exit code 2 and names the variables; neither its sentence nor a library's holds a piece of the password."""
    _address_all(monkeypatch, tmp_path, password)

    code, said = _call(monkeypatch, capfd, arguments)

    assert (code, _shown(said), "Traceback" in said) == (2, [], False), said
    assert "SAGAPOST_ORDER_DATABASE_URL cannot be read" in said


@pytest.mark.parametrize("password", [*CLEAR[:3], *CLEAR[-3:]])
@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_server_that_does_not_answer_is_named_without_its_password(
    arguments: list[str], password: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each command meets closed ports, and says so without a piece of the password."""
    _address_all(monkeypatch, tmp_path, password)

    code, said = _call(monkeypatch, capfd, arguments)

    assert (code in {0, 1, 2}, _shown(said), "Traceback" in said) == (True, [], False), said


@pytest.mark.parametrize("url", ["postgresql://127.0.0.1:1/db?zebra=1", "host=h zebra=1"])
@pytest.mark.parametrize("arguments", [["outbox", "stats"], ["migrate", "status"], ["keys", "list"]], ids=" ".join)
def test_a_parameter_that_libpq_does_not_take_is_one_sentence(
    arguments: list[str], url: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """An unknown parameter, which may be the rest of a password behind a `&`, is not repeated: exit code 2 and no traceback."""
    monkeypatch.setenv("SAGAPOST_ORDER_DATABASE_URL", url)
    monkeypatch.setenv("SAGAPOST_PAYMENT_DATABASE_URL", url)

    code, said = _call(monkeypatch, capfd, arguments)

    assert (code, _shown(said), len(said.splitlines())) == (2, [], 1), said
    assert "has a parameter that is unknown or wrong" in said


@pytest.mark.parametrize("text", ["user:zebra@host", "host=h user=zebra", "zebra://host"])
def test_what_is_no_address_is_not_repeated(text: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Text of another kind in SAGAPOST_GATEWAY_URL is refused by the variable's name."""
    monkeypatch.setenv("SAGAPOST_GATEWAY_URL", text)

    code, said = _call(monkeypatch, capfd, ["saga", "list"])

    assert (code, _shown(said)) == (2, [])
    assert said.startswith("sagapost: SAGAPOST_GATEWAY_URL cannot be read: ")


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("SAGAPOST_AMQP_URL", "amqp://user:zebra#quagga@127.0.0.1:1/", "SAGAPOST_AMQP_URL cannot be read: a special character"),
        ("SAGAPOST_DATABASE_URL", "postgresql://user:zebra/quagga@127.0.0.1:1/db", "SAGAPOST_DATABASE_URL cannot be read: a special"),
        ("SAGAPOST_DATABASE_URL", "postgresql://127.0.0.1:1/db?password=zebra&quagga=1", "has a parameter that is unknown or wrong"),
        ("SAGAPOST_DATABASE_URL", "postgresql://user:zebra%23quagga@127.0.0.1:1/db", "postgresql://127.0.0.1:1/db cannot be used"),
    ],
)
def test_a_service_refuses_to_start_without_showing_the_password(variable: str, value: str, says: str) -> None:
    """A relay names the setting on one line and ends with exit code 2; no traceback, no piece of the password."""
    environ = {name: text for name, text in os.environ.items() if not name.startswith("SAGAPOST_")} | {
        "SAGAPOST_DATABASE_URL": "postgresql://127.0.0.1:1/db",
        "SAGAPOST_AMQP_URL": "amqp://127.0.0.1:1/",
        "SAGAPOST_PORT": "0",
        variable: value,
    }

    done = subprocess.run(
        [sys.executable, "-P", "-m", "sagapost_relay"], env=environ, capture_output=True, text=True, check=False, timeout=60
    )

    said = done.stdout + done.stderr
    assert (done.returncode, _shown(said), "Traceback" in said) == (2, [], False), said
    assert says in said


@pytest.mark.parametrize("password", CLEAR)
def test_an_encoded_password_is_clear(password: str) -> None:
    """Whatever a password holds, written as %xx it is taken, and not shown."""
    for url in VARIABLES.values():
        assert urls.fault(url.format(password)) == ""
        assert urls.shown(url.format(password)) == url.replace("user:{}@", "")
