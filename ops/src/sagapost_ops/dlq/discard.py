"""Takes dead letters out for good, exported first when a file is given; it must not print."""

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from sagapost_ops.dlq import choice, documents, letters, queries, shelf
from sagapost_ops.dlq import run as runs

BATCH: Final = 100


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What a discard would do or has done."""

    run_id: str | None
    queue: str
    matched: int
    discarded: int
    exported_to: str | None
    dry_run: bool
    would_discard: int = 0


def perform(
    url: str,
    run: runs.Run,
    request: runs.Request,
    *,
    out: str | None,
    on_chosen: Callable[[choice.Sorted], None],
    on_letters: Callable[[int], None],
) -> Result:
    """Discard what is meant; a letter is in the record, and in the file if there is one, before it goes.

    Raises:
        UnfitError: the file cannot be written; nothing was discarded.

    """
    with shelf.opened(url) as link, shelf.Shelf(link, request.queue) as held:
        found = choice.for_discard(held.letters, request.wanted)
        queries.matched(run.conn, run.id, found.matched)
        on_chosen(found)
        if out is not None and found.chosen:
            documents.export(out, held.queue, found.chosen)
        for at in range(0, len(found.chosen), BATCH):
            part = found.chosen[at : at + BATCH]
            _discard(run, held, at + 1, part)
            on_letters(len(part))
    return Result(
        run_id=str(run.id),
        queue=held.queue,
        matched=found.matched,
        discarded=len(found.chosen),
        exported_to=out if found.chosen else None,
        dry_run=False,
    )


def planned(queue: str, found: choice.Sorted) -> Result:
    """Say what a discard would do."""
    return Result(
        run_id=None, queue=queue, matched=found.matched, discarded=0, exported_to=None, dry_run=True, would_discard=len(found.chosen)
    )


def _discard(run: runs.Run, held: shelf.Shelf, first: int, part: Sequence[letters.Letter]) -> None:
    queries.intend(run.conn, run.id, first, part)
    for letter in part:
        held.ack(letter)
    held.flush()
    queries.became(run.conn, run.id, range(first, first + len(part)), "discarded")
