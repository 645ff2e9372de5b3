"""What runs, as one small file beside the data of a stack; it must not start or stop anything."""

import os
import secrets
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

import msgspec

from sagapost_ops import environment, errors
from sagapost_sandbox import processes

Phase = Literal["starting", "ready", "stopping", "failed"]
Kind = Literal["postgres", "rabbitmq", "smtp", "http", "health"]

FILE: Final = "state.json"
PIDS: Final = "run"
INTERNAL: Final = "internal-secret"  # what gateway, order and email of this stack share
MARK: Final = "made-by-sagapost"  # only a folder with this file in it is ever deleted


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """One address of the stack and the process behind it; `kind` is how to ask whether it is ready."""

    name: str
    kind: Kind
    url: str
    port: int
    version: str
    record: processes.Record | None = None
    started_at: datetime | None = None
    restarts: int = 0
    metrics_port: int | None = None


class Addresses(msgspec.Struct, frozen=True, kw_only=True):
    """Where the other commands find what they work on."""

    gateway_url: str
    order_database_url: str
    payment_database_url: str
    amqp_url: str
    management_url: str
    provider_url: str
    mailbox_url: str


class State(msgspec.Struct, frozen=True, kw_only=True):
    """One stack at one moment; `failure` says why phase is failed."""

    supervisor: processes.Record
    phase: Phase
    failure: str = ""
    port_offset: int
    env: str = "development"
    addresses: Addresses
    services: tuple[Service, ...] = ()


def checkout() -> Path:
    """Find the folder that holds the members."""
    return Path(__file__).resolve().parents[3]


def folder(port_offset: int) -> Path:
    """Name a stack's folder: `.sagapost` beside the members, or SAGAPOST_STATE; with an offset, `-N` behind it."""
    base = Path(environment.read(environment.STATE) or checkout() / ".sagapost").absolute()
    return base.with_name(f"{base.name}-{port_offset}") if port_offset else base


def prepare(home: Path) -> None:
    """Make the folder of a stack with what it holds beside the data of the servers.

    Raises:
        UnfitError: the folder is somebody else's.

    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        if not (home / MARK).exists() and any(home.iterdir()):
            raise errors.UnfitError(f"{home} holds something else; point SAGAPOST_STATE at an empty or new folder")
        for name in ("logs", "ledgers", PIDS):
            (home / name).mkdir(exist_ok=True)
        (home / MARK).touch()
        if not (home / INTERNAL).exists():
            replace(home / INTERNAL, f"{secrets.token_hex(32)}\n".encode())
    except PermissionError as exc:
        raise errors.UnfitError(f"{home} is not writable for this user; run as its owner, or remove it as root") from exc


def write(home: Path, state: State) -> None:
    """Replace the state file as a whole: a reader sees the old one or the new one."""
    replace(home / FILE, msgspec.json.format(msgspec.json.encode(state), indent=1))


def replace(path: Path, content: bytes) -> None:
    """Put a file in place atomically, readable for its owner only."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(temporary).replace(path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise


def read(home: Path) -> State | None:
    """Give what was written last; None when there is no stack or the file is of another version."""
    try:
        return msgspec.json.decode((home / FILE).read_bytes(), type=State)
    except (OSError, msgspec.MsgspecError):
        return None


def is_supervised(state: State | None) -> bool:
    """Tell whether the supervisor that wrote this still runs."""
    return state is not None and processes.identify(state.supervisor.pid) == state.supervisor


def running(port_offset: int) -> State:
    """Give the state of the running stack.

    Raises:
        NothingMatchedError: there is none.

    """
    found = read(folder(port_offset))
    if found is None or not is_supervised(found):
        offset = f" --port-offset {port_offset}" if port_offset else ""
        raise errors.NothingMatchedError(f"nothing runs here; start it with: ./sagapost up --detach{offset}")
    return found


def log_of(home: Path, name: str) -> Path:
    """Name the log of a service; databases and broker keep theirs beside their data."""
    own = home / name / "server.log"
    return own if own.parent.is_dir() else home / "logs" / f"{name}.log"
