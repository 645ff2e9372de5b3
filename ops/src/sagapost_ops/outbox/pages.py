"""How the outbox commands look on a terminal; it asks no database."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from rich.console import Console
from rich.text import Text

from sagapost_ops import screen
from sagapost_ops.outbox import queries, repair, replay, stats, times

_KIB: Final = 1024


def show_stats(console: Console, found: stats.Stats) -> None:
    """Print one database: cursors, ring, what stands aside, relays."""
    console.print(Text(found.database, style="bold"))
    lines = [
        (f"  {line.shard}", line.owner or "nobody", str(line.epoch), _lease(line), _backlog(line), _oldest(line)) for line in found.shards
    ]
    console.print(screen.table(("  shard", "held by", "epoch", "lease", "rows to publish", "oldest"), lines))
    console.print()
    console.print(
        screen.table(("  partition", "filled since", "rows (about)", "size", "dead rows"), [_partition(line) for line in found.partitions])
    )
    history = (
        "everything since the first message" if found.history_since is None else f"everything since {times.clock(found.history_since)}"
    )
    console.print(Text(f"\n  history      {history}"), soft_wrap=True)
    aside = ", ".join(f"{line.rows} {line.state} ({line.reason}, the first {times.span(line.oldest_s)} ago)" for line in found.aside)
    console.print(Text(f"  set aside    {aside or 'nothing'}"), soft_wrap=True)
    console.print(Text(f"  relays       {', '.join(found.relays) or 'none is alive'}\n"), soft_wrap=True)


def show_attention(console: Console, sentences: Iterable[str]) -> None:
    """Print what needs a person, or that nothing does."""
    said = list(sentences)
    for sentence in said:
        console.print(Text(sentence, style="bold red"), soft_wrap=True)
    if not said:
        console.print("[bold green]Nothing needs a person.[/]")


def show_parked(console: Console, name: str, found: list[queries.Parked], total: int) -> None:
    """Print what stands aside in one database, three lines a message."""
    now = datetime.now(UTC)
    for line in found:
        tries = f"{line.attempts} {'try' if line.attempts == 1 else 'tries'}"
        then = f", again in {times.span((line.retry_at - now).total_seconds())}" if line.state == "waiting" else ""
        style = "bold red" if line.state == "parked" else "yellow"
        head = Text.assemble((f"{name} {line.id}", "bold"), f"  {line.type} of {line.aggregate}  ", (f"{line.state}: {line.reason}", style))
        since = times.span((now - line.since).total_seconds())
        console.print(Text.assemble(head, f", {tries} in {since}{then}"), soft_wrap=True)
        console.print(
            Text(f"  message {line.event_id}  routing key {line.routing_key}  made {times.clock(line.created_at)}"), soft_wrap=True
        )
        if line.detail:
            console.print(Text(f"  {line.detail}", style="dim"), soft_wrap=True)
    if total > len(found):
        console.print(Text(f"{name}: and {total - len(found)} more; see --limit"), soft_wrap=True)


def show_plan(console: Console, plan: replay.Plan, wanted: queries.Span) -> None:
    """Print what a replay of one database would send."""
    messages = f"{plan.rows:,} confirmed {'message' if plan.rows == 1 else 'messages'}"
    console.print(Text(f"{plan.database}: {messages} made since {times.clock(wanted.since)}", style="bold"), soft_wrap=True)
    if plan.types:
        lines = [(f"  {kind.type}", f"{kind.rows:,}", times.clock(kind.first_at), times.clock(kind.last_at)) for kind in plan.types]
        console.print(screen.table(("  type", "messages", "the first made", "the last made"), lines))
    if plan.history_since is None:
        console.print("  The ring still holds everything since the first message.")
    else:
        style = "yellow" if wanted.since < plan.history_since else ""
        console.print(
            Text(f"  The ring holds everything since {times.clock(plan.history_since)}; older messages may be gone.", style=style),
            soft_wrap=True,
        )


def show_replayed(console: Console, done: replay.Done) -> None:
    """Print what was appended."""
    messages = f"{done.replayed:,} {'message is' if done.replayed == 1 else 'messages are'}"
    console.print(Text(f"{done.database}: {messages} in the outbox again{', and being published' if done.relays else ''}."), soft_wrap=True)
    if not done.relays:
        console.print(Text(no_relay(done.database)), soft_wrap=True)
    if done.missed:
        console.print(
            Text(f"{done.database}: {done.missed:,} left the ring before their turn and were not sent.", style="yellow"), soft_wrap=True
        )


def show_repair(console: Console, found: repair.Repair, *, is_done: bool) -> None:
    """Print what a repair of one database did or would do."""
    if found.needed is None:
        console.print(Text(f"{found.database}: the cursors were written in this PostgreSQL cluster; there is nothing to repair."))
        return
    console.print(Text(f"{found.database}: {found.needed}", style="bold"))
    lines = [(f"  {line.shard}", f"{line.confirmed:,}", f"{line.unconfirmed:,}") for line in found.shards]
    told = ("  shard", "confirmed", "published again") if is_done else ("  shard", "confirmed", "would be published again")
    console.print(screen.table(told, lines))


def no_relay(name: str) -> str:
    """Say what to do when nobody publishes."""
    return f"{name}: no relay is alive, so nothing is sent yet; see ./sagapost status and ./sagapost logs relay-{name}"


def _lease(line: queries.Shard) -> str:
    if line.owner is None or line.lease_s is None:
        return "free"
    return f"{line.lease_s:.0f} s left" if line.lease_s > 0 else f"ran out {times.span(-line.lease_s)} ago"


def _backlog(line: queries.Shard) -> str:
    if not line.is_ours:
        return "?"
    return f"{queries.BACKLOG_CAP}+" if line.backlog > queries.BACKLOG_CAP else str(line.backlog)


def _oldest(line: queries.Shard) -> str:
    return times.span(line.oldest_s) if line.is_ours and line.oldest_s is not None else "-"


def _partition(line: queries.Partition) -> tuple[str, str, str, str, str]:
    since = "empty" if line.opened_at is None else times.clock(line.opened_at) + (" (now)" if line.is_current else "")
    return f"  {line.bucket}", since, f"{line.rows:,}", _size(line.size_bytes), f"{line.dead_rows:,}"


def _size(size_bytes: int) -> str:
    if size_bytes < _KIB * _KIB:
        return f"{size_bytes / _KIB:.0f} KiB"
    return f"{size_bytes / _KIB / _KIB:,.1f} MiB"
