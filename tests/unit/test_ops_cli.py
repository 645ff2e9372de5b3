"""The command line as a whole: light to start, helpful, with the documented exit codes."""

import os
import pathlib
import shlex
import signal
import subprocess
import sys

import msgspec
import pytest

from sagapost_ops import cli, state

HEAVY = ("sqlalchemy", "alembic", "psycopg", "aio_pika", "aiohttp", "litestar")
COMMANDS = ("up", "down", "restart", "status", "doctor", "logs", "test", "demo", "migrate", "topology", "saga", "outbox", "dlq", "verify")


def _run(folder: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SAGAPOST_")}
    return subprocess.run(
        [sys.executable, "-P", "-m", "sagapost_ops", *arguments],
        env=environ | {"SAGAPOST_STATE": str(folder / "state")},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_help_lists_every_command(tmp_path: pathlib.Path) -> None:
    """`--help` names each command with one line, and the exit codes."""
    done = _run(tmp_path, "--help")

    assert done.returncode == 0
    assert all(f" {name} " in done.stdout for name in COMMANDS)
    assert "Exit codes" in done.stdout


@pytest.mark.parametrize("arguments", ["['--help']", "['status', '--json']", "['up', '--help']"])
def test_light_commands_import_nothing_heavy(tmp_path: pathlib.Path, arguments: str) -> None:
    """Help and status start quickly because the modules of databases and broker stay out."""
    heavy = HEAVY if "up" not in arguments else HEAVY[:2]
    script = (
        f"import sys; from sagapost_ops import cli; sys.argv[1:] = {arguments}\n"
        f"try: cli.run()\nexcept SystemExit: pass\n"
        f"print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )

    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "SAGAPOST_STATE": str(tmp_path / "state")},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_teaches_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command's help holds a line that can be copied."""
    code = cli.main.main([name, "--help"], prog_name="./sagapost", standalone_mode=False)

    assert code == 0
    assert f"./sagapost {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("status",), 3, "nothing runs here; start it with: ./sagapost up --detach"),
        (("restart", "--all"), 3, "nothing runs here"),
        (("restart",), 2, "name the services to restart, or give --all"),
        (("logs",), 3, "there are no logs yet"),
        (("demo",), 3, "nothing runs here"),
        (("verify",), 3, "nothing runs here"),
        (("down",), 0, ""),
        (("nonsense",), 2, "No such command 'nonsense'"),
        (("up", "--port-offset", "many"), 2, "Invalid value for '--port-offset'"),
    ],
)
def test_without_a_stack_each_command_says_so_in_one_sentence(
    tmp_path: pathlib.Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    """One line on standard error and the documented exit code, no traceback."""
    done = _run(tmp_path, *arguments)

    assert done.returncode == code
    assert says in done.stderr
    assert len(done.stderr.splitlines()) <= 1


def test_status_without_a_stack_is_still_json(tmp_path: pathlib.Path) -> None:
    """A script gets an empty list and exit code 3."""
    done = _run(tmp_path, "status", "--json")

    assert done.returncode == 3
    assert msgspec.json.decode(done.stdout) == {"services": []}


def test_a_folder_that_is_not_ours_is_never_removed(tmp_path: pathlib.Path) -> None:
    """`down --purge` refuses a folder without our mark in it, whatever SAGAPOST_STATE says."""
    precious = tmp_path / "state" / "precious.txt"
    precious.parent.mkdir()
    precious.write_text("mine")

    done = _run(tmp_path, "down", "--purge")

    assert done.returncode == 2
    assert "was not made by sagapost" in done.stderr
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("where", ["ledgers", "."])
def test_a_folder_that_is_busy_is_purged_later(tmp_path: pathlib.Path, where: str) -> None:
    """A mount in the folder, or the folder itself as one, is one sentence with exit code 1, now and again; without it the purge goes on."""
    home = tmp_path / "state"
    (home / "ledgers").mkdir(parents=True)
    (home / "orders").mkdir()
    (home / state.MARK).touch()
    purge = shlex.join([sys.executable, "-P", "-m", "sagapost_ops", "down", "--purge"])
    script = f"mount -t tmpfs none {home / where} && touch {home}/{state.MARK} && for i in 1 2; do {purge}; echo $?; done; ls -A {home}"

    busy = subprocess.run(
        ["/usr/bin/env", "unshare", "--mount", "--map-root-user", "sh", "-c", script],
        env=os.environ | {"SAGAPOST_STATE": str(home)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if "unshare" in busy.stderr or "mount:" in busy.stderr:
        pytest.skip(f"mounts are not allowed here: {busy.stderr}")
    later = _run(tmp_path, "down", "--purge")

    assert busy.stdout.split()[:2] == ["1", "1"]
    assert state.MARK in busy.stdout.split()
    assert "Traceback" not in busy.stderr
    assert busy.stderr.count("cannot be removed (Device or resource busy)") == 2
    assert (later.returncode, home.exists()) == (0, False)


@pytest.mark.parametrize("arguments", [("--help",), ("status", "--json"), ("down",), ("completion", "bash")], ids=" ".join)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_that_takes_nothing_is_one_sentence(tmp_path: pathlib.Path, arguments: tuple[str, ...], unbuffered: str) -> None:
    """On a full disk a command says so on standard error and ends with exit code 1, without a traceback."""
    with pathlib.Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "sagapost_ops", *arguments],
            env=os.environ | {"SAGAPOST_STATE": str(tmp_path / "state"), "PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )

    assert (done.returncode, done.stderr) == (1, "sagapost: the output cannot be written: No space left on device\n")


def test_the_folder_of_a_report_is_tried_before_the_work(tmp_path: pathlib.Path) -> None:
    """`chaos --out` starts nothing when its report could not be written."""
    done = _run(tmp_path, "chaos", "--out", "/proc/nothing")

    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert done.stderr.startswith("sagapost: the folder /proc/nothing cannot be written: ")
    assert not list(tmp_path.iterdir())


def test_an_interrupt_during_the_start_is_no_traceback(tmp_path: pathlib.Path) -> None:
    """Ctrl-C while modules are imported ends the process by that signal, and prints nothing."""
    script = (
        "import importlib, os, signal, sys; from sagapost_ops import __main__ as main\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'sagapost_ops.cli': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder()); main.main()"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path)

    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_restored_wants_one_database(tmp_path: pathlib.Path) -> None:
    """`restored` with both databases, or none, is a wrong call and changes nothing."""
    for given in ((), ("--order", "--payment"), ("--payment", "--order")):
        done = _run(tmp_path, "restored", *given)

        assert (done.returncode, "say which one database went back: --order or --payment" in done.stderr) == (2, True)


def test_an_offset_has_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two stacks never share a folder, and the plain one lies beside the checkout's members."""
    monkeypatch.delenv("SAGAPOST_STATE", raising=False)

    assert state.folder(0) == state.checkout() / ".sagapost"
    assert state.folder(100) == state.checkout() / ".sagapost-100"
    assert (state.checkout() / "ops").is_dir()
