"""The options by which several dead-letter commands choose letters and say who calls."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import rich_click as click

from sagapost_contracts import envelope
from sagapost_ops.dlq import choice, run
from sagapost_ops.outbox import times

F = TypeVar("F", bound=Callable[..., Any])


def moment(ctx: click.Context, param: click.Parameter, value: str | None) -> datetime | None:
    """Read a span before now or a time."""
    try:
        return None if value is None else times.moment(value, datetime.now(UTC))
    except ValueError as exc:
        raise click.BadParameter(str(exc), ctx, param) from exc


def choosing(function: F) -> F:
    """Add --id, --group, --all, --event-type, --order, --since, --until and --limit."""
    for option in (
        click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N, the oldest."),
        click.option("--until", callback=moment, metavar="T", help="Failed before then."),
        click.option("--since", callback=moment, metavar="T", help="Failed then or later: 2h, 30m, or 2026-11-22T10:30:00Z (UTC)."),
        click.option("--order", "order_id", type=click.IntRange(1), metavar="N", help="Only messages of this order."),
        click.option("--event-type", type=click.Choice(sorted(envelope.TYPES)), help="Only messages of this type."),
        click.option("--all", "take_all", is_flag=True, help="Every letter that fits the other options."),
        click.option("--group", metavar="FINGERPRINT", help="Only letters of this cause; see dlq groups."),
        click.option("--id", "ids", multiple=True, metavar="ID", help="This letter, by the id that dlq show prints; can be given again."),
    ):
        function = option(function)
    return function


def acting(function: F) -> F:
    """Add --reason, --actor and --yes."""
    for option in (
        click.option("--yes", is_flag=True, help="Really do it; otherwise it is a dry run."),
        click.option("--actor", default=run.system_user, metavar="NAME", help="Who calls, for the record; otherwise the system user."),
        click.option("--reason", metavar="TEXT", help="Why; goes to the record. Needed with --yes."),
    ):
        function = option(function)
    return function


def chosen(
    *,
    ids: tuple[str, ...],
    group: str | None,
    event_type: str | None,
    order_id: int | None,
    since: datetime | None,
    until: datetime | None,
    limit: int | None,
    take_all: bool,
) -> choice.Choice:
    """Make a choice of what was given.

    Raises:
        UsageError: it is none, or contradicts itself.

    """
    if [bool(ids), group is not None, take_all].count(True) > 1:
        raise click.UsageError("--id, --group and --all exclude each other")
    if not (ids or group or take_all or event_type or order_id or since or until):
        raise click.UsageError("choose letters: --id, --group or --all, or --event-type, --order, --since, --until")
    if since is not None and until is not None and until <= since:
        raise click.UsageError("--until must be later than --since")
    return choice.Choice(ids=ids, group=group, event_type=event_type, order_id=order_id, since=since, until=until, limit=limit)


def check_reason(reason: str | None, *, yes: bool) -> None:
    """See that whoever really means it says why.

    Raises:
        UsageError: no reason.

    """
    if yes and not (reason or "").strip():
        raise click.UsageError("--yes needs a --reason")
