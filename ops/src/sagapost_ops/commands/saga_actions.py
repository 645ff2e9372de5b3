"""What an operator can do about a saga: retry, compensate, waive-notify, mark-refunded; with a reason, on the version that was seen."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec
import rich_click as click

from sagapost_ops import client, errors, screen
from sagapost_ops.commands import options
from sagapost_ops.saga import advice, calls, resources, words

F = TypeVar("F", bound=Callable[..., Any])
_REASON_MAX: Final = 500
_REFERENCE_MAX: Final = 100


def _name(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if not calls.is_name(value):
        raise click.BadParameter(f"{value!r} is neither an order's number nor a saga's id", ctx, param)
    return value


which = click.argument("name", metavar="ORDER_OR_SAGA", callback=_name)


def _acts(function: F) -> F:
    """Add what every action takes."""
    version = click.option(
        "--expect-version",
        type=click.IntRange(1),
        metavar="N",
        help="Only if the saga still has this version, as `show` gave it; otherwise the version it has now.",
    )
    reason = click.option("--reason", metavar="TEXT", help=f"Why, in at most {_REASON_MAX} characters. Needed; the history keeps it.")
    return which(reason(version(options.port_offset(options.as_json(function)))))


@click.command(
    cls=click.RichCommand,
    name="retry",
    help="""Have the saga tried again at once, with all its attempts.

    Waiting for the payment: payment is asked again. Waiting for the receipt, or parked for it: the mail is asked for again. Being
    cancelled, or parked for the refund: payment is asked again to give the money back. Neither a charge nor a refund can happen
    twice by it.

    Exit code 1 when the saga is done or has moved meanwhile.

    \b
    ./sagapost saga retry 1042 --reason "mail server is back"
    ./sagapost saga retry 1042 --reason "again" --expect-version 9
    """,
)
@_acts
def retry(*, name: str, reason: str | None, expect_version: int | None, port_offset: int, as_json: bool) -> None:
    """Ask for another try."""
    _act("retry", name, _body(reason), expect_version, port_offset, as_json=as_json)


@click.command(
    cls=click.RichCommand,
    name="compensate",
    help="""Give an order up: it is cancelled, what was captured goes back, and the customer is told.

    Also of an order that is finished, however long ago: then only with --yes, because its payment is refunded at once. There is
    no way back.

    \b
    ./sagapost saga compensate 1042 --reason "wrong address"
    ./sagapost saga compensate 1042 --reason "goods came back" --yes
    """,
)
@_acts
@click.option("--yes", is_flag=True, help="Also when the order is finished: its payment is refunded.")
def compensate(*, name: str, reason: str | None, expect_version: int | None, yes: bool, port_offset: int, as_json: bool) -> None:
    """Ask for the refund."""
    _act("compensate", name, _body(reason), expect_version, port_offset, as_json=as_json, allowed=_unfinished if not yes else None)


def _unfinished(saga: resources.Saga) -> None:
    """Refuse a finished order.

    Raises:
        UnfitError: it is finished.

    """
    if saga.state == "notified":
        kept = f"{saga.captured - saga.refunded} {saga.currency}"
        raise errors.UnfitError(f"order {saga.order_id} is finished, and this refunds {kept}; call again with --yes if that is meant")


@click.command(
    cls=click.RichCommand,
    name="waive-notify",
    help="""Do without the receipt: a paid order that waits for it, or is parked for it, is done.

    \b
    ./sagapost saga waive-notify 1042 --reason "sent the receipt by post"
    """,
)
@_acts
def waive_notify(*, name: str, reason: str | None, expect_version: int | None, port_offset: int, as_json: bool) -> None:
    """Finish it."""
    _act("waive-notify", name, _body(reason), expect_version, port_offset, as_json=as_json)


@click.command(
    cls=click.RichCommand,
    name="mark-refunded",
    help="""Say that the customer has the money back by another way than the provider's refund.

    For an order that is being cancelled and whose refund does not go through. Nothing is asked of the provider: make sure that the
    money went back, and that the provider's own refund cannot still go through, and give the proof as --reference. `verify` counts
    it as given back by hand.

    \b
    ./sagapost saga mark-refunded 1042 \\
      --reason "account closed" --reference T-17
    """,
)
@_acts
@click.option("--reference", metavar="TEXT", help=f"The proof, in at most {_REFERENCE_MAX} characters. Needed; the history keeps it.")
def mark_refunded(
    *, name: str, reason: str | None, reference: str | None, expect_version: int | None, port_offset: int, as_json: bool
) -> None:
    """Finish it."""
    if not (reference or "").strip():
        raise click.UsageError("say how the money went back, with --reference TEXT: a transfer's number, for instance")
    if reference and len(reference) > _REFERENCE_MAX:
        raise click.UsageError(f"keep the reference to {_REFERENCE_MAX} characters")
    _act("mark-refunded", name, _body(reason) | {"reference": (reference or "").strip()}, expect_version, port_offset, as_json=as_json)


def _body(reason: str | None) -> dict[str, str]:
    said = (reason or "").strip()
    if not said:
        raise click.UsageError("say why, with --reason TEXT: the saga's history keeps it for whoever looks next")
    if len(said) > _REASON_MAX:
        raise click.UsageError(f"keep the reason to {_REASON_MAX} characters")
    return {"reason": said}


def _act(
    action: str,
    name: str,
    body: dict[str, str],
    version: int | None,
    port_offset: int,
    *,
    as_json: bool,
    allowed: Callable[[resources.Saga], None] | None = None,
) -> None:
    """Look, act on what was seen if `allowed` does not refuse it, and say what came of it."""
    with client.Client(calls.gateway_url(port_offset)) as gateway:
        before = calls.decoded(calls.read(gateway, calls.find(gateway, name)), resources.Saga)
        if allowed is not None:
            allowed(before)
        document = calls.act(gateway, before.saga_id, action, before.version if version is None else version, body)
    if as_json:
        screen.json(msgspec.Raw(document))
        return
    after = calls.decoded(document, resources.Saga)
    console = screen.out()
    moved = f"{before.state} → {after.state}" if after.state != before.state else f"stays {after.state}"
    console.line(screen.Styled(f"Order {after.order_id}", "bold"), f": {moved} ({words.state(after.state)}), version {after.version}.")
    if not after.done:
        option = advice.option(port_offset)
        console.line(f"Follow it with: ./sagapost saga show {after.order_id} --watch{option}", style="dim")


COMMANDS: Final = (retry, compensate, waive_notify, mark_refunded)
