"""The options that several commands share."""

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import rich_click as click

from sagapost_ops import environment, errors, plan, targets

F = TypeVar("F", bound=Callable[..., Any])


class FloatRange(click.FloatRange):
    """A number between two bounds. click's own type takes `nan`, for no comparison with it is true."""

    def convert(self, value: float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Refuse what is no finite number."""
        found = float(super().convert(value, param, ctx))
        if not math.isfinite(found):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return found


def check_file(path: Path | None) -> None:
    """See before the work begins that a file of this name can be written afterwards.

    Raises:
        UnfitError: it cannot.

    """
    if path is None:
        return
    try:
        if path.exists():
            path.open("ab").close()
        else:
            tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as exc:
        raise errors.UnfitError(f"{path} cannot be written: {exc.strerror}; name another file") from exc


def check_folder(path: Path) -> None:
    """Make a folder for what the work will write, and see that files can be made in it.

    Raises:
        UnfitError: it cannot be made, or takes no files.

    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as exc:
        raise errors.UnfitError(f"the folder {path} cannot be written: {exc.strerror}; name another one with --out") from exc


def as_json(function: F) -> F:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")(function)


def port_offset(function: F) -> F:
    """Add --port-offset."""
    return click.option(
        "--port-offset",
        type=click.IntRange(0, plan.HIGHEST_OFFSET),
        default=lambda: environment.read(environment.PORT_OFFSET) or 0,
        metavar="N",
        help="The stack whose ports are all N higher; its data lie in .sagapost-N. Otherwise SAGAPOST_PORT_OFFSET.",
    )(function)


def database(function: F) -> F:
    """Add --database, as `only`."""
    return click.option("--database", "only", type=click.Choice(targets.DATABASES), help="One database instead of both.")(function)
