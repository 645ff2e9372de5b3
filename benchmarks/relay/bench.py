"""What the measures share: options, servers, contenders and the shape of a sample; must not know any measure."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec
import psycopg

from benchmarks.relay import running, wire, world
from benchmarks.relay.contenders import Contender
from sagapost_sandbox import errors

T = TypeVar("T")


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for on the command line; a writer writes for `seconds`."""

    repeat: int = 5
    rows: int = 30_000
    backlog_rows: int = 1_000_000
    size_bytes: int = 300
    seconds: float = 10.0
    contention_s: float = 15.0
    infra: world.Infra = "native"


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What one measurement of one contender gave; `note` says what went wrong, and then there are no values."""

    measure: str
    contender: str
    case: str = ""
    repeat: int
    values: dict[str, float] = {}
    note: str = ""


class Bench(msgspec.Struct, frozen=True, kw_only=True):
    """One run: where, who, with what, and whom to tell how it is getting on."""

    options: Options
    world: world.World
    contenders: tuple[Contender, ...]
    templates: dict[str, str]
    tell: Callable[[str], None]

    def turn(self, these: Sequence[T], repeat: int) -> list[T]:
        """Give them in another order each time, so that none is always the first after a pause."""
        first = repeat % max(1, len(these))
        return [*these[first:], *these[:first]]

    def named(self, *names: str) -> list[Contender]:
        """Pick contenders that take part in this run."""
        return [one for one in self.contenders if one.name in names]

    def sample(self, measure: str, name: str, repeat: int, take: Callable[[], dict[str, float]], *, case: str = "") -> Sample:
        """Take a sample; when that fails, the sample says why, and the run goes on."""
        self.tell(f"{measure}: {name} {case}".strip())
        try:
            values, note = take(), ""
        except (running.ContenderError, wire.WireError, psycopg.Error, errors.SandboxError, OSError) as exc:
            values, note = {}, f"{type(exc).__name__}: {exc}"
        return Sample(measure=measure, contender=name, case=case, repeat=repeat, values=values, note=note)
