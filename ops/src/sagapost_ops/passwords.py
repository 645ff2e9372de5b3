"""Passwords that a deployment chooses for others to log in with, from the environment; it must not know where they are used."""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from sagapost_chassis import production, settings
from sagapost_ops import environment, errors

COOKIE: Final = "SAGAPOST_RABBITMQ_COOKIE"


def require_cookie(environ: Mapping[str, str]) -> None:
    """Refuse, with SAGAPOST_ENV=production, a weak Erlang cookie of the broker's nodes, where this call is told what it is.

    Raises:
        UnfitError: it is weak, or its file cannot be read, or SAGAPOST_ENV is neither mode.

    """
    text = environment.read(COOKIE, environ)
    if environment.is_production(environ) and text and (weak := production.cookie(text)):
        raise errors.of_all([f"refused in production: {COOKIE}: {reason}" for reason in weak])


def chosen(
    environ: Mapping[str, str], names: Iterable[str], variable: Callable[[str], str], default: Callable[[str], str]
) -> dict[str, str]:
    """Read one password a name, or take its development default; with SAGAPOST_ENV=production none may be missing or weak.

    Raises:
        UnfitError: names every variable that is; or SAGAPOST_ENV is neither mode.

    """
    is_production = environment.is_production(environ)
    found: dict[str, str] = {}
    faults: list[str] = []
    for name in names:
        try:
            found[name] = settings.read(environ, variable(name)) or default(name)
        except settings.SettingsError as exc:
            faults.append(str(exc))
            continue
        if is_production:
            faults += [f"refused in production: {variable(name)}: {reason}" for reason in production.secret(found[name])]
    if faults:
        raise errors.of_all(faults)
    return found
