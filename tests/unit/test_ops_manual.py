"""What the documents say of commands and crash points is what the code has; examples in --help can be copied from a narrow terminal."""

import contextlib
import math
import pathlib
import re
import shlex
from collections.abc import Iterator
from typing import Final

import pytest
import rich_click as click

from sagapost_chassis import crashpoints
from sagapost_ops import cli

ROOT: Final = pathlib.Path(__file__).parents[2]
COLUMNS: Final = 80


def _commands() -> Iterator[tuple[str, click.Command]]:
    """Return every command and sub-command by what is typed."""
    context = click.Context(cli.main)
    for name in cli.main.list_commands(context):
        _, found, _ = cli.main.resolve_command(context, [name])
        assert found is not None
        yield name, found
        for below, command in getattr(found, "commands", {}).items():
            yield f"{name} {below}", command


def _table() -> list[str]:
    """Return README's table of commands as it should be."""
    rows = []
    for name, found in _commands():
        if " " in name:
            continue
        below = r"\|".join(getattr(found, "commands", {}))
        context = click.Context(cli.main)
        said = cli.main.get_command(context, name)
        assert said is not None
        rows.append(f"| `{f'{name} {below}' if below else name}` | {said.help} |")
    return rows


def test_the_table_of_commands_is_that_of_the_command_line() -> None:
    """A command that is new, gone or renamed shows in README with the same change; to make the table anew, take the expected rows."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## Commands\n")[2].partition("\n## ")[0]

    assert [line for line in section.splitlines() if line.startswith("| `")] == _table()


def test_the_crash_points_are_those_of_the_registry() -> None:
    """operating.md names each crash point, and no other."""
    section = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8").partition("\n## Crash points\n")[2].partition("\n## ")[0]
    listed = section.partition("The names: ")[2].partition("\n\n")[0]

    assert re.findall(r"`([a-z]+\.[a-z_]+)`", listed) == list(crashpoints.NAMES)


@pytest.mark.parametrize("name", [name for name, _ in _commands()])
def test_an_example_stands_on_one_line_of_a_narrow_terminal(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 80 columns no example is folded: what is copied from --help is the whole command."""
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    monkeypatch.setenv("TERMINAL_WIDTH", str(COLUMNS))
    command = dict(_commands())[name]
    examples = [line.strip() for line in (command.help or "").partition("\b\n")[2].splitlines() if line.strip()]

    cli.main.main([*name.split(), "--help"], prog_name="./sagapost", standalone_mode=False)

    shown = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert [line for line in examples if line not in shown] == []


@pytest.mark.parametrize("text", ["nan", "-nan", "inf", "-inf", "1e999"])
def test_no_option_takes_what_is_no_finite_number(text: str) -> None:
    """Walk every option of every command: none that reads a number hands `nan` or an infinity on."""
    taken: list[str] = []
    numbers = 0
    for name, command in _commands():
        for option in command.params:
            numbers += isinstance(option.type, type(click.FLOAT))
            with contextlib.suppress(click.UsageError):
                found = option.type_cast_value(click.Context(command), (text,) if option.multiple or option.nargs != 1 else text)
                if isinstance(found, float) and not math.isfinite(found):
                    taken.append(f"{name} {option.opts[0]}")

    assert numbers > 10
    assert taken == []


def test_a_command_refuses_what_is_no_number(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`verify --settle nan` ends with exit code 2 and one sentence."""
    monkeypatch.setattr("sys.argv", ["./sagapost", "verify", "--settle", "nan"])

    code = cli.run()

    assert (code, "'nan' is not a finite number; see: ./sagapost verify --help" in capsys.readouterr().err) == (2, True)


def _examples() -> list[str]:
    """Return every call that help texts and the runbook show, without what a shell does with its output."""
    said = [(command.help or "").replace("\\\n", " ") for _, command in _commands()]
    found = [one for text in said for one in re.findall(r"^ *\./sagapost (.*)$|see:? \./sagapost ([^.;,)\n]*)", text, re.MULTILINE)]
    page = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    found += re.findall(r"^ *\./sagapost (.*)$|`\./sagapost ([^`]*)`", page, re.MULTILINE)
    return sorted({re.split(r" \| | #| > ", first or second)[0].strip() for first, second in found})


@pytest.mark.parametrize("line", _examples())
def test_an_example_is_a_call_that_the_command_line_takes(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call in --help texts and docs/runbook.md is parsed as if it were typed, and not run."""
    typed = re.sub(r"\b(?:N|KEY_ID|ID|ORDER)\b", "7", line).replace("NAME", "shop")
    monkeypatch.setattr(click.Command, "invoke", lambda *_: None)
    monkeypatch.setattr("sys.argv", ["./sagapost", *shlex.split(typed)])

    with contextlib.suppress(SystemExit):
        try:
            cli.main.main(prog_name="./sagapost", standalone_mode=False)
        except click.MissingParameter:
            assert "--" not in line  # a command that is only named


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_complete_the_commands(shell: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`completion` prints the script of each shell, under the name that the command line answers to."""
    monkeypatch.setenv(cli.COMPLETE, "")  # which puts back what the command sets

    with pytest.raises(SystemExit) as ended:
        cli.main.main(["completion", shell], prog_name="./sagapost", standalone_mode=False)

    assert (ended.value.code, cli.COMPLETE in capsys.readouterr().out) == (0, True)


def test_commands_are_completed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What the script asks for is answered with the commands that begin so."""
    monkeypatch.setenv(cli.COMPLETE, "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "./sagapost out")
    monkeypatch.setenv("COMP_CWORD", "1")
    monkeypatch.setattr("sys.argv", ["./sagapost"])

    with pytest.raises(SystemExit):
        cli.run()

    assert capsys.readouterr().out.split() == ["plain,outbox"]


def test_the_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` prints name and version, and exits with 0."""
    code = cli.main.main(["--version"], prog_name="./sagapost", standalone_mode=False)

    assert not code
    assert re.fullmatch(r"sagapost \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_the_port_offset_comes_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    """SAGAPOST_PORT_OFFSET stands for --port-offset, which counts more."""
    monkeypatch.setenv("SAGAPOST_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("SAGAPOST_PORT_OFFSET", "700")
    monkeypatch.setattr("sys.argv", ["./sagapost", "status"])

    code = cli.run()

    assert (code, "--port-offset 700" in capsys.readouterr().err) == (3, True)
