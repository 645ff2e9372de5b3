"""Reads the commands' settings as the services read theirs: the variable, or the file of NAME_FILE; it must not know their use."""

import os
from collections.abc import Mapping
from typing import Final

from sagapost_chassis import settings
from sagapost_ops import errors

API_KEY: Final = "SAGAPOST_API_KEY"
STATE: Final = "SAGAPOST_STATE"
MIGRATIONS: Final = "SAGAPOST_MIGRATIONS"
PORT_OFFSET: Final = "SAGAPOST_PORT_OFFSET"


def read(variable: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return a variable's text, or that of its file; empty when neither is set.

    Raises:
        UnfitError: both are set, or the file cannot be read or is empty.

    """
    try:
        return settings.read(environ, variable)
    except settings.SettingsError as exc:
        raise errors.UnfitError(str(exc)) from exc


def mode(environ: Mapping[str, str] = os.environ) -> str:
    """Return development or production, by the services' rule.

    Raises:
        UnfitError: SAGAPOST_ENV is something else, or cannot be read.

    """
    try:
        return settings.mode(environ)
    except settings.SettingsError as exc:
        raise errors.UnfitError(str(exc)) from exc


def is_production(environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether the commands refuse what production refuses.

    Raises:
        UnfitError: SAGAPOST_ENV is neither mode, or cannot be read.

    """
    return mode(environ) == settings.PRODUCTION
