"""`erase`: replaces a customer's address wherever the system keeps it; amounts stay."""

import sys
from typing import Final

import msgspec
import rich_click as click

from sagapost_contracts import topology
from sagapost_ops import erasing, errors, screen, targets
from sagapost_ops.commands import options
from sagapost_ops.dlq import shelf

_OUTSIDE: Final = (
    "what has left the system: the mails themselves, the payment provider's books, the logs of the mail server",
    "backups and the write-ahead log of the databases: erase again after a restore",
    "messages in the broker's queues, which are of orders under way",
)


class Report(erasing.Erased, frozen=True, kw_only=True):
    """What was done, and what was not reached."""

    not_reached: tuple[str, ...]


@click.command(
    help="""Replace a customer's e-mail address in both databases; every amount, every state and the history stay.

    Without --apply it only counts. The address goes from orders, payments, stored answers to idempotency keys and messages in
    the outboxes, and becomes erased-…@erased.invalid, the same in all rows of one call. Case does not matter. Orders that are
    under way keep it, because their mail is still to be sent: exit code 1 names them; call again when they have ended. A
    stored answer to an Idempotency-Key is then no longer the first one byte for byte.

    `--email -` reads the address from standard input, so that it stands in no list of processes.

    \b
      ./sagapost erase --email customer@example.com
      ./sagapost erase --email customer@example.com --apply
    """,
)
@click.option("--email", required=True, metavar="ADDRESS", help="The address, or - to read it from standard input.")
@click.option("--apply", "is_real", is_flag=True, help="Do it. There is no way back.")
@options.port_offset
@options.as_json
def command(*, email: str, is_real: bool, port_offset: int, as_json: bool) -> None:
    """Count; with --apply, replace."""
    address = sys.stdin.readline().strip() if email == "-" else email.strip()
    if "@" not in address or erasing.is_erased(address):
        raise click.UsageError("--email needs one e-mail address that has not been erased")
    found = targets.find(port_offset)
    urls = (targets.need(found, "order_database_url"), targets.need(found, "payment_database_url"))
    erased = erasing.perform(*urls, address, apply=is_real)
    report = Report(
        **msgspec.structs.asdict(erased), not_reached=(*_typed(erased.typed), *_dead_letters(found.amqp_url, address), *_OUTSIDE)
    )
    if as_json:
        screen.json(report)
    else:
        _show(report)
    if report.under_way:
        numbers = ", ".join(map(str, report.under_way[:10])) + (", …" if len(report.under_way) > 10 else "")
        raise errors.FailedError(
            f"{len(report.under_way)} of its orders are under way and keep it: {numbers}; call again when they have ended"
        )
    if not any(count.rows for count in report.tables):
        raise errors.NothingMatchedError("neither database holds this address")


def _typed(typed: erasing.Typed) -> tuple[str, ...]:
    said = []
    if typed.history:
        said.append(f"{typed.history} rows of saga_history, where an operator typed it as a reason: the history is append-only")
    if typed.runs:
        said.append(f"{typed.runs} rows of dlq_runs, where an operator typed it as a reason")
    return tuple(said)


def _dead_letters(amqp_url: str | None, address: str) -> tuple[str, ...]:
    if amqp_url is None:
        return ("dead letters: set SAGAPOST_AMQP_URL and call again to have them looked at",)
    wanted = address.lower().encode()
    counts = {
        queue: sum(wanted in letter.delivery.body.lower() for letter in shelf.look(amqp_url, queue, shelf.AT_MOST)[1])
        for queue in topology.WORK_QUEUES
    }
    return tuple(
        f"{count} dead letters of {queue}: replay them, or see ./sagapost dlq discard {queue}" for queue, count in counts.items() if count
    )


def _show(report: Report) -> None:
    out = screen.out()
    rows = [(count.database, count.table, str(count.rows)) for count in report.tables]
    out.table(("database", "table", "rows"), rows)
    out.spaced(f"Replaced by {report.tombstone}." if report.applied else "Nothing was changed. To replace it: the same call with --apply")
    out.spaced("Not reached:")
    for sentence in report.not_reached:
        out.line(f"  {sentence}")
