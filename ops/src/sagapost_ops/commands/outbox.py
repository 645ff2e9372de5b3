"""`outbox`: what waits to be published, what the broker did not take, what can be sent again."""

from typing import Final

import msgspec
import rich_click as click

from sagapost_contracts import envelope
from sagapost_ops import database, errors, screen, targets
from sagapost_ops.commands import options, outbox_history
from sagapost_ops.outbox import pages, queries, stats

_NAME: Final = "sagapost-outbox"


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """What `stats` found; `attention` is empty when nothing needs a person."""

    attention: list[str]
    databases: list[stats.Stats]


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """What stands aside in one database: `total` messages, of which some are listed."""

    database: str
    total: int
    messages: list[queries.Parked]


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """What `list` found."""

    databases: list[Listed]


class Retried(msgspec.Struct, frozen=True, kw_only=True):
    """How many messages of one database are tried again, and how many of them were parked."""

    database: str
    retried: int
    were_parked: int
    relays: list[str]


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """What `retry` did."""

    databases: list[Retried]


_reason = click.option("--reason", type=click.Choice(queries.REASONS), help="Only what was set aside for this reason.")
_type = click.option("--type", "type_name", type=click.Choice(sorted(envelope.TYPES)), help="Only messages of this type.")


@click.group(
    cls=click.RichGroup,
    help="""See what the databases have to publish, and put right what the relays cannot.

    Each message is a row of its database's outbox until the relay has seen it confirmed by the broker. What the broker does not
    take is set aside so that it stops nothing else: it waits for another try, and is parked when tries do not help. Published
    rows stay for a while and can be sent again.

    Addresses come from SAGAPOST_ORDER_DATABASE_URL and SAGAPOST_PAYMENT_DATABASE_URL or, when none is set, from the running stack.

    \b
      ./sagapost outbox stats               # is anything late or parked?
      ./sagapost outbox list --state parked       # which messages, and why
      ./sagapost outbox retry --reason unroutable # after the binding is back
      ./sagapost outbox replay --since 2h   # a dry run
      ./sagapost outbox repair              # after a restore
    """,
)
def command() -> None:
    """Group the five."""


@command.command(
    name="stats",
    help="""Show who publishes what, how much waits, and what needs a person.

    Per shard: the relay that holds it and for how long, and the rows that are not published yet (counted up to 10,000). Then
    the ring of partitions, the messages that the broker did not take, and the relays that are alive. Exit code 0 also when something
    needs a person: scripts read `attention`.

    \b
    ./sagapost outbox stats
    ./sagapost outbox stats --database order --json | jq -r '.attention[]'
    """,
)
@options.database
@options.port_offset
@options.as_json
def show_stats(*, only: str | None, port_offset: int, as_json: bool) -> None:
    """Read both and print."""
    found: list[stats.Stats] = []
    for name, url in targets.databases(port_offset, only):
        with database.opened(url, _NAME) as conn:
            found.append(stats.read(conn, name))
    attention = [sentence for one in found for sentence in one.attention]
    if as_json:
        screen.json(Stats(attention=attention, databases=found))
        return
    console = screen.out()
    for one in found:
        pages.show_stats(console, one)
    pages.show_attention(console, attention)


@command.command(
    name="list",
    help="""List the messages that the broker did not take: why, how often they were tried, since when.

    What a message says is not shown, for it may name a customer. Exit code 3 when there is none.

    \b
    ./sagapost outbox list
    ./sagapost outbox list --state parked --reason unroutable
    ./sagapost outbox list --json | jq -r '.databases[].messages[].event_id'
    """,
)
@click.option("--state", type=click.Choice(("waiting", "parked")), help="Only those that are tried again, or only those that are not.")
@_reason
@_type
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, metavar="N", help="At most so many of each database.")
@options.database
@options.port_offset
@options.as_json
def show_list(
    *, state: str | None, reason: str | None, type_name: str | None, limit: int, only: str | None, port_offset: int, as_json: bool
) -> None:
    """Read and print, the oldest first."""
    wanted = queries.Filter(state=state, reason=reason, type=type_name)
    found: list[Listed] = []
    for name, url in targets.databases(port_offset, only):
        with database.opened(url, _NAME) as conn:
            messages, total = queries.parked(conn, wanted, limit)
        found.append(Listed(database=name, total=total, messages=messages))
    if as_json:
        screen.json(Listing(databases=found))
    else:
        for one in found:
            pages.show_parked(screen.out(), one.database, one.messages, one.total)
    if not any(one.total for one in found):
        raise errors.NothingMatchedError("no message that the broker did not take matches")


@command.command(
    name="retry",
    help="""Let messages that were set aside be tried again, at once and from the first try on.

    The relay publishes them within a second, with the message ids they have always had. Mend the cause first (the binding, the
    queue's limit, the broker's permissions): what is refused again is set aside again. Choose by --id, by --reason and --type
    together, or take --all. An id is the number that `outbox list` shows; each database counts for itself.

    Harmless to repeat. Exit code 3 when nothing matched.

    \b
    ./sagapost outbox retry --reason unroutable
    ./sagapost outbox retry --database order --id 1042 --id 1043
    ./sagapost outbox retry --all
    """,
)
@click.option("--id", "ids", type=click.IntRange(1), multiple=True, metavar="N", help="This message; can be given again.")
@_reason
@_type
@click.option("--all", "take_all", is_flag=True, help="Every message that the broker did not take.")
@options.database
@options.port_offset
@options.as_json
def do_retry(
    *, ids: tuple[int, ...], reason: str | None, type_name: str | None, take_all: bool, only: str | None, port_offset: int, as_json: bool
) -> None:
    """Put them back and say how many."""
    if take_all == bool(ids or reason or type_name):
        raise click.UsageError("choose what to try again: --all, or --id, --reason or --type")
    if ids and only is None:
        raise click.UsageError("each database counts for itself: with --id say --database order or --database payment")
    wanted = queries.Filter(reason=reason, type=type_name, ids=list(ids) or None)
    done: list[Retried] = []
    for name, url in targets.databases(port_offset, only):
        with database.opened(url, _NAME, writing=True) as conn:
            states, relays = queries.retry(conn, wanted), queries.relays(conn)
        done.append(Retried(database=name, retried=len(states), were_parked=states.count("parked"), relays=relays))
    if as_json:
        screen.json(Retry(databases=done))
    if not any(one.retried for one in done):
        raise errors.NothingMatchedError("no message that the broker did not take matches; see: ./sagapost outbox list")
    if as_json:
        return
    for one in done:
        if one.retried:
            verb = "message is" if one.retried == 1 else "messages are"
            screen.out().line(f"{one.database}: {one.retried} {verb} tried again now; parked until now: {one.were_parked}.")
            if not one.relays:
                screen.out().line(pages.no_relay(one.database))


command.add_command(outbox_history.replay_command)
command.add_command(outbox_history.repair_command)
