"""`dlq replay`: sends dead letters to the queue they came from."""

import contextlib
import re
from datetime import datetime
from typing import Final

import rich_click as click

from sagapost_contracts import topology
from sagapost_ops import database, errors, screen, targets
from sagapost_ops.commands import dlq_options, options
from sagapost_ops.dlq import choice, letters, pages, replay, run, shelf

_NAME: Final = "sagapost-dlq"
_RATE: Final = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)/(s|min|h)", re.ASCII)
_UNITS_S: Final = {"s": 1, "min": 60, "h": 3600}
_SHARE: Final = re.compile(r"(\d{1,3}(?:\.\d{1,3})?)%", re.ASCII)
_CANARY_SHARE: Final = 0.2


def _rate(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    read = _RATE.fullmatch(value)
    if read is None or not float(read[1]):
        raise click.BadParameter(f"{value!r} is no rate like 10/s, 30/min or 100/h", ctx, param)
    return float(read[1]) / _UNITS_S[read[2]]


def _share(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    read = _SHARE.fullmatch(value)
    if read is None or float(read[1]) > 100:
        raise click.BadParameter(f"{value!r} is no share like 20%", ctx, param)
    return float(read[1]) / 100


def _canary(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...]:
    if value is None:
        return ()
    if not re.fullmatch(r"[1-9]\d{0,5}(,[1-9]\d{0,5}){0,9}", value, re.ASCII):
        raise click.BadParameter(f"{value!r} is no list of steps like 1,5,20", ctx, param)
    return tuple(int(size) for size in value.split(","))


@click.command(
    cls=click.RichCommand,
    name="replay",
    help="""Send dead letters again to the queue they came from, and to no other subscriber.

    Without --yes it only shows what would move. Mend the cause first: what fails again comes back here. Choose by --id, --group
    or --all; --event-type, --order, --since, --until and --limit narrow that. Letters that arrive after the start are not
    touched, and those that do not match keep their place. Each message keeps its id and is acknowledged only when the broker has
    stored the copy, so that nothing is lost if this command is killed: call it again. Order and payment ignore what they have
    processed; the email service has no database and may, after a kill, send one mail twice.

    With --canary 1,5,20 it sends one, waits until that is processed or back, then 5, then 20, then the rest, and stops when the
    share of --stop-on-fail (20% if you say nothing) failed again. The wait ends with the whole retry ladder for order and
    payment, and after 30 s for email; --settle says otherwise. Without --canary, --stop-on-fail looks after every 20.

    One run on a queue at a time, 25 minutes and 50,000 letters at most; a second is refused and told who is at it. Who, why and
    each message id are recorded in the order database. Exit code 1 when it stopped, 3 when there was nothing to replay.

    \b
    ./sagapost dlq replay payment_service_queue --all
    ./sagapost dlq replay payment_service_queue --all \\
      --canary 1,5,20 --rate 10/s --yes --reason "provider is back"
    ./sagapost dlq replay email_service_queue --since 2h \\
      --group SmtpError@sender.py:send --yes --reason "mail server is back"
    """,
)
@click.argument("queue")
@dlq_options.choosing
@click.option("--rate", "rate_per_s", callback=_rate, metavar="RATE", help="At most so many: 10/s, 30/min, 100/h.")
@click.option("--canary", callback=_canary, metavar="STEPS", help="Sizes of the first steps: 1,5,20.")
@click.option(
    "--stop-on-fail", "stop_share", callback=_share, metavar="SHARE", help="Stop when this share of the replayed failed again: 20%."
)
@click.option(
    "--settle", "settle_s", type=options.FloatRange(0, 1200), metavar="S", help="Seconds to wait for the outcome of a step at most."
)
@click.option("--max-replays", type=click.IntRange(1), default=3, show_default=True, metavar="N", help="Leave what was replayed so often.")
@click.option("--dry-run", is_flag=True, help="Only show what would move, also with --yes.")
@dlq_options.acting
@options.port_offset
@options.as_json
def replay_command(
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
    rate_per_s: float | None,
    canary: tuple[int, ...],
    stop_share: float | None,
    settle_s: float | None,
    max_replays: int,
    dry_run: bool,
    reason: str | None,
    actor: str,
    yes: bool,
    port_offset: int,
    as_json: bool,
) -> None:
    """Look; with --yes, replay."""
    wanted = dlq_options.chosen(
        ids=ids, group=group, event_type=event_type, order_id=order_id, since=since, until=until, limit=limit, take_all=take_all
    )
    dlq_options.check_reason(reason, yes=yes and not dry_run)
    work = letters.work_queue(queue)
    found = targets.find(port_offset)
    if not yes or dry_run:
        _dry(targets.need(found, "amqp_url"), work, wanted, max_replays, as_json=as_json)
        return
    share = _CANARY_SHARE if canary and stop_share is None else stop_share
    manner = replay.Manner(canary=canary, stop_share=share, rate_per_s=rate_per_s, settle_s=settle_s, max_replays=max_replays)
    request = run.Request(kind="replay", queue=work, wanted=wanted, actor=actor, reason=str(reason))
    done = _really(found, request, manner, as_json=as_json)
    if as_json:
        screen.json(done)
    _check_any(work, done, max_replays)
    if not as_json:
        pages.show_left(screen.out(), done.over_max_replays, done.unreadable, max_replays)
        pages.show_replayed(screen.out(), done)
    if done.stopped:
        raise errors.FailedError(f"the replay stopped: {done.stopped_why}; {done.not_reached} of the chosen letters were not replayed")


def _dry(url: str, work: str, wanted: choice.Choice, max_replays: int, *, as_json: bool) -> None:
    found = choice.for_replay(shelf.look(url, work, shelf.AT_MOST)[1], wanted, max_replays)
    name = topology.dead_letter_queue(work)
    done = replay.planned(name, found)
    if as_json:
        screen.json(done)
    _check_any(work, done, max_replays)
    if as_json:
        return
    pages.show_choice(screen.out(), name, letters.groups(name, found.chosen), f"send to {work}")
    pages.show_left(screen.out(), found.over_max, found.unreadable, max_replays)
    screen.out().spaced('Nothing was moved. To replay: the same call with --yes --reason "…"')


def _check_any(work: str, done: replay.Result, max_replays: int) -> None:
    if not done.matched:
        raise errors.NothingMatchedError(f"no dead letter of {work} matches; see: ./sagapost dlq groups")
    if not done.would_replay and not done.replayed and not done.stopped:
        raise errors.NothingMatchedError(
            f"none of {pages.letters_of(done.matched)} is replayed: {done.over_max_replays} were replayed {max_replays} times or more "
            f"(--max-replays), {done.unreadable} cannot be read by any service (dlq export, dlq discard)"
        )


def _really(found: targets.Targets, request: run.Request, manner: replay.Manner, *, as_json: bool) -> replay.Result:
    url = targets.need(found, "amqp_url")
    console = screen.err()
    with contextlib.ExitStack() as stack:
        conn = stack.enter_context(database.opened(targets.need(found, "order_database_url"), _NAME, writing=True))
        inbox = conn if request.queue == topology.ORDER_QUEUE else None
        if request.queue == topology.PAYMENT_QUEUE and found.payment_database_url is not None:
            inbox = stack.enter_context(database.opened(found.payment_database_url, _NAME))
        recorded = stack.enter_context(run.recorded(conn, request))
        if not as_json:
            pages.show_broken_off(console, recorded.before)
        bar = stack.enter_context(console.bars(hidden=as_json))(request.queue, None)

        def on_chosen(chosen: choice.Sorted) -> None:
            bar.update(total=len(chosen.chosen))

        try:
            return replay.perform(url, recorded, request, manner, inbox=inbox, on_chosen=on_chosen, on_letter=bar.advance)
        except KeyboardInterrupt:
            screen.err().line(f"stopped after {bar.completed:,.0f} letters; the others are still dead letters; call again")
            raise
