"""`down`: stops a stack and sees to it that nothing of it stays."""

import shutil
from pathlib import Path
from typing import Final

import msgspec
import rich_click as click

from sagapost_ops import drivers, errors, screen, state
from sagapost_ops.commands import options
from sagapost_sandbox import processes

STOP_S: Final = 120.0


class Stopped(msgspec.Struct, frozen=True, kw_only=True):
    """What `down` did."""

    was_running: bool
    ended_leftovers: int
    purged: bool


@click.command(
    help="""Stop the stack: services finish what they have in hand, then databases and broker end.

    No process and no port stays behind. The data stay, and the next `up` finds them, unless --purge removes them.

    \b
      ./sagapost down
      ./sagapost down --purge               # orders, payments, logs go too
      ./sagapost down --port-offset 100     # the stack of that offset
    """
)
@click.option("--purge", is_flag=True, help="Remove all data of this stack as well.")
@options.port_offset
@options.as_json
def command(*, purge: bool, port_offset: int, as_json: bool) -> None:
    """Stop it and say so."""
    home = state.folder(port_offset)
    done = stop(home)
    purged = purge and remove(home)
    if as_json:
        screen.json(msgspec.structs.replace(done, purged=purged))
        return
    said = "Everything has stopped." if done.was_running else "Nothing was running."
    if done.ended_leftovers:
        said += f" An earlier run whose supervisor had been killed had left {done.ended_leftovers} processes; they have ended."
    kept = f" The data are gone: {home}" if purged else f" The data stay in {home}" if home.exists() else ""
    screen.out().line(said + kept)


def stop(home: Path) -> Stopped:
    """End the supervisor, which ends its children, and whatever a killed one left running.

    Raises:
        FailedError: something survived.

    """
    found = state.read(home)
    if found is None:
        return Stopped(was_running=False, ended_leftovers=0, purged=False)
    supervisor = processes.Process(found.supervisor)
    was_running = supervisor.running()
    if was_running:
        with screen.err().status("stopping: services first, then databases and broker"):
            supervisor.send(drivers.TERMINATE)
            if not supervisor.wait(STOP_S):
                supervisor.kill()
    ended = drivers.end_leftovers(home)
    alive = [service.name for service in found.services if service.record and processes.identify(service.record.pid) == service.record]
    if alive:
        raise errors.FailedError(f"{', '.join(alive)} did not stop; look with: ps -fp PID (./sagapost status names the pids)")
    (home / state.FILE).unlink(missing_ok=True)
    return Stopped(was_running=was_running, ended_leftovers=0 if was_running else ended, purged=False)


def remove(home: Path) -> bool:
    """Delete a stack's folder; False when there is none.

    Raises:
        UnfitError: it is not one of ours, or belongs to somebody else.
        FailedError: something in it cannot be removed now; the mark stays, so that the call can be repeated.

    """
    if not home.exists():
        return False
    if not (home / state.MARK).exists():
        raise errors.UnfitError(f"{home} was not made by sagapost and is left alone; remove it yourself if that is meant")
    if home.is_symlink():
        raise errors.FailedError(f"{home} is a symbolic link; let SAGAPOST_STATE name the folder itself, and call again")
    try:
        _empty(home)
    except PermissionError as exc:
        raise errors.UnfitError(f"{home} holds files of another user; remove it as that user or as root") from exc
    except OSError as exc:
        raise errors.FailedError(
            f"{exc.filename or home} cannot be removed ({exc.strerror or exc}); unmount or end what uses it, and call again"
        ) from exc
    return True


def _empty(home: Path) -> None:
    """Remove what is in a folder, then its mark, then the folder; a folder that cannot go gets its mark back."""
    for inside in home.iterdir():
        if inside.is_dir() and not inside.is_symlink():
            shutil.rmtree(inside)
        elif inside.name != state.MARK:
            inside.unlink()
    (home / state.MARK).unlink()
    try:
        home.rmdir()
    except OSError:
        (home / state.MARK).touch()
        raise
