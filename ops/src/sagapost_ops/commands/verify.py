"""`verify`: proves over all the books that no order was lost, doubled or forgotten."""

import rich_click as click
from rich.text import Text

from sagapost_ops import screen, targets, verify
from sagapost_ops.commands import options
from sagapost_ops.invariants.outcome import Expectations


@click.command(
    help="""Compare the books: both databases, the broker, the provider's ledger and the mailbox.

    Every order has one saga, every saga has ended, the money that moved is that of the live orders, one receipt each,
    histories without gaps, nothing unpublished, nothing left in a queue. Exit code 0 only when all of it holds.
    What an operator did by hand counts as he wrote it down: a receipt that was waived, money that was given back elsewhere.

    What was published leaves the outbox after a while. What only those rows could tell of an older order is not judged, and counted.

    It changes nothing. What is still under way looks wrong, so it looks again until --settle is over. Addresses come from
    SAGAPOST_ORDER_DATABASE_URL, SAGAPOST_PAYMENT_DATABASE_URL, SAGAPOST_AMQP_URL, SAGAPOST_MANAGEMENT_URL,
    SAGAPOST_PROVIDER_URL and SAGAPOST_MAILBOX_URL, or, when none of them is set, from the running stack.

    \b
    ./sagapost verify
    ./sagapost verify --json | jq '.invariants[] | select(.ok | not)'
    ./sagapost verify --allow-duplicate-mails 1   # a process was killed
    """
)
@click.option(
    "--settle", "settle_s", type=click.FloatRange(0, 3600), default=10, show_default=True, metavar="S", help="Seconds to wait for rest."
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
@options.port_offset
@options.as_json
def command(
    *,
    settle_s: float,
    expect_dead: int,
    expect_parked: int | None,
    expect_parked_rows: int,
    allow_duplicate_mails: int,
    port_offset: int,
    as_json: bool,
) -> None:
    """Evaluate, print, and fail when something does not hold."""
    where = targets.find(port_offset)
    expected = Expectations(dead=expect_dead, parked=expect_parked, parked_rows=expect_parked_rows, duplicate_mails=allow_duplicate_mails)
    report = verify.run(where, expected, settle_s=settle_s)
    if as_json:
        screen.json(report)
    else:
        _show(report)
    if not report.ok:
        raise SystemExit(1)


def _show(report: verify.Report) -> None:
    console = screen.out()
    for invariant in report.invariants:
        sign = ("  holds  ", "green") if invariant.ok else ("  BROKEN ", "bold red")
        console.print(Text.assemble(f"{invariant.id}", sign, invariant.name, (f"  ({invariant.checked} checked)", "dim")), soft_wrap=True)
        for sentence in invariant.violations:
            console.print(Text(f"             {sentence}"), soft_wrap=True)
        if invariant.unjudged:
            console.print(Text(f"             not judged: {invariant.unjudged}, older than the outbox", style="yellow"), soft_wrap=True)
        if invariant.skipped:
            console.print(Text(f"             nobody to ask for: {', '.join(invariant.skipped)}", style="yellow"), soft_wrap=True)
    for note in report.notes:
        console.print(Text(f"note: {note}", style="yellow"), soft_wrap=True)
    broken = sum(not invariant.ok for invariant in report.invariants)
    console.print(
        "[bold green]Every invariant holds.[/]" if report.ok else f"[bold red]{broken} of {len(report.invariants)} are broken.[/]"
    )
