"""`topology`: declares the broker's exchanges and queues, shows them, checks that they are there."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Final, TypeVar

import msgspec
import rich_click as click
from aio_pika import exceptions

from sagapost_chassis import amqp, settings, topology
from sagapost_contracts import topology as words
from sagapost_ops import errors, screen, targets
from sagapost_ops.commands import options

_RETRY_S: Final = 0.2

R = TypeVar("R")

_wait = click.option(
    "--wait", "wait_s", type=click.FloatRange(0, 3600), default=0, metavar="S", help="Seconds to wait for a broker that is not up yet."
)


class Declared(msgspec.Struct, frozen=True, kw_only=True):
    """How many queues are there now."""

    queues: int


class Missing(msgspec.Struct, frozen=True, kw_only=True):
    """Names of exchanges and queues that are not there."""

    missing: tuple[str, ...]


@click.group(
    cls=click.RichGroup,
    help="""Declare, show or check exchanges, queues and bindings; the services themselves declare nothing.

    The broker's address comes from SAGAPOST_AMQP_URL, or from the running stack. `./sagapost up` has declared everything.

    \b
      ./sagapost topology show
      ./sagapost topology check
      SAGAPOST_AMQP_URL=amqp://… ./sagapost topology declare --wait 60
    """,
)
def command() -> None:
    """Group the three."""


@command.command(help="Declare everything; harmless when it is there, exit code 1 when something differs.")
@_wait
@options.port_offset
@options.as_json
def declare(*, wait_s: float, port_offset: int, as_json: bool) -> None:
    """Declare and count."""
    queues = _ask(port_offset, wait_s, topology.declare)
    if as_json:
        screen.json(Declared(queues=queues))
    else:
        screen.out().print(f"{queues} queues are declared and bound.")


@command.command(help="Check that every exchange and queue is there; exit code 1 when one is missing.")
@_wait
@options.port_offset
@options.as_json
def check(*, wait_s: float, port_offset: int, as_json: bool) -> None:
    """Look and name what is missing."""
    missing = _ask(port_offset, wait_s, topology.missing)
    if as_json:
        screen.json(Missing(missing=tuple(missing)))
    if missing:
        raise errors.FailedError(f"not there: {', '.join(missing)}; declare with: ./sagapost topology declare")
    if not as_json:
        screen.out().print("Every exchange and queue is there.")


@command.command(help="Show what would be declared; asks no broker.")
@options.as_json
def show(*, as_json: bool) -> None:
    """Print the queues with their bindings and arguments."""
    queues = words.queues()
    if as_json:
        screen.json(queues)
        return
    rows = [(queue.name, _bindings(queue), _arguments(queue)) for queue in queues]
    screen.out().print(f"exchanges: {words.EXCHANGE} (topic), {words.DEAD_LETTER_EXCHANGE} (direct)\n")
    screen.out().print(screen.table(("queue", "bound to", "arguments"), rows))


def _bindings(queue: words.Queue) -> str:
    return "\n".join(key for _, key in queue.bindings)


def _arguments(queue: words.Queue) -> str:
    shown = {"x-message-ttl": "waits {} ms", "x-delivery-limit": "at most {} deliveries"}
    return ", ".join(shown[name].format(value) for name, value in queue.arguments.items() if name in shown)


def _ask(port_offset: int, wait_s: float, question: Callable[[str], Coroutine[object, object, R]]) -> R:
    url = targets.need(targets.find(port_offset), "amqp_url")
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return asyncio.run(question(url))
        except exceptions.ChannelPreconditionFailed as exc:
            raise errors.FailedError(f"the broker has it with other arguments: {_reason(exc)}; delete that and declare again") from exc
        except amqp.BrokerUnavailableError as exc:
            if time.monotonic() > deadline:
                raise errors.UnfitError(
                    f"the broker at {settings.without_password(url)} does not answer; start it (./sagapost up) or correct SAGAPOST_AMQP_URL"
                ) from exc
            time.sleep(_RETRY_S)


def _reason(exc: exceptions.ChannelPreconditionFailed) -> str:
    return str(exc).removeprefix("PRECONDITION_FAILED - ")
