"""`demo`: makes one checkout through the gateway and shows what happens to it, until the mail is there."""

import time
from collections.abc import Iterator
from datetime import datetime
from typing import Final
from urllib.parse import urlsplit

import msgspec
import rich_click as click
from rich.console import Console
from rich.text import Text

from sagapost_ops import client, errors, evidence, screen, targets
from sagapost_ops.commands import options

DEADLINE_S: Final = 60.0
_MAIL_S: Final = 20.0
_POLL_S: Final = 0.1
_BODY: Final = {
    "user_id": 1,
    "user_email": "demo@example.com",
    "items": [{"product_id": 1, "quantity": 1, "price": "1299.99"}, {"product_id": 2, "quantity": 2, "price": "49.99"}],
}


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """What a demo does and how it must end."""

    payment_method: str
    state: str
    mail: str
    says: str


_STORIES: Final = {
    "happy": Story(payment_method="pm_card_ok", state="notified", mail="receipt", says="The customer pays and gets a receipt."),
    "decline": Story(
        payment_method="pm_card_declined",
        state="compensated",
        mail="cancellation",
        says="The card is declined: the order is cancelled, nothing is charged, the customer is told.",
    ),
}


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the saga's history as the gateway shows it."""

    seq: int
    to: str
    event: str
    at: datetime


class Saga(msgspec.Struct, frozen=True, kw_only=True):
    """What the demo reads of a saga."""

    saga_id: str
    order_id: int
    state: str
    done: bool
    captured: str
    refunded: str
    currency: str
    history: tuple[Step, ...]
    trace_id: str | None = None


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What the demo reads of the answer to the checkout."""

    id: int
    saga_id: str
    total_amount: str
    currency: str
    created_at: datetime


class MailSeen(msgspec.Struct, frozen=True, kw_only=True):
    """The mail that came of it."""

    template: str
    message_id: str
    text: str


class Demo(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON of a demo."""

    ok: bool
    story: str
    answer_ms: float
    saga: Saga
    mails: tuple[MailSeen, ...]


@click.command(
    help="""Watch one checkout: the answer, each step of its saga, and the mail at the end.

    Needs a running stack. Exit code 1 when it does not end as the story says.

    \b
    ./sagapost demo              # the same as: demo happy
    ./sagapost demo decline      # a declined card: cancelled, nothing charged
    """
)
@click.argument("story", type=click.Choice(tuple(_STORIES)), default="happy")
@options.port_offset
@options.as_json
def command(*, story: str, port_offset: int, as_json: bool) -> None:
    """Tell the story."""
    where = targets.find(port_offset)
    told = _STORIES[story]
    console = Console(quiet=True) if as_json else screen.out()
    console.print(f"[bold]{told.says}[/]\n")
    with client.Client(targets.need(where, "gateway_url")) as gateway:
        order, answer_ms = _check_out(gateway, told, console)
        saga = _watch(gateway, order, console)
    mails = _mails(where, saga, told.mail)
    ok = saga.state == told.state and [mail.template for mail in mails] == [told.mail]
    if as_json:
        screen.json(Demo(ok=ok, story=story, answer_ms=answer_ms, saga=saga, mails=mails))
    else:
        _show_end(console, saga, mails, where)
    if not ok:
        raise errors.FailedError(
            f"expected the saga to end {told.state} with one {told.mail} mail; it is {saga.state} with {len(mails)} mails (./sagapost logs)"
        )


def _check_out(gateway: client.Client, told: Story, console: Console) -> tuple[Order, float]:
    began = time.perf_counter()
    answer = gateway.call("POST", "/api/checkout", _BODY | {"payment_method": told.payment_method})
    answer_ms = round((time.perf_counter() - began) * 1000, 1)
    if answer.status != 202:
        raise errors.FailedError(f"the checkout was answered with {answer.status}: {answer.body.decode(errors='replace')}")
    order = msgspec.json.decode(answer.body, type=Order)
    console.print(f"  POST /api/checkout  →  202 in {answer_ms:.0f} ms: order {order.id}, {order.total_amount} {order.currency}")
    return order, answer_ms


def _watch(gateway: client.Client, order: Order, console: Console) -> Saga:
    """Print each step when it happens; give the saga as it is when it is done or the time is over."""
    deadline = time.monotonic() + DEADLINE_S
    shown = 0
    with console.status("waiting for the next step"):
        while True:
            saga = gateway.get(f"/api/sagas/{order.saga_id}", Saga)
            for step in (step for step in saga.history if step.seq > shown):
                shown = step.seq
                after_s = (step.at - order.created_at).total_seconds()
                console.print(Text.assemble((f"  {after_s:6.2f} s  ", "dim"), f"{step.event:18} ", (step.to, "bold")))
            if saga.done or time.monotonic() > deadline:
                return saga
            time.sleep(_POLL_S)


def _mails(where: targets.Targets, saga: Saga, wanted: str) -> tuple[MailSeen, ...]:
    """Wait for the mail, which may come after the saga's end, and read all there are of this saga."""
    deadline = time.monotonic() + _MAIL_S
    while True:
        found = tuple(_read(where, saga))
        if any(mail.template == wanted for mail in found) or time.monotonic() > deadline:
            return found
        time.sleep(_POLL_S)


def _read(where: targets.Targets, saga: Saga) -> Iterator[MailSeen]:
    with client.Client(targets.need(where, "mailbox_url")) as mailbox:
        page = mailbox.get("/api/v1/messages?limit=200", evidence.Mails)
        for mail in page.messages:
            if mail.saga_id == saga.saga_id:
                text = mailbox.get(f"/api/v1/message/{mail.id}", evidence.MailText).text
                yield MailSeen(template=mail.template, message_id=mail.message_id, text=text)


def _show_end(console: Console, saga: Saga, mails: tuple[MailSeen, ...], where: targets.Targets) -> None:
    console.print(f"\n  charged {saga.captured}, refunded {saga.refunded} {saga.currency}; trace {saga.trace_id}\n")
    for mail in mails:
        for line in mail.text.strip().splitlines():
            console.print(Text.assemble(("  │ ", "cyan"), line), soft_wrap=True)
        port = urlsplit(where.mailbox_url or "").port
        console.print(f"\n  All mails: http://localhost:{port}", soft_wrap=True)
