"""`doctor`: looks at this machine and says what to do about each fault."""

import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

import msgspec
import rich_click as click

from sagapost_ops import clocks, database, errors, plan, screen, state, targets, versions
from sagapost_ops.commands import options
from sagapost_ops.restoring import queries
from sagapost_sandbox import apt, packages, ports, processes

_DISK_BYTES: Final = 2 * 1024**3
_MEMORY_BYTES: Final = 1536 * 1024**2
_GIB: Final = 1024**3
_SIGNS: Final = {"ok": ("ok", "green"), "warning": ("look", "yellow"), "missing": ("fault", "bold red")}


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at; `missing` keeps the stack from starting, `advice` says what to do."""

    name: str
    state: Literal["ok", "warning", "missing"]
    found: str
    advice: str = ""


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was looked at."""

    ok: bool
    findings: tuple[Finding, ...]


@click.command(
    help="""Check what this machine has: Python, servers, ports, disk, memory, Docker.

    Of a running stack, or of the databases that the environment names, also whether their clocks agree to 5 seconds, and whether order
    numbers would be given out again.

    Exit code 2 when something that is needed is missing; each line says what to do about it.

    \b
    ./sagapost doctor
    ./sagapost doctor --json | jq '.findings[] | select(.state != "ok")'
    """
)
@options.port_offset
@options.as_json
def command(*, port_offset: int, as_json: bool) -> None:
    """Look and print."""
    findings = tuple(_look(port_offset))
    ok = all(finding.state != "missing" for finding in findings)
    if as_json:
        screen.json(Findings(ok=ok, findings=findings))
    else:
        rows = [(screen.Styled(*_SIGNS[finding.state]), finding.name, finding.found, finding.advice) for finding in findings]
        screen.out().table(("", "what", "found", "what to do"), rows)
    if not ok:
        raise SystemExit(2)


def _look(port_offset: int) -> Iterator[Finding]:
    yield Finding(name="sagapost", state="ok", found=f"{versions.of_product()} in {state.checkout()}")
    yield Finding(name="python", state="ok", found=platform.python_version())
    yield from _servers()
    yield from _ports(port_offset)
    yield _disk(state.folder(port_offset))
    yield _memory()
    yield _docker()
    yield from _databases(port_offset)


def _databases(port_offset: int) -> Iterator[Finding]:
    """Compare both databases where they are known and answer; a stack that does not run has none."""
    try:
        where = targets.find(port_offset)
        urls = [targets.need(where, f"{name}_database_url") for name in targets.DATABASES]
        with database.opened(urls[0], "sagapost-doctor") as order, database.opened(urls[1], "sagapost-doctor") as payment:
            skew = clocks.compare(order, payment)
            last, highest = queries.last_number(order), queries.highest(payment)
    except errors.NothingMatchedError:
        return
    except errors.CommandError as exc:
        yield Finding(name="databases", state="warning", found="cannot be compared", advice=exc.message)
        return
    said = skew.sentences()
    apart = f"order {skew.order_s:+.1f} s, payment {skew.payment_s:+.1f} s of this machine"
    yield Finding(name="clocks", state="warning" if said else "ok", found=apart, advice="; ".join(said))
    behind = last < highest
    yield Finding(
        name="order numbers",
        state="warning" if behind else "ok",
        found=f"{last} was given out last, payment knows {highest}",
        advice="numbers would be given out again: ./sagapost restored --order" if behind else "",
    )


def _servers() -> Iterator[Finding]:
    postgres, rabbitmq = packages.find_postgres(), packages.find_rabbitmq()
    for name, package, version in (
        ("postgresql", packages.POSTGRES_PACKAGE, postgres.version if postgres else None),
        ("rabbitmq", packages.RABBITMQ_PACKAGE, rabbitmq.version if rabbitmq else None),
    ):
        if version is None:
            advice = f"{apt.command((package,))}   (as root, ./sagapost up does it by itself)"
            yield Finding(name=name, state="missing", found="not installed", advice=advice)
        else:
            yield Finding(name=name, state="ok", found=version)


def _ports(port_offset: int) -> Iterator[Finding]:
    found = state.read(state.folder(port_offset))
    if state.is_supervised(found):
        yield Finding(name="ports", state="ok", found="held by the running stack")
        return
    taken = {name: port for name, port in plan.public_ports(port_offset).items() if not ports.is_free(port)}
    for name, port in taken.items():
        advice = f"stop that process, or ./sagapost up --port-offset {port_offset + 100}"
        yield Finding(name=f"port {port}", state="missing", found=f"{ports.describe_taken(port)}; {name} needs it", advice=advice)
    if not taken:
        numbers = ", ".join(str(port) for port in sorted(plan.public_ports(port_offset).values()))
        yield Finding(name="ports", state="ok", found=f"{numbers} are free")


def _disk(home: Path) -> Finding:
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    enough = free >= _DISK_BYTES
    advice = "" if enough else "two stacks' worth of data need about 2 GiB: make room, or point SAGAPOST_STATE elsewhere"
    return Finding(name="disk", state="ok" if enough else "warning", found=f"{free / _GIB:.1f} GiB free in {existing}", advice=advice)


def _memory() -> Finding:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    available = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 0)
    enough = available >= _MEMORY_BYTES
    advice = "" if enough else "a stack takes about 1.2 GiB: close something"
    return Finding(name="memory", state="ok" if enough else "warning", found=f"{available / _GIB:.1f} GiB available", advice=advice)


def _docker() -> Finding:
    """Docker is optional: nothing but `docker compose` and `test --infra docker` needs it."""
    docker = shutil.which("docker")
    if docker is None:
        return Finding(name="docker", state="ok", found="not installed (optional)")
    done = processes.run([docker, "version", "--format", "{{.Server.Version}}"], timeout_s=10)
    if done.code != 0:
        return Finding(name="docker", state="warning", found="the daemon does not answer", advice="start it to use containers")
    return Finding(name="docker", state="ok", found=done.output.strip())
