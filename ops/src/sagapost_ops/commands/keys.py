"""`keys`: who may call the API, with which scopes and how often."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import msgspec
import rich_click as click

from sagapost_contracts import access
from sagapost_ops import database, environment, errors, screen, targets
from sagapost_ops.commands import options
from sagapost_ops.dlq import run
from sagapost_ops.keys import queries
from sagapost_ops.outbox import times

F = TypeVar("F", bound=Callable[..., Any])
_NAME: Final = "sagapost-keys"
_LABEL_MAX: Final = 100
_RATE: Final = re.compile(r"([0-9]{1,7}(?:\.[0-9]{1,3})?)(?:/(s|min|h))?", re.ASCII)
_SECONDS: Final = {"s": 1, "min": 60, "h": 3600}
_RATE_MIN: Final = 0.001
_RATE_MAX: Final = 1_000_000


class Created(msgspec.Struct, frozen=True, kw_only=True):
    """A new key; `key` is shown here and never again."""

    id: int
    client: str
    label: str
    env: str
    scopes: tuple[str, ...]
    rate_per_s: float
    burst: int
    created_at: datetime
    expires_at: datetime | None
    key: str


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """What `list` found."""

    keys: list[queries.Key]


class Revocation(msgspec.Struct, frozen=True, kw_only=True):
    """What `revoke` did; `unknown`: numbers of no key."""

    revoked: list[queries.Revoked]
    unknown: list[int]


def _client(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not access.CLIENT_NAME.match(value):
        raise click.BadParameter("a name has 1 to 64 characters of a-z, 0-9, dot, dash and underscore", ctx, param)
    return value


def _rate(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Read 20, 20/s, 30/min or 100/h as calls a second."""
    if value is None:
        return None
    found = _RATE.fullmatch(value)
    rate_per_s = float(found.group(1)) / _SECONDS[found.group(2) or "s"] if found else 0
    if not _RATE_MIN <= rate_per_s <= _RATE_MAX:
        raise click.BadParameter(f"{value!r} is no rate like 20/s, 30/min or 100/h", ctx, param)
    return rate_per_s


def _env(ctx: click.Context, param: click.Parameter, value: str | None) -> str:
    """Take the mode from the option, or else from SAGAPOST_ENV as the services read it."""
    env = value or environment.mode()
    if env not in access.ENVIRONMENTS:
        raise click.BadParameter(f"{env!r} is no mode; it must be development or production", ctx, param)
    return env


def _expires(ctx: click.Context, param: click.Parameter, value: str | None) -> datetime | None:
    """Read a span from now (90d, 12h) or a time; it lies in the future."""
    if value is None:
        return None
    now = datetime.now(UTC)
    try:
        read = times.moment(value, now)
    except ValueError as exc:
        raise click.BadParameter(str(exc), ctx, param) from exc
    found = now + (now - read) if times.is_span(value) else read
    if found <= now:
        raise click.BadParameter(f"{value!r} is over already", ctx, param)
    return found


def _says(function: F) -> F:
    """Add --reason and --actor."""
    reason = click.option("--reason", default="", metavar="TEXT", help="Why; kept with the key and shown by list.")
    actor = click.option("--actor", default=run.system_user, metavar="NAME", help="Who calls, for the record; otherwise the system user.")
    return actor(reason(function))


@click.group(
    cls=click.RichGroup,
    help="""Give out API keys, see who has which, take them back.

    A client is who owns orders: each sees its own and nobody else's. It may have several keys, say one for each of its programs; they
    share the client's rate limit. In development a call without a key is the client `demo`, which has every scope and needs no key; in
    production every call needs one.

    The database's address comes from SAGAPOST_ORDER_DATABASE_URL or, when none is set, from the running stack.

    \b
      ./sagapost keys create --client shop --label "web shop"
      ./sagapost keys create --client support --scope ops:read
      ./sagapost keys list
      ./sagapost keys revoke 3
    """,
)
def command() -> None:
    """Group the three."""


@command.command(
    name="create",
    help="""Make a key and print it. It is shown once: only its SHA-256 is kept.

    Scopes: checkout:write (check out, cancel), checkout:read (one's own orders and sagas), ops:read (everybody's sagas), ops:write
    (retry, compensate, waive-notify, mark-refunded). Without --scope a key gets the first two.

    --rate and --burst are the client's, for all its keys together: so many calls in the long run, and so many at once. A new client
    gets 50/s and twice as many at once; given for a client that is there, they change its limit, within a second.

    A key works in one environment only: --env, or SAGAPOST_ENV, or development. With --expires it stops working by itself.

    \b
    ./sagapost keys create --client shop --rate 20/s --burst 40
    ./sagapost keys create --client audit --expires 90d --reason "audit"
    ./sagapost keys create --client shop --json | jq -r .key
    """,
)
@click.option("--client", required=True, callback=_client, metavar="NAME", help="Whose key it is; a new name is a new client.")
@click.option("--label", default="", metavar="TEXT", help="What the key is for; for the list.")
@click.option("--scope", "scopes", type=click.Choice(access.SCOPES), multiple=True, help="What it may do; can be given again.")
@click.option("--rate", "rate_per_s", callback=_rate, metavar="N/s", help="Calls a second, of all the client's keys together.")
@click.option("--burst", type=click.IntRange(1, _RATE_MAX), metavar="N", help="Calls at once, of all the client's keys together.")
@click.option("--env", callback=_env, metavar="NAME", help="development or production.")
@click.option("--expires", "expires_at", callback=_expires, metavar="T", help="Until when it works: 90d, 12h or a time.")
@_says
@options.port_offset
@options.as_json
def create(
    *,
    client: str,
    label: str,
    scopes: tuple[str, ...],
    rate_per_s: float | None,
    burst: int | None,
    env: str,
    expires_at: datetime | None,
    reason: str,
    actor: str,
    port_offset: int,
    as_json: bool,
) -> None:
    """Store its digest and print it."""
    if client == access.DEMO:
        raise click.UsageError("demo is whoever calls without a key, in development; choose another name")
    if len(label) > _LABEL_MAX or not label.isprintable():
        raise click.UsageError(f"keep the label to {_LABEL_MAX} characters on one line")
    key = access.new_key(env)
    granted = tuple(scope for scope in access.SCOPES if scope in (scopes or (access.CHECKOUT_WRITE, access.CHECKOUT_READ)))
    with database.opened(_url(port_offset), _NAME, writing=True) as conn:
        limit, stored = queries.add(
            conn,
            client=client,
            label=label,
            env=env,
            scopes=granted,
            sha256=access.digest(key),
            rate_per_s=rate_per_s,
            burst=burst,
            expires_at=expires_at,
            why=queries.Why(actor=actor, reason=reason),
        )
    if as_json:
        facts = msgspec.structs.asdict(limit) | msgspec.structs.asdict(stored)
        screen.json(Created(client=client, label=label, env=env, scopes=granted, key=key, **facts))
        return
    screen.out().line(key)
    until = f"; until {times.clock(stored.expires_at)}" if stored.expires_at else ""
    limits = f"{limit.rate_per_s:g} calls a second, {limit.burst} at once"
    screen.err().line(f"Key {stored.id} of {client} for {env}: {', '.join(granted)}; {limits}{until}.")
    screen.err().line("Keep it now, it is not shown again. It is sent as: Authorization: Bearer …")


@command.command(
    name="list",
    help="""List the keys: whose, for what, since when, by whom and why, when last used, until when. Exit code 3 when there is none.

    \b
    ./sagapost keys list
    ./sagapost keys list --client shop --json | jq '.keys[].id'
    """,
)
@click.option("--client", callback=_client, metavar="NAME", help="Only this client's.")
@options.port_offset
@options.as_json
def show_list(*, client: str | None, port_offset: int, as_json: bool) -> None:
    """Read and print, the oldest first."""
    with database.opened(_url(port_offset), _NAME) as conn:
        found = queries.listed(conn, client)
    if as_json:
        screen.json(Listing(keys=found))
    if not found:
        whose = f"of client {client}" if client else "yet"
        raise errors.NothingMatchedError(f"there is no key {whose}; make one with: ./sagapost keys create --client NAME")
    if not as_json:
        screen.out().table(("id", "client", "label", "env", "scopes", "limit", "made", "last used", "", "why"), [*map(_row, found)])


@command.command(
    name="revoke",
    help="""Take keys back: calls with them are refused within seconds, open streams end within half a minute.

    The numbers are those of `keys list`. Harmless to repeat. Exit code 3 when one of the numbers is no key's; the others are revoked
    all the same.

    \b
    ./sagapost keys revoke 3 4 --reason "found in a public repository"
    """,
)
@click.argument("ids", nargs=-1, required=True, type=click.IntRange(1, 2**63 - 1), metavar="ID…")
@_says
@options.port_offset
@options.as_json
def revoke(*, ids: tuple[int, ...], reason: str, actor: str, port_offset: int, as_json: bool) -> None:
    """Note the time, and say what was done."""
    with database.opened(_url(port_offset), _NAME, writing=True) as conn:
        done = queries.revoke(conn, ids, queries.Why(actor=actor, reason=reason))
    unknown = sorted({*ids} - {one.id for one in done})
    if as_json:
        screen.json(Revocation(revoked=done, unknown=unknown))
    else:
        for one in done:
            screen.out().line(f"Key {one.id} of {one.client} is revoked since {one.revoked_at:%Y-%m-%d %H:%M:%S} UTC.")
    if unknown:
        raise errors.NothingMatchedError(f"there is no key {', '.join(map(str, unknown))}; see: ./sagapost keys list")


def _url(port_offset: int) -> str:
    return targets.need(targets.find(port_offset), "order_database_url")


def _row(key: queries.Key) -> list[screen.Cell]:
    limit = f"{key.rate_per_s:g}/s, {key.burst} at once"
    used = f"{key.last_used:%Y-%m-%d}" if key.last_used else "never"
    scopes = " ".join(key.scopes)
    return [str(key.id), key.client, key.label, key.env, scopes, limit, f"{key.created_at:%Y-%m-%d}", used, _state(key), _why(key)]


def _state(key: queries.Key) -> screen.Styled:
    if key.revoked_at:
        return screen.Styled(f"revoked {key.revoked_at:%Y-%m-%d %H:%M}", "red")
    if key.expires_at is None:
        return screen.Styled("active", "green")
    until = f"{key.expires_at:%Y-%m-%d %H:%M}"
    return screen.Styled(f"expired {until}", "red") if key.expired else screen.Styled(f"until {until}", "green")


def _why(key: queries.Key) -> str:
    made = " ".join(filter(None, (key.created_by, key.created_reason)))
    revoked = " ".join(filter(None, (key.revoked_by, key.revoked_reason)))
    return "; revoked: ".join(filter(None, (made, revoked)))
