"""`restart`: replaces the processes of a running stack one by one, by those of this checkout."""

import re
import sys
from typing import Final

import msgspec
import rich_click as click

from sagapost_ops import control, errors, plan, screen, state, supervisor, versions
from sagapost_ops.commands import options

STEP_S: Final = 180.0  # a start that takes as long as it may, and a drain likewise


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of each service, in the order of the restart; those behind the first that failed were not touched."""

    ok: bool
    services: tuple[control.Step, ...]


@click.command(
    help="""Replace running services one after the other without refusing or losing a request.

    The new process starts beside the old one on the same sockets. When it is ready, the old one takes nothing new, finishes
    what it has in hand and ends. A new process that does not become ready is given up: the old one goes on, and the command
    says why and stops there. `payment` means every process of payment.

    The new processes run the code of the checkout that this command belongs to: called from another checkout with the same
    SAGAPOST_STATE it brings its version to a stack that runs. Bring the databases up first: ./sagapost migrate up

    \b
      ./sagapost restart --all
      ./sagapost restart order gateway
    """
)
@click.argument("services", nargs=-1, metavar="[SERVICE]...")
@click.option("--all", "every", is_flag=True, help="Every service; databases, broker, provider and mailbox stay.")
@options.port_offset
@options.as_json
def command(*, services: tuple[str, ...], every: bool, port_offset: int, as_json: bool) -> None:
    """Ask the supervisor, and show how far it is."""
    if bool(services) == every:
        raise click.UsageError("name the services to restart, or give --all")
    found = state.running(port_offset)
    if found.phase != "ready":
        raise errors.UnfitError(f"the stack is {found.phase}; try again when ./sagapost status says that it is ready")
    home = state.folder(port_offset)
    wanted = control.Restart(python=sys.executable, version=versions.of_product(), units=_units(_planned(port_offset), services))
    steps: list[control.Step] = []
    try:
        for step in control.ask(home, wanted, STEP_S):
            _tell(step)
            steps.extend([step] if step.state != "starting" else [])
    except OSError as exc:
        raise errors.FailedError(f"the stack's supervisor does not answer ({exc}); look with: ./sagapost logs supervisor") from exc
    is_whole = len(steps) == len(wanted.units) and all(step.state == "done" for step in steps)
    if as_json:
        screen.json(Outcome(ok=is_whole, services=tuple(steps)))
    if not is_whole:
        failed = next((step for step in steps if step.state == "failed"), None)
        raise errors.of_failure(f"{failed.service} runs as before: {failed.error}" if failed else "the stack was stopped meanwhile")
    if not as_json:
        screen.out().line(f"{len(steps)} {'process has' if len(steps) == 1 else 'processes have'} been replaced.")


def _planned(port_offset: int) -> plan.Plan:
    """Lay the running stack out as this checkout would."""
    home = state.folder(port_offset)
    running = supervisor.saved(home)
    if running is None:
        raise errors.UnfitError("this stack was started by a version that cannot replace processes; call down, then up")
    try:
        return plan.make(running.options, running.ports, home)
    except KeyError as exc:
        raise errors.UnfitError(f"this version needs a port that the stack does not have ({exc}); call down, then up") from exc


def _units(planned: plan.Plan, services: tuple[str, ...]) -> tuple[plan.Unit, ...]:
    ours = tuple(unit for unit in planned.units if unit.listens)
    kinds = {unit.name: re.sub(r"-[0-9]+\Z", "", unit.name) for unit in ours}
    for name in services:
        if name not in kinds and name not in kinds.values():
            raise errors.UnfitError(f"{name} is not a service of this stack; there are: {', '.join(kinds)}")
    return tuple(unit for unit in ours if not services or {unit.name, kinds[unit.name]} & set(services))


def _tell(step: control.Step) -> None:
    if step.state == "done":
        ends = f"{step.old_pid} had finished {step.drained_s:.1f} s later" if step.old_pid else "there was no other"
        screen.err().line(f"  {step.service}: process {step.pid} was ready after {step.ready_s:.1f} s, {ends}")
