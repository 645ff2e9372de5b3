"""`dlq`: what failed for good, why, and the way back."""

from datetime import datetime
from typing import Final

import msgspec
import rich_click as click

from sagapost_contracts import topology
from sagapost_ops import errors, screen, targets
from sagapost_ops.commands import dlq_discard, dlq_options, dlq_replay, options
from sagapost_ops.dlq import choice, documents, letters, pages, shelf

SCAN: Final = 10_000


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One dead-letter queue; `oldest` is when its oldest letter failed, `top_failure` the fingerprint of most of them."""

    queue: str
    depth: int
    oldest: datetime | None
    top_failure: str | None


_scan = click.option(
    "--scan", type=click.IntRange(1, shelf.AT_MOST), default=SCAN, show_default=True, metavar="N", help="Read at most so many, the oldest."
)


@click.group(
    cls=click.RichGroup,
    help="""See which messages failed for good and why; send them again, or discard them.

    A message that no retry could help lies in the dead-letter queue of the queue it came from. Find the cause, mend it, then
    replay: the message goes back to that queue alone, under its old message id, so that order and payment do nothing twice.
    QUEUE is a work queue's name or that of its dead-letter queue (payment_service_queue, or payment_service_queue.dlq).

    The broker's address comes from SAGAPOST_AMQP_URL, or from the running stack. Replays and discards are recorded in the order
    database (SAGAPOST_ORDER_DATABASE_URL). Looking leaves every letter where it is.

    \b
      ./sagapost dlq list                              # is there any?
      ./sagapost dlq groups                                 # which causes
      ./sagapost dlq show payment_service_queue --limit 1   # one letter
      ./sagapost dlq replay payment_service_queue --all     # a dry run
    """,
)
def command() -> None:
    """Group the six."""


@command.command(
    name="list",
    help="""List every dead-letter queue: how many letters, the oldest, the cause of most. Empty ones too.

    Letters that somebody holds at this moment (a replay under way) are not counted.

    \b
    ./sagapost dlq list
    ./sagapost dlq list --json | jq -r '.[] | select(.depth > 0) | .queue'
    """,
)
@_scan
@options.port_offset
@options.as_json
def show_list(*, scan: int, port_offset: int, as_json: bool) -> None:
    """Look at all and print."""
    url = _broker(port_offset)
    lines: list[tuple[str, int, letters.Letter | None, letters.Group | None]] = []
    for queue in topology.WORK_QUEUES:
        depth, found = shelf.look(url, queue, scan)
        name = topology.dead_letter_queue(queue)
        lines.append((name, depth, next(iter(found), None), next(iter(letters.groups(name, found)), None)))
    if as_json:
        screen.json([_line(*line) for line in lines])
        return
    pages.show_list(screen.out(), lines)
    if any(depth for _, depth, _, _ in lines):
        screen.out().spaced("The causes: ./sagapost dlq groups")


def _line(queue: str, depth: int, oldest: letters.Letter | None, top: letters.Group | None) -> Line:
    return Line(
        queue=queue, depth=depth, oldest=None if oldest is None else oldest.failed_at, top_failure=None if top is None else top.fingerprint
    )


@command.command(
    name="groups",
    help="""Group dead letters by cause: the exception and the function of ours it came from.

    Each with its number, the shortest of its messages, when it was seen first and last, and how often one of its letters was
    replayed at most. What the services cannot read at all is grouped by what is wrong with it. Exit code 3 when there is none.

    \b
    ./sagapost dlq groups
    ./sagapost dlq groups payment_service_queue --json | jq '.[0]'
    """,
)
@click.argument("queue", required=False)
@_scan
@options.port_offset
@options.as_json
def show_groups(*, queue: str | None, scan: int, port_offset: int, as_json: bool) -> None:
    """Look, group, print."""
    queues = topology.WORK_QUEUES if queue is None else (letters.work_queue(queue),)
    url = _broker(port_offset)
    found: list[letters.Group] = []
    for one in queues:
        depth, held = shelf.look(url, one, scan)
        found += letters.groups(topology.dead_letter_queue(one), held)
        if depth > len(held):
            screen.err().line(f"{topology.dead_letter_queue(one)}: the oldest {len(held):,} of {depth:,} letters; see --scan")
    if as_json:
        screen.json(found)
    else:
        pages.show_groups(screen.out(), found)
    if not found:
        raise errors.NothingMatchedError("there are no dead letters")


@command.command(
    name="show",
    help="""Show dead letters whole: properties, headers, body. They may name customers.

    One letter by --id, or the oldest --limit that fit. What a terminal would obey is shown as an escape (\\x1b).

    \b
    ./sagapost dlq show payment_service_queue --limit 1
    ./sagapost dlq show payment_service_queue \\
      --id 0193b1c2-7d4e-7a10-9f0e-5f2f6c1d8a11
    """,
)
@click.argument("queue")
@click.option("--id", "ids", multiple=True, metavar="ID", help="This letter; can be given again.")
@click.option("--group", metavar="FINGERPRINT", help="Only letters of this cause.")
@click.option("--limit", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="The oldest N.")
@_scan
@options.port_offset
@options.as_json
def show_letters(*, queue: str, ids: tuple[str, ...], group: str | None, limit: int, scan: int, port_offset: int, as_json: bool) -> None:
    """Look and print."""
    wanted = choice.Choice(ids=ids, group=group, limit=max(limit, len(ids)))
    name, found = _found(queue, wanted, scan, port_offset)
    if as_json:
        screen.json([documents.document(name, letter) for letter in found])
        return
    for letter in found:
        pages.show_letter(screen.out(), letter)


@command.command(
    name="export",
    help="""Write dead letters to a new file, one JSON document a line; they stay in their queue.

    Properties, headers and the body: as text, or in base64 when it is none. Only you may read the file, for it may name customers.

    \b
    ./sagapost dlq export payment_service_queue --out letters.jsonl
    ./sagapost dlq export payment_service_queue --out corrupt.jsonl \\
      --group UndecodableError@envelope.py:decode
    """,
)
@click.argument("queue")
@click.option("--out", required=True, metavar="FILE", help="A file that is not there yet.")
@click.option("--id", "ids", multiple=True, metavar="ID", help="This letter; can be given again.")
@click.option("--group", metavar="FINGERPRINT", help="Only letters of this cause.")
@click.option("--since", callback=dlq_options.moment, metavar="T", help="Failed then or later: 2h, 30m, or 2026-11-22T10:30:00Z (UTC).")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="The oldest N.")
@options.port_offset
@options.as_json
def export(
    *,
    queue: str,
    out: str,
    ids: tuple[str, ...],
    group: str | None,
    since: datetime | None,
    limit: int | None,
    port_offset: int,
    as_json: bool,
) -> None:
    """Look and write."""
    wanted = choice.Choice(ids=ids, group=group, since=since, limit=limit)
    name, found = _found(queue, wanted, shelf.AT_MOST, port_offset)
    number = documents.export(out, name, found)
    if as_json:
        screen.json({"queue": name, "exported": number, "out": out})
    else:
        screen.out().line(f"{name}: {pages.letters_of(number)} written to {out}")


def _found(queue: str, wanted: choice.Choice, scan: int, port_offset: int) -> tuple[str, tuple[letters.Letter, ...]]:
    work = letters.work_queue(queue)
    _, held = shelf.look(_broker(port_offset), work, scan)
    found = choice.for_discard(held, wanted).chosen
    if not found:
        raise errors.NothingMatchedError(f"no dead letter of {work} matches; see: ./sagapost dlq groups")
    return topology.dead_letter_queue(work), found


def _broker(port_offset: int) -> str:
    return targets.need(targets.find(port_offset), "amqp_url")


command.add_command(dlq_replay.replay_command)
command.add_command(dlq_discard.discard_command)
