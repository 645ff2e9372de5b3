"""`test`: runs the repository's tests in this environment."""

import contextlib
import importlib.util
import os
import pathlib
import shutil
import sys
from typing import Final, Protocol

import rich_click as click

from sagapost_ops import errors, screen, state
from sagapost_ops.commands import options
from sagapost_sandbox import errors as sandbox_errors
from sagapost_sandbox import packages, processes

_DOCKER_S: Final = 10
_WORKERS: Final = 2  # what the suite needs is mostly waiting; each worker costs a PostgreSQL and a RabbitMQ
_EXIT_CODES: Final = {0: 0, 1: 1, 2: 2, 5: 3}  # pytest's 5: no test matched


class Outcome(Protocol):
    """What pytest reports of one phase of a test."""

    when: str
    outcome: str


class Counts:
    """A pytest plugin that counts how tests went."""

    def __init__(self) -> None:
        self.seen = {"passed": 0, "failed": 0, "skipped": 0}

    def pytest_runtest_logreport(self, report: Outcome) -> None:
        """Count a test once: by its call, or by what went wrong around it."""
        if report.when == "call" or report.outcome != "passed":
            self.seen[report.outcome] += 1


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    help="""Run the test suite; servers are started for it and go with it, nothing has to run before.

    What follows the options goes to pytest as it is.

    \b
    ./sagapost test
    ./sagapost test tests/unit -x
    ./sagapost test -- -k receipt --durations=10
    ./sagapost test --workers 1          # one after the other
    ./sagapost test --infra docker       # servers in containers
    """,
)
@click.option(
    "--infra",
    type=click.Choice(("native", "docker")),
    default="native",
    show_default=True,
    help="Servers as child processes, or in containers.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 16),
    help="Processes that share the files, each with servers of its own; usually 2 for the whole suite, 1 for what is named.",
)
@options.as_json
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(*, infra: str, workers: int | None, as_json: bool, arguments: tuple[str, ...]) -> None:
    """Hand over to pytest and end as it does."""
    root = state.checkout()
    if not (root / "tests").is_dir() or importlib.util.find_spec("pytest") is None:
        raise errors.UnfitError("there are no tests here; run this from a checkout of the repository")
    if infra == "native":
        try:
            packages.ensure(lambda line: screen.err().line(line))
        except sandbox_errors.SandboxError as exc:
            raise errors.UnfitError(str(exc)) from exc
    else:
        _need_docker()
    os.chdir(root)  # pytest finds its settings and the tests from here
    counts = Counts()
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        code = importlib.import_module("pytest").main([f"--infra={infra}", *_sharing(workers, arguments), *arguments], plugins=[counts])
    exit_code = _EXIT_CODES.get(int(code), 2)
    if as_json:
        screen.json({"ok": exit_code == 0, "exit_code": exit_code} | counts.seen)
    raise SystemExit(exit_code)


def _sharing(workers: int | None, arguments: tuple[str, ...]) -> list[str]:
    """Give pytest's options for several workers; a file's tests stay together, for they share servers and stacks."""
    is_whole = not any(pathlib.Path(argument.partition("::")[0]).exists() for argument in arguments if not argument.startswith("-"))
    count = workers or (_WORKERS if is_whole else 1)
    # in their own order, the long ones of e2e and faults first: by the number of tests, as usual, those would come last and one worker wait
    # a worker that a hanging test ended is not replaced: the next one would be given the same test again, and others would never run
    return [f"--numprocesses={count}", "--dist=loadscope", "--no-loadscope-reorder", "--max-worker-restart=0"] if count > 1 else []


def _need_docker() -> None:
    docker = shutil.which("docker")
    if docker is None:
        raise errors.UnfitError("docker is not installed; install it, or leave --infra docker out to run without containers")
    if processes.run([docker, "version"], timeout_s=_DOCKER_S).code != 0:
        raise errors.UnfitError("the docker daemon does not answer; start it, or leave --infra docker out to run without containers")
