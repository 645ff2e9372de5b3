"""`topology`: declares the broker's exchanges, queues and users, shows them, checks that they are as they should be."""

import asyncio
import os
import re
import time
from collections.abc import Callable, Coroutine
from typing import Final, TypeVar

import msgspec
import rich_click as click
from aio_pika import exceptions

from sagapost_chassis import amqp, topology, urls
from sagapost_contracts import topology as words
from sagapost_ops import errors, passwords, screen, targets
from sagapost_ops.commands import options
from sagapost_ops.topology import accounts, drift, found
from sagapost_sandbox import management

_RETRY_S: Final = 0.2

R = TypeVar("R")

_wait = click.option(
    "--wait", "wait_s", type=options.FloatRange(0, 3600), default=0, metavar="S", help="Seconds to wait for a broker that is not up yet."
)
_users = click.option(
    "--users", "with_users", is_flag=True, help="The services' users and their rights, too; needs the management interface."
)


class Declared(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How many queues are there now, how many users were made, and which of them have the rights of older consumers too."""

    queues: int
    users: int
    older_rights: list[str] = []


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """What differs; `only_names` when nobody could be asked for arguments and bindings."""

    ok: bool
    only_names: bool
    drift: tuple[drift.Drift, ...]


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """The topology as it should be."""

    exchanges: tuple[words.Exchange, ...]
    queues: tuple[words.Queue, ...]
    users: tuple[words.User, ...]


@click.group(
    cls=click.RichGroup,
    help="""Declare, show or check exchanges, queues, bindings and the services' users; the services themselves declare nothing.

    The broker's addresses come from SAGAPOST_AMQP_URL and SAGAPOST_MANAGEMENT_URL, or from the running stack; their user is the
    operator's, who may do everything. `./sagapost up` has declared everything. The passwords of the services' users come from
    SAGAPOST_BROKER_PASSWORD_ORDER, _PAYMENT, _EMAIL, _RELAY_ORDER and _RELAY_PAYMENT; in development they have defaults.

    \b
      ./sagapost topology show
      ./sagapost topology check --users
      SAGAPOST_AMQP_URL=amqp://… ./sagapost topology declare --wait 60
    """,
)
def command() -> None:
    """Group the three."""


@command.command(help="Declare everything; harmless when it is there, exit code 1 when something is there and differs.")
@_users
@click.option(
    "--older-services",
    is_flag=True,
    help="With --users: also give order, payment and email the rights that the version before needs, for the way back to it.",
)
@_wait
@options.port_offset
@options.as_json
def declare(*, with_users: bool, older_services: bool, wait_s: float, port_offset: int, as_json: bool) -> None:
    """Declare and count."""
    if older_services and not with_users:
        raise click.UsageError("--older-services says what users may do: give --users, too")
    passwords.require_cookie(os.environ)
    where = targets.find(port_offset)
    url = targets.need(where, "amqp_url")
    api = management.of_url(targets.need(where, "management_url")) if with_users else None
    chosen = accounts.passwords(os.environ) if with_users else {}
    queues = _ask(url, wait_s, topology.declare)
    users, older = _make_users(api, found.vhost_of(url), chosen, wait_s, older_services=older_services) if api else (0, [])
    if as_json:
        screen.json(Declared(queues=queues, users=users, older_rights=older))
        return
    screen.out().line(f"{queues} queues are declared and bound{f'; {users} users have their rights' if api else ''}.")
    if older:
        why = "--older-services" if older_services else "consumers of the version before are connected"
        screen.out().line(
            f"{', '.join(older)}: may still write to the default exchange, and so to every queue ({why}). "
            "When only this version runs, call again: ./sagapost topology declare --users"
        )


@command.command(
    help="""Check that everything is there and as it should be; exit code 1 names each difference.

    Without SAGAPOST_MANAGEMENT_URL it is only checked that exchanges and queues are there. Changes nothing.
    """
)
@_users
@_wait
@options.port_offset
@options.as_json
def check(*, with_users: bool, wait_s: float, port_offset: int, as_json: bool) -> None:
    """Look and name what differs."""
    where = targets.find(port_offset)
    url = targets.need(where, "amqp_url")
    if with_users:
        targets.need(where, "management_url")
    missing = _ask(url, wait_s, topology.missing)
    if where.management_url is None:
        drifts = tuple(drift.absent(name) for name in missing)
    else:
        broker = found.read(management.of_url(where.management_url), found.vhost_of(url), with_users=with_users)
        drifts = drift.compare(broker, with_users=with_users)
    checked = Checked(ok=not drifts, only_names=where.management_url is None, drift=drifts)
    if as_json:
        screen.json(checked)
    else:
        _tell(checked, with_users=with_users)
    if drifts:
        raise errors.FailedError(f"the broker differs in {len(drifts)} {'place' if len(drifts) == 1 else 'places'}; {drift.advice(drifts)}")


@command.command(help="Show what is declared: exchanges, queues, bindings and users; asks no broker.")
@options.as_json
def show(*, as_json: bool) -> None:
    """Print the queues with their bindings and arguments, and the users with their rights."""
    if as_json:
        screen.json(Shown(exchanges=words.EXCHANGES, queues=words.queues(), users=words.USERS))
        return
    out = screen.out()
    out.table(("durable exchange", "type"), [(exchange.name, exchange.type) for exchange in words.EXCHANGES])
    out.line()
    rows = [(queue.name, _bindings(queue), _arguments(queue)) for queue in words.queues()]
    out.table(("durable quorum queue", "bound to", "arguments"), rows)
    out.line()
    users = [(user.name, user.read, user.write, _keys(user)) for user in words.USERS]
    out.table(("user", "may read", "may write", f"keys on {words.EXCHANGE}"), users)


def _make_users(
    api: management.Management, vhost: str, chosen: dict[str, str], wait_s: float, *, older_services: bool
) -> tuple[int, list[str]]:
    deadline = time.monotonic() + wait_s
    while not management.answers(api) and time.monotonic() < deadline:  # it may come up after AMQP has
        time.sleep(_RETRY_S)
    consumers = frozenset(user.name for user in words.USERS if user.older_write)
    older = consumers if older_services else accounts.kept(api, vhost)
    return accounts.make(api, vhost, chosen, older), sorted(older)


def _tell(checked: Checked, *, with_users: bool) -> None:
    for one in checked.drift:
        screen.out().line(one.says)
    if checked.ok and checked.only_names:
        screen.out().line("Every exchange and queue is there. Set SAGAPOST_MANAGEMENT_URL to check arguments and bindings too.")
    elif checked.ok:
        screen.out().line(f"Exchanges, queues, {'bindings and users' if with_users else 'arguments and bindings'} are as they should be.")


def _bindings(queue: words.Queue) -> screen.Cell:
    return [f"{exchange} {key}" for exchange, key in queue.bindings]


def _arguments(queue: words.Queue) -> str:
    named = {name.removeprefix("x-").replace("-", "_"): value for name, value in queue.arguments.items()}
    parts: list[str] = []
    if "message_ttl" in named:
        parts.append(f"message-ttl {named['message_ttl']}")
    if "delivery_limit" in named:
        parts.append(f"delivery-limit {named['delivery_limit']}")
    if "dead_letter_strategy" in named:
        exchange = named["dead_letter_exchange"] or "default exchange"
        parts.append(f"dead letters {named['dead_letter_strategy']} to {exchange} {named['dead_letter_routing_key']}")
    return ", ".join(parts)


def _keys(user: words.User) -> str:
    return user.topics or ("any" if re.fullmatch(user.write, words.EXCHANGE) else "")


def _ask(url: str, wait_s: float, question: Callable[[str], Coroutine[object, object, R]]) -> R:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return asyncio.run(question(url))
        except topology.DiffersError as exc:
            raise errors.FailedError(
                f"the broker has it otherwise: {exc}; all that differs: ./sagapost topology check. "
                "Data of no value are thrown away by: ./sagapost up --fresh"
            ) from exc
        except topology.ForbiddenError as exc:
            raise errors.UnfitError(f"this user of the broker may not declare: {exc}; use the operator's in SAGAPOST_AMQP_URL") from exc
        except amqp.BrokerUnavailableError as exc:
            shown = urls.shown(url)
            if isinstance(exc.__cause__, (exceptions.AuthenticationError, exceptions.ProbableAuthenticationError)):
                raise errors.UnfitError(f"the broker at {shown} does not know this user and password; correct SAGAPOST_AMQP_URL") from exc
            if time.monotonic() > deadline:
                raise errors.UnfitError(
                    f"the broker at {shown} does not answer; start it (./sagapost up) or correct SAGAPOST_AMQP_URL"
                ) from exc
            time.sleep(_RETRY_S)
