"""Finds the development stack that a command may make orders or faults in, and refuses everything else; it runs no statement."""

import contextlib
import os
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
import psycopg
from psycopg import conninfo

from sagapost_chassis import settings
from sagapost_ops import client, environment, errors, state, targets

_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_PORTS: Final = {"http": 80, "https": 443, "amqp": 5672, "amqps": 5671}
_REDIRECTING: Final = ("PGHOSTADDR", "PGSERVICE")  # libpq reads them even where an address names a host
_TIMEOUT_S: Final = 2.5


def find(command: str, port_offset: int) -> targets.Targets:
    """Return the addresses of the running stack of this checkout, as its state file has them.

    Variables that name an address are accepted when they name the same one: a development stack never stands in for a deployment.

    Raises:
        UnfitError: production, or an address that is not the stack's.
        NothingMatchedError: nothing runs here, and no variable names anything.

    """
    refuse_production(command)
    named = _named(command)
    try:
        found = state.running(port_offset)
    except errors.NothingMatchedError as exc:
        if not named:
            raise
        raise errors.UnfitError(_refusal(command, f"no stack runs, and {_variables(named)} names something else; unset it")) from exc
    where = targets.of_stack(found)
    foreign = [targets.VARIABLES[field] for field, url in named.items() if _place(field, url) != _place(field, getattr(where, field))]
    if foreign:
        raise errors.UnfitError(_refusal(command, f"{', '.join(foreign)} names something else; unset it to use the running stack"))
    _refuse_serving_production(command, where, found)
    return where


def refuse_production(command: str) -> None:
    """Refuse in production mode, where SAGAPOST_ENV is neither mode, and where libpq would connect elsewhere than an address says.

    Raises:
        UnfitError: names the variable.

    """
    try:
        is_production = environment.is_production()
    except errors.UnfitError as exc:
        raise errors.UnfitError(_refusal(command, exc.message)) from exc
    if is_production:
        raise errors.UnfitError(_refusal(command, "SAGAPOST_ENV is production"))
    for variable in _REDIRECTING:
        if os.environ.get(variable):
            raise errors.UnfitError(_refusal(command, f"{variable} would send database connections elsewhere; unset it"))


def refuse_addresses(command: str) -> None:
    """Refuse variables that name databases, broker or services: the command starts a stack of its own and would not use them.

    Raises:
        UnfitError: names them.

    """
    named = _named(command)
    if named:
        raise errors.UnfitError(_refusal(command, f"it starts a stack of its own and {_variables(named)} names something else; unset it"))


def _variables(named: dict[str, str]) -> str:
    return ", ".join(targets.VARIABLES[field] for field in named)


def _named(command: str) -> dict[str, str]:
    try:
        return targets.named()
    except errors.UnfitError as exc:
        raise errors.UnfitError(_refusal(command, exc.message)) from exc


def _refuse_serving_production(command: str, where: targets.Targets, found: state.State) -> None:
    """Ask the gateway for its mode: a stack that was started in production mode is not there to be played with."""
    modes = {found.env}
    with contextlib.suppress(errors.CommandError), client.Client(targets.need(where, "gateway_url"), _TIMEOUT_S) as gateway:
        body = gateway.call("GET", "/health").body
        with contextlib.suppress(msgspec.MsgspecError):
            modes.add(str(msgspec.json.decode(body, type=dict[str, Any]).get("mode")))
    if settings.PRODUCTION in modes:
        raise errors.UnfitError(_refusal(command, "the running stack is in production mode"))


def _refusal(command: str, reason: str) -> str:
    return f"{command} works only on a running development stack of this checkout (./sagapost up): {reason}"


def _place(field: str, url: str) -> tuple[str, ...]:
    """Return host, port and name of what an address leads to; what cannot be read leads nowhere."""
    if field.endswith("database_url"):
        return _database(url)
    parts = urlsplit(url)
    try:
        port = parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError:
        return (url,)
    return (_host(parts.hostname or ""), str(port), parts.path.strip("/"))


def _database(url: str) -> tuple[str, ...]:
    try:
        known = {name: str(value) for name, value in conninfo.conninfo_to_dict(url).items()}
    except psycopg.ProgrammingError:
        return (url,)
    elsewhere = known.get("service", ""), _host(known.get("hostaddr") or known.get("host", ""))
    return (_host(known.get("host", "")), known.get("port", ""), known.get("dbname", ""), *elsewhere)


def _host(name: str) -> str:
    return "loopback" if name in _LOOPBACK else name
