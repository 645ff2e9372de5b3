"""`verify`: proves over all the books that no order was lost, doubled or forgotten."""

import time
from datetime import datetime
from typing import Final

import rich_click as click

from sagapost_ops import screen, targets, verify
from sagapost_ops.commands import dlq_options, options
from sagapost_ops.invariants.outcome import Expectations

_EVERY_S: Final = 5.0


@click.command(
    help="""Compare the books: both databases, the broker, the provider's ledger and the mailbox.

    Every order has one saga, every saga has ended, the money that moved is that of the live orders, one receipt each,
    histories without gaps, nothing unpublished, nothing left in a queue. Exit code 0 only when all of it holds.
    What an operator did by hand counts as he wrote it down: a receipt that was waived, money that was given back elsewhere.

    --since 2h, or --since 2026-11-22T10:30:00Z, looks only at orders that changed then or later and at those that have not ended, and says
    what it did not look at. Orders are read 2,000 at a time: however many there are, they need about 10 MB; what the sandbox's provider and
    mailbox hold is read whole, 1 KB for each movement and mail. Time grows with the orders that are looked at, and a statement may take
    ten minutes: on a large database use --since for what changed since the last look.

    What was published leaves the outbox after a while. What only those rows could tell of an older order is not judged, and counted.

    It changes nothing. What is still under way looks wrong, so it looks again until --settle is over. Addresses come from
    SAGAPOST_ORDER_DATABASE_URL, SAGAPOST_PAYMENT_DATABASE_URL, SAGAPOST_AMQP_URL, SAGAPOST_MANAGEMENT_URL,
    SAGAPOST_PROVIDER_URL and SAGAPOST_MAILBOX_URL, or, when none of them is set, from the running stack.

    \b
    ./sagapost verify
    ./sagapost verify --json | jq '.invariants[] | select(.ok | not)'
    ./sagapost verify --since 1d            # changed or open since yesterday
    ./sagapost verify --allow-duplicate-mails 1   # a process was killed
    """
)
@click.option(
    "--settle", "settle_s", type=options.FloatRange(0, 3600), default=10, show_default=True, metavar="S", help="Seconds to wait for rest."
)
@click.option("--expect-dead", type=click.IntRange(0), default=0, metavar="N", help="Dead letters that are meant to be there.")
@click.option(
    "--expect-parked", type=click.IntRange(0), metavar="N", help="Exactly so many sagas wait for a person; otherwise any number may."
)
@click.option(
    "--expect-parked-rows",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Parked messages of the outboxes that are meant to be there.",
)
@click.option("--allow-duplicate-mails", type=click.IntRange(0), default=0, metavar="N", help="As many mails may have come twice.")
@click.option("--since", callback=dlq_options.moment, metavar="T", help="Orders that changed then or later: 2h, 1d, or a time in UTC.")
@options.port_offset
@options.as_json
def command(
    *,
    settle_s: float,
    expect_dead: int,
    expect_parked: int | None,
    expect_parked_rows: int,
    allow_duplicate_mails: int,
    since: datetime | None,
    port_offset: int,
    as_json: bool,
) -> None:
    """Evaluate, print, and fail when something does not hold."""
    where = targets.find(port_offset)
    expected = Expectations(dead=expect_dead, parked=expect_parked, parked_rows=expect_parked_rows, duplicate_mails=allow_duplicate_mails)
    report = verify.run(where, expected, settle_s=settle_s, since=since, progress=_Progress())
    if as_json:
        screen.json(report)
    else:
        _show(report)
    if not report.ok:
        raise SystemExit(1)


class _Progress:
    """Prints how far a long look has come, on standard error, every few seconds."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _EVERY_S

    def __call__(self, done: int, wanted: int) -> None:
        """Print, when it is time."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _EVERY_S
            screen.err().line(f"{done:,} of about {wanted:,} orders", style="dim")


def _show(report: verify.Report) -> None:
    console = screen.out()
    for invariant in report.invariants:
        sign = screen.Styled("  holds  ", "green") if invariant.ok else screen.Styled("  BROKEN ", "bold red")
        console.line(f"{invariant.id}", sign, invariant.name, screen.Styled(f"  ({invariant.checked} checked)", "dim"))
        for sentence in invariant.violations:
            console.line(f"             {sentence}")
        if invariant.unjudged:
            console.line(f"             not judged: {invariant.unjudged}, older than the outbox", style="yellow")
        if invariant.skipped:
            console.line(f"             nobody to ask for: {', '.join(invariant.skipped)}", style="yellow")
    for sentence in report.left_out:
        console.line(f"not looked at (--since): {sentence}", style="yellow")
    for note in report.notes:
        console.line(f"note: {note}", style="yellow")
    broken = sum(not invariant.ok for invariant in report.invariants)
    said = "Every invariant holds." if report.ok else f"{broken} of {len(report.invariants)} are broken."
    console.line(said, style="bold green" if report.ok else "bold red")
