"""`migrate`: brings the two databases to their newest revision, or tells where they are."""

import functools
import os
import time
from collections.abc import Callable
from typing import Final, TypeVar

import msgspec
import rich_click as click
import sqlalchemy.exc

from sagapost_chassis import urls
from sagapost_ops import errors, migrations, rights, roles, screen, targets
from sagapost_ops.commands import options

_RETRY_S: Final = 0.2

R = TypeVar("R")


class Revision(msgspec.Struct, frozen=True, kw_only=True):
    """Where one database is and where it could be; None for an empty one.

    `roles`: how many have been given their rights. `left`: what only a superuser of the server can do.
    """

    database: str
    revision: str | None
    newest: str | None
    roles: int = 0
    left: tuple[str, ...] = ()


_only = click.option("--only", type=click.Choice(migrations.DATABASES), help="One database instead of both.")
_wait = click.option(
    "--wait", "wait_s", type=options.FloatRange(0, 3600), default=0, metavar="S", help="Seconds to wait for a database that is not up yet."
)
_roles = click.option("--roles", "with_roles", is_flag=True, help="Make the roles of services and relays, or set their passwords.")


@click.group(
    cls=click.RichGroup,
    help="""Bring the databases of order and payment to their newest revision.

    Both addresses come from SAGAPOST_ORDER_DATABASE_URL and SAGAPOST_PAYMENT_DATABASE_URL; when neither is set, from the
    running stack; their users own the databases. `./sagapost up` has done this already.

    Services and relays have roles of their own with few rights: order_service, order_relay, payment_service, payment_relay.
    `up` gives those that are there their rights; `up --roles` makes them, with passwords from
    SAGAPOST_DATABASE_PASSWORD_ORDER_SERVICE and so on; in development these have defaults. It resets what a role has set for
    itself (ALTER ROLE … SET), and prints what only a superuser of the server can take from everybody.

    \b
      ./sagapost migrate status
      ./sagapost migrate up --only payment
      SAGAPOST_ORDER_DATABASE_URL=postgresql://… \\
        ./sagapost migrate up --only order --wait 60
    """,
)
def command() -> None:
    """Group the two."""


@command.command(help="Bring every database to its newest revision; harmless when it is there already.")
@_only
@_roles
@_wait
@options.port_offset
@options.as_json
def up(*, only: str | None, with_roles: bool, wait_s: float, port_offset: int, as_json: bool) -> None:
    """Upgrade, set the rights and say to what."""
    deadline = time.monotonic() + wait_s
    done: list[Revision] = []
    chosen = _chosen(only, port_offset)
    passwords = {database: roles.passwords(os.environ, database) for database, _ in chosen} if with_roles else {}
    for database, url in chosen:
        revision = _patiently(url, deadline, functools.partial(migrations.upgrade, url, database))
        left = rights.make(url, database, passwords[database]) if with_roles else ()
        done.append(Revision(database=database, revision=revision, newest=revision, roles=rights.grant(url, database), left=left))
    _show(done, as_json=as_json)


@command.command(help="Tell each database's revision; exit code 1 when one is behind.")
@_only
@_wait
@options.port_offset
@options.as_json
def status(*, only: str | None, wait_s: float, port_offset: int, as_json: bool) -> None:
    """Read and compare."""
    deadline = time.monotonic() + wait_s
    found: list[Revision] = []
    for database, url in _chosen(only, port_offset):
        revision, newest = _patiently(url, deadline, functools.partial(migrations.current, url, database))
        found.append(Revision(database=database, revision=revision, newest=newest))
    _show(found, as_json=as_json)
    if any(line.revision != line.newest for line in found):
        raise SystemExit(1)


def _chosen(only: str | None, port_offset: int) -> list[tuple[str, str]]:
    found = targets.find(port_offset)
    names = migrations.DATABASES if only is None else (only,)
    return [(name, targets.need(found, f"{name}_database_url")) for name in names]


def _patiently(url: str, deadline: float, attempt: Callable[[], R]) -> R:
    while True:
        try:
            return attempt()
        except migrations.ForeignDatabaseError as exc:
            raise errors.UnfitError(
                f"the database at {urls.shown(url)} is not Sagapost's: {exc}; correct the address, or use an empty database"
            ) from exc
        except sqlalchemy.exc.ProgrammingError as exc:
            if getattr(exc.orig, "sqlstate", None):  # the server's, not libpq's
                raise
            raise errors.UnfitError(f"the database at {urls.shown(url)} cannot be used: {urls.PARAMETERS}; mend the URL") from exc
        except sqlalchemy.exc.OperationalError as exc:
            if time.monotonic() > deadline:
                reason = str(exc.orig).strip().splitlines()[-1]
                raise errors.UnfitError(
                    f"the database at {urls.shown(url)} cannot be used: {reason}; start it (./sagapost up) or mend the URL"
                ) from exc
            time.sleep(_RETRY_S)


def _show(lines: list[Revision], *, as_json: bool) -> None:
    if as_json:
        screen.json(lines)
        return
    for line in lines:
        behind = "" if line.revision == line.newest else f", behind {line.newest}: ./sagapost migrate up"
        given = f", {line.roles} roles have their rights" if line.roles else ""
        screen.out().line(f"{line.database}: {line.revision or 'empty'}{behind}{given}")
        for sentence in line.left:
            screen.out().line(f"  left: {sentence}")
