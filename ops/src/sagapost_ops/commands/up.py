"""`up`: starts a stack in front of the terminal, or behind it with --detach."""

import os
import sys
import time
from pathlib import Path
from typing import Final

import rich_click as click

from sagapost_chassis import escaping, sink
from sagapost_ops import drivers, environment, errors, plan, reports, screen, state, supervisor, welcome
from sagapost_ops.commands import down, options
from sagapost_sandbox import errors as sandbox_errors
from sagapost_sandbox import packages, ports, processes

START_S: Final = 300.0
_POLL_S: Final = 0.05


@click.command(
    help="""Start the whole system on this machine, without containers.

    Two PostgreSQL clusters, a RabbitMQ node, a payment provider, a mailbox and the services run as child processes of
    this command; their data stay in .sagapost. Missing server binaries are installed with apt-get when this runs as root.
    Ctrl-C stops everything. What dies is started again.

    \b
      ./sagapost up                                        # in this terminal
      ./sagapost up --detach                            # behind it
      ./sagapost up --detach --port-offset 100          # a second one
      ./sagapost up --payment-delay 0 --email-delay 0   # no delays outside
    """
)
@click.option("--detach", is_flag=True, help="Return when every service is ready, and leave it running.")
@click.option("--fresh", is_flag=True, help="Throw away the data of earlier runs first.")
@click.option(
    "--payment-delay", type=options.FloatRange(0, 600), default=1, show_default=True, metavar="S", help="Seconds a payment takes."
)
@click.option("--email-delay", type=options.FloatRange(0, 600), default=2, show_default=True, metavar="S", help="Seconds a mail takes.")
@click.option(
    "--workers", type=click.IntRange(1, 8), default=1, show_default=True, metavar="N", help="Processes of payment, email, relays."
)
@options.port_offset
@options.as_json
def command(*, detach: bool, fresh: bool, payment_delay: float, email_delay: float, workers: int, port_offset: int, as_json: bool) -> None:
    """Start a stack unless it runs."""
    environment.mode()  # before anything is stopped, removed or made
    supervisor.log_bounds()
    home = state.folder(port_offset)
    wanted = plan.Options(port_offset=port_offset, payment_delay_s=payment_delay, email_delay_s=email_delay, workers=workers)
    if fresh:
        down.stop(home)
        down.remove(home)
    found = state.read(home)
    if found is not None and state.is_supervised(found):
        screen.err().line("It is running already." if found.phase == "ready" else "It is being started already.")
        _show(found if found.phase == "ready" else _await_ready(home, found.supervisor), as_json=as_json)
        return
    if found is not None:
        drivers.end_leftovers(home)
    _refuse_taken_ports(port_offset)
    try:
        packages.ensure(lambda line: screen.err().line(line))
    except sandbox_errors.SandboxError as exc:
        raise errors.UnfitError(str(exc)) from exc
    state.prepare(home)
    (home / state.FILE).unlink(missing_ok=True)
    made = plan.make(wanted, plan.choose_ports(wanted, ports.next_free), home)
    supervisor.save(home, made)
    if detach:
        _show(_start_behind(home), as_json=as_json)
    else:
        _start_in_front(home, made, as_json=as_json)


def _refuse_taken_ports(port_offset: int) -> None:
    for name, port in plan.public_ports(port_offset).items():
        if not ports.is_free(port):
            other = port_offset + 100
            raise errors.UnfitError(
                f"{ports.describe_taken(port)}, and {name} needs it; stop that process, or start beside it with --port-offset {other}"
            )


def _start_in_front(home: Path, made: plan.Plan, *, as_json: bool) -> None:
    console, lines = screen.err(), sink.standard_error()

    def on_ready() -> None:
        found = state.read(home)
        if found is not None:
            _show(found, as_json=as_json)
            console.line("Ctrl-C stops everything.", style="dim")

    try:
        with supervisor.alone(home):
            failure = supervisor.Supervisor(home, made, lambda line: lines.write(f"  {escaping.block(line)}")).run(on_ready)
    except supervisor.AlreadyRunningError as exc:
        raise errors.UnfitError("another call is starting this stack right now") from exc
    if failure:
        raise errors.of_failure(failure)
    lines.write("Everything has stopped.")


def _start_behind(home: Path) -> state.State:
    child = processes.spawn(
        [sys.executable, "-P", "-m", "sagapost_ops.supervisor", home], log=home / "logs" / "supervisor.log", cwd=home, env=os.environ
    )
    try:
        return _await_ready(home, child.record)
    except KeyboardInterrupt:
        child.stop(down.STOP_S)
        raise


def _await_ready(home: Path, supervising: processes.Record) -> state.State:
    """Wait until the stack is ready, showing what became so.

    Raises:
        FailedError: it did not start; the supervisor has stopped everything again.

    """
    console = screen.err()
    shown: set[str] = set()
    began = time.monotonic()
    process = processes.Process(supervising)
    with console.status("starting") as spinner:
        while time.monotonic() - began < START_S:
            gone = not process.running()
            found = state.read(home)
            for service in found.services if found else ():
                if service.record is not None and service.name not in shown:
                    shown.add(service.name)
                    console.line(f"  {service.name} {service.version} on port {service.port}")
            if found is not None and found.phase == "ready" and state.is_supervised(found):
                return found
            if gone and not state.is_supervised(found):
                raise errors.of_failure(found.failure if found and found.failure else _last_words(home))
            spinner(f"starting ({time.monotonic() - began:.0f} s)")
            time.sleep(_POLL_S)
    process.stop(down.STOP_S)
    raise errors.of_failure(f"not everything was ready after {START_S:.0f} s, so all of it was stopped; {_last_words(home)}")


def _last_words(home: Path) -> str:
    log = home / "logs" / "supervisor.log"
    return f"the end of {log}:\n  " + "\n  ".join(processes.tail(log).splitlines()[-12:])


def _show(found: state.State, *, as_json: bool) -> None:
    if as_json:
        screen.json(reports.status(found))
    else:
        welcome.show(screen.out(), found)
