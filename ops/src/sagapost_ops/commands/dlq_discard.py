"""`dlq discard`: takes dead letters out for good."""

from datetime import datetime

import rich_click as click

from sagapost_contracts import topology
from sagapost_ops import database, errors, screen, targets
from sagapost_ops.commands import dlq_options, options
from sagapost_ops.dlq import choice, discard, letters, pages, run, shelf


@click.command(
    cls=click.RichCommand,
    name="discard",
    help="""Take dead letters out for good: what they asked for never happens.

    Without --yes it only shows what would go. Who, why and each message id are recorded in the order database; the letters
    themselves are gone unless --out keeps them in a file, which is written before any of them goes. Choose by --id, --group or
    --all; --event-type, --order, --since, --until and --limit narrow that. Also takes letters that no service can read.

    A saga that waits for a discarded message does not end by itself: see ./sagapost saga list --stuck.

    \b
    ./sagapost dlq discard payment_service_queue \\
      --group UndecodableError@envelope.py:decode
    ./sagapost dlq discard payment_service_queue \\
      --id 0193b1c2-7d4e-7a10-9f0e-5f2f6c1d8a11 \\
      --out kept.jsonl --yes --reason "a test's"
    """,
)
@click.argument("queue")
@dlq_options.choosing
@click.option("--out", metavar="FILE", help="Keep them in this new file, one JSON document a line.")
@dlq_options.acting
@options.port_offset
@options.as_json
def discard_command(
    *,
    queue: str,
    ids: tuple[str, ...],
    group: str | None,
    take_all: bool,
    event_type: str | None,
    order_id: int | None,
    since: datetime | None,
    until: datetime | None,
    limit: int | None,
    out: str | None,
    reason: str | None,
    actor: str,
    yes: bool,
    port_offset: int,
    as_json: bool,
) -> None:
    """Look; with --yes, discard."""
    wanted = dlq_options.chosen(
        ids=ids, group=group, event_type=event_type, order_id=order_id, since=since, until=until, limit=limit, take_all=take_all
    )
    dlq_options.check_reason(reason, yes=yes)
    work = letters.work_queue(queue)
    found = targets.find(port_offset)
    url = targets.need(found, "amqp_url")
    if not yes:
        _dry(url, work, wanted, as_json=as_json)
        return
    request = run.Request(kind="discard", queue=work, wanted=wanted, actor=actor, reason=str(reason))
    done = _really(url, targets.need(found, "order_database_url"), request, out, as_json=as_json)
    if as_json:
        screen.json(done)
    if not done.matched:
        raise errors.NothingMatchedError(f"no dead letter of {work} matches; see: ./sagapost dlq groups")
    if not as_json:
        pages.show_discarded(screen.out(), done)


def _dry(url: str, work: str, wanted: choice.Choice, *, as_json: bool) -> None:
    found = choice.for_discard(shelf.look(url, work, shelf.AT_MOST)[1], wanted)
    name = topology.dead_letter_queue(work)
    if as_json:
        screen.json(discard.planned(name, found))
    elif found.chosen:
        pages.show_choice(screen.out(), name, letters.groups(name, found.chosen), "discard")
        screen.out().spaced('Nothing was discarded. To discard: the same call with --yes --reason "…"')
    if not found.chosen:
        raise errors.NothingMatchedError(f"no dead letter of {work} matches; see: ./sagapost dlq groups")


def _really(url: str, database_url: str, request: run.Request, out: str | None, *, as_json: bool) -> discard.Result:
    console = screen.err()
    with (
        database.opened(database_url, "sagapost-dlq", writing=True) as conn,
        run.recorded(conn, request) as recorded,
        console.bars(hidden=as_json) as add_bar,
    ):
        bar = add_bar("discard", None)
        if not as_json:
            pages.show_broken_off(console, recorded.before)

        def on_chosen(found: choice.Sorted) -> None:
            bar.update(total=len(found.chosen))

        return discard.perform(url, recorded, request, out=out, on_chosen=on_chosen, on_letters=bar.advance)
