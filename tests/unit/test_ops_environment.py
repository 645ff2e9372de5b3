"""Commands read SAGAPOST_ENV and their other settings as the services do: the variable or its file, and nothing that is neither mode."""

import pathlib
import re
import sys
from typing import Final

import pytest

from sagapost_ops import cli

ROOT: Final = pathlib.Path(__file__).parents[2]
PLAIN: Final = "postgresql://order:order_password@127.0.0.1:1/order_db"
COMMANDS: Final[tuple[tuple[list[str], dict[str, str]], ...]] = (
    (["verify"], {"SAGAPOST_ORDER_DATABASE_URL": PLAIN}),
    (["keys", "create", "--client", "shop"], {"SAGAPOST_ORDER_DATABASE_URL": PLAIN}),
    (["migrate", "up", "--roles"], {"SAGAPOST_ORDER_DATABASE_URL": PLAIN, "SAGAPOST_PAYMENT_DATABASE_URL": PLAIN}),
    (["topology", "declare"], {"SAGAPOST_RABBITMQ_COOKIE": "development-cookie"}),
    (["chaos"], {}),
)
MODES: Final = {
    "production": "refused in production|is production",
    "PRODUCTION": "must be development or production",
    " production": "must be development or production",
    "prod": "must be development or production",
    "file": "refused in production|is production",
    "both": "SAGAPOST_ENV and SAGAPOST_ENV_FILE are both set",
}


def _call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["./sagapost", *arguments])
    code = cli.run()
    return code, capsys.readouterr().err


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setenv("SAGAPOST_STATE", str(tmp_path / "state"))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("arguments", "variables"), COMMANDS, ids=[" ".join(one[:2]) for one, _ in COMMANDS])
def test_what_production_refuses_is_refused_however_it_is_said(
    *,
    arguments: list[str],
    variables: dict[str, str],
    mode: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Production from a file counts as production; what is neither mode, or set twice, is refused with exit code 2."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "mode").write_text("production\n")
    if mode in {"file", "both"}:
        monkeypatch.setenv("SAGAPOST_ENV_FILE", str(tmp_path / "mode"))
    if mode != "file":
        monkeypatch.setenv("SAGAPOST_ENV", "production" if mode == "both" else mode)

    code, said = _call(monkeypatch, capsys, *arguments)

    assert code == 2
    assert re.search(MODES[mode], said), said


def test_up_refuses_what_is_neither_mode(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`up` starts nothing, and makes no folder, in a mode that no service knows."""
    monkeypatch.setenv("SAGAPOST_ENV", "prod")

    code, said = _call(monkeypatch, capsys, "up", "--fresh")

    assert (code, said) == (2, "sagapost: SAGAPOST_ENV must be development or production\n")
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("variable", "arguments"),
    [
        ("SAGAPOST_API_KEY", ["saga", "list"]),
        ("SAGAPOST_STATE", ["status"]),
        ("SAGAPOST_PORT_OFFSET", ["status"]),
        ("SAGAPOST_MIGRATIONS", ["migrate", "status", "--only", "order"]),
        ("SAGAPOST_LOG_BYTES", ["up"]),
        ("SAGAPOST_LOGS_KEPT", ["up"]),
    ],
)
def test_a_setting_of_the_commands_may_lie_in_a_file(
    *,
    variable: str,
    arguments: list[str],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The file that NAME_FILE names is read: one that is not there is named, exit code 2."""
    monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(f"{variable}_FILE", str(tmp_path / "absent"))
    monkeypatch.setenv("SAGAPOST_GATEWAY_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("SAGAPOST_ORDER_DATABASE_URL", PLAIN)

    code, said = _call(monkeypatch, capsys, *arguments)

    assert (code, f"{variable}_FILE: the file {tmp_path / 'absent'} cannot be read" in said) == (2, True)


def test_the_port_offset_may_lie_in_a_file(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the file holds counts like the variable."""
    (tmp_path / "offset").write_text("700\n")
    monkeypatch.setenv("SAGAPOST_PORT_OFFSET_FILE", str(tmp_path / "offset"))

    code, said = _call(monkeypatch, capsys, "status")

    assert (code, "--port-offset 700" in said) == (3, True)


def test_no_command_reads_a_setting_past_its_file() -> None:
    """A command asks `environment` for every SAGAPOST_* variable; os.environ itself is only handed on."""
    sources = (ROOT / "ops" / "src").rglob("*.py")
    direct = re.compile(r"environ(?:\.get\(|\[)[\"']?(?:SAGAPOST|[A-Z_]*[a-z_]*)[^)\]]*|envvar=")

    found = {f"{path.name}: {line.strip()}" for path in sources for line in path.read_text().splitlines() if direct.search(line)}

    assert {line for line in found if "unit.environ[" not in line} <= {
        "own_stack.py: if os.environ.get(variable):",  # libpq's own
        'completion.py: os.environ[cli.COMPLETE] = f"{shell}_source"',
    }
