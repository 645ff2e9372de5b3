"""How the outbox commands look on a terminal; it asks no database."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from sagapost_ops import screen
from sagapost_ops.outbox import queries, repair, replay, stats, times

_KIB: Final = 1024


def show_stats(console: screen.Screen, found: stats.Stats) -> None:
    """Print one database: cursors, ring, what stands aside, relays."""
    console.line(found.database, style="bold")
    lines = [
        (f"  {line.shard}", line.owner or "nobody", str(line.epoch), _lease(line), _backlog(line), _oldest(line)) for line in found.shards
    ]
    console.table(("  shard", "held by", "epoch", "lease", "rows to publish", "oldest"), lines)
    console.line()
    console.table(("  partition", "filled since", "rows (about)", "size", "dead rows"), [_partition(line) for line in found.partitions])
    history = (
        "everything since the first message" if found.history_since is None else f"everything since {times.clock(found.history_since)}"
    )
    console.spaced(f"  history      {history}")
    aside = ", ".join(f"{line.rows} {line.state} ({line.reason}, the first {times.span(line.oldest_s)} ago)" for line in found.aside)
    console.line(f"  set aside    {aside or 'nothing'}")
    console.line(f"  relays       {', '.join(found.relays) or 'none is alive'}")
    console.line()


def show_attention(console: screen.Screen, sentences: Iterable[str]) -> None:
    """Print what needs a person, or that nothing does."""
    said = list(sentences)
    for sentence in said:
        console.line(sentence, style="bold red")
    if not said:
        console.line("Nothing needs a person.", style="bold green")


def show_parked(console: screen.Screen, name: str, found: list[queries.Parked], total: int) -> None:
    """Print what stands aside in one database, three lines a message."""
    now = datetime.now(UTC)
    for line in found:
        tries = f"{line.attempts} {'try' if line.attempts == 1 else 'tries'}"
        then = f", again in {times.span((line.retry_at - now).total_seconds())}" if line.state == "waiting" else ""
        style = "bold red" if line.state == "parked" else "yellow"
        since = times.span((now - line.since).total_seconds())
        console.line(
            screen.Styled(f"{name} {line.id}", "bold"),
            f"  {line.type} of {line.aggregate}  ",
            screen.Styled(f"{line.state}: {line.reason}", style),
            f", {tries} in {since}{then}",
        )
        console.line(f"  message {line.event_id}  routing key {line.routing_key}  made {times.clock(line.created_at)}")
        if line.detail:
            console.line(f"  {line.detail}", style="dim")
    if total > len(found):
        console.line(f"{name}: and {total - len(found)} more; see --limit")


def show_plan(console: screen.Screen, plan: replay.Plan, wanted: queries.Span) -> None:
    """Print what a replay of one database would send."""
    messages = f"{plan.rows:,} confirmed {'message' if plan.rows == 1 else 'messages'}"
    console.line(f"{plan.database}: {messages} made since {times.clock(wanted.since)}", style="bold")
    if plan.types:
        lines = [(f"  {kind.type}", f"{kind.rows:,}", times.clock(kind.first_at), times.clock(kind.last_at)) for kind in plan.types]
        console.table(("  type", "messages", "the first made", "the last made"), lines)
    if plan.history_since is None:
        console.line("  The ring still holds everything since the first message.")
    else:
        style = "yellow" if wanted.since < plan.history_since else ""
        console.line(f"  The ring holds everything since {times.clock(plan.history_since)}; older messages may be gone.", style=style)


def show_replayed(console: screen.Screen, done: replay.Done) -> None:
    """Print what was appended."""
    messages = f"{done.replayed:,} {'message is' if done.replayed == 1 else 'messages are'}"
    console.line(f"{done.database}: {messages} in the outbox again{', and being published' if done.relays else ''}.")
    if not done.relays:
        console.line(no_relay(done.database))
    if done.missed:
        console.line(f"{done.database}: {done.missed:,} left the ring before their turn and were not sent.", style="yellow")


def show_repair(console: screen.Screen, found: repair.Repair, *, is_done: bool) -> None:
    """Print what a repair of one database did or would do."""
    if found.needed is None:
        console.line(f"{found.database}: the cursors were written in this PostgreSQL cluster; there is nothing to repair.")
        return
    console.line(f"{found.database}: {found.needed}", style="bold")
    lines = [(f"  {line.shard}", f"{line.confirmed:,}", f"{line.unconfirmed:,}") for line in found.shards]
    told = ("  shard", "confirmed", "published again") if is_done else ("  shard", "confirmed", "would be published again")
    console.table(told, lines)


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
