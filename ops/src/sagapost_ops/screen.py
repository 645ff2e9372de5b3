"""How the commands print: every line, table cell and document goes through here and is escaped; it must not know what they say.

Only this module prints, and only it uses rich (tests/unit/test_screen.py holds both), so that text that was stored by a client, an
operator, a mail server or a broken message is shown, and never obeyed, by the terminal.
"""

import contextlib
from collections.abc import Callable, Generator, Sequence
from typing import Final, NamedTuple

import msgspec
import rich_click as click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from sagapost_chassis import escaping

_PIPE_WIDTH: Final = 180
GAP: Final = 3


class Styled(NamedTuple):
    """A piece of a line in a style of rich's."""

    text: str
    style: str


Part = str | Styled
Cell = Part | list[Part]  # a list is a cell of several lines


class Column(NamedTuple):
    """A column of a table; `whole`: its cells are never folded."""

    name: str = ""
    right: bool = False
    whole: bool = False
    width: int | None = None


class Bar:
    """How far one thing is, on a terminal."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task
        self.completed = 0.0

    def advance(self, number: float = 1) -> None:
        """Count what was done."""
        self.completed += number
        self._progress.advance(self._task, number)

    def update(self, *, total: float | None = None, completed: float | None = None, note: str = "") -> None:
        """Set what is known now."""
        self._progress.update(self._task, total=total, completed=completed, note=escaping.line(note))


AddBar = Callable[[str, float | None], Bar]


class Screen:
    """Prints on one stream; whatever is handed in, the terminal shows it and does nothing else."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.width: Final = console.width
        self.is_terminal: Final = console.is_terminal
        self.is_quiet: Final = console.quiet

    def line(self, *parts: Part, style: str = "") -> None:
        """Print one line; it is not folded, so that it can be copied and searched."""
        self._console.print(_text(parts, style), soft_wrap=True)

    def spaced(self, *parts: Part) -> None:
        """Print an empty line, then a line."""
        self.line()
        self.line(*parts)

    def paragraph(self, text: str, style: str = "") -> None:
        """Print a text, folded between words."""
        self._console.print(_text((text,), style))

    def block(self, text: str, style: str = "") -> None:
        """Print a text of several lines."""
        for one in text.split("\n"):
            self.line(one, style=style)

    def rule(self, title: str = "", *, style: str, width: int) -> None:
        """Print a line across the screen."""
        self._console.print(Rule(_text((title,), f"bold {style}"), style=style), width=min(width, self.width))

    def table(self, columns: Sequence[str | Column], rows: Sequence[Sequence[Cell]], *, gap: int = GAP) -> None:
        """Print a table without lines between its rows; without a heading when no column has a name."""
        named = [Column(column) if isinstance(column, str) else column for column in columns]
        has_heading = any(column.name for column in named)
        made = Table(box=None, show_header=has_heading, header_style="bold", pad_edge=False, padding=(0, gap, 0, 0))
        for column in named:
            made.add_column(
                _text((column.name,)),
                justify="right" if column.right else "left",
                no_wrap=column.whole,
                overflow="ellipsis" if column.whole else "fold",
                width=column.width,
            )
        for row in rows:
            made.add_row(*map(_cell, row))
        self._console.print(made)

    @contextlib.contextmanager
    def status(self, text: str) -> Generator[Callable[[str], None]]:
        """Show what is waited for while the block runs; call what is yielded to change it."""
        with self._console.status(_text((text,))) as spinner:
            yield lambda now: spinner.update(_text((now,)))

    @contextlib.contextmanager
    def bars(self, *, hidden: bool = False) -> Generator[AddBar]:
        """Show bars on a terminal while the block runs; call what is yielded with a name and a total to add one."""
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=self._console, transient=True, disable=hidden or not self.is_terminal) as progress:
            yield lambda name, total: Bar(progress, progress.add_task(escaping.line(name), total=total, note=""))


def out() -> Screen:
    """Return the screen for what a command has to say."""
    return Screen(_console(stderr=False))


def err() -> Screen:
    """Return the screen for how it is getting on."""
    return Screen(_console(stderr=True))


def quiet() -> Screen:
    """Return a screen that shows nothing."""
    return Screen(Console(quiet=True))


def json(value: object) -> None:
    """Print a value as one JSON document."""
    click.echo(escaping.document(_decoded(msgspec.json.format(msgspec.json.encode(value), indent=2))))


def json_line(value: object) -> None:
    """Print a value as one JSON document on one line."""
    click.echo(escaping.document(_decoded(msgspec.json.encode(value))))


def raw(line: str) -> None:
    """Print a line that was written as JSON, or as something else."""
    click.echo(escaping.document(line))


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH  # a pipe has no width; folding at 80 columns would break the lines for grep
    return console


def _decoded(document: bytes) -> str:
    return document.decode(errors="backslashreplace")


def _text(parts: Sequence[Part], style: str = "") -> Text:
    pieces = [Styled(part, "") if isinstance(part, str) else part for part in parts]
    return Text.assemble(*((escaping.line(piece.text), piece.style) for piece in pieces), style=style)


def _cell(cell: Cell) -> Text:
    return Text("\n").join(_text((part,)) for part in cell) if isinstance(cell, list) else _text((cell,))
