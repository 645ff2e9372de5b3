"""`restored`: brings both databases together again after one of them went back in time."""

import contextlib
from collections.abc import Generator
from typing import Final

import msgspec
import rich_click as click

from sagapost_contracts import topology
from sagapost_ops import database, errors, evidence, screen, targets
from sagapost_ops.commands import dlq_options, options
from sagapost_ops.outbox import queries as outbox_queries
from sagapost_ops.restoring import audit, copying, order_side, pages, payment_side

_NAME: Final = "sagapost-restored"
_PATIENCE_S: Final = 3600  # every order may be looked at


class OrderReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was found after the order database went back, and what was done; `done` None: a dry run."""

    database: str = "order"
    found: order_side.Found
    done: order_side.Done | None = None


class PaymentReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was found after the payment database went back, and what was done; `done` None: a dry run."""

    database: str = "payment"
    found: payment_side.Found
    done: payment_side.Done | None = None


@click.command(
    help=f"""Bring both databases together again after one of them went back in time: a restore, a recovery to a point in time, or the
    promotion of a standby that was behind.

    --order: the order database went back. New orders get numbers above every one that payment knows, with a gap of {order_side.GAP:,}.
    Messages that it lost are published again. Orders that do not know how their payment stands are listed, also when its message is gone:
    payment is asked again, and an order whose money went back is cancelled. Payments whose order is gone are listed; with --refund each
    gets its order back as a cancelled one, so that its money goes back once, the customer is told, and the history says who did it and why.

    --payment: the payment database went back. It hears again of each cancellation and each order that it lost; what it took before, it
    finds at the provider.

    Without --yes it only shows what it would do. It may be called again: what is done is not found any more. If the database was
    restored into another cluster, call ./sagapost outbox repair first.

    \b
    ./sagapost restored --order
    ./sagapost restored --order --refund --yes --reason "restored to 10:41"
    ./sagapost restored --payment --yes --reason "standby promoted"
    """
)
@click.option("--order", is_flag=True, help="The order database went back.")
@click.option("--payment", is_flag=True, help="The payment database went back.")
@click.option("--refund", is_flag=True, help="With --order: give the money of lost orders back.")
@dlq_options.acting
@options.port_offset
@options.as_json
def command(
    *, order: bool, payment: bool, refund: bool, yes: bool, actor: str, reason: str | None, port_offset: int, as_json: bool
) -> None:
    """Look; with --yes, do what is needed."""
    if order == payment:
        raise click.UsageError("say which one database went back: --order or --payment")
    if refund and not order:
        raise click.UsageError("--refund goes with --order")
    dlq_options.check_reason(reason, yes=yes)
    where = targets.find(port_offset)
    console = screen.quiet() if as_json else screen.out()
    with _both(where, writing=yes) as (order_conn, payment_conn):
        _refuse_foreign_cursors(order_conn, "order")
        _refuse_foreign_cursors(payment_conn, "payment")
        report: OrderReport | PaymentReport
        if order:
            report = _order(console, where, order_conn, payment_conn, refund=refund, yes=yes, actor=actor, reason=reason or "")
        else:
            report = _payment(console, order_conn, payment_conn, yes=yes)
        if yes:
            audit.write(order_conn, command=f"restored --{report.database}", actor=actor, reason=reason or "", detail=report.done)
    if as_json:
        screen.json(report)
    elif not yes:
        console.spaced('Nothing was changed. To do it: the same call with --yes --reason "…"')


def _order(
    console: screen.Screen,
    where: targets.Targets,
    order: database.Connection,
    payment: database.Connection,
    *,
    refund: bool,
    yes: bool,
    actor: str,
    reason: str,
) -> OrderReport:
    found = order_side.look(order, payment, waiting=_waiting(where))
    pages.show_order(console, found, refund=refund)
    if not yes:
        return OrderReport(found=found)
    with _progress(console, len(found.orphans) * refund + len(found.messages) + len(found.unaware)) as advance:
        done = order_side.perform(order, payment, found, refund=refund, actor=actor, reason=reason, advance=advance)
    pages.show_order_done(console, found, done)
    return OrderReport(found=found, done=done)


def _payment(console: screen.Screen, order: database.Connection, payment: database.Connection, *, yes: bool) -> PaymentReport:
    found = payment_side.look(order, payment)
    pages.show_payment(console, found)
    if not yes:
        return PaymentReport(found=found)
    with _progress(console, len(found.cancelled) + len(found.forgotten) + len(found.messages)) as advance:
        done = payment_side.perform(order, found, advance=advance)
    pages.show_payment_done(console, done)
    return PaymentReport(found=found, done=done)


def _waiting(where: targets.Targets) -> int:
    """Count the messages on their way to payment: each may tell of an order that neither database knows."""
    if where.amqp_url is None:
        return 0
    queues = evidence.depths(where.amqp_url)
    return sum(queue.ready for name, queue in queues.items() if name.startswith(topology.PAYMENT_QUEUE))


def _refuse_foreign_cursors(conn: database.Connection, name: str) -> None:
    if any(not cursor.is_ours for cursor in outbox_queries.cursors(conn)):
        raise errors.FailedError(
            f"the outbox of {name} was written in another PostgreSQL cluster; stop its relay and call first: "
            f"./sagapost outbox repair --database {name} --yes"
        )


@contextlib.contextmanager
def _both(where: targets.Targets, *, writing: bool) -> Generator[tuple[database.Connection, database.Connection]]:
    order_url, payment_url = (targets.need(where, f"{name}_database_url") for name in targets.DATABASES)
    with (
        database.opened(order_url, _NAME, writing=writing, patience_s=_PATIENCE_S) as order,
        database.opened(payment_url, _NAME, writing=writing, patience_s=_PATIENCE_S) as payment,
    ):
        yield order, payment


@contextlib.contextmanager
def _progress(console: screen.Screen, total: int) -> Generator[copying.Advance]:
    with screen.err().bars(hidden=console.is_quiet) as add_bar:
        yield add_bar("restored", total).advance
