"""`retain`: forgets what is kept for a time, now instead of with the services' next look."""

from typing import Final

import msgspec
import rich_click as click

from sagapost_chassis import retention
from sagapost_ops import database, errors, retaining, screen, targets
from sagapost_ops.commands import options
from sagapost_ops.dlq import run
from sagapost_ops.restoring import audit

_NAME: Final = "sagapost-retain"
_LEAST_DAYS: Final = 30


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """How many rows were forgotten, or would be."""

    dry_run: bool
    tables: tuple[retaining.Forgotten, ...]


@click.command(
    help=f"""Forget what is older than it has to be kept: rows of both inboxes, and with --customer-days the addresses of customers.

    The services do this every hour by SAGAPOST_INBOX_DAYS ({retention.INBOX_DAYS}) and SAGAPOST_CUSTOMER_DAYS (0: never). This command
    does it now. An address becomes erased-…@erased.invalid, as `erase` has it, in orders and payments that ended longer ago than so many
    days; amounts, states and histories stay. Neither can be less than {_LEAST_DAYS} days: so long a message may come again.

    \b
    ./sagapost retain --dry-run
    ./sagapost retain --customer-days 365
    """
)
@click.option(
    "--inbox-days",
    type=click.IntRange(_LEAST_DAYS, 36_500),
    default=retention.INBOX_DAYS,
    show_default=True,
    metavar="N",
    help="Keep rows of the inboxes for so long.",
)
@click.option("--customer-days", type=click.IntRange(_LEAST_DAYS, 36_500), metavar="N", help="Keep addresses for so long.")
@click.option("--dry-run", is_flag=True, help="Only count.")
@options.database
@options.port_offset
@options.as_json
def command(*, inbox_days: int, customer_days: int | None, dry_run: bool, only: str | None, port_offset: int, as_json: bool) -> None:
    """Count, or forget a batch after the other."""
    console = screen.err()
    kept: dict[retaining.What, int] = {"inbox": inbox_days}
    if customer_days is not None:
        kept["customers"] = customer_days
    tables: list[retaining.Forgotten] = []
    with console.bars(hidden=as_json) as add_bar:
        for name, url in targets.databases(port_offset, only):
            with database.opened(url, _NAME, writing=not dry_run) as conn:
                tables += [_forgotten(conn, name, what, days, add_bar, dry_run=dry_run) for what, days in kept.items()]
                if name == "order" and not dry_run:
                    audit.write(conn, command="retain", actor=run.system_user(), reason="by age", detail=tables)
    if as_json:
        screen.json(Report(dry_run=dry_run, tables=tuple(tables)))
    else:
        rows_shown = [(one.database, one.what, f"{one.days} days", f"{one.rows:,}") for one in tables]
        screen.out().table(("database", "what", "kept for", "rows"), rows_shown)
        screen.out().spaced("Nothing was changed." if dry_run else "They are forgotten.")
    if not any(one.rows for one in tables):
        raise errors.NothingMatchedError("nothing is old enough")


def _forgotten(
    conn: database.Connection, name: str, what: retaining.What, days: int, add_bar: screen.AddBar, *, dry_run: bool
) -> retaining.Forgotten:
    rows = retaining.count(conn, name, what, days)
    if not dry_run:
        rows = retaining.forget(conn, what, days, add_bar(f"{name}: {what}", rows).advance)
    return retaining.Forgotten(database=name, what=what, days=days, rows=rows)
