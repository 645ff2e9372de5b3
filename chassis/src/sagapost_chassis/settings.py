"""Settings from the environment into one frozen Struct; at start it names every variable that is missing or wrong."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn, TypeVar, get_args

import msgspec

from sagapost_chassis import escaping, loopback, production, sink, urls

PREFIX: Final = "SAGAPOST_"
FROM_FILE: Final = "_FILE"
PRODUCTION: Final = "production"
DEVELOPMENT: Final = "development"
HOST: Final = "127.0.0.1"
OPENED: Final = "yes"
_MODES: Final = frozenset({DEVELOPMENT, PRODUCTION})
_NO_MODE: Final = f"{PREFIX}ENV must be development or production"
_URL: Final = "_url"  # how the names of fields end that hold one
_DATABASE: Final = "database_url"
_FAULTS_ONLY: Final = "SAGAPOST_CRASH"
_RULE: Final = "rule"

# What a setting holds: secrets and what contains them show nothing of it, and production refuses what its rule refuses.
Secret = Annotated[str, msgspec.Meta(extra={_RULE: production.secret})]
DatabaseUrl = Annotated[str, msgspec.Meta(extra={_RULE: production.database})]
BrokerUrl = Annotated[str, msgspec.Meta(extra={_RULE: production.broker})]
InternalSecret = Annotated[str, msgspec.Meta(pattern=r"\A[!-~]*\Z", extra={_RULE: production.internal})]
HttpsUrl = Annotated[str, msgspec.Meta(extra={_RULE: production.https})]

T = TypeVar("T", bound=msgspec.Struct)


class SettingsError(Exception):
    """One or more variables are missing or wrong; the text has a line for each."""


class CannotStartError(Exception):
    """Something outside keeps this process from starting; the text says what to do. lifecycle.run prints it and exits with 2."""


class Discreet(msgspec.Struct, frozen=True, kw_only=True):
    """A Struct whose repr hides the values of the annotations above."""

    def __repr__(self) -> str:
        """Give name and fields; a secret one as `…`."""
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Give the fields to rich, secrets hidden."""
        return [(field.name, "…" if _RULE in _extra(field) else getattr(self, field.name)) for field in msgspec.structs.fields(self)]


class Common(Discreet, frozen=True, kw_only=True):
    """What every process reads; ports are TCP ports, 0 turns a port off.

    `development_on_any_address`: "yes" lets development mode listen where other machines can reach it; anything else does not.
    """

    env: str = DEVELOPMENT
    host: str = HOST
    development_on_any_address: str = ""
    port: int = 0
    metrics_port: int = 0
    log_level: str = "info"

    def __post_init__(self) -> None:
        """Refuse an environment that does not exist."""
        if self.env not in _MODES:
            raise ValueError(_NO_MODE)

    def stays_local(self) -> bool:
        """Return whether this process may listen on loopback addresses only: development lets callers in without a key."""
        return self.env == DEVELOPMENT and self.development_on_any_address != OPENED

    def weaknesses(self) -> list[str]:
        """Name what production refuses beyond the rules of single fields; a sentence each, without any secret."""
        return []


class Internal(Common, frozen=True, kw_only=True):
    """What a service reads that calls another one of ours, or is called by one; see internal.guarding."""

    internal_secret: InternalSecret = ""

    def weaknesses(self) -> list[str]:
        """Name a missing secret."""
        missing = f"{PREFIX}INTERNAL_SECRET: it is not set; choose one for the gateway, order and email: {production.CHOOSE_INTERNAL}"
        return [*super().weaknesses(), *([] if self.internal_secret else [missing])]


def read(environ: Mapping[str, str], variable: str) -> str:
    """Read a variable, or the file that `<variable>_FILE` names, without its last line break; empty when neither is set.

    Raises:
        SettingsError: both are set, or the file cannot be read or is empty.

    """
    text, path = environ.get(variable, ""), environ.get(variable + FROM_FILE, "")
    if not path:
        return text
    if text:
        raise SettingsError(f"{variable} and {variable}{FROM_FILE} are both set; unset one")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8 text"
        raise SettingsError(f"{variable}{FROM_FILE}: the file {path} cannot be read: {reason}") from None
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise SettingsError(f"{variable}{FROM_FILE}: the file {path} is empty")
    return text


def mode(environ: Mapping[str, str]) -> str:
    """Return SAGAPOST_ENV as every process reads it: development when it is not set.

    Raises:
        SettingsError: it is neither development nor production, or cannot be read.

    """
    found = read(environ, f"{PREFIX}ENV") or DEVELOPMENT
    if found not in _MODES:
        raise SettingsError(_NO_MODE)
    return found


def load(cls: type[T], environ: Mapping[str, str]) -> T:
    """Build `cls` from SAGAPOST_<FIELD> variables, or from the files that SAGAPOST_<FIELD>_FILE name.

    Raises:
        SettingsError: names every missing or wrong variable at once, and in production every weak one.

    """
    values, texts, faults = _read_fields(cls, environ)
    made: T | None = None
    if not faults:
        try:
            made = msgspec.convert(values, cls, strict=False)
        except msgspec.ValidationError as exc:
            faults.append(f"{PREFIX}*: {exc}")
    if values.get("env") == PRODUCTION:
        weak = [f"{name}: {reason}" for name, (rule, text) in texts.items() for reason in rule(text)]
        weak += made.weaknesses() if isinstance(made, Common) else []
        weak += [f"{_FAULTS_ONLY}: it makes a process kill itself and is for tests; unset it"] if environ.get(_FAULTS_ONLY) else []
        faults += [f"refused in production: {sentence}" for sentence in weak]
    elif issubclass(cls, Common) and values.get("development_on_any_address") != OPENED:
        faults += _open_to_others(str(values.get("host", HOST)))
    if faults or made is None:
        raise SettingsError("\n".join(faults))
    return made


def _open_to_others(host: str) -> list[str]:
    """Return why development mode may not listen on this host, as a list of at most one sentence."""
    try:
        found = loopback.beyond(host)
    except OSError as exc:
        return [f"{PREFIX}HOST: {host} has no address: {exc.strerror or exc}"]
    return [open_to_others(f"{PREFIX}HOST={host}", found)] if found else []


def open_to_others(what: str, addresses: Sequence[str]) -> str:
    """Return the sentence with which development mode refuses to listen on addresses that other machines can reach."""
    return (
        f"refused in development: {what}: other machines can reach {', '.join(addresses)}, and development mode needs no key; "
        f"set {PREFIX}ENV=production, or {PREFIX}HOST={HOST}, or {PREFIX}DEVELOPMENT_ON_ANY_ADDRESS={OPENED} where a firewall or "
        f"a container's network keeps everybody else out"
    )


def _read_fields(
    cls: type[msgspec.Struct], environ: Mapping[str, str]
) -> tuple[dict[str, object], dict[str, tuple[production.Rule, str]], list[str]]:
    """Give the values by field, the texts that a rule is for by variable, and what is wrong."""
    values: dict[str, object] = {}
    texts: dict[str, tuple[production.Rule, str]] = {}
    faults: list[str] = []
    for field in msgspec.structs.fields(cls):
        variable = PREFIX + field.name.upper()
        try:
            text = read(environ, variable)
            reason = urls.fault(text, words=field.name.endswith(_DATABASE)) if text and field.name.endswith(_URL) else ""
            if reason:
                faults.append(f"{variable} {reason}")
            elif text:
                values[field.name] = msgspec.convert(text, field.type, strict=False)
                if rule := _extra(field).get(_RULE):
                    texts[variable] = (rule, text)
            elif field.required:
                faults.append(f"{variable} is not set")
        except SettingsError as exc:
            faults.append(str(exc))
        except msgspec.ValidationError as exc:
            faults.append(f"{variable} is wrong: {str(exc)[:1].lower()}{str(exc)[1:]}")
    return values, texts, faults


def _extra(field: msgspec.structs.FieldInfo) -> dict[str, Any]:
    return next((meta.extra for meta in get_args(field.type)[1:] if isinstance(meta, msgspec.Meta) and meta.extra), {})


def load_or_exit(cls: type[T], environ: Mapping[str, str]) -> T:
    """Build `cls` or say on standard error what is wrong and exit with 2."""
    try:
        return load(cls, environ)
    except SettingsError as exc:
        exit_with(str(exc))


def exit_with(sentence: str) -> NoReturn:
    """End a start that cannot succeed: the sentence on standard error, exit code 2."""
    sink.say(escaping.block(sentence))
    raise SystemExit(2)
