"""What the commands print: text from outside is shown and never obeyed, and there is one way to print."""

import ast
import io
import json
import pathlib
import unicodedata
from collections.abc import Callable, Iterator
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from sagapost_chassis import escaping
from sagapost_ops import errors, loglines, screen

ROOT: Final = pathlib.Path(__file__).parents[2]
OPS: Final = ROOT / "ops" / "src" / "sagapost_ops"
PRINTS: Final = {OPS / "screen.py", OPS / "errors.py"}
ESCAPED: Final = {"escaping.line", "escaping.document"}
BUILDERS: Final = {"_text", "_cell", "map", "Rule"}  # what may stand in a table or be printed by rich, in screen.py
# a colour, a title, a link, C1's CSI, a right-to-left override, a zero-width space, a filler, a tag, a line of its own, markup, an emoji
HOSTILE: Final = (
    "\x1b[2J\x1b]0;t\x07\x1b]8;;http://evil\x1b\\\x9b31m\u202e\u200b\u3164\U000e0041\r\nFORGED [link=http://evil][red]x[/] :bomb:"
)
SHOWN: Final = (
    "\\x1b[2J\\x1b]0;t\\x07\\x1b]8;;http://evil\\x1b\\\\x9b31m\\u202e\\u200b\\u3164\\U000e0041"
    "\\r\\nFORGED [link=http://evil][red]x[/] :bomb:"
)


def _acting(text: str) -> set[str]:
    return {sign for sign in text if sign != "\n" and (unicodedata.category(sign)[0] == "C" or sign in "\u2028\u2029\u3164\ufe0f\u034f")}


@given(text=st.text(st.characters(codec=None)))
def test_a_line_is_one_line_and_acts_on_no_terminal(text: str) -> None:
    """Whatever the text: no control, format, private, surrogate or invisible character is left, and no line end."""
    assert not _acting(escaping.line(text))
    assert "\n" not in escaping.line(text)
    assert escaping.block(text).count("\n") == text.count("\n")
    assert not _acting(escaping.block(text))


@given(value=st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_a_document_keeps_its_value_and_acts_on_no_terminal(value: object) -> None:
    """What is escaped in a JSON document is read back as it was, in one line or in many."""
    for indent in (None, 2):
        printed = escaping.document(json.dumps(value, ensure_ascii=False, indent=indent))
        assert json.loads(printed) == value
        assert not _acting(printed)


def _printed(says: Callable[[screen.Screen], object]) -> str:
    console = Console(width=400, file=io.StringIO(), force_terminal=True, color_system=None, highlight=False)
    says(screen.Screen(console))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


SAYS: Final[tuple[Callable[[screen.Screen], object], ...]] = (
    lambda out: out.line(HOSTILE),
    lambda out: out.line("a ", screen.Styled(HOSTILE, "bold")),
    lambda out: out.paragraph(HOSTILE),
    lambda out: out.spaced(HOSTILE),
    lambda out: out.table(("name",), [(HOSTILE,)]),
    lambda out: out.table(("name",), [(screen.Styled(HOSTILE, "red"),)]),
    lambda out: out.table((HOSTILE,), [("a",)]),
    lambda out: out.table(("name",), [(["first", HOSTILE],)]),
    lambda out: out.rule(HOSTILE, style="green", width=400),
    lambda out: out.line(*loglines.pretty(loglines.parse(HOSTILE, HOSTILE, ""))),
    lambda out: out.line(*loglines.pretty(loglines.parse("order", json.dumps({"at": HOSTILE, "event": "x"}), ""))),
)


@pytest.mark.parametrize("says", SAYS)
def test_text_from_outside_is_shown_as_it_is_written(says: Callable[[screen.Screen], object]) -> None:
    """Escapes instead of what a terminal obeys, markup and emoji as plain characters, and no line that the command did not print."""
    printed = _printed(says)

    assert SHOWN in printed
    assert not _acting(printed)
    assert not any(line.startswith("FORGED") for line in printed.splitlines())


def test_bars_and_spinners_obey_nothing() -> None:
    """The name of a bar, its note, and what is waited for."""

    def says(out: screen.Screen) -> None:
        with out.status(HOSTILE) as update:
            update(HOSTILE)
        with out.bars() as add_bar:
            add_bar(HOSTILE, 1).update(completed=1, note=HOSTILE)

    printed = _printed(says)

    assert SHOWN in printed
    assert not any(harm in printed for harm in ("\x1b[2J\x1b]0", "\x1b]", "\x9b", "\u202e", "\u200b", "\u3164", "\x07", "\nFORGED"))


def test_the_sentence_that_ends_a_command_is_one_harmless_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Of an expected end and of an unexpected one; further lines, the end of a log for instance, are harmless, too."""
    errors.FailedError(HOSTILE, [HOSTILE]).show()
    errors.show_unexpected(ValueError(HOSTILE.replace("\n", "")))

    printed = capsys.readouterr().err
    assert printed.splitlines()[:2] == [f"sagapost: {SHOWN}", f"  {SHOWN}"]
    assert not _acting(printed)


def _sources() -> Iterator[pathlib.Path]:
    for path in sorted(ROOT.glob("*/src/**/*.py")):
        if path not in PRINTS:
            yield path


def _calls(path: pathlib.Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.Call))


def test_only_one_module_prints() -> None:
    """No other module uses rich, `click.echo`, `print` or a standard stream: what is printed cannot go past the escaping."""
    for path in _sources():
        text = path.read_text(encoding="utf-8")
        names = {ast.unparse(call.func) for call in _calls(path)}
        assert not {name for name in names if name in {"print", "click.echo", "click.secho", "click.echo_via_pager"}}, path
        assert not {name for name in names if name.startswith(("sys.stdout.", "sys.__std", "os.writev"))}, path
        assert not any(line.startswith(("from rich", "import rich.", "import rich\n")) for line in text.splitlines()), path
        assert not {name for name in names if name.endswith((".print", ".add_row", ".add_column"))}, path


def test_what_prints_is_handed_nothing_unescaped() -> None:
    """Every `click.echo` is given an escaped text; every table and every `Console.print` is given what an escaping function made."""
    seen = 0
    for path in PRINTS:
        for call in _calls(path):
            name = ast.unparse(call.func)
            if name == "click.echo":
                assert isinstance(call.args[0], ast.Call), ast.unparse(call)
                assert ast.unparse(call.args[0].func) in ESCAPED, ast.unparse(call)
                seen += 1
            elif name.endswith((".print", ".add_row", ".add_column", ".status")):
                (given,) = call.args
                inner = given.value if isinstance(given, ast.Starred) else given
                is_made = isinstance(inner, ast.Call) and ast.unparse(inner.func) in BUILDERS
                assert is_made or ast.unparse(inner) == "made", ast.unparse(call)
                seen += 1
    assert seen > 10


def test_no_command_puts_a_line_end_into_a_line() -> None:
    r"""It would be shown as \n: an empty line is `spaced`, a text of several lines is a `block`."""
    found = [
        f"{path.relative_to(OPS)}:{call.lineno}"
        for path in sorted(OPS.rglob("*.py"))
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in {"line", "spaced", "paragraph"}
        for part in (part for argument in call.args for part in ast.walk(argument))
        if isinstance(part, ast.Constant) and isinstance(part.value, str) and "\n" in part.value
    ]

    assert found == []
