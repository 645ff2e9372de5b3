"""Finds PostgreSQL's and RabbitMQ's binaries on this machine and installs missing ones; does not know what will be started with them."""

import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import msgspec

from sagapost_sandbox import apt, errors, processes

POSTGRES_PACKAGE: Final = "postgresql"
RABBITMQ_PACKAGE: Final = "rabbitmq-server"
_POSTGRES_PATTERNS: Final = ("usr/lib/postgresql/*/bin", "usr/pgsql-*/bin", "usr/local/pgsql/bin", "opt/postgresql/*/bin")
# Debian's /usr/sbin/rabbitmq-server is a wrapper that changes user and refuses others: the scripts proper lie here.
_RABBITMQ_FOLDERS: Final = ("/usr/lib/rabbitmq/bin", "/opt/rabbitmq/sbin")


class PostgresBinaries(msgspec.Struct, frozen=True, kw_only=True):
    """One PostgreSQL server installation; `folder` holds postgres and initdb."""

    folder: pathlib.Path
    version: str

    @property
    def major(self) -> int:
        """The number that a data folder belongs to."""
        return int(self.version.partition(".")[0])


class RabbitBinaries(msgspec.Struct, frozen=True, kw_only=True):
    """One RabbitMQ installation and the Erlang it runs on."""

    server: pathlib.Path
    erl: pathlib.Path
    epmd: pathlib.Path
    version: str


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that native infrastructure needs."""

    postgres: PostgresBinaries
    rabbitmq: RabbitBinaries


def find_postgres(major: int | None = None) -> PostgresBinaries | None:
    """Return the newest PostgreSQL server of this machine, or the newest of one major version."""
    found = [binaries for folder in _postgres_folders() if (binaries := _postgres_in(folder)) is not None]
    fitting = [binaries for binaries in found if major is None or binaries.major == major]
    return max(fitting, key=lambda binaries: binaries.major, default=None)


def _postgres_folders() -> Iterator[pathlib.Path]:
    for pattern in _POSTGRES_PATTERNS:
        yield from pathlib.Path("/").glob(pattern)
    if on_path := shutil.which("postgres"):
        yield pathlib.Path(on_path).resolve().parent


def _postgres_in(folder: pathlib.Path) -> PostgresBinaries | None:
    if not all(os.access(folder / name, os.X_OK) for name in ("postgres", "initdb")):
        return None
    said = processes.run([folder / "postgres", "--version"], timeout_s=10)
    match = re.search(r"\(PostgreSQL\) (\d+\S*)", said.output)
    return PostgresBinaries(folder=folder, version=match[1]) if match else None


def find_rabbitmq() -> RabbitBinaries | None:
    """Return RabbitMQ's server script with the Erlang around it."""
    server = _first_executable((*(f"{folder}/rabbitmq-server" for folder in _RABBITMQ_FOLDERS), shutil.which("rabbitmq-server")))
    erl = _first_executable((shutil.which("erl"), "/usr/lib/erlang/bin/erl", "/opt/erlang/lib/erlang/bin/erl"))
    if server is None or erl is None:
        return None
    epmd = _first_executable((shutil.which("epmd"), *map(str, erl.resolve().parent.parent.glob("erts-*/bin/epmd"))))
    if epmd is None:
        return None
    match = re.search(r"rabbitmq_server-([\d.]+)", str(server.resolve()))
    return RabbitBinaries(server=server, erl=erl, epmd=epmd, version=match[1] if match else "unknown")


def _first_executable(candidates: Iterable[str | None]) -> pathlib.Path | None:
    return next((pathlib.Path(path) for path in candidates if path and os.access(path, os.X_OK)), None)


def missing() -> tuple[str, ...]:
    """Name the packages without which native infrastructure cannot run."""
    needed = {POSTGRES_PACKAGE: find_postgres() is None, RABBITMQ_PACKAGE: find_rabbitmq() is None}
    return tuple(package for package, absent in needed.items() if absent)


def ensure(report: Callable[[str], None] = lambda _: None) -> Installed:
    """Return the binaries, installing the packages that are missing when we are root and apt-get is there.

    The packages' own services are neither started nor enabled, and no main cluster is made.

    Raises:
        MissingPackagesError: they are missing and cannot be installed; carries the command that would.

    """
    absent = missing()
    if absent:
        command = apt.command(absent)
        if os.geteuid() != 0:
            raise errors.MissingPackagesError(absent, command)
        report(f"installing {' and '.join(absent)} with apt-get; a minute or two, the first time only")
        apt.install(absent)
    postgres, rabbitmq = find_postgres(), find_rabbitmq()
    if postgres is None or rabbitmq is None:
        raise errors.MissingPackagesError(missing(), apt.command(missing()), "apt-get ran, the binaries are still not found")
    return Installed(postgres=postgres, rabbitmq=rabbitmq)
