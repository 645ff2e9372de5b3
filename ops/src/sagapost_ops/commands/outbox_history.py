"""`outbox replay` and `outbox repair`: what writes to the outbox itself."""

from datetime import UTC, datetime
from typing import Final

import msgspec
import rich_click as click

from sagapost_contracts import envelope
from sagapost_ops import database, errors, screen, targets
from sagapost_ops.commands import options
from sagapost_ops.outbox import pages, queries, repair, replay, times

_NAME: Final = "sagapost-outbox"
_REPAIR_S: Final = 3600  # every row is written anew, however many there are


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay would send, or has put into the outboxes."""

    dry_run: bool
    reason: str | None
    databases: list[replay.Plan] | list[replay.Done]


class Repaired(msgspec.Struct, frozen=True, kw_only=True):
    """What a repair would do, or has done."""

    dry_run: bool
    databases: list[repair.Repair]


def _moment(ctx: click.Context, param: click.Parameter, value: str | None) -> datetime | None:
    try:
        return None if value is None else times.moment(value, datetime.now(UTC))
    except ValueError as exc:
        raise click.BadParameter(str(exc), ctx, param) from exc


@click.command(
    cls=click.RichCommand,
    name="replay",
    help="""Publish messages again that were published before, with the same message ids and the same content.

    For a consumer that lost its data, or a queue that was purged. Without --yes it only shows what would be sent. Rows are
    copied to the end of the outbox in their old order, and the relay publishes them like any others; new messages of the same
    shard wait behind them.

    Order and payment know each message that they have processed and ignore it. The email service has no database: it may send
    again the mails that it has forgotten, so that a replay of PaymentProcessed or OrderCancelled can reach customers twice.

    T is a span before now (45s, 30m, 2h, 1d12h) or a time (2026-11-22T10:30:00Z; without a zone it is UTC) and is compared with
    the time when the message was made. The history reaches back as far as the ring of partitions; the dry run says how far.

    \b
    ./sagapost outbox replay --since 2h
    ./sagapost outbox replay --since 2h --type OrderCreated --database order \\
      --yes --reason "payment restored from 10:00"
    ./sagapost outbox replay --since 1d --order 1042
    """,
)
@click.option("--since", callback=_moment, required=True, metavar="T", help="Messages made then or later.")
@click.option("--until", callback=_moment, metavar="T", help="Messages made before then; otherwise up to now.")
@click.option("--type", "types", type=click.Choice(sorted(envelope.TYPES)), multiple=True, help="This type; can be given again.")
@click.option("--order", "order_id", type=click.IntRange(1), metavar="N", help="Only messages of this order.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N of each database.")
@click.option("--reason", metavar="TEXT", help="Why; goes to the database server's log. Needed with --yes.")
@click.option("--yes", is_flag=True, help="Really send.")
@options.database
@options.port_offset
@options.as_json
def replay_command(
    *,
    since: datetime,
    until: datetime | None,
    types: tuple[str, ...],
    order_id: int | None,
    limit: int | None,
    reason: str | None,
    yes: bool,
    only: str | None,
    port_offset: int,
    as_json: bool,
) -> None:
    """Count; with --yes, copy."""
    if yes and not (reason or "").strip():
        raise click.UsageError("--yes needs a --reason")
    if until is not None and until <= since:
        raise click.UsageError("--until must be later than --since")
    aggregate = None if order_id is None else f"order-{order_id}"
    wanted = queries.Span(since=since, until=until, types=list(types) or None, aggregate=aggregate, limit=limit)
    plans: list[replay.Plan] = []
    done: list[replay.Done] = []
    for name, url in targets.databases(port_offset, only):
        with database.opened(url, _NAME, writing=yes) as conn:
            plan = replay.plan(conn, name, wanted)
            plans.append(plan)
            if not as_json:
                pages.show_plan(screen.out(), plan, wanted)
            if yes and plan.rows:
                done.append(_perform(conn, plan, wanted, str(reason), as_json=as_json))
    if as_json:
        screen.json(Replayed(dry_run=not yes, reason=reason, databases=done if yes else plans))
    if not any(plan.rows for plan in plans):
        raise errors.NothingMatchedError("no confirmed message matches")
    if not yes and not as_json:
        screen.out().spaced('Nothing was sent. To send it: the same call with --yes --reason "…"')


def _perform(conn: database.Connection, plan: replay.Plan, wanted: queries.Span, reason: str, *, as_json: bool) -> replay.Done:
    console = screen.err()
    with console.bars(hidden=as_json) as add_bar:
        bar = add_bar(plan.database, plan.rows)
        try:
            done = replay.perform(conn, plan.database, wanted, reason, bar.advance)
        except KeyboardInterrupt:
            screen.err().line(f"{plan.database}: stopped after {bar.completed:,.0f} of {plan.rows:,} messages")
            raise
    if not as_json:
        pages.show_replayed(screen.out(), done)
    return done


@click.command(
    cls=click.RichCommand,
    name="repair",
    help="""Make an outbox usable that was restored or copied into another PostgreSQL cluster.

    A relay remembers how far it has come in transaction ids, and those mean nothing in another cluster: there it refuses to run,
    rather than lose messages. This turns them into ids of this cluster: what the old cursors had passed counts as
    published, everything else is published, in the old order. Messages that the old cluster published after the backup was
    made are published twice; order and payment ignore the second.

    Stop the relays first. Without --yes it only shows what it would do. Where the cluster is the right one it does nothing.

    \b
    ./sagapost outbox repair                          # look
    ./sagapost outbox repair --database order --yes   # one transaction
    """,
)
@click.option("--force", is_flag=True, help="Also where the cursors were written in this cluster.")
@click.option("--yes", is_flag=True, help="Really do it.")
@options.database
@options.port_offset
@options.as_json
def repair_command(*, force: bool, yes: bool, only: str | None, port_offset: int, as_json: bool) -> None:
    """Look at all; with --yes, do what is needed."""
    places = targets.databases(port_offset, only)
    found: list[repair.Repair] = []
    for name, url in places:
        with database.opened(url, _NAME, patience_s=_REPAIR_S) as conn:
            found.append(repair.look(conn, name, force=force))
    if yes:
        found = [_repaired(url, one) for (_, url), one in zip(places, found, strict=True)]
    if as_json:
        screen.json(Repaired(dry_run=not yes, databases=found))
        return
    for one in found:
        pages.show_repair(screen.out(), one, is_done=yes)
    if any(one.needed for one in found):
        screen.out().spaced("The relays can run again." if yes else "Nothing was changed. To do it: the same call with --yes")


def _repaired(url: str, found: repair.Repair) -> repair.Repair:
    if found.needed is None:
        return found
    with database.opened(url, _NAME, writing=True, patience_s=_REPAIR_S) as conn:
        return repair.perform(conn, found)
