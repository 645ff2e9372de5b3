"""Settings from the environment into one frozen Struct; at start it names every variable that is missing or wrong."""

import re
import sys
from collections.abc import Mapping
from typing import Final, NoReturn, TypeVar

import msgspec

PREFIX: Final = "SAGAPOST_"
_CREDENTIALS: Final = re.compile(r"://[^/@\s]*@")

T = TypeVar("T", bound=msgspec.Struct)


class SettingsError(Exception):
    """One or more variables are missing or wrong; the text has a line for each."""


class CannotStartError(Exception):
    """Something outside keeps this process from starting; the text says what to do. lifecycle.run prints it and exits with 2."""


class Common(msgspec.Struct, frozen=True, kw_only=True):
    """What every process reads; ports are TCP ports, 0 turns a port off."""

    env: str = "development"
    host: str = "127.0.0.1"
    port: int = 0
    metrics_port: int = 0
    log_level: str = "info"

    def __post_init__(self) -> None:
        """Refuse an environment that does not exist."""
        if self.env not in {"development", "production"}:
            raise ValueError("must be development or production")


def load(cls: type[T], environ: Mapping[str, str]) -> T:
    """Build `cls` from SAGAPOST_<FIELD> variables.

    Raises:
        SettingsError: names every missing or wrong variable at once.

    """
    values: dict[str, object] = {}
    faults: list[str] = []
    for field in msgspec.structs.fields(cls):
        variable = PREFIX + field.name.upper()
        text = environ.get(variable)
        if text is None or text == "":
            if field.required:
                faults.append(f"{variable} is not set")
            continue
        try:
            values[field.name] = msgspec.convert(text, field.type, strict=False)
        except msgspec.ValidationError as exc:
            faults.append(f"{variable} is wrong: {str(exc)[:1].lower()}{str(exc)[1:]}")
    if not faults:
        try:
            return msgspec.convert(values, cls, strict=False)
        except msgspec.ValidationError as exc:
            faults.append(f"{PREFIX}*: {exc}")
    raise SettingsError("\n".join(faults))


def load_or_exit(cls: type[T], environ: Mapping[str, str]) -> T:
    """Build `cls` or say on standard error what is wrong and exit with 2."""
    try:
        return load(cls, environ)
    except SettingsError as exc:
        exit_with(str(exc))


def exit_with(sentence: str) -> NoReturn:
    """End a start that cannot succeed: the sentence on standard error, exit code 2."""
    sys.stderr.write(sentence + "\n")
    raise SystemExit(2)


def without_password(url: str) -> str:
    """Give a URL that may be shown."""
    return _CREDENTIALS.sub("://", url)
